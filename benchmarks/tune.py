"""What 'tune' finds against plain sampling and against a dense grid: validation and test FID, evaluations used.

    python benchmarks/tune.py --out runs/bench-tune
    python benchmarks/tune.py --out DIR -c my.yaml --ckpt DIR --data DIR --test-data DIR

By default on the built-in GAN, which has a test split. A checkpoint of the host needs two folders, of which the valid
splits are used: the first to choose on, the second to report on, there on three other seed ranges. Prints Markdown.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

import click

from studiogan_guidance import config
from studiogan_guidance.config import RunConfig
from studiogan_guidance.evaluation import evaluation
from studiogan_guidance.evaluation.sweep import sweep
from studiogan_guidance.evaluation.tune import tune

LOW, HIGH, STEP = 0.8, 2.0, 0.05
TEST_SEEDS = (10**6, 2 * 10**6, 3 * 10**6)
METRICS = ("fid", "precision", "recall", "coverage")


def test(cfg: RunConfig, name: str, scale: float) -> str:
    """A Markdown row: mean and deviation over the test seeds."""
    by_metric: dict[str, list[float]] = {key: [] for key in METRICS}
    for seed in TEST_SEEDS:
        rows = evaluation.evaluate(dataclasses.replace(cfg, seed=seed, options={**cfg.options, "scale": scale}))
        for key in METRICS:
            by_metric[key].append(rows[0]["metrics"][key])
    cells = [f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" for values in by_metric.values()]
    return f"| {name} | {scale:g} | {' | '.join(cells)} |"


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("-c", "--config", "path", help="Our YAML, with the backbone and the joint. [the built-in GAN]")
@click.option("--ckpt")
@click.option("--data")
@click.option("--test-data")
@click.option("--joint", default="class_mean", show_default=True)
@click.option("--num", default=1000, show_default=True)
@click.option("--budget", default=16, show_default=True)
def main(
    out: Path,
    path: str | None,
    ckpt: str | None,
    data: str | None,
    test_data: str | None,
    joint: str,
    num: int,
    budget: int,
) -> None:
    # Two configurations: to choose, and to report.
    keys = {"ckpt": ckpt, "num": num, "options": {"joint": joint}, "compare_plain": False, "metrics": ("fid", "prdc")}
    valid = config.load(path, {**keys, "data": data, "reference": "valid", "out": str(out / "valid")})
    split = "valid" if path else "test"
    report = config.load(path, {**keys, "data": test_data, "reference": split, "out": str(out / "test")})

    # Search, and measure a dense grid.
    result = tune(valid, {"scale": (LOW, HIGH)}, budget=budget)
    scales = [round(LOW + STEP * i, 2) for i in range(round((HIGH - LOW) / STEP) + 1)]
    rows = sweep(valid, {"scale": scales})
    fids = {row["options"]["scale"]: row["metrics"]["fid"] for row in rows}
    searched = {point["options"]["scale"]: point["metrics"]["fid"] for point in result["searched"]}
    best = min(fids, key=lambda scale: fids[scale])
    chosen = result["chosen"]["options"]["scale"]

    # Compare on the validation split.
    click.echo(f"tune: {result['evaluations']} evaluations ({len(searched)} of the search); chosen scale ", nl=False)
    click.echo(f"{chosen:g}; dense grid: {len(scales)} evaluations, best {best:g}\n")
    least = searched[result["found"]["options"]["scale"]]
    click.echo(f"validation, seeds of the search: plain {fids[1.0]:.3f}, tune {least:.3f}, grid {fids[best]:.3f}")
    mean, std = (result["difference"][key] for key in ("mean", "std"))
    click.echo(f"validation, fresh seeds: tune - plain {mean:+.3f} ± {std:.3f} (paired)\n")

    # Report on the test split.
    click.echo(f"test:\n| | scale | {' | '.join(METRICS)} |\n|---|---|{'---|' * len(METRICS)}")
    click.echo(test(report, "plain", 1.0))
    click.echo(test(report, "tune", chosen))
    click.echo(test(report, "best of the grid", best))


if __name__ == "__main__":
    main()
