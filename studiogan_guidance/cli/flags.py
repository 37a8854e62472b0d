"""Flags of the command line that commands have in common."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from studiogan_guidance.cli import completers, parsing
from studiogan_guidance.cli.group import FILES, OUTPUT, SPEED, Option
from studiogan_guidance.cli.group import MEASURED as MEASURING
from studiogan_guidance.cli.group import SAMPLED as SAMPLING
from studiogan_guidance.config import METRICS, RunConfig
from studiogan_guidance.errors import UserError

DEFAULTS = {field.name: field.default for field in dataclasses.fields(RunConfig)}
Decorator = Callable[[Any], Any]


class Argument(Option):
    """An option that is an argument of the function behind the command, and has its default there."""

    def __init__(self, *flags: Any, module: str, **more: Any) -> None:
        super().__init__(*flags, **more)
        self.module = module

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None:
            return None

        # The command and the function have the same name.
        module = importlib.import_module(f"studiogan_guidance.{self.module}")
        function = getattr(module, str(ctx.command.name))
        default = inspect.signature(function).parameters[str(self.name)].default

        flag, text = record
        return flag, text if default is None else f"{text} [{_shown(default)}]"


def _shown(default: Any) -> str:
    """A default as it would stand on the command line."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, Mapping):
        return " ".join(f"{key}={low:g}:{high:g}" for key, (low, high) in default.items())
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


option = functools.partial(click.option, cls=Option)


def setting(
    flag: str, metavar: str | None, text: str, default: str | None = None, key: str = "", **more: Any
) -> Decorator:
    """A flag that is a key of RunConfig. Its help ends with the default there, or with what stands in for None."""
    key = key or flag.partition("/")[0].strip("-").replace("-", "_")
    shown = default or _shown(DEFAULTS[key])
    return option(flag, key, metavar=metavar, default=None, help=f"{text} [{shown}]", **more)


def option_pairs(of: str, **more: Any) -> Decorator:
    """``-o KEY=VALUE`` of a sampler or a stage."""
    text = f"Option of {of}; repeatable."
    return option(
        "-o", "--option", "options", multiple=True, callback=parsing.key_values, metavar="KEY=VALUE", help=text, **more
    )


# Options that commands have in common.
AS_JSON = option("--json", "as_json", is_flag=True, help="Print JSON on stdout.", section=OUTPUT)
STUDIOGAN = setting(
    "--studiogan",
    "DIR",
    "Checkout of PyTorch-StudioGAN.",
    "looked for, see doctor",
    section=FILES,
    shell_complete=completers.folders,
)
NUM = option(
    "--num",
    "--num-images",  # torchrun takes --num for one of its own
    "num",
    type=int,
    metavar="N",
    help="Number of images. [as many as there are real ones; sample: 64]",
    section=SAMPLING,
)

CLASSES = setting(
    "--classes",
    "0-9,12,dog",
    "Indices, ranges and names of class folders, used in turn; a number is always an index, see list --classes.",
    "random labels of all classes",
    callback=parsing.WORDS,
    section=SAMPLING,
)
CONFIG = option(
    "-c",
    "--config",
    metavar="FILE",
    help="Our YAML, or the host's as it is. [the built-in GAN]",
    section=FILES,
    shell_complete=completers.configurations,
)
DATA = option(
    "--data",
    metavar="DIR",
    help="Real images: train/<class>/*, valid/<class>/*.",
    section=FILES,
    shell_complete=completers.folders,
)
CKPT = option(
    "--ckpt",
    metavar="DIR",
    help="Folder with the host's model=G*-weights-step*.pth, or one file; or hf://OWNER/REPO[@REVISION]/FOLDER.",
    section=FILES,
    shell_complete=completers.files,
)
DEVICE = setting(
    "--device",
    "NAME",
    "auto, cpu, cuda or cuda:N.",
    section=SPEED,
    shell_complete=completers.words("auto", "cpu", "cuda"),
)
BATCH_SIZE = setting(
    "--batch-size",
    "B",
    "Images per forward pass.",
    "64; on a GPU up to 256, as memory allows",
    type=int,
    section=SPEED,
)

BASIC = (
    CONFIG,
    CKPT,
    setting(
        "--which",
        "WORDS",
        "Best or current, ema or raw weights.",
        "best and ema first",
        callback=parsing.WORDS,
        section=FILES,
        shell_complete=completers.words("best", "current", "ema", "raw"),
    ),
    DATA,
    STUDIOGAN,
    setting("--out", "DIR", "Folder for results.", section=OUTPUT, shell_complete=completers.folders),
    DEVICE,
    setting("--seed", "K", "Seed of the first image; image i has seed K + i.", type=int, section=SAMPLING),
    NUM,
    BATCH_SIZE,
    AS_JSON,
)
REAL = (CONFIG, DATA, STUDIOGAN, DEVICE, BATCH_SIZE, AS_JSON)
SHARED = (
    *BASIC,
    CLASSES,
    setting(
        "--labels",
        "HOW",
        "Draw labels uniform, or as often as in the data.",
        section=SAMPLING,
        shell_complete=completers.words("uniform", "data"),
    ),
    setting(
        "--noise-mode",
        "MODE",
        "StyleGAN2's layer noise: random or const.",
        section=SAMPLING,
        shell_complete=completers.words("random", "const"),
    ),
    setting(
        "--restat",
        "N",
        "Redo batch-norm statistics on N x 64 samples; 0: do not.",
        type=int,
        section=SAMPLING,
    ),
    setting(
        "--held-out",
        "DIR",
        "Real images whose valid split calibrates the discriminator.",
        "--data",
        section=FILES,
        shell_complete=completers.folders,
    ),
)
REFERENCE = functools.partial(
    setting,
    "--reference",
    "SPLIT",
    "Real split: train, valid or test.",
    section=FILES,
    shell_complete=completers.words("train", "valid", "test"),
)
SAMPLED = (
    option(
        "--scales",
        callback=parsing.NUMBERS,
        metavar="1,1.5,2",
        help="Guidance scales, a column of the grid each.",
        section=SAMPLING,
    ),
    option(
        "--seeds",
        callback=parsing.seeds,
        metavar="3,17,40-45",
        help="Seed of each image, in place of --seed and --num.",
        section=SAMPLING,
    ),
    option("--png", is_flag=True, help="Also write every image as DIR/images/<seed>-<class>.png.", section=OUTPUT),
    option(
        "--reconstruct",
        is_flag=True,
        help="Stage glead: real images beside what G makes of D's features of them. [--num: 16]",
        section=SAMPLING,
    ),
    REFERENCE("--reconstruct: valid if it is there"),
)
WITHOUT_RECONSTRUCTION = (  # settings of SHARED, CHOSEN and SAMPLED
    "sampler",
    "options",
    "scales",
    "seeds",
    "png",
    "labels",
    "noise_mode",
    "restat",
    "held_out",
)
CHOSEN = (
    setting(
        "--sampler",
        "NAME",
        "Overrides the sampler of the YAML; see 'list'.",
        section=SAMPLING,
        shell_complete=completers.of("SAMPLERS"),
    ),
    option_pairs("the sampler", section=SAMPLING, shell_complete=completers.options_of_sampler),
)
BENCH = (
    REFERENCE("train; built-in: test"),
    setting(
        "--backbone",
        "SPEC",
        "host:NAME, torchscript:PATH, dinov2:PATH, efficientnet, builtin or random.",
        "Inception; built-in: builtin",
        section=MEASURING,
    ),
    setting(
        "--inception",
        "FILE",
        "Weights of the host's Inception; see doctor.",
        "torch's hub",
        section=MEASURING,
        shell_complete=completers.files,
    ),
    setting(
        "--resizer",
        "NAME",
        "The host's resizer: legacy, clean or friendly.",
        section=MEASURING,
        shell_complete=completers.words("legacy", "clean", "friendly"),
    ),
    setting(
        "--resize-on",
        "WHERE",
        "auto (on the feature network's device), cpu or device; values are the same.",
        section=SPEED,
        shell_complete=completers.words("auto", "cpu", "device"),
    ),
    setting("--pre-resizer", "NAME", "How real images get the configured size.", section=MEASURING),
    setting("--channels-last/--no-channels-last", None, "Memory format of the feature network.", section=SPEED),
    setting("--compile/--no-compile", None, "Run the feature network through torch.compile.", section=SPEED),
)
JUDGED = (
    setting(
        "--judge",
        "SPEC",
        "FID in a second feature space, as --backbone, or discriminator; repeatable.",
        "none",
        key="judges",
        multiple=True,
        section=MEASURING,
    ),
)
MEASURED = (
    setting(
        "--metrics",
        "WORDS",
        f"What to measure, of {','.join(METRICS)}.",
        callback=parsing.WORDS,
        section=MEASURING,
        shell_complete=completers.metrics,
    ),
    *BENCH,
    *JUDGED,
    setting(
        "--classifier",
        "SPEC",
        "torchscript:PATH, whose logits give class accuracy.",
        "the feature network's",
        section=MEASURING,
    ),
    setting(
        "--reference-stats",
        "FILE",
        "Statistics in place of real images; see 'stats'.",
        "none",
        section=MEASURING,
        shell_complete=completers.files,
    ),
    setting(
        "--fast/--no-fast",
        None,
        "Lower precision where FID stays within 0.05, CUDA graphs; for GPUs.",
        section=SPEED,
    ),
)
COMPARED = (setting("--compare-plain/--no-compare-plain", None, "Also measure plain sampling.", section=MEASURING),)


def shared(*groups: tuple[Decorator, ...]) -> Decorator:
    """Add the options that commands have in common."""

    def add(function: Any) -> Any:
        for group in reversed(groups):
            for add_option in reversed(group):
                function = add_option(function)
        return function

    return add


def argument(command: str, *flags: str, **more: Any) -> Decorator:
    """A flag that is an argument of the function of the same name in ``evaluation``."""
    return click.option(*flags, cls=Argument, module=f"evaluation.{command}", default=None, **more)


def take(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Take ``keys`` out of ``settings``; those that stand on the command line are returned."""
    values = {key: settings.pop(key) for key in keys}
    return {key: value for key, value in values.items() if value not in (None, (), {})}


def refuse(settings: Mapping[str, Any], flag: str, keys: Sequence[str]) -> None:
    """Raise UserError if one of ``keys`` stands on the command line, where ``flag`` leaves it without a meaning."""
    given = [key for key in keys if settings[key] not in (None, (), {}, False)]
    if not given:
        return
    *names, last = ["-o" if key == "options" else f"--{key.replace('_', '-')}" for key in given]
    if names:
        raise UserError(f"with {flag}, {', '.join(names)} and {last} have no meaning: drop them or {flag}")
    raise UserError(f"with {flag}, {last} has no meaning: drop it or {flag}")
