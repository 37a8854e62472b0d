"""Flags of the command line: those that commands have in common, and what their texts are parsed into."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from studiogan_guidance.config import METRICS, RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.options import Spec, convert, dotted, parse_pairs, whole_numbers

MOST_SEEDS = 2**20
DEFAULTS = {field.name: field.default for field in dataclasses.fields(RunConfig)}
Decorator = Callable[[Any], Any]
Callback = Callable[[click.Context, click.Parameter, Any], Any]


def list_of(member: type, what: str) -> Callback:
    """Callback of an option that takes words or numbers separated by commas; ``what`` it takes stands in the error."""
    kind = types.GenericAlias(tuple, (member, ...))

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[Any, ...]:
        if value is None:
            return ()
        try:
            return tuple(convert("", value, kind))
        except UserError:
            raise UserError(f"{param.opts[-1]} takes {what} separated by commas, found '{value}'") from None

    return callback


def seeds(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Callback of ``--seeds``: seeds and ranges of them; the ends are checked before any list is made."""
    if value is None:
        return ()
    from studiogan_guidance.rng import IMAGES

    # The ranges, each within the seeds of images.
    parts = [whole_numbers(word.strip()) for word in value.split(",")]
    ranges = [part for part in parts if part is not None]
    if len(ranges) < len(parts) or any(part[0] < 0 or part[-1] >= IMAGES for part in ranges):
        raise UserError(f"--seeds takes whole numbers from 0 to {IMAGES - 1}, such as 3,40-45, found '{value[:60]}'")

    # All of them.
    count = sum(map(len, ranges))
    if count > MOST_SEEDS:
        raise UserError(f"--seeds has {count} images, which sample keeps in memory: give at most {MOST_SEEDS}")
    return tuple(seed for part in ranges for seed in part)


def specs(ctx: click.Context, param: click.Parameter, items: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    """Callback of ``--with NAME[:KEY=VALUE,...]``: mappings as YAML would have them, with the dots left in."""
    mappings = []
    for item in items:
        try:
            spec = Spec.parse(item)
        except UserError:
            example = "a sampler such as plain or gandance:scale=1.1,joint=class_mean"
            raise UserError(f"{param.opts[-1]} takes {example}, found '{item}'") from None
        mappings.append({"name": spec.name, **dotted(spec.options)})
    return tuple(mappings)


def key_values(ctx: click.Context, param: click.Parameter, items: tuple[str, ...]) -> dict[str, str]:
    """Callback of ``-o KEY=VALUE``."""
    return parse_pairs(items, "-o", "key=value")


def grid(ctx: click.Context, param: click.Parameter, items: tuple[str, ...]) -> dict[str, list[str]]:
    """Callback of ``--grid KEY=VALUE,VALUE``."""
    example = "an option and its values such as scale=1,1.2"
    values = {}
    for key, text in parse_pairs(items, "--grid", example).items():
        values[key] = text.split(",")
        if not all(values[key]):
            raise UserError(f"--grid takes {example}, each option once, found '{key}={text}'")
    return values


def ranges(ctx: click.Context, param: click.Parameter, items: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Callback of ``--over KEY=LOW:HIGH``."""
    example = "a range such as scale=0.8:2"
    bounds: dict[str, tuple[float, float]] = {}
    for key, text in parse_pairs(items, "--over", example).items():
        try:
            low, high = convert(key, text, tuple[float, ...])
        except ValueError:
            raise UserError(f"--over takes {example}, found '{key}={text}'") from None
        bounds[key] = (low, high)
    return bounds


class Argument(click.Option):
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


def setting(
    flag: str, metavar: str | None, text: str, default: str | None = None, key: str = "", **more: Any
) -> Decorator:
    """A flag that is a key of RunConfig. Its help ends with the default there, or with what stands in for None."""
    key = key or flag.partition("/")[0].strip("-").replace("-", "_")
    shown = default or _shown(DEFAULTS[key])
    return click.option(flag, key, metavar=metavar, default=None, help=f"{text} [{shown}]", **more)


def option_pairs(of: str) -> Decorator:
    """``-o KEY=VALUE`` of a sampler or a stage."""
    text = f"Option of {of}; repeatable."
    return click.option("-o", "--option", "options", multiple=True, callback=key_values, metavar="KEY=VALUE", help=text)


# What the texts of options are parsed by.
WORDS = list_of(str, "words")
NUMBERS = list_of(float, "numbers")

# Groups of options that commands have in common.
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
STUDIOGAN = setting("--studiogan", "DIR", "Checkout of PyTorch-StudioGAN.", "looked for, see doctor")
NUM = click.option(
    "--num",
    "--num-images",  # torchrun takes --num for one of its own
    "num",
    type=int,
    metavar="N",
    help="Number of images. [as many as there are real ones; sample: 64]",
)

CLASSES = setting(
    "--classes",
    "0-9,12,dog",
    "Indices, ranges and names of class folders, used in turn; a number is always an index, see list --classes.",
    "random labels of all classes",
    callback=WORDS,
)
CONFIG = click.option("-c", "--config", metavar="FILE", help="Our YAML, or the host's as it is. [the built-in GAN]")
DATA = click.option("--data", metavar="DIR", help="Real images: train/<class>/*, valid/<class>/*.")
DEVICE = setting("--device", "NAME", "auto, cpu, cuda or cuda:N.")
BATCH_SIZE = setting(
    "--batch-size", "B", "Images per forward pass.", "64; on a GPU up to 256, as memory allows", type=int
)

BASIC = (
    CONFIG,
    click.option("--ckpt", metavar="DIR", help="Folder with the host's model=G*-weights-step*.pth, or one file."),
    setting("--which", "WORDS", "Best or current, ema or raw weights.", "best and ema first", callback=WORDS),
    DATA,
    STUDIOGAN,
    setting("--out", "DIR", "Folder for results."),
    DEVICE,
    setting("--seed", "K", "Seed of the first image; image i has seed K + i.", type=int),
    NUM,
    BATCH_SIZE,
    AS_JSON,
)
REAL = (CONFIG, DATA, STUDIOGAN, DEVICE, BATCH_SIZE, AS_JSON)
SHARED = (
    *BASIC,
    CLASSES,
    setting("--labels", "HOW", "Draw labels uniform, or as often as in the data."),
    setting("--noise-mode", "MODE", "StyleGAN2's layer noise: random or const."),
    setting("--restat", "N", "Redo batch-norm statistics on N x 64 samples; 0: do not.", type=int),
    setting("--held-out", "DIR", "Real images whose valid split calibrates the discriminator.", "--data"),
)
SAMPLED = (
    click.option(
        "--scales",
        callback=NUMBERS,
        metavar="1,1.5,2",
        help="Guidance scales, a column of the grid each.",
    ),
    click.option(
        "--seeds",
        callback=seeds,
        metavar="3,17,40-45",
        help="Seed of each image, in place of --seed and --num.",
    ),
    click.option("--png", is_flag=True, help="Also write every image as DIR/images/<seed>-<class>.png."),
    click.option(
        "--reconstruct",
        is_flag=True,
        help="Stage glead: real images beside what G makes of D's features of them. [--num: 16]",
    ),
    setting("--reference", "SPLIT", "Real split: train, valid or test.", "--reconstruct: valid if it is there"),
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
    setting("--sampler", "NAME", "Overrides the sampler of the YAML; see 'list'."),
    option_pairs("the sampler"),
)
BENCH = (
    setting("--reference", "SPLIT", "Real split: train, valid or test.", "train; built-in: test"),
    setting(
        "--backbone",
        "SPEC",
        "host:NAME, torchscript:PATH, dinov2:PATH, builtin or random.",
        "Inception; built-in: builtin",
    ),
    setting("--resizer", "NAME", "The host's resizer: legacy, clean or friendly."),
    setting("--resize-on", "WHERE", "auto (on the feature network's device), cpu or device; values are the same."),
    setting("--pre-resizer", "NAME", "How real images get the configured size."),
    setting("--channels-last/--no-channels-last", None, "Memory format of the feature network."),
    setting("--compile/--no-compile", None, "Run the feature network through torch.compile."),
)
JUDGED = (
    setting(
        "--judge",
        "SPEC",
        "FID in a second feature space, as --backbone, or discriminator; repeatable.",
        "none",
        key="judges",
        multiple=True,
    ),
)
MEASURED = (
    setting("--metrics", "WORDS", f"What to measure, of {','.join(METRICS)}.", callback=WORDS),
    *BENCH,
    *JUDGED,
    setting("--classifier", "SPEC", "torchscript:PATH, whose logits give class accuracy.", "the feature network's"),
    setting("--reference-stats", "FILE", "Statistics in place of real images; see 'stats'.", "none"),
    setting("--fast/--no-fast", None, "Lower precision where FID stays within 0.05, CUDA graphs; for GPUs."),
)
COMPARED = (setting("--compare-plain/--no-compare-plain", None, "Also measure plain sampling."),)


def shared(*groups: tuple[Decorator, ...]) -> Decorator:
    """Add the options that commands have in common."""

    def add(function: Any) -> Any:
        for group in reversed(groups):
            for option in reversed(group):
                function = option(function)
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
