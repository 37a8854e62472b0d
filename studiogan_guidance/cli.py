"""The command line: parse, call one function, print what it returns. Results go to stdout, progress to stderr."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from studiogan_guidance import __version__, flags
from studiogan_guidance.commands import Group
from studiogan_guidance.config import RunConfig
from studiogan_guidance.config import load as load_configuration
from studiogan_guidance.errors import UserError, notice
from studiogan_guidance.flags import (
    AS_JSON,
    BASIC,
    BENCH,
    CHOSEN,
    CLASSES,
    COMPARED,
    CONFIG,
    DATA,
    JUDGED,
    MEASURED,
    REAL,
    SAMPLED,
    SHARED,
    STUDIOGAN,
    argument,
    option_pairs,
    shared,
    take,
)

LOGS = ("tensorboard", "wandb")


def _emit(result: Mapping[str, Any], as_json: bool, text: Callable[[Any], str] | None = None) -> None:
    """Print a result; processes of torchrun above rank 0 have none. Without ``text``, a line for each key."""
    if not result:
        return
    if as_json:
        from studiogan_guidance.evaluation.results import plain_data

        click.echo(json.dumps(plain_data(result)))
        return

    # Names of files may hold bytes that are no text, which terminals refuse.
    lines = text(result) if text else "\n".join(f"{key}: {value}" for key, value in result.items())
    click.echo(lines.encode(errors="backslashreplace").decode())


def _emit_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    from studiogan_guidance.evaluation.tables import table

    _emit({"rows": rows} if rows else {}, as_json, lambda result: table(result["rows"]))


def load(path: str | None, settings: Mapping[str, Any], trained: bool = False) -> RunConfig:
    """The configuration of a command; ``path`` may also be a name inside the host's ``src/configs``.

    A notice says that its stages are not trained here, unless the command is about what they ``trained``.
    """
    if path is not None:
        from studiogan_guidance.host.locate import host_configuration

        path = host_configuration(path, settings.get("studiogan"))
    cfg = load_configuration(path, settings)
    if cfg.stages and not trained:
        from studiogan_guidance.training.stage import STAGES

        names = [STAGES[stage["name"]].name for stage in cfg.stages]
        notice(f"stages ({', '.join(names)}) are trained by 'run' and 'train' only: nothing of them happens here")
    return cfg


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="studiogan-guidance")
def main() -> None:
    """Guided sampling for pretrained conditional GANs, on the built-in GAN or on PyTorch-StudioGAN checkpoints."""


@main.command(short_help="Sample images: a grid to look at, and an archive.")
@shared(SHARED, CHOSEN, SAMPLED)
def sample(config: str | None, as_json: bool, reconstruct: bool, **settings: Any) -> None:
    """Sample images: DIR/grid.png and DIR/samples.npz (images, labels, seeds).

    \b
    studiogan-guidance sample --classes 3,5 --num 16 -o scale=1.5
    studiogan-guidance sample --num 8 --scales 1,1.5,2,3 --out strip
    studiogan-guidance sample --seeds 3,17,40-45 --classes 7 --png
    studiogan-guidance sample -c CIFAR10/BigGAN-gandance.yaml --ckpt DIR --png
    studiogan-guidance sample -c my.yaml --ckpt DIR --data DIR --num 16 --reconstruct

    With --reconstruct, of a checkpoint trained with the stage glead: DIR/reconstructions.png and .npz, real images and
    generated ones beside what the generator makes of the discriminator's features of them, and the losses.
    """
    if reconstruct:
        flags.refuse(settings, "--reconstruct", flags.WITHOUT_RECONSTRUCTION)
    scales, png, seeds = (settings.pop(key) for key in ("scales", "png", "seeds"))
    if reconstruct:
        from studiogan_guidance.training import reconstruct as module

        return _emit(module.reconstruct(load(config, settings, trained=True)), as_json)
    if seeds and (settings["num"] is not None or settings["seed"] is not None):
        raise UserError("--seeds names every image, so --seed and --num have no meaning: drop them, or --seeds")
    cfg = load(config, settings)
    from studiogan_guidance.evaluation.sample import sample as function

    _emit(function(cfg, scales, png, seeds), as_json)


@main.command("eval", short_help="Measure a sampler, and plain sampling, against real images.")
@shared(SHARED, CHOSEN, MEASURED, COMPARED)
def evaluate(config: str | None, as_json: bool, **settings: Any) -> None:
    """Measure a sampler, and plain sampling on the same seeds; adds a line for each to DIR/results.jsonl.

    Metric prdc is precision, recall, density and coverage; per_class adds FID and prdc within each class. Without -c
    the built-in GAN is measured; builtin-gandance.yaml holds the scale that is best for it.

    \b
    studiogan-guidance eval
    studiogan-guidance eval -c builtin-gandance.yaml
    studiogan-guidance eval --reference valid -o scale=1.5
    studiogan-guidance eval -c CIFAR10/BigGAN-gandance.yaml --ckpt DIR --data DIR -o scale=1.4
    torchrun --nproc-per-node 8 -m studiogan_guidance eval -c my.yaml --ckpt DIR --data DIR
    """
    cfg = load(config, settings)
    from studiogan_guidance.evaluation.evaluation import evaluate as function

    _emit_rows(function(cfg), as_json)


@main.command(short_help="Write statistics of real images to a file, for eval.")
@shared(REAL, BENCH)
@CLASSES
@click.option("--out", "path", required=True, metavar="FILE.npz", help="File to write.")
@click.option(
    "--features/--no-features",
    default=True,
    help="Keep features and labels, which prdc, kid and per_class need. [on]",
)
def stats(config: str | None, as_json: bool, path: str, features: bool, **settings: Any) -> None:
    """Write the statistics of real images into a file, which --reference-stats of 'eval' takes in place of them.

    The file holds mu and sigma, as packages for FID read them, and how they were made, which 'eval' compares with its
    own way. No checkpoint is needed.

    \b
    studiogan-guidance stats -c CIFAR10/BigGAN-gandance.yaml --data DIR --out cifar10.npz
    studiogan-guidance eval -c CIFAR10/BigGAN-gandance.yaml --ckpt DIR --reference-stats cifar10.npz
    """
    cfg = load(config, settings)
    from studiogan_guidance.evaluation.reference import write

    _emit(write(cfg, Path(path), features), as_json)


@main.command(short_help="Measure a grid of options; tables and pictures.")
@shared(SHARED, CHOSEN, MEASURED, COMPARED)
@click.option(
    "--grid",
    multiple=True,
    callback=flags.grid,
    metavar="KEY=V1,V2,...",
    help="Values of an option of the sampler; repeatable. [gandance: scale with psi or tau]",
)
def sweep(config: str | None, as_json: bool, grid: dict[str, list[str]], **settings: Any) -> None:
    """Measure every point of a grid on the same seeds: results.jsonl, table.csv, and pictures of the trade-off.

    Give the same command again to resume a sweep that was stopped. Several processes may work on one folder.

    \b
    studiogan-guidance sweep --out runs/sweep
    studiogan-guidance sweep --grid scale=0.8,0.9,1,1.1,1.2 --grid psi=1,1.3 --out runs/sweep
    studiogan-guidance sweep -c my.yaml --ckpt DIR --data DIR --grid scale=1,1.2,1.4 --grid joint=class_mean,class_shift
    """
    cfg = load(config, settings)
    from studiogan_guidance.evaluation.sweep import sweep as function

    _emit_rows(function(cfg, grid or None), as_json)


@main.command(short_help="Choose scale and spread, or other options, on validation data.")
@shared(SHARED, CHOSEN, MEASURED)
@argument(
    "tune",
    "--over",
    multiple=True,
    callback=flags.ranges,
    metavar="KEY=LOW:HIGH",
    help="Range to search; repeatable. [scale=0.8:2 with psi=0.7:1.8, or tau=0.8:1.25 where codes are no w]",
)
@argument("tune", "--objective", metavar="NAME", help="fid, fid_infinity, kid or class_fid.")
@argument("tune", "--min-recall", type=float, metavar="R", help="Prefer candidates of at least this recall. [no bound]")
@argument("tune", "--budget", type=int, metavar="N", help="Evaluations in all.")
@argument(
    "tune", "--repeats", type=int, metavar="N", help="Fresh seed ranges for the comparison with plain; --auto: 4."
)
@argument(
    "tune",
    "--per-layer",
    "groups",
    type=int,
    metavar="N",
    help="After the scale, tune how strongly each of N groups of layers is guided.",
)
@click.option("--auto", is_flag=True, help="Choose among several kinds of settings, and plain sampling.")
@click.option("--train", "with_training", is_flag=True, help="With --auto: also train what can be learned.")
def tune(config: str | None, as_json: bool, auto: bool, with_training: bool, **settings: Any) -> None:
    """Choose scale and spread on validation data; DIR/tuned.yaml is a configuration that 'eval' takes.

    \b
    studiogan-guidance tune --out runs/tuned
    studiogan-guidance tune -c my.yaml --ckpt DIR --data DIR --over scale=0.9:1.8 --per-layer 3 --min-recall 0.5
    studiogan-guidance tune -c my.yaml --ckpt DIR --data DIR --auto --budget 24 --judge discriminator
    studiogan-guidance eval -c runs/tuned/tuned.yaml --reference test

    With --auto, many settings are measured on a few images, the better ones on more: scale and spread, Gaussians in
    closed form, layers; with --train, what stages learn. The best is compared with plain sampling on fresh seeds, also
    by --judge [random]; plain is chosen unless it is significantly better. Then -o scale=auto stands for the choice.
    """
    arguments = take(settings, "over", "objective", "min_recall", "budget", "repeats", "groups")
    cfg = load(config, settings)
    from studiogan_guidance.evaluation import tables

    if with_training and not auto:
        raise UserError("--train trains candidates of --auto: add --auto, or use the command 'train'")
    if not auto:
        from studiogan_guidance.evaluation.tune import tune as function

        return _emit(function(cfg, **arguments), as_json, tables.tuned)
    if {"min_recall", "groups"} & set(arguments):
        raise UserError("--auto searches without --min-recall and --per-layer: leave them out")
    from studiogan_guidance.training import auto as choosing

    _emit(choosing.auto(cfg, with_training, **arguments), as_json, tables.decided)


@main.command(short_help="Measure several samplers on the same seeds and labels.")
@shared(SHARED, MEASURED)
@click.option(
    "--with",
    "compare",
    multiple=True,
    callback=flags.specs,
    metavar="NAME[:KEY=VALUE,...]",
    help="A sampler; repeatable. [the list `compare:` of the YAML]",
)
@click.option("--all", "every", is_flag=True, help="Every sampler at its defaults, which may take days.")
@argument("compare", "--repeats", type=int, metavar="N", help="Seed ranges to measure each sampler on.")
@click.argument("rows", nargs=-1, metavar="[RESULTS]...")
def compare(config: str | None, as_json: bool, every: bool, rows: tuple[str, ...], **settings: Any) -> None:
    """Measure samplers on the same seeds and labels, plain first: results.jsonl, compare.{txt,csv,json,png} in DIR.

    The samplers are those of --with, or of a list `compare:` in the YAML. With RESULTS, which are files results.jsonl
    or folders that hold one, nothing is measured: the rows are compared if their protocols agree.
    Give the same command again to resume a run that was stopped. Several processes may work on one folder.

    \b
    studiogan-guidance compare --with gandance:scale=1.1 --with "ddls:steps=50,step=0.05,base=gandance,base.scale=1.1"
    studiogan-guidance compare -c CIFAR10/BigGAN-compare.yaml --ckpt DIR --data DIR --repeats 3 --out runs/compare
    studiogan-guidance compare runs/a runs/b/results.jsonl
    """
    arguments = take(settings, "repeats")
    if rows and (settings["compare"] or every or arguments):
        raise UserError(
            "RESULTS are only read, so --with, --all and --repeats have no meaning: drop them, or the paths"
        )
    cfg = load(config, settings)
    from studiogan_guidance.evaluation import compare as module
    from studiogan_guidance.evaluation import tables

    if rows:
        result = module.reread(cfg, [Path(path) for path in rows])
    else:
        result = module.compare(cfg, **arguments, every=every)
    _emit(result, as_json, tables.compared)


@main.command(short_help="Train a stage on a frozen generator.")
@shared(BASIC, BENCH, JUDGED)
@click.option("--stage", default="joint", show_default=True, help="What to train; see 'list'.")
@option_pairs("the stage")
@click.option(
    "--log",
    "logs",
    callback=flags.WORDS,
    metavar="WORDS",
    help=f"More places for losses, of {','.join(LOGS)}. [DIR/joint.jsonl only]",
)
def train(config: str | None, as_json: bool, stage: str, logs: tuple[str, ...], **settings: Any) -> None:
    """Train a stage on a frozen generator, into DIR/STAGE.safetensors ('strengths' after 'joint', into its file).

    'eval' takes the file as -o joint_ckpt=FILE, or -o weights_ckpt=FILE of latent_reweighting. The same command resumes
    a training that was stopped. With --judge, the step that is kept has the least geometric mean of FID in all spaces.

    \b
    studiogan-guidance train --stage amortised --out runs/amortised
    studiogan-guidance train -c my.yaml --ckpt DIR --data DIR --out runs/joint -o adversarial=1 -o latent=0
    studiogan-guidance eval -o joint=learned -o joint_ckpt=runs/joint/joint.safetensors
    torchrun --nproc-per-node 8 -m -- studiogan_guidance train -c my.yaml --ckpt DIR --data DIR
    """
    for word in logs:
        if word not in LOGS:
            raise UserError(f"--log takes {' and '.join(LOGS)}, found '{word}'")
    stage_options = settings.pop("options")
    cfg = load(config, settings)
    from studiogan_guidance.training import train as function

    _emit(function(cfg, stage, stage_options, logs), as_json)


@main.command(
    cls=click.Command,
    context_settings={"ignore_unknown_options": True},
    short_help="Run PyTorch-StudioGAN itself, with a sampler if it names one.",
)  # the host's, also without the --
@STUDIOGAN
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="cpu leaves GPUs alone.")
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
    from studiogan_guidance import devices
    from studiogan_guidance.evaluation.source import device_of
    from studiogan_guidance.host.locate import locate
    from studiogan_guidance.plugin.hooks import start

    # Check the devices, then start.
    with devices.chosen(device, processes):
        device_of("auto")
        if processes and not devices.cpu_only():
            raise UserError("--processes is for runs without a GPU, and one is visible: add --device cpu")
        start(locate(studiogan), script, arguments)


@main.command("list", short_help="List samplers, joints, stages, configurations; or classes.")
@AS_JSON
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table of samplers in Markdown.")
@click.option("--classes", "of_classes", is_flag=True, help="List the classes of real images: index, folder, images.")
@CONFIG
@DATA
@STUDIOGAN
@click.argument("name", required=False)
def list_(
    as_json: bool, as_markdown: bool, of_classes: bool, config: str | None, name: str | None, **settings: Any
) -> None:
    """List samplers with their options, joints, views, training stages and configurations, with their papers.

    With NAME, print the documentation of that sampler, joint, view or stage. With --classes, list the classes that
    --classes of other commands means: index, folder, and images of each split that is there. No checkpoint is needed.

    \b
    studiogan-guidance list
    studiogan-guidance list ddls
    studiogan-guidance list --classes -c CIFAR10/BigGAN-gandance.yaml --data DIR
    """
    if of_classes and (name or as_markdown):
        raise UserError("list --classes lists classes only: leave out NAME and --markdown")
    if of_classes:
        cfg = load(config, settings)
        from studiogan_guidance.evaluation import labels, tables

        _emit(labels.class_table(cfg), as_json, tables.classes)
        return
    if config or any(settings.values()):
        raise UserError("-c, --data and --studiogan are for the classes of real images: add --classes")
    from studiogan_guidance import catalogue

    if name:
        text = catalogue.documentation(name)
        _emit({"name": name, "documentation": text}, as_json, lambda _: text)
        return
    if as_json:
        click.echo(json.dumps(catalogue.as_data()))
    else:
        click.echo(catalogue.as_markdown() if as_markdown else catalogue.as_text())
    for reason in catalogue.broken():
        click.echo(reason, err=True)


@main.command(short_help="Check what is installed and found, for you or a bug report.")
@STUDIOGAN
@AS_JSON
def doctor(studiogan: str | None, as_json: bool) -> None:
    """Check Python, torch, the cache, the built-in GAN, the host and what it needs. Paste the output in bug reports."""
    from studiogan_guidance import doctor as module

    checks = module.run(studiogan)
    rows = [dataclasses.asdict(check) for check in checks]
    _emit({"checks": rows}, as_json, lambda _: module.as_text(checks))
    if any(check.status == "fail" for check in checks):
        raise click.exceptions.Exit(1)


@main.command(short_help="Clone PyTorch-StudioGAN into the cache folder.")
@click.option("--source", metavar="URL_OR_DIR", help="Git repository to clone. [the host's GitHub repository]")
@AS_JSON
def setup(source: str | None, as_json: bool) -> None:
    """Clone PyTorch-StudioGAN at the pinned commit into the cache folder."""
    from studiogan_guidance.host.locate import setup as clone

    checkout = clone(source)
    commit = checkout.commit or ""
    text = f"PyTorch-StudioGAN {commit[:7]} is in {checkout.path}"
    _emit({"path": str(checkout.path), "commit": checkout.commit}, as_json, lambda _: text)
