"""The command line: parse, call one function, print what it returns. Results go to stdout, progress to stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from studiogan_guidance import __version__
from studiogan_guidance.errors import UserError


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


BASIC = (
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
    click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout."),
)
SHARED = (
    *BASIC,
    click.option("--classes", callback=_numbers(int, "whole numbers"), metavar="3,5", help="Labels, in turn. [drawn]"),
    click.option("--labels", metavar="HOW", help="Draw labels uniform or as in the data. [uniform]"),
    click.option("--noise-mode", metavar="MODE", help="StyleGAN2's layer noise: random or const. [random]"),
    click.option("--restat", type=int, metavar="N", help="Redo batch-norm statistics on N x 64 samples. [0: no]"),
    click.option("--held-out", metavar="DIR", help="Real images (valid split) to calibrate D on. [--data]"),
)
CHOSEN = (
    click.option("--sampler", metavar="NAME", help="Overrides the sampler of the YAML; see 'list'."),
    click.option(
        "-o", "--option", "options", multiple=True, metavar="KEY=VALUE", help="Option of the sampler; repeatable."
    ),
)
BENCH = (
    click.option("--reference", metavar="SPLIT", help="Real split: train, valid or test. [train; built-in: test]"),
    click.option("--backbone", metavar="SPEC", help="host:NAME, torchscript:PATH, dinov2:PATH or builtin. [Inception]"),
    click.option("--resizer", metavar="NAME", help="The host's resizer: legacy, clean or friendly. [legacy]"),
    click.option("--resize-on", metavar="WHERE", help="cpu (the host's numbers, bit for bit) or device. [cpu]"),
    click.option("--pre-resizer", metavar="NAME", help="How real images get the configured size. [wo_resize]"),
    click.option("--channels-last/--no-channels-last", default=None, help="Memory format of the backbone. [off]"),
    click.option("--compile/--no-compile", default=None, help="Run the backbone through torch.compile. [off]"),
)
MEASURED = (
    click.option(
        "--metrics", callback=_words, metavar="WORDS", help="Of fid,is,prdc,kid,fid_infinity,per_class. [fid,is,prdc]"
    ),
    *BENCH,
)
COMPARED = (click.option("--compare-plain/--no-compare-plain", default=None, help="Also measure plain sampling. [on]"),)


def shared(*groups: tuple[Callable[[Any], Any], ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options that commands have in common."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function

    return add


def _load(config: str | None, options: tuple[str, ...], **overrides: Any) -> Any:
    from studiogan_guidance import config as configuration

    return configuration.load(config, {**overrides, "options": _options(options)})


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="studiogan-guidance")
def main() -> None:
    """Guided sampling for pretrained conditional GANs, on the built-in GAN or on PyTorch-StudioGAN checkpoints."""


@main.command()
@shared(SHARED, CHOSEN)
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
    from studiogan_guidance.evaluation import results
    from studiogan_guidance.evaluation.sample import sample as run

    result = run(cfg, scales, png)
    lines = "\n".join(f"{key}: {value}" for key, value in result.items())
    click.echo(json.dumps(results.plain_data(result)) if as_json else lines)


@main.command("eval")
@shared(SHARED, CHOSEN, MEASURED, COMPARED)
def evaluate(config: str | None, options: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Measure a sampler, and plain sampling beside it; adds a line for each to DIR/results.jsonl.

    Metric prdc is precision, recall, density and coverage; per_class adds FID and prdc within each class.

    \b
    studiogan-guidance eval
    studiogan-guidance eval --reference valid -o scale=1.5
    studiogan-guidance eval -c CIFAR10/BigGAN-gandance.yaml --ckpt DIR --data DIR -o scale=1.4
    torchrun --nproc-per-node 8 -m studiogan_guidance eval -c my.yaml --ckpt DIR --data DIR
    """
    cfg = _load(config, options, **given)
    from studiogan_guidance.evaluation import evaluation, results, tables

    rows = evaluation.evaluate(cfg)
    if not rows:
        return  # a process of torchrun above rank 0
    click.echo(json.dumps(results.plain_data({"rows": rows})) if as_json else tables.table(rows))


def _pairs(text: tuple[str, ...], flag: str, form: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in text:
        key, equals, values = item.partition("=")
        parts = values.replace(":", ",") if flag == "--over" else values
        if not key or not equals or key in found or not all(parts.split(",")):
            raise UserError(f"{flag} takes {form}, each option once, found '{item}'")
        found[key] = parts.split(",")
    return found


@main.command()
@shared(SHARED, CHOSEN, MEASURED, COMPARED)
@click.option("--grid", multiple=True, metavar="KEY=V1,V2,...", help="Values of an option of the sampler; repeatable.")
def sweep(config: str | None, options: tuple[str, ...], as_json: bool, grid: tuple[str, ...], **given: Any) -> None:
    """Measure every point of a grid on the same seeds: results.jsonl, table.csv, and pictures of the trade-off.

    A sweep that was stopped goes on where it was when the command is given again; processes may share a folder.

    \b
    studiogan-guidance sweep --grid scale=0.8,0.9,1,1.1,1.2 --out runs/sweep
    studiogan-guidance sweep -c my.yaml --ckpt DIR --data DIR --grid scale=1,1.2,1.4 --grid joint=class_mean,class_shift
    """
    cfg = _load(config, options, **given)
    from studiogan_guidance.evaluation import results, tables
    from studiogan_guidance.evaluation.sweep import sweep as run

    if rows := run(cfg, _pairs(grid, "--grid", "an option and its values such as scale=1,1.2")):
        click.echo(json.dumps(results.plain_data({"rows": rows})) if as_json else tables.table(rows))


@main.command()
@shared(SHARED, CHOSEN, MEASURED)
@click.option("--over", multiple=True, metavar="KEY=LOW:HIGH", help="Range of an option; repeatable. [scale=0.8:2]")
@click.option("--objective", default="fid", show_default=True, help="fid, fid_infinity, kid or class_fid.")
@click.option("--min-recall", type=float, metavar="R", help="Only candidates of at least this recall. [no bound]")
@click.option("--budget", type=int, default=16, show_default=True, help="Evaluations in all.")
@click.option("--repeats", type=int, default=3, show_default=True, help="Fresh seed ranges to compare with plain on.")
@click.option("--per-layer", type=int, default=0, metavar="N", help="Then the share of N groups of w rows in it. [0]")
def tune(
    config: str | None,
    options: tuple[str, ...],
    as_json: bool,
    over: tuple[str, ...],
    objective: str,
    min_recall: float | None,
    budget: int,
    repeats: int,
    per_layer: int,
    **given: Any,
) -> None:
    """Choose the scale on validation data; DIR/tuned.yaml is a configuration that 'eval' takes.

    \b
    studiogan-guidance tune --out runs/tuned
    studiogan-guidance tune -c my.yaml --ckpt DIR --data DIR --over scale=0.9:1.8 --min-recall 0.5
    studiogan-guidance tune -c my.yaml --ckpt DIR --data DIR --over scale=0.9:1.8 --over psi=0.5:1
    studiogan-guidance eval -c runs/tuned/tuned.yaml --reference test
    """
    ranges: dict[str, tuple[float, float]] = {}
    for key, ends in _pairs(over or ("scale=0.8:2",), "--over", "an option and its range such as scale=0.8:2").items():
        try:
            low, high = map(float, ends)
        except ValueError:
            raise UserError(f"--over takes a range such as scale=0.8:2, found '{key}={':'.join(ends)}'") from None
        ranges[key] = low, high
    cfg = _load(config, options, **given)
    from studiogan_guidance.evaluation import results, tables
    from studiogan_guidance.evaluation.tune import tune as run

    result = run(cfg, ranges, objective, min_recall, budget, repeats, per_layer)
    if result and as_json:
        click.echo(json.dumps(results.plain_data(result)))
    elif result:
        click.echo(tables.tuned(result))


def _listed(item: str) -> dict[str, str]:
    name, colon, text = item.partition(":")
    pairs = [part.partition("=") for part in text.split(",")] if colon else []
    if not name or not all(key and equals for key, equals, _ in pairs):
        raise UserError(f"--with takes a sampler such as plain or gandance:scale=1.1,joint=class_mean, found '{item}'")
    return {**{key: value for key, _, value in pairs}, "name": name}


@main.command()
@shared(SHARED, MEASURED)
@click.option(
    "--with", "others", multiple=True, metavar="NAME[:KEY=VALUE,...]", help="A sampler; repeatable. [every one]"
)
@click.option("--seeds", type=int, default=1, show_default=True, help="Seed ranges to measure each one on.")
@click.argument("rows", nargs=-1, metavar="[RESULTS]...")
def compare(
    config: str | None, as_json: bool, others: tuple[str, ...], seeds: int, rows: tuple[str, ...], **given: Any
) -> None:
    """Measure samplers on the same seeds and labels, plain first: results.jsonl, compare.{txt,csv,json,png} in DIR.

    Without --with and a list `compare:` in the YAML: every sampler at its defaults. With RESULTS, files results.jsonl
    or folders that hold one, nothing is measured: their rows are compared, if their protocols are the same. A run that
    was stopped goes on where it was when the command is given again; processes may share a folder.

    \b
    studiogan-guidance compare --with gandance:scale=1.1 --with "ddls:steps=50,step=0.05,base=gandance,base.scale=1.1"
    studiogan-guidance compare -c my.yaml --ckpt DIR --data DIR --seeds 3 --out runs/compare
    studiogan-guidance compare runs/a runs/b/results.jsonl
    """
    if rows and (others or seeds != 1):
        raise UserError("RESULTS are only read, so that --with and --seeds have no meaning: drop them, or the paths")
    cfg = _load(config, (), compare=tuple(_listed(item) for item in others), **given)
    from studiogan_guidance.evaluation import compare as module
    from studiogan_guidance.evaluation import results, tables

    result = module.reread(cfg, [Path(path) for path in rows]) if rows else module.compare(cfg, seeds)
    if result:
        click.echo(json.dumps(results.plain_data(result)) if as_json else tables.compared(result))


@main.command()
@shared(BASIC, BENCH)
@click.option("--stage", default="joint", show_default=True, help="What to train; see 'list'.")
@click.option("-o", "--option", "options", multiple=True, metavar="KEY=VALUE", help="Option of the stage; repeatable.")
@click.option("--log", "logs", callback=_words, metavar="WORDS", help="Of tensorboard,wandb. [DIR/joint.jsonl only]")
def train(
    config: str | None, options: tuple[str, ...], as_json: bool, stage: str, logs: tuple[str, ...], **given: Any
) -> None:
    """Train one stage further on a frozen generator; for joint, DIR/joint.safetensors is what 'eval' takes.

    A run that was stopped goes on exactly where it was when the command is given again.

    
    studiogan-guidance train --out runs/joint
    studiogan-guidance train -c my.yaml --ckpt DIR --data DIR --out runs/joint -o adversarial=1 -o latent=0
    studiogan-guidance eval -o joint=learned -o joint_ckpt=runs/joint/joint.safetensors
    torchrun --nproc-per-node 8 -m -- studiogan_guidance train -c my.yaml --ckpt DIR --data DIR
    """
    for word in logs:
        if word not in ("tensorboard", "wandb"):
            raise UserError(f"--log takes tensorboard and wandb, found '{word}'")
    cfg = _load(config, (), **given)
    from studiogan_guidance.evaluation import results
    from studiogan_guidance.training import train as run

    result = run(cfg, stage, _options(options), logs)
    if result:
        lines = "\n".join(f"{key}: {value}" for key, value in result.items())
        click.echo(json.dumps(results.plain_data(result)) if as_json else lines)


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

    from studiogan_guidance.evaluation.source import device_of
    from studiogan_guidance.host.locate import locate
    from studiogan_guidance.plugin.hooks import start

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
    from studiogan_guidance.training import STAGES

    kinds: dict[str, Any] = {"samplers": SAMPLERS, "joints": JOINTS, "views": VIEWS, "stages": STAGES}
    listed = {
        kind: [{"name": e.name, "description": e.description, "paper": e.paper} for e in entries]
        for kind, entries in kinds.items()
    }
    for kind in ("samplers", "stages"):
        for row, entry in zip(listed[kind], kinds[kind]):
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
