"""Results on disk and on the screen: results.jsonl, tables, images."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from studiogan_guidance import __version__
from studiogan_guidance.common import UserError, replacing

HEADINGS = {"fid": "FID", "is": "IS", "precision": "precision", "recall": "recall", "density": "density"}
HEADINGS |= {"coverage": "coverage", "accuracy": "accuracy"}


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
    """Add one line of JSON a row, in one write, so that processes may share the file."""
    text = "".join(json.dumps(plain_data(row)) + "\n" for row in rows)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


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
) -> dict[str, Any]:
    """One self-describing result: a line of results.jsonl."""
    return {
        "sampler": sampler,
        "options": options,
        "metrics": metrics,
        "protocol": protocol,
        "cost": cost,
        "seconds": round(seconds, 3),
        "generator": generator,
        "config": config,
        "environment": {"studiogan_guidance": __version__, "torch": torch.__version__, "device": device},
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of an evaluation as text, one line a sampler, with the protocol below."""
    from rich.console import Console
    from rich.table import Table

    names = [key for key in HEADINGS if any(key in row["metrics"] for row in rows)]
    grid = Table(box=None, pad_edge=False)
    for heading in ("sampler", "options", *(HEADINGS[key] for key in names), "s"):
        grid.add_column(heading, justify="left" if heading in ("sampler", "options") else "right", no_wrap=True)
    for row in rows:
        metrics = [row["metrics"].get(key) for key in names]
        cells = ["-" if value is None else f"{value:.3f}" for value in metrics]
        grid.add_row(row["sampler"], short(row["options"]), *cells, f"{row['seconds']:.1f}")
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(grid)
    protocol = "  ".join(f"{key}={value}" for key, value in rows[0]["protocol"].items())
    return console.export_text().rstrip("\n") + f"\n\nprotocol: {protocol}"


def short(options: Mapping[str, Any]) -> str:
    """Options that say something, as key=value words."""
    return " ".join(f"{key}={value}" for key, value in options.items() if value not in (None, False))


def grid(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Images uint8 [N, H, W, 3] as one picture of ``columns`` columns, missing ones white; [rows*H, columns*W, 3]."""
    n, height, width, channels = images.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * columns, height, width, channels), 255, np.uint8)
    sheet[:n] = images
    return sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, -1, channels)


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write one picture [H, W, 3], whole or not at all."""
    from PIL import Image

    with replacing(path) as beside:
        Image.fromarray(image).save(beside)
