"""The built-in GAN's guidance curve: choose joint and scale on the validation split, report on the test split.

    python benchmarks/builtin_curve.py
    python benchmarks/builtin_curve.py --joint class_mean --joint class_shift     # in two fifths of the time

Validation uses seeds 10000.., 20000.., 30000..; the report uses 40000.., 50000.., 60000.. and the other real images.
Takes about four minutes on two CPU cores. Every evaluation is a line of OUT/results.jsonl; means and deviations are in
RESULTS/builtin-curve.json, of which ``report.py`` makes tables.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import click
from common import command, machine

from studiogan_guidance import config
from studiogan_guidance.evaluation import evaluation
from studiogan_guidance.files import replacing

SCALES = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0)
JOINTS = ("class_mean", "class_subset", "global_mean", "class_shift", "mean_embedding")
METRICS = ("fid", "precision", "recall", "density", "coverage", "accuracy")
SEEDS = {"valid": 10_000, "test": 40_000}
Values = dict[str, dict[str, float]]


def measure(folder: Path, split: str, joint: str, scale: float, num: int | None) -> Values:
    """Mean and deviation of each metric over three ranges of seeds."""
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for i in range(3):
        seed = SEEDS[split] + 10_000 * i
        keys = {"reference": split, "seed": seed, "compare_plain": False, "num": num, "out": str(folder)}
        row = evaluation.evaluate(config.load(None, {**keys, "options": {"joint": joint, "scale": scale}}))[0]
        for name in METRICS:
            values[name].append(row["metrics"][name])
    return {key: {"mean": statistics.mean(found), "std": statistics.stdev(found)} for key, found in values.items()}


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/curve"), show_default=True)
@click.option("--results", "target", type=click.Path(path_type=Path), default=Path("benchmarks/results"))
@click.option("--joint", "joints", multiple=True, type=click.Choice(JOINTS), help="Several times. [all]")
@click.option("--num", type=int, help="Images of each evaluation. [as many as real ones]")
def main(out: Path, target: Path, joints: tuple[str, ...], num: int | None) -> None:
    started = time.time()

    # Choose on the validation split.
    curves: dict[str, list[dict[str, Any]]] = {}
    for joint in joints or JOINTS:
        curves[joint] = []
        for scale in SCALES:
            values = measure(out, "valid", joint, scale, num)
            curves[joint].append({"scale": scale, "metrics": values})
            click.echo(f"{joint} {scale}: FID {values['fid']['mean']:.1f}, accuracy {values['accuracy']['mean']:.3f}")
    points = [(point["metrics"]["fid"]["mean"], joint, point["scale"]) for joint in curves for point in curves[joint]]
    _, joint, scale = min(points)

    # Report on the test split.
    test = {"plain": measure(out, "test", joint, 1.0, num), "guided": measure(out, "test", joint, scale, num)}
    kept = {
        "command": command(),
        "machine": machine("cpu"),
        "seconds": time.time() - started,
        "curves": curves,
        "chosen": {"joint": joint, "scale": scale},
        "test": test,
    }
    target.mkdir(parents=True, exist_ok=True)
    with replacing(target / "builtin-curve.json") as temporary:
        temporary.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
