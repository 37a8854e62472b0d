"""Results as text for the screen and as tables for a spreadsheet."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studiogan_guidance.files import replacing

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = {"fid": "FID", "is": "IS", "precision": "precision", "recall": "recall", "density": "density"}
HEADINGS |= {"coverage": "coverage", "accuracy": "accuracy", "fid_infinity": "FID-inf", "kid": "KID"}
HEADINGS |= {f"class_{key}": f"class {key}" for key in ("fid", "precision", "recall", "density", "coverage")}
PASSES = {"mapping": "mapping", "synthesis": "G", "discriminator": "D", "backward": "backward"}
PASSES |= {"acceptance": "accepted"}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of an evaluation as text, one line a sampler, with the protocol below."""
    from rich.table import Table

    names = [key for key in HEADINGS if any(key in row["metrics"] for row in rows)]
    grid = Table(box=None, pad_edge=False)
    for heading in ("sampler", "options", *(HEADINGS[key] for key in names), "s"):
        grid.add_column(heading, justify="left" if heading in ("sampler", "options") else "right", no_wrap=True)
    for row in rows:
        metrics = [row["metrics"].get(key) for key in names]
        cells = [number(key, value) for key, value in zip(names, metrics)]
        grid.add_row(row["sampler"], short(row["options"]), *cells, f"{row['seconds']:.1f}")
    return _text(grid, rows[0]["protocol"])


def _text(grid: Table, protocol: Mapping[str, Any]) -> str:
    from rich.console import Console

    console = Console(width=1000, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(grid)
    lines = [line.rstrip() for line in console.export_text().rstrip().splitlines()]
    return "\n".join([*lines, "", "protocol: " + "  ".join(f"{key}={value}" for key, value in protocol.items())])


def tuned(result: Mapping[str, Any]) -> str:
    """What ``tune`` found, as text: the candidates in their order, then the choice against plain sampling."""
    lines = []
    for step in result["searched"]:
        metrics = [f"{HEADINGS.get(key, key)} {number(key, value)}" for key, value in step["metrics"].items()]
        lines.append(f"{short(step['options'])}: {', '.join(metrics)}")
    seeds = len(result["plain"].get(result["objective"], {}).get("values", ()))
    split = result["reference"]
    lines.append(f"\non {seeds} fresh seed ranges against the {split} split, mean ± standard deviation:")
    for name in ("plain", "found", "chosen"):
        found = result[name]
        values = [
            f"{HEADINGS[key]} {number(key, value['mean'])} ± {number(key, value['std'])}"
            for key, value in found.items()
            if key != "options"
        ]
        lines.append(f"{name:<7} {short(found['options'])}: {', '.join(values)}")
    mean, std = (number(result["objective"], result["difference"][key]) for key in ("mean", "std"))
    lines.append(f"found - plain: {mean} ± {std}, paired by seeds")
    return "\n".join([*lines, f"{result['evaluations']} evaluations; use it: eval -c {result['config']}"])


def compared(result: Mapping[str, Any]) -> str:
    """What ``compare`` found, as text: one line a sampler, with the protocol below.

    Behind the metrics stand the passes per image (mapping network, generator, discriminator, backward), the share of
    the proposals that were accepted, and the time of sampling as a multiple of that of plain sampling.
    """
    from rich.table import Table

    rows = result["rows"]
    names = [key for key in HEADINGS if any(key in row["metrics"] for row in rows)]
    passes = [key for key in PASSES if any(key in row["cost"] for row in rows)]
    grid = Table(box=None, pad_edge=False)
    headings = (*(HEADINGS[key] for key in names), *(PASSES[key] for key in passes), "time")
    for heading in ("sampler", "options", *headings):
        grid.add_column(heading, justify="left" if heading in ("sampler", "options") else "right", no_wrap=True)
    for row in rows:
        cells = [deviating(key, row["metrics"].get(key, {})) for key in names]
        cells += ["-" if key not in row["cost"] else f"{row['cost'][key]:.4g}" for key in passes]
        cells.append("-" if row["time"] is None else f"{row['time']:.2f}")
        grid.add_row(row["sampler"], short(row["differs"]), *cells)
    return _text(grid, result["protocol"])


def deviating(metric: str, value: Mapping[str, Any]) -> str:
    """Mean and, if there is one, standard deviation of a metric for the screen."""
    tail = "" if value.get("std") is None else f" ± {number(metric, value['std'])}"
    return number(metric, value.get("mean")) + tail


def save_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a table for a spreadsheet: sampler, seconds, options, metrics, cost, set-up, notes, protocol.

    Each is a column of its own; the base of a sampler is one of text. An option named like a metric, a pass or a part
    of the protocol stands under ``options.<name>``.
    """
    parts = ("metrics", "cost", "protocol")
    taken = {"sampler", "seconds"} | {key for row in rows for part in parts for key in row[part]}
    lines = [
        {key: row[key] for key in ("sampler", "seconds")}
        | {f"options.{key}" if key in taken else key: word(value) for key, value in row["options"].items()}
        | row["metrics"]
        | row["cost"]
        | {f"{part}.{key}": value for part in ("setup", "notes") for key, value in row.get(part, {}).items()}
        | row["protocol"]
        for row in rows
    ]
    with replacing(path) as beside, beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for line in lines for key in line)))
        writer.writeheader()
        writer.writerows(lines)


def number(metric: str, value: float | None) -> str:
    """A metric for the screen; KID is of the order of 0.001."""
    return "-" if value is None else f"{value:.6g}" if metric == "kid" else f"{value:.3f}"


def short(options: Mapping[str, Any]) -> str:
    """Options that say something, as key=value words; those of a base stand in parentheses behind its name."""
    return " ".join(
        f"{key}={word(value)}" for key, value in options.items() if value is not None and value is not False
    )


def word(value: Any) -> Any:
    """The value of an option for a table: a base with its options as one text, anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    inner = short({key: item for key, item in value.items() if key != "name"})
    return f"{value['name']}({inner})" if inner else value["name"]


def flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those of a base beside them under names with a dot, as a command line takes them.

    Example:
        >>> flat({"steps": 5, "base": {"name": "gandance", "scale": 1.1}})
        {'steps': 5, 'base': 'gandance', 'base.scale': 1.1}
    """
    found: dict[str, Any] = {}
    for key, value in options.items():
        inner = flat(value) if isinstance(value, Mapping) else {"name": value}
        found |= {key if name == "name" else f"{key}.{name}": item for name, item in inner.items()}
    return found
