"""The host's training with and without the stage glead, side by side: distances, time and memory of a step, pictures.

    python benchmarks/glead.py letters runs/glead --backbone torchscript:letters-a.pt --device cuda \\
        --judge torchscript:efficientnet.pt                           # on a GPU, see letters.py
    python benchmarks/glead.py letters runs/glead --backbone torchscript:letters-a.pt --small      # on a CPU

First a step of each training is measured, alone. Then all trainings, with and without, of all seeds and networks, start
together by the host's own program, until the time is up; every generator that they save is kept, and its distances to
the training images are measured with the same seeds for all. Training images are the reference, as in the literature:
the most images have the least bias. Differences are paired by seed, at equal images, and at equal time: steps by the
time of a step that was measured alone, between snapshots by linear interpolation. What is there already is not
repeated: remove a folder of OUT/runs to train anew. RESULTS/glead.json keeps one entry a network.
"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import glead_curves
import yaml
from common import command, machine, program
from glead_runs import ARMS, CHANGES, SMALL_WIDTH, Run, Setting, execute, interval, time_steps, train
from narrow import narrow

from studiogan_guidance import config
from studiogan_guidance.evaluation import distributed
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.options import Spec, parse_pairs

PARTS = ("timing", "training", "evaluation", "pictures")
MOST = 12  # snapshots of a training that are measured
FIRST_SEED = 100_000  # of generated images


# ---------------------------------------------------------------------------- distances


def evaluate(run: Run, steps: Sequence[int], channels: int, keys: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of these snapshots of a training, each in a line of its rows.jsonl."""
    if channels:
        narrow(channels)
    file = run.folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {row["step"] for row in rows}
    snapshots = run.snapshots()
    for step in steps:
        if step in known:
            continue
        path = snapshots[step]
        cfg = config.load(str(run.path), {**keys, "ckpt": str(path), "out": str(run.folder / "eval")})
        evaluation = Evaluation(cfg, distributed.Group(), [Spec("plain")])
        row = evaluation.measure(*evaluation.chosen[0])
        assert row is not None
        rows.append({"step": step, **row["metrics"], "protocol": row["protocol"]})
        with file.open("a") as lines:
            lines.write(json.dumps(rows[-1]) + "\n")
    return sorted((row for row in rows if row["step"] in steps), key=lambda row: row["step"])


def chosen(runs: Sequence[Run]) -> dict[Run, list[int]]:
    """The steps of each training that are measured: at most MOST, evenly spaced, the same ones within a network."""
    found: dict[Run, list[int]] = {}
    for run in runs:
        steps = sorted({step for other in runs if other.network == run.network for step in other.snapshots()})
        unit = steps[0] * math.ceil(len(steps) / MOST) if steps else 1
        if own := [step for step in run.snapshots() if step % unit == 0]:
            found[run] = own
    return found


def evaluate_all(at: Setting, runs: Sequence[Run], keys: dict[str, Any], workers: int) -> dict[Run, list[Any]]:
    """The rows of all trainings, several at a time; first of all, what they share of real images is computed."""
    context = multiprocessing.get_context("spawn")
    jobs = [(run, steps, at.channels_of(run.network), keys) for run, steps in chosen(runs).items()]
    with ProcessPoolExecutor(1, context) as pool:
        for run, steps, *rest in jobs[:1]:
            pool.submit(evaluate, run, steps[:1], *rest).result()
    with ProcessPoolExecutor(workers, context) as pool:
        found = [future.result() for future in [pool.submit(evaluate, *job) for job in jobs]]
    return {job[0]: rows for job, rows in zip(jobs, found)}


# ---------------------------------------------------------------------------- all of it


def reconstructions(at: Setting, runs: Sequence[Run]) -> None:
    """Images beside their reconstructions, of the first training with the stage of each network."""
    shown: set[str] = set()
    for run in runs:
        if run.arm == ARMS[0] or run.network in shown or not run.snapshots():
            continue
        shown.add(run.network)
        folder = at.out / f"reconstructions-{run.network}"
        words = ["sample", "-c", run.path, "--ckpt", list(run.snapshots().values())[-1].parent, "--data", at.data]
        words += ["--reconstruct", "--num", 16, "--device", at.device, "--out", folder, "--json"]
        folder.mkdir(exist_ok=True)
        try:
            execute([*program(at.channels_of(run.network)), *map(str, words)], folder / "output.log")
        except click.ClickException as error:
            click.echo(error.message, err=True)


@click.command(help=__doc__)
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--net", "networks", multiple=True, type=click.Choice(list(CHANGES)), help="Several times. [all]")
@click.option("--seeds", default=3, show_default=True, help="Trainings of each network with, and without.")
@click.option("--minutes", default=9.0, show_default=True, help="Of the trainings.")
@click.option("--steps", default=0, help="Of a training. [until the time is up]")
@click.option("--every", default=0, help="Steps between snapshots. [about eight snapshots]")
@click.option("--backbone", required=True, help="A feature space.")
@click.option("--judge", "judges", multiple=True, help="Another.")
@click.option("--reference", default="train", show_default=True)
@click.option("--num", default=10_000, show_default=True, help="Images of each evaluation.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--channels", default=0, help="The most of a layer of StyleGAN2. [all]")
@click.option("--host-flag", "more", multiple=True, help="Of all trainings, such as -mpc.")
@click.option("-o", "options", multiple=True, metavar="KEY=VALUE", help="Options of the stage.")
@click.option("--workers", default=1, show_default=True, help="Processes that load images, for each training.")
@click.option("--parallel", default=6, show_default=True, help="Evaluations at a time.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Several times. [all]")
@click.option("--small", is_flag=True, help="Tiny networks, four steps.")
@click.option("--results", type=click.Path(path_type=Path), help="[benchmarks/results; with --small OUT]")
def main(
    data: Path,
    out: Path,
    networks: tuple[str, ...],
    seeds: int,
    minutes: float,
    steps: int,
    every: int,
    device: str,
    channels: int,
    more: tuple[str, ...],
    options: tuple[str, ...],
    workers: int,
    parallel: int,
    parts: tuple[str, ...],
    small: bool,
    results: Path | None,
    **keys: Any,
) -> None:
    if small:
        channels, steps, every = channels or SMALL_WIDTH, steps or 4, every or 2
        keys["num"], workers, parallel = min(keys["num"], 64), 0, 1
    parts = parts or PARTS
    values = {key: yaml.safe_load(value) for key, value in parse_pairs(options, "-o", "key=value").items()}
    stages = [{"name": "glead", **values} if values else "glead"]
    at = Setting(data.resolve(), out.resolve(), device, small, channels, stages, more)
    at.out.mkdir(parents=True, exist_ok=True)
    networks = networks or tuple(CHANGES)
    runs = [
        Run(network, arm, seed, at.out / "runs" / f"{network}-{arm}-{seed}")
        for seed in range(seeds)
        for network in networks
        for arm in ARMS
    ]

    # Train.
    times = time_steps(at, networks)
    if "training" in parts:
        between = {network: every or interval(times[network], len(runs), minutes) for network in networks}
        train(at, runs, between, steps, minutes, workers)

    # Measure.
    if "evaluation" in parts:
        keys |= {"data": str(at.data), "device": device, "metrics": ("fid",), "seed": FIRST_SEED}
        keys["batch_size"] = 32 if small else 250
        measured = evaluate_all(at, runs, keys, parallel)
        target = (results or (at.out if small else Path(__file__).with_name("results"))) / "glead.json"
        kept = json.loads(target.read_text()) if target.exists() else {}
        facts = {"command": command(), "time": f"{minutes:g} minutes"}
        for network in networks:
            kept[network] = {**facts, **summary(at, network, times[network], measured)}
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(kept, indent=1) + "\n")
        glead_curves.plot(kept, at.out / "glead.png")
        click.echo(glead_curves.markdown(kept))
    if "pictures" in parts:
        reconstructions(at, runs)


def summary(
    at: Setting, network: str, times: dict[str, dict[str, float]], measured: dict[Run, list[Any]]
) -> dict[str, Any]:
    """What is kept of a network."""
    runs: list[dict[str, Any]] = []
    protocol: dict[str, Any] = {}
    for run, rows in measured.items():
        if run.network != network:
            continue
        snapshots = []
        for row in rows:
            protocol = row.pop("protocol")
            place = {"images": row["step"] * at.images(network), "seconds": row["step"] * times[run.arm]["ms"] / 1000}
            snapshots.append({**row, **place})
        runs.append({"arm": run.arm, "seed": run.seed, "snapshots": snapshots, "losses": run.losses()})

    return {
        "protocol": protocol,
        "training": {**at.sections(network), "channels": at.channels_of(network), "flags": list(at.more)},
        "stages": at.stages,
        "machine": machine(at.device),
        "step": times,
        "ratio": {key: times["glead"][key] / times["host"][key] for key in times["host"]},
        "runs": runs,
        "differences": {by: glead_curves.differences(runs, by) for by in ("images", "seconds")},
    }


if __name__ == "__main__":
    main()
