"""The command line: parse, call one function, print what it returns. Results go to stdout, progress to stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from studiogan_guidance import __version__
from studiogan_guidance.common import UserError


class Mistake(click.ClickException):
    """A user's mistake: one line on stderr, exit code 2, no traceback."""

    exit_code = 2


class Group(click.Group):
    """Turns every UserError into a Mistake."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise Mistake(" ".join(str(error).split())) from error


def _options(text: tuple[str, ...]) -> dict[str, str]:
    pairs = [item.partition("=") for item in text]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise UserError(f"-o takes key=value, found '{key}'")
    return {key: value for key, _, value in pairs}


def _numbers(
    kind: Callable[[str], Any], what: str
) -> Callable[[click.Context, click.Parameter, str | None], tuple[Any, ...]]:
    def parse(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[Any, ...]:
        try:
            return tuple(kind(word) for word in value.split(",")) if value else ()
        except ValueError:
            raise UserError(f"{param.opts[-1]} takes {what} separated by commas, found '{value}'") from None

    return parse


def _words(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",")) if value else ()


SHARED = (
    click.option(
        "-c", "--config", metavar="FILE", help="Our YAML, or a YAML of the host as it is. None: the built-in GAN."
    ),
    click.option("--ckpt", metavar="DIR", help="Folder with the host's model=G*-weights-step*.pth."),
    click.option("--which", callback=_words, metavar="WORDS", help="best or current, ema or raw. [best,ema first]"),
    click.option("--data", metavar="DIR", help="Real images: train/<class>/*, valid/<class>/*."),
    click.option("--studiogan", metavar="DIR", help="Checkout of PyTorch-StudioGAN. [looked for, see doctor]"),
    click.option("--out", metavar="DIR", help="Folder for results. [runs]"),
    click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N. [auto]"),
    click.option("--seed", type=int, metavar="K", help="Seed of the first image; image i has seed K + i. [0]"),
    click.option(
        "--num",
        "--num-images",  # torchrun takes --num for one of its own
        "num",
        type=int,
        metavar="N",
        help="Number of images. [eval: as many as real ones; sample: 64]",
    ),
    click.option("--batch-size", type=int, metavar="B", help="Images per forward pass. [64]"),
    click.option("--classes", callback=_numbers(int, "whole numbers"), metavar="3,5", help="Labels, in turn. [drawn]"),
    click.option("--labels", metavar="HOW", help="Draw labels uniform or as in the data. [uniform]"),
    click.option("--noise-mode", metavar="MODE", help="StyleGAN2's layer noise: random or const. [random]"),
    click.option("--restat", type=int, metavar="N", help="Redo batch-norm statistics on N x 64 samples. [0: no]"),
    click.option("--sampler", metavar="NAME", help="Overrides the sampler of the YAML; see 'list'."),
    click.option(
        "-o", "--option", "options", multiple=True, metavar="KEY=VALUE", help="Option of the sampler; repeatable."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout."),
)


def shared(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that ``sample`` and ``eval`` have in common."""
    for option in reversed(SHARED):
        function = option(function)
    return function


def _load(config: str | None, options: tuple[str, ...], **overrides: Any) -> Any:
    from studiogan_guidance import config as configuration

    return configuration.load(config, {**overrides, "options": _options(options)})


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="studiogan-guidance")
def main() -> None:
    """Guided sampling for pretrained conditional GANs, on the built-in GAN or on PyTorch-StudioGAN checkpoints."""


@main.command()
@shared
@click.option(
    "--scales", callback=_numbers(float, "numbers"), metavar="1,1.5,2", help="One column of the grid per scale."
)
@click.option("--png", is_flag=True, help="Also write every image as DIR/images/<seed>-<class>.png.")
def sample(
    config: str | None, options: tuple[str, ...], as_json: bool, scales: tuple[float, ...], png: bool, **given: Any
) -> None:
    """Sample images: DIR/grid.png and DIR/samples.npz (images, labels, seeds).

    \b
    studiogan-guidance sample --classes 3,5 --num 16 -o scale=1.5
    studiogan-guidance sample --num 8 --scales 1,1.5,2,3 --out strip
    studiogan-guidance sample -c CIFAR10/BigGAN-gandance.yaml --ckpt DIR --png
    """
    cfg = _load(config, options, **given)
    from studiogan_guidance.evaluation import report
    from studiogan_guidance.evaluation.runner import sample as run

    result = run(cfg, scales, png)
    lines = "\n".join(f"{key}: {value}" for key, value in result.items())
    click.echo(json.dumps(report.plain_data(result)) if as_json else lines)


@main.command("eval")
@shared
@click.option("--metrics", callback=_words, metavar="fid,is,prdc", help="What to measure. [fid,is,prdc]")
@click.option("--reference", metavar="SPLIT", help="Real split: train, valid or test. [train; built-in: test]")
@click.option("--backbone", metavar="NAME", help="The host's feature network. [InceptionV3_tf]")
@click.option("--resizer", metavar="NAME", help="The host's resizer: legacy, clean or friendly. [legacy]")
@click.option("--pre-resizer", metavar="NAME", help="How real images get the configured size. [wo_resize]")
@click.option("--compare-plain/--no-compare-plain", default=None, help="Also measure plain sampling. [on]")
def evaluate(config: str | None, options: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Measure FID, IS, precision, recall, density and coverage; adds a line a sampler to DIR/results.jsonl.

    \b
    studiogan-guidance eval
    studiogan-guidance eval --reference valid -o scale=1.5
    studiogan-guidance eval -c CIFAR10/BigGAN-gandance.yaml --ckpt DIR --data DIR -o scale=1.4
    torchrun --nproc-per-node 8 -m studiogan_guidance eval -c my.yaml --ckpt DIR --data DIR
    """
    cfg = _load(config, options, **given)
    from studiogan_guidance.evaluation import report, runner

    folder = report.writable(Path(cfg.out))
    report.appendable(folder / "results.jsonl")
    rows = runner.evaluate(cfg)
    if not rows:
        return  # a process of torchrun above rank 0
    report.append(folder / "results.jsonl", rows)
    click.echo(json.dumps(report.plain_data({"rows": rows})) if as_json else report.table(rows))


@main.command(context_settings={"ignore_unknown_options": True})  # they are the host's, also without the --
@click.option("--studiogan", metavar="DIR", help="Checkout of PyTorch-StudioGAN. [looked for, see doctor]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="cpu hides the GPUs.")
@click.option("--processes", type=click.IntRange(1), metavar="N", help="CPU only: processes that -DDP starts. [1]")
@click.option("--script", type=click.Choice(["main", "evaluate"]), default="main", help="Which program of the host.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="-- HOST_ARGUMENTS")
def run(studiogan: str | None, device: str, processes: int | None, script: str, arguments: tuple[str, ...]) -> None:
    """Run PyTorch-StudioGAN itself, unpatched, on today's libraries, with or without a GPU.

    A sampler in its YAML makes all images of its evaluations and analyses; training is untouched.

    \b
    studiogan-guidance run -- -t -cfg my.yaml -data DIR -save DIR -metrics is fid prdc
    studiogan-guidance run -- -cfg my.yaml -ckpt DIR -data DIR -save DIR -metrics fid -v -sf
    studiogan-guidance run --device cpu --processes 2 -- -DDP --backend gloo -cfg my.yaml ...
    """
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if processes:
        os.environ["STUDIOGAN_GUIDANCE_PROCESSES"] = str(processes)
    import torch

    from studiogan_guidance.evaluation.runner import device_of
    from studiogan_guidance.host.hooks import start
    from studiogan_guidance.host.locate import locate

    device_of(device)
    if processes and torch.cuda.is_available():
        raise UserError("--processes is for runs without a GPU, and one is visible: add --device cpu")
    start(locate(studiogan), script, arguments)


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def list_(as_json: bool) -> None:
    """List samplers with their options, joints, views, training stages and configurations, with their papers."""
    from studiogan_guidance.config import packaged
    from studiogan_guidance.latents import VIEWS
    from studiogan_guidance.latents.joint import JOINTS
    from studiogan_guidance.samplers import SAMPLERS
    from studiogan_guidance.training.base import STAGES

    kinds: dict[str, Any] = {"samplers": SAMPLERS, "joints": JOINTS, "views": VIEWS, "stages": STAGES}
    listed = {
        kind: [{"name": e.name, "description": e.description, "paper": e.paper} for e in entries]
        for kind, entries in kinds.items()
    }
    for row, entry in zip(listed["samplers"], SAMPLERS):
        row["options"] = {f.name: f.default for f in entry.target.__dataclass_fields__.values()}
    if as_json:
        click.echo(json.dumps({**listed, "configs": list(packaged())}))
        return
    for kind, found in listed.items():
        click.echo(f"{kind}:" if found else f"{kind}: none")
        for row in found:
            click.echo(f"  {row['name']:<26} {row['description']} [{row['paper']}]")
            if row.get("options"):
                click.echo(
                    f"  {'':<26} options: {', '.join(f'{key}={value}' for key, value in row['options'].items())}"
                )
    click.echo(f"configurations: {', '.join(packaged())}")


@main.command()
@click.option("--studiogan", metavar="DIR", help="Checkout of PyTorch-StudioGAN to look at.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def doctor(studiogan: str | None, as_json: bool) -> None:
    """Check Python, torch, the cache, the built-in GAN, the host and what it needs. Paste the output in bug reports."""
    from dataclasses import asdict

    from studiogan_guidance.doctor import run

    checks = run(studiogan)
    if as_json:
        click.echo(json.dumps({"checks": [asdict(check) for check in checks]}))
    else:
        for check in checks:
            click.echo(
                f"{check.status:<4}  {check.name:<18} {check.found}"
                + (f"\n      fix: {check.fix}" if check.fix else "")
            )
    if any(check.status == "fail" for check in checks):
        raise click.exceptions.Exit(1)


@main.command()
@click.option("--source", metavar="URL_OR_DIR", help="Git repository to clone. [the host's GitHub repository]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def setup(source: str | None, as_json: bool) -> None:
    """Clone PyTorch-StudioGAN at the pinned commit into the cache folder."""
    from studiogan_guidance.host.locate import setup as clone

    checkout = clone(source)
    found = {"path": str(checkout.path), "commit": checkout.commit}
    click.echo(
        json.dumps(found) if as_json else f"PyTorch-StudioGAN {(checkout.commit or '')[:7]} is in {checkout.path}"
    )
