"""Results on disk: the lines of results.jsonl, and what identifies one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock

from studiogan_guidance import __version__
from studiogan_guidance.errors import UserError

if TYPE_CHECKING:
    pass


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
