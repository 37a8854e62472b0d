"""Results on disk: the lines of results.jsonl, what identifies one, and the locks of those in work."""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from studiogan_guidance import __version__
from studiogan_guidance.errors import UserError, notice_once, one_line, say
from studiogan_guidance.files import append_lines, file_lock, json_digest, json_lines, regular_file, remove_stale

PACKAGE = "studiogan_guidance"
FILE = "results.jsonl"
MAPPINGS = ("options", "protocol", "generator", "config", "environment")  # parts of a row
NUMBERS = ("metrics", "cost", "setup", "notes")  # parts that hold numbers only
LARGEST = 1e300  # what a number of a row stays below
LOCKS = ".locks"  # the folder of the points that processes are measuring

# Raise this when a sampler, a metric or the drawing of noise and labels changes its numbers: rows of other MATHS are
# not taken for results, and not compared with those of today.
MATHS = 3


def writable(folder: Path) -> Path:
    """Make ``folder`` and prove that files can be written into it, before any work is done; UserError otherwise.

    What processes that were killed long ago left half-written is removed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
    except (OSError, ValueError) as error:  # a ValueError for a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write into {folder}: {reason}; choose another --out") from error
    remove_stale(folder)
    return folder


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
    """Add one line of JSON a row; processes may share the file, and a killed one damages no line but its own."""
    append_lines(path, [json.dumps(plain_data(row)) for row in rows])


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a results.jsonl, none if there is no such file.

    Lines that were cut off, or that hold something else than a row, are left out; a notice tells how many, once.
    """
    if not path.exists():
        return []
    lines = json_lines(regular_file(path, "the results"))
    rows = [row for line in lines if line and (row := _row(line))]
    if len(rows) < len(lines):
        count = len(lines) - len(rows)
        notice_once(f"{count} lines of {path} were cut off or are no results: they are left out")
    return rows


def _row(line: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row in a line, if the parts that are there are of the right kinds."""
    try:
        row: dict[str, Any] = plain_data(line)
    except RecursionError:
        return None
    if not all(isinstance(row.get(key) or {}, Mapping) for key in (*MAPPINGS, *NUMBERS)):
        return None
    numbers = [number for key in NUMBERS for number in (row.get(key) or {}).values()]
    is_whole = isinstance(row.get("sampler", ""), str) and all(map(_is_number, [*numbers, row.get("seconds")]))
    return row if is_whole else None


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and abs(value) < LARGEST)


def by_identity(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a results.jsonl under their identities; of equal rows, the last one."""
    return {identity(row): row for row in read(path)}


def identity(row: Mapping[str, Any]) -> str:
    """A digest of what a row measures; rows of equal identity have the same metrics, equal up to rounding.

    A row that is not measured yet has no environment: its MATHS are those of today.
    """
    sampler, options, protocol, generator, config = (
        row.get(key) or {} for key in ("sampler", "options", "protocol", "generator", "config")
    )

    # The generator, the code, and the files that options point at.
    source = [generator.get("sha256"), generator.get("model_sha256"), maths(row)]
    source += [generator[key] for key in sorted(generator) if key.endswith("_sha256") and key != "model_sha256"]
    if "calibrated_on" in generator:
        source.append(generator["calibrated_on"])

    metrics = sorted(config.get("metrics") or ())
    return json_digest(plain_data([sampler, options, protocol, source, metrics]))


def maths(row: Mapping[str, Any]) -> Any:
    """The MATHS behind the numbers of a row; rows from before there was such a constant name the package's version."""
    environment = row.get("environment") or {"maths": MATHS}
    return environment.get("maths", environment.get(PACKAGE))


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
    batch_size: int | None = None,
) -> dict[str, Any]:
    """One self-describing result: a line of results.jsonl.

    ``cost`` is passes per image (and seconds), ``setup`` passes in all for what was computed once, ``notes`` the means
    over the images of the notes of the sampler. ``device`` and ``batch_size`` say what times belong to.
    """
    environment = {PACKAGE: __version__, "maths": MATHS, "torch": torch.__version__, "device": device}
    environment["python"] = platform.python_version()
    environment["system"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if batch_size is not None:
        environment["batch_size"] = batch_size

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
        "environment": environment,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def paired(values: Sequence[float | None], plain_values: Sequence[float | None]) -> dict[str, float | None]:
    """The difference of a metric to plain sampling, over equal ranges of seeds.

    What both have in common, seeds and labels, cancels in the differences, so their error is smaller than the deviation
    of either.

    Args:
        values: the metric over each range of seeds; None where it is not a number.
        plain_values: that of plain sampling over the same ranges, in the same order.

    Returns:
        ``mean`` of the differences, and ``se``, the standard error of this mean, s / sqrt(n) with s their standard
        deviation; None where a value is missing, and ``se`` where there is one range only.
    """
    pairs = zip(values, plain_values, strict=True)
    differences = [value - plain for value, plain in pairs if value is not None and plain is not None]
    if not differences or len(differences) < len(values):
        return {"mean": None, "se": None}

    n = len(differences)
    error = statistics.stdev(differences) / math.sqrt(n) if n > 1 else None
    return {"mean": statistics.mean(differences), "se": error}


def claim(folder: Path, key: str) -> FileLock | None:
    """The lock of the point ``key`` of a folder, or None while another process measures it.

    The lock ends with the process, even if that is killed. Another process may have measured the point just before, so
    read the results after this call. On a file system without locks it is not held: others may measure the point, too.
    """
    lock = file_lock(folder / LOCKS / key, wait=False)
    try:
        (folder / LOCKS).mkdir(exist_ok=True)
        lock.acquire()
    except (Timeout, FileNotFoundError):  # the latter if another process removes the folder at this moment
        return None
    except (OSError, NotImplementedError) as error:
        _say_that_nothing_is_locked(folder, one_line(error))
    return lock


@functools.cache
def _say_that_nothing_is_locked(folder: Path, reason: str) -> None:
    say(f"{folder} has no locks ({reason}): processes that share it measure the same points")


def remove_locks(folder: Path, keys: Sequence[str]) -> None:
    """Remove the lock files of finished points, and their folder if it is empty.

    This is safe while other processes run: whoever claims a finished point finds its row and measures nothing.
    """
    for key in keys:
        with suppress(OSError):
            (folder / LOCKS / key).unlink()
    with suppress(OSError):
        (folder / LOCKS).rmdir()
