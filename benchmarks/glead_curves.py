"""Curves of trainings with and without a stage: paired differences, a table, and a picture.

python benchmarks/glead_curves.py benchmarks/results/glead.json [PICTURE]    # the table, and the picture
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BY = {"images": "training images", "seconds": "seconds of training"}
COLOURS = {"host": "tab:gray", "glead": "tab:red"}
PLACES = ("step", "images", "seconds")


def spaces(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the distances in the snapshots of trainings."""
    return sorted({key for run in runs for row in run["snapshots"] for key in row if key.partition("@")[0] == "fid"})


def curve(run: dict[str, Any], by: str, value: str) -> tuple[list[float], list[float]]:
    """The places of a training's snapshots, in order, and a value at each."""
    rows = sorted(run["snapshots"], key=lambda row: row[by])
    return [row[by] for row in rows], [row[value] for row in rows]


def differences(runs: Sequence[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """With the stage minus without it, paired by seed, where all pairs have a value.

    Args:
        runs: trainings, each with its ``arm`` (host or glead), ``seed`` and ``snapshots``.
        by: images or seconds.

    Returns:
        One row for each snapshot of the trainings with the stage, between the first and the last of those without it,
        whose values are interpolated linearly: its place, the number of pairs, and for each distance and for the
        accuracy the mean ``host`` value, the mean difference and its standard error (None for one pair).
    """
    pairs: dict[int, dict[str, Any]] = {}
    for run in runs:
        if run["snapshots"]:
            pairs.setdefault(run["seed"], {})[run["arm"]] = run
    whole = [pair for pair in pairs.values() if len(pair) == 2]
    if not whole:
        return []

    # Where all have values.
    places = set.intersection(*({row[by] for row in pair["glead"]["snapshots"]} for pair in whole))
    first = max(curve(pair["host"], by, by)[0][0] for pair in whole)
    last = min(curve(pair["host"], by, by)[0][-1] for pair in whole)

    # A row each.
    rows = []
    keys = [*spaces(runs), *(["accuracy"] if "accuracy" in whole[0]["host"]["snapshots"][0] else [])]
    for place in sorted(place for place in places if first <= place <= last):
        row: dict[str, Any] = {by: place, "pairs": len(whole)}
        for key in keys:
            base = [float(np.interp(place, *curve(pair["host"], by, key))) for pair in whole]
            with_stage = [dict(zip(*curve(pair["glead"], by, key)))[place] for pair in whole]
            row[key] = {"host": statistics.mean(base), **paired([b - a for a, b in zip(base, with_stage)])}
        rows.append(row)
    return rows


def paired(values: Sequence[float]) -> dict[str, float | None]:
    """The mean of differences and its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "se": error}


# ---------------------------------------------------------------------------- shown


def markdown(kept: dict[str, Any]) -> str:
    """A table for each network, at the middle and at the end of its trainings, and what a step costs."""
    lines = []
    for network, facts in kept.items():
        names = spaces(facts["runs"])
        lines += ["", f"| {network} | {' | '.join(names)} | accuracy |", "|---|" + "---|" * (len(names) + 1)]
        for by, rows in facts["differences"].items():
            for row in {id(row): row for row in (rows[len(rows) // 2], rows[-1])}.values() if rows else ():
                place = f"{row[by]:,.{0 if row[by] >= 10 else 2}f} {BY[by]}, {row['pairs']} pairs"
                lines.append(f"| {place}: without | {' | '.join(shown(row, name, False) for name in names)} | |")
                lines[-1] = lines[-1][:-2] + f" {shown(row, 'accuracy', False)} |"
                lines.append(f"| {place}: with | {' | '.join(shown(row, name, True) for name in names)} | |")
                lines[-1] = lines[-1][:-2] + f" {shown(row, 'accuracy', True)} |"

        # What it costs.
        step, ratio = facts["step"], facts["ratio"]
        costs = [f"{step['host']['ms']:.1f} -> {step['glead']['ms']:.1f} ms a step (x{ratio['ms']:.2f})"]
        if "gib" in ratio:
            costs.append(f"{step['host']['gib']:.2f} -> {step['glead']['gib']:.2f} GiB (x{ratio['gib']:.2f})")
        lines += ["", f"{network}: {', '.join(costs)}; {facts['machine']}"]
    return "\n".join(lines)


def shown(row: dict[str, Any], key: str, is_difference: bool) -> str:
    """A cell: a value, or a difference with its standard error, in per cent of it (of an accuracy: in points)."""
    if key not in row:
        return ""
    cell = row[key]
    if not is_difference:
        return f"{cell['host']:.4g}"
    unit = 100 if key == "accuracy" else 100 / cell["host"]
    error = "" if cell["se"] is None else f" ± {unit * cell['se']:.1f}"
    return f"{unit * cell['mean']:+.1f}{error} {'points' if key == 'accuracy' else '%'}"


def plot(kept: dict[str, Any], path: Path) -> None:
    """A picture: a row for each network; distances over images and over time, and the stage's losses."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted({name for facts in kept.values() for name in spaces(facts["runs"])})
    panels = [(name, by) for name in names for by in BY]
    figure, axes = pyplot.subplots(
        len(kept), len(panels) + 1, figsize=(3.6 * (len(panels) + 1), 3.2 * len(kept)), squeeze=False
    )
    for row, (network, facts) in zip(axes, kept.items()):
        for axis, (name, by) in zip(row, panels):
            for run in facts["runs"]:
                axis.plot(*curve(run, by, name), ".-", color=COLOURS[run["arm"]], lw=0.8, ms=3)
            axis.set(xlabel=BY[by], title=f"{network}, {name}", yscale="log")
        draw_losses(row[-1], facts["runs"])

    # One legend for all.
    for arm, label in (("host", "without"), ("glead", "with GLeaD")):
        axes[0][0].plot([], [], color=COLOURS[arm], label=label)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_losses(axis: Any, runs: Sequence[dict[str, Any]]) -> None:
    """The stage's losses along the trainings, those of one name in one colour."""
    names = sorted({name for run in runs for row in run["losses"] for name in row} - {*PLACES})
    for number, name in enumerate(names):
        for i, run in enumerate(run for run in runs if run["losses"]):
            steps = [row["step"] for row in run["losses"]]
            values = [row.get(name, math.nan) for row in run["losses"]]
            axis.plot(steps, values, color=f"C{number}", lw=0.8, label=None if i else name)
    axis.set(xlabel="steps", title="losses of the stage")
    if names:
        axis.legend()


if __name__ == "__main__":
    results = json.loads(Path(sys.argv[1]).read_text())
    print(markdown(results))
    if len(sys.argv) > 2:
        plot(results, Path(sys.argv[2]))
