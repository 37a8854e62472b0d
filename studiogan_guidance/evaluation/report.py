"""Results on disk and on the screen: results.jsonl, tables, images."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from studiogan_guidance import __version__
from studiogan_guidance.common import UserError, replacing

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = {"fid": "FID", "is": "IS", "precision": "precision", "recall": "recall", "density": "density"}
HEADINGS |= {"coverage": "coverage", "accuracy": "accuracy", "fid_infinity": "FID-inf", "kid": "KID"}
HEADINGS |= {f"class_{key}": f"class {key}" for key in ("fid", "precision", "recall", "density", "coverage")}
PASSES = {"mapping": "mapping", "synthesis": "G", "discriminator": "D", "backward": "backward"}
PASSES |= {"acceptance": "accepted"}
MARKS = "osD^v"  # of points of one colour
CHOSEN = ("precision", "recall"), ("density", "coverage")  # fidelity against diversity


CAPTION = 14  # pixels
PACKAGE = "studiogan_guidance"


def writable(folder: Path) -> Path:
    """Make ``folder`` and prove that files can be written into it, before any work is done; UserError otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}; choose another --out") from error


def appendable(path: Path) -> None:
    """Raise UserError, before any work is done, if ``path`` exists and lines cannot be added to it."""
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        raise UserError(f"cannot add lines to {path}: it is not a writable file; choose another --out")


def plain_data(value: Any) -> Any:
    """``value`` with everything that JSON cannot hold replaced: nan and infinities become null, tuples lists."""
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add one line of JSON a row; processes may share the file, and one that is killed spoils no line but its own."""
    text = "".join(json.dumps(plain_data(row)) + "\n" for row in rows).encode()
    try:
        with FileLock(path.with_name(f".{path.name}.lock")), path.open("a+b") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                text = b"\n" + text  # a line that was cut off ends here
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a results.jsonl, none if there is no such file; lines that were cut off are left out."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return [row for row in found if isinstance(row, dict)]


def identity(row: Mapping[str, Any]) -> str:
    """What a row measures, as one word; rows of equal identity have the same metrics, equal up to rounding."""
    sampler, options, protocol, generator, config, environment = (
        row.get(key) or {} for key in ("sampler", "options", "protocol", "generator", "config", "environment")
    )
    source = [generator.get("sha256"), generator.get("model_sha256"), environment.get(PACKAGE, __version__)]
    source += [generator[key] for key in sorted(generator) if key.endswith("_sha256") and key != "model_sha256"]
    source += [generator[key] for key in ("calibrated_on",) if key in generator]
    facts = plain_data([sampler, options, protocol, source, sorted(config.get("metrics") or ())])
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def row(
    sampler: str,
    options: Mapping[str, Any],
    metrics: Mapping[str, float],
    protocol: Mapping[str, Any],
    cost: Mapping[str, float],
    seconds: float,
    generator: Mapping[str, Any],
    config: Mapping[str, Any],
    device: str,
    setup: Mapping[str, int] | None = None,
    notes: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """One self-describing result: a line of results.jsonl.

    ``cost`` is passes per image (and seconds), ``setup`` passes in all for what was computed once, ``notes`` the means
    of what the sampler had to say about each image.
    """
    return {
        "sampler": sampler,
        "options": options,
        "metrics": metrics,
        "protocol": protocol,
        "cost": cost,
        "setup": setup or {},
        "notes": notes or {},
        "seconds": round(seconds, 3),
        "generator": generator,
        "config": config,
        "environment": {PACKAGE: __version__, "torch": torch.__version__, "device": device},
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


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


def save_charts(folder: Path, rows: Sequence[Mapping[str, Any]], axis: str, plain: Mapping[str, Any] | None) -> None:
    """FID against the option ``axis`` and precision against recall, a line for each setting of the other options.

    ``plain`` is the row of plain sampling, if there is one. Writes fid.png and precision_recall.png, as far as every
    row has their metrics.
    """
    from matplotlib.figure import Figure

    lines: dict[tuple[str, ...], list[tuple[Any, Mapping[str, Any]]]] = {}  # by words: (value of the axis, row)
    for row in rows:
        options = flat(row["options"])
        if options.get(axis) is not None:
            words = (short({key: value}) for key, value in options.items() if key != axis)
            lines.setdefault(tuple(filter(None, words)), []).append((options[axis], row))
    common = set.intersection(*map(set, lines)) if len(lines) > 1 else set()
    charts = {"fid": ("", "fid"), "precision_recall": ("recall", "precision")}
    for name, (x, y) in charts.items():
        if any(row["metrics"].get(key) is None for row in rows for key in filter(None, (x, y))):
            continue
        figure = Figure((5, 3.6), layout="constrained")
        axes = figure.add_subplot(xlabel=x or axis, ylabel=HEADINGS[y])
        for label, points in lines.items():
            points = sorted(points, key=lambda point: point[0])
            xs = [row["metrics"][x] if x else value for value, row in points]
            ys = [row["metrics"][y] for _, row in points]
            text = " ".join(word for word in label if word not in common)
            axes.plot(xs, ys, "o-", markersize=4, label=text if len(lines) > 1 else points[0][1]["sampler"])
            for (value, _), at_x, at_y in zip(points, xs, ys) if x else ():
                axes.annotate(f"{value:g}", (at_x, at_y), (4, 4), textcoords="offset points", fontsize=8)
        if plain and x:
            axes.plot(plain["metrics"][x], plain["metrics"][y], "k*", markersize=9, label="plain")
        elif plain:
            axes.axhline(plain["metrics"][y], color="black", linestyle=":", label="plain")
        axes.legend(fontsize=8)
        with replacing(folder / f"{name}.png") as beside:
            figure.savefig(beside, dpi=130)


def save_scatter(path: Path, result: Mapping[str, Any]) -> None:
    """Fidelity against diversity, a point for each sampler of ``compare``, plain sampling as a star; names at the side.

    Precision against recall, or density against coverage where there is no such row; without either, no picture.
    """
    from matplotlib.figure import Figure

    rows = result["rows"]
    for y, x in CHOSEN:
        if all(row["metrics"].get(key, {}).get("mean") is not None for row in rows for key in (x, y)):
            break
    else:
        path.unlink(missing_ok=True)  # that of other rows
        return
    figure = Figure((8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    for i, row in enumerate(rows):
        (at_x, of_x), (at_y, of_y) = ((row["metrics"][key]["mean"], row["metrics"][key]["std"]) for key in (x, y))
        colour, mark, size = (
            ("black", "*", 12) if row["sampler"] == "plain" else (f"C{i}", MARKS[i // 10 % len(MARKS)], 6)
        )
        label = textwrap.fill(row["label"], 36)
        axes.errorbar(at_x, at_y, of_y, of_x, marker=mark, markersize=size, color=colour, linestyle="", label=label)
    figure.legend(loc="outside right upper", fontsize=8)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=130)


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


def grid(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Images uint8 [N, H, W, 3] as one picture of ``columns`` columns, missing ones white; [rows*H, columns*W, 3]."""
    n, height, width, channels = images.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * columns, height, width, channels), 255, np.uint8)
    sheet[:n] = images
    return sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, -1, channels)


def captioned(sheet: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.uint8]:
    """A picture [H, W, 3] of equal columns, with a line of text above each."""
    from PIL import Image, ImageDraw

    width = sheet.shape[1] // len(captions)
    head = Image.new("RGB", (sheet.shape[1], CAPTION), "white")
    for column, text in enumerate(captions):
        ImageDraw.Draw(head).text(((column + 0.5) * width, CAPTION / 2), text, "black", anchor="mm")
    return np.concatenate([np.asarray(head), sheet])


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write one picture [H, W, 3], whole or not at all."""
    from PIL import Image

    with replacing(path) as beside:
        Image.fromarray(image).save(beside)
