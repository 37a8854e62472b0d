"""The built-in GAN's guidance curve: choose joint and scale on the validation split, report on the test split.

    python benchmarks/builtin_curve.py --out runs/curve

Validation uses seeds 10000.., 20000.., 30000..; the report uses 40000.., 50000.., 60000.. and the other real images.
Takes about four minutes on two CPU cores. Prints Markdown; every evaluation is a line of DIR/results.jsonl.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import click

from studiogan_guidance import config
from studiogan_guidance.evaluation import evaluation

SCALES = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0)
JOINTS = ("class_mean", "class_subset", "global_mean", "class_shift", "mean_embedding")
METRICS = ("fid", "precision", "recall", "density", "coverage", "accuracy")


def measure(folder: Path, split: str, first: int, joint: str, scale: float, num: int | None) -> dict[str, list[float]]:
    """Each metric on three seed ranges."""
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for seed in (first, first + 10_000, first + 20_000):
        keys = {"reference": split, "seed": seed, "compare_plain": False, "num": num, "out": str(folder)}
        row = evaluation.evaluate(config.load(None, {**keys, "options": {"joint": joint, "scale": scale}}))[0]
        for name in METRICS:
            values[name].append(row["metrics"][name])
    return values


def line(name: str, values: dict[str, list[float]]) -> str:
    """A Markdown row: mean and deviation of each metric."""
    cells = [f"{statistics.mean(values[key]):.3f} ± {statistics.stdev(values[key]):.3f}" for key in METRICS]
    return f"| {name} | {' | '.join(cells)} |"


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/curve"), show_default=True)
@click.option("--num", type=int, help="Images of each evaluation. [as many as real ones]")
def main(out: Path, num: int | None) -> None:
    # Choose on the validation split.
    rule = "---|" * (len(METRICS) + 1)
    best: tuple[float, str, float] = (float("inf"), "", 1.0)
    for joint in JOINTS:
        click.echo(f"\n{joint}, validation\n| scale | {' | '.join(METRICS)} |\n|{rule}")
        for scale in SCALES:
            values = measure(out, "valid", 10_000, joint, scale, num)
            click.echo(line(str(scale), values))
            best = min(best, (statistics.mean(values["fid"]), joint, scale))

    # Report on the test split.
    _, joint, scale = best
    click.echo(f"\nchosen on validation: joint {joint}, scale {scale}; test split, other seeds")
    click.echo(f"| sampler | {' | '.join(METRICS)} |\n|{rule}")
    click.echo(line("plain", measure(out, "test", 40_000, joint, 1.0, num)))
    click.echo(line(f"gandance {scale}", measure(out, "test", 40_000, joint, scale, num)))


if __name__ == "__main__":
    main()
