"""The commands that measure: samplers, grids, searches, comparisons, and real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from studiogan_guidance.cli import completers, parsing
from studiogan_guidance.cli.flags import (
    AS_JSON,
    BENCH,
    CHOSEN,
    CLASSES,
    COMPARED,
    MEASURED,
    REAL,
    SHARED,
    argument,
    option,
    shared,
    take,
)
from studiogan_guidance.cli.group import OUTPUT, SAMPLED, SEARCHED, Verb
from studiogan_guidance.cli.output import emit, emit_rows, keep_command, load_config
from studiogan_guidance.errors import UserError


@click.command("eval", cls=Verb, short_help="Measure a sampler, and plain sampling, against real images.")
@shared(CHOSEN, SHARED, MEASURED, COMPARED)
def evaluate(config: str | None, as_json: bool, **settings: Any) -> None:
    """Measure a sampler, and plain sampling on the same seeds; adds a line for each to DIR/results.jsonl.

    Metric prdc is precision, recall, density and coverage; per_class adds FID and prdc within each class. Without -c
    the built-in GAN is measured; builtin-gandance.yaml holds the scale that is best for it.

    \b
    studiogan-guidance eval
    studiogan-guidance eval -c builtin-gandance.yaml
    studiogan-guidance eval --reference valid -o scale=1.5
    studiogan-guidance eval -c my.yaml --ckpt checkpoint/ --data images/
    torchrun --nproc-per-node 8 -m studiogan_guidance eval -c my.yaml \\
      --ckpt checkpoint/ --data images/
    """
    cfg = load_config(config, settings)
    from studiogan_guidance.evaluation.evaluation import evaluate as function

    emit_rows(function(cfg), as_json)


@click.command(cls=Verb, short_help="Write statistics of real images to a file, for eval.")
@shared(REAL, BENCH)
@CLASSES
@option("--out", "path", required=True, metavar="FILE.npz", help="File to write.", section=OUTPUT)
@option(
    "--features/--no-features",
    default=True,
    section=OUTPUT,
    help="Keep features and labels, which prdc, kid and per_class need. [on]",
)
def stats(config: str | None, as_json: bool, path: str, features: bool, **settings: Any) -> None:
    """Write the statistics of real images into a file, which --reference-stats of 'eval' takes in place of them.

    The file holds mu and sigma, as packages for FID read them, and how they were made, which 'eval' compares with its
    own way. No checkpoint is needed.

    \b
    studiogan-guidance stats -c my.yaml --data images/ --out train.npz
    studiogan-guidance eval -c my.yaml --ckpt checkpoint/ \\
      --reference-stats train.npz
    """
    cfg = load_config(config, settings)
    from studiogan_guidance.evaluation.reference import write

    emit(write(cfg, Path(path), features), as_json)


@click.command(cls=Verb, resumes=True, short_help="Measure a grid of options; tables and pictures.")
@shared(CHOSEN, SHARED, MEASURED, COMPARED)
@option(
    "--grid",
    multiple=True,
    callback=parsing.grid,
    section=SEARCHED,
    shell_complete=completers.options_of_sampler,
    metavar="KEY=V1,V2,...",
    help="Values of an option of the sampler; repeatable. [gandance: scale with psi or tau]",
)
def sweep(config: str | None, as_json: bool, grid: dict[str, list[str]], **settings: Any) -> None:
    """Measure every point of a grid on the same seeds: results.jsonl, table.csv, and pictures of the trade-off.

    Give the same command again to resume a sweep that was stopped. Several processes may work on one folder.

    \b
    studiogan-guidance sweep --out runs/sweep
    studiogan-guidance sweep --grid scale=0.8,1 --grid psi=1,1.3 --out runs/sweep
    studiogan-guidance sweep -c my.yaml --ckpt checkpoint/ --data images/ \\
      --grid scale=1,1.2,1.4 --grid joint=class_mean,class_shift
    """
    cfg = load_config(config, settings)
    from studiogan_guidance.evaluation.sweep import sweep as function

    rows = function(cfg, grid or None)
    keep_command(cfg.out, rows)
    emit_rows(rows, as_json)


@click.command(cls=Verb, resumes=True, short_help="Choose scale and spread, or other options, on validation data.")
@shared(CHOSEN, SHARED, MEASURED)
@argument(
    "tune",
    "--over",
    multiple=True,
    callback=parsing.ranges,
    section=SEARCHED,
    shell_complete=completers.options_of_sampler,
    metavar="KEY=LOW:HIGH",
    help="Range to search; repeatable. [scale=0.8:2 with psi=0.7:1.8, or tau=0.8:1.25 where codes are no w]",
)
@argument(
    "tune",
    "--objective",
    metavar="NAME",
    help="fid, fid_infinity, kid or class_fid.",
    section=SEARCHED,
    shell_complete=completers.words("fid", "fid_infinity", "kid", "class_fid"),
)
@argument(
    "tune",
    "--min-recall",
    type=float,
    metavar="R",
    help="Prefer candidates of at least this recall. [no bound]",
    section=SEARCHED,
)
@argument("tune", "--budget", type=int, metavar="N", help="Evaluations in all.", section=SEARCHED)
@argument(
    "tune",
    "--repeats",
    type=int,
    metavar="N",
    help="Fresh seed ranges for the comparison with plain; --auto: 4.",
    section=SEARCHED,
)
@argument(
    "tune",
    "--per-layer",
    "groups",
    type=int,
    metavar="N",
    section=SEARCHED,
    help="After the scale, tune how strongly each of N groups of layers is guided.",
)
@option("--auto", is_flag=True, help="Choose among several kinds of settings, and plain sampling.", section=SEARCHED)
@option("--train", "with_training", is_flag=True, help="With --auto: also train what can be learned.", section=SEARCHED)
def tune(config: str | None, as_json: bool, auto: bool, with_training: bool, **settings: Any) -> None:
    """Choose scale and spread on validation data; DIR/tuned.yaml is a configuration that 'eval' takes.

    \b
    studiogan-guidance tune --out runs/tuned
    studiogan-guidance tune -c my.yaml --ckpt checkpoint/ --data images/ \\
      --over scale=0.9:1.8 --per-layer 3 --min-recall 0.5
    studiogan-guidance tune -c my.yaml --ckpt checkpoint/ --data images/ \\
      --auto --budget 24 --judge discriminator
    studiogan-guidance eval -c runs/tuned/tuned.yaml --reference test

    With --auto, many settings are measured on a few images, the better ones on more: scale and spread, Gaussians in
    closed form, layers; with --train, what stages learn. The best is compared with plain sampling on fresh seeds, also
    by --judge [random]; plain is chosen unless it is significantly better. Then -o scale=auto stands for the choice.
    """
    arguments = take(settings, "over", "objective", "min_recall", "budget", "repeats", "groups")
    cfg = load_config(config, settings)
    from studiogan_guidance.evaluation import tables

    if with_training and not auto:
        raise UserError("--train trains candidates of --auto: add --auto, or use the command 'train'")
    if not auto:
        from studiogan_guidance.evaluation.tune import tune as function

        result = function(cfg, **arguments)
        keep_command(cfg.out, result)
        return emit(result, as_json, tables.tuned)
    if {"min_recall", "groups"} & set(arguments):
        raise UserError("--auto searches without --min-recall and --per-layer: leave them out")
    from studiogan_guidance.training import auto as choosing

    result = choosing.auto(cfg, with_training, **arguments)
    keep_command(cfg.out, result)
    emit(result, as_json, tables.decided)


@click.command(cls=Verb, resumes=True, short_help="Measure several samplers on the same seeds and labels.")
@shared(SHARED, MEASURED)
@option(
    "--with",
    "compare",
    multiple=True,
    callback=parsing.specs,
    section=SAMPLED,
    shell_complete=completers.specs,
    metavar="NAME[:KEY=VALUE,...]",
    help="A sampler; repeatable. [the list `compare:` of the YAML]",
)
@option("--all", "every", is_flag=True, help="Every sampler at its defaults, which may take days.", section=SAMPLED)
@argument(
    "compare", "--repeats", type=int, metavar="N", help="Seed ranges to measure each sampler on.", section=SAMPLED
)
@click.argument("rows", nargs=-1, metavar="[RESULTS]...")
def compare(config: str | None, as_json: bool, every: bool, rows: tuple[str, ...], **settings: Any) -> None:
    """Measure samplers on the same seeds and labels, plain first: results.jsonl, compare.{txt,csv,json,png} in DIR.

    The samplers are those of --with, or of a list `compare:` in the YAML. With RESULTS, which are files results.jsonl
    or folders that hold one, nothing is measured: the rows are compared if their protocols agree.
    Give the same command again to resume a run that was stopped. Several processes may work on one folder.

    \b
    studiogan-guidance compare --with gandance:scale=1.1 \\
      --with "ddls:steps=50,step=0.05,base=gandance,base.scale=1.1"
    studiogan-guidance compare -c CIFAR10/BigGAN-compare.yaml --ckpt checkpoint/ \\
      --data images/ --repeats 3 --out runs/compare
    studiogan-guidance compare runs/a runs/b/results.jsonl
    """
    arguments = take(settings, "repeats")
    if rows and (settings["compare"] or every or arguments):
        raise UserError(
            "RESULTS are only read, so --with, --all and --repeats have no meaning: drop them, or the paths"
        )
    cfg = load_config(config, settings)
    from studiogan_guidance.evaluation import compare as module
    from studiogan_guidance.evaluation import tables

    if rows:
        result = module.reread(cfg, [Path(path) for path in rows])
    else:
        result = module.compare(cfg, **arguments, every=every)
    keep_command(cfg.out, result)
    emit(result, as_json, tables.compared)


@click.command(cls=Verb, short_help="Make a page of a sweep, a comparison or a search.")
@click.argument("folder", metavar="DIR")
@option("--out", "path", metavar="FILE.html", help="File to write. [DIR/report.html]", section=OUTPUT)
@AS_JSON
def report(folder: str, path: str | None, as_json: bool) -> None:
    """Make one HTML page of what sweep, compare or tune has left in DIR: tables to sort, curves, images, the protocol.

    The page is a single file that needs no network.

    \b
    studiogan-guidance report runs/sweep
    studiogan-guidance report runs/compare --out compare.html
    """
    from studiogan_guidance.evaluation.page import write

    file = Path(path) if path else Path(folder) / "report.html"
    write(Path(folder), file)
    emit({"report": str(file)}, as_json)
