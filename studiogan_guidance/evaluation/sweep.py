"""A grid over the options of a sampler; every finished point is a line of results.jsonl, whoever made it.

A sweep that was killed goes on where it stopped, and processes may share a folder: a point belongs to the process that
holds its lock, which the system releases with the process.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from studiogan_guidance import samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import distributed, pictures, results, tables
from studiogan_guidance.evaluation.evaluation import Evaluation, statistics
from studiogan_guidance.features.stats import to_uint8
from studiogan_guidance.samplers import Sampler, restat

Point = tuple[str, Sampler, int]  # name, sampler, first seed
STRIP_ROWS, STRIP_COLUMNS = 8, 16


def sweep(cfg: RunConfig, grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Measure the sampler of ``cfg`` at every combination of the options in ``grid``, on the same seeds and labels.

    Args:
        cfg: the run; with ``compare_plain``, plain sampling is measured too, unless a point is plain by its options.
        grid: values of each option; the first option with several numbers is the axis of the pictures.

    Returns:
        One row a point, in the order of the grid, plain first; in processes above rank 0, nothing. In ``cfg.out`` lie
        results.jsonl (which may hold more than this grid), table.csv, fid.png, precision_recall.png and strip.png.

    Raises:
        UserError: an empty grid, unknown options, values out of range, a folder that cannot be written.
    """
    if not grid or not all(grid.values()):
        raise UserError("a sweep needs a grid: give --grid scale=0.9,1,1.1 with any option of the sampler")
    combinations = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    wanted = [(cfg.sampler, {**cfg.options, **options}) for options in combinations]
    made = [samplers.create(*point) for point in wanted]
    if cfg.compare_plain and not any(sampler.neutral for sampler in made):
        wanted.insert(0, ("plain", {}))
    folder = results.writable(Path(cfg.out))
    with distributed.group() as group:
        evaluation = Evaluation(cfg, group, wanted)
        rows = complete(evaluation, [(name, sampler, cfg.seed) for name, sampler in evaluation.chosen], folder)
        if rows:
            tables.save_csv(folder / "table.csv", rows)
            axis = next((key for key in grid if len(grid[key]) > 1 and _numbers(made, key)), None)
            plain = [row for row, (name, its) in zip(rows, evaluation.chosen) if name == "plain" or its.neutral]
            if axis:
                pictures.save_charts(folder, rows, axis, plain[0] if plain else None)
            pictures.save_png(folder / "strip.png", strip(evaluation, list(grid)))
    return rows


def complete(
    evaluation: Evaluation,
    points: Sequence[Point],
    folder: Path,
    refused: Callable[[Point, UserError], None] | None = None,
) -> list[dict[str, Any]]:
    """The rows of ``points`` in their order, found in the folder's results.jsonl or measured and added to it now.

    Points that another process is measuring are waited for. Returns nothing in processes above rank 0. A point that is
    refused while it is measured ends the work, or is handed to ``refused`` and left out.
    """
    path, group = folder / "results.jsonl", evaluation.group
    results.appendable(path)
    keys = [results.identity(evaluation.facts(*point)) for point in points]
    locks, waited, left_out = folder / ".locks", False, set[str]()
    while True:
        found = _found(path) if group.rank == 0 else {}
        todo = [i for i, key in enumerate(keys) if key not in found and key not in left_out]
        if not group.agree(bool(todo)):
            return [found[key] for key in keys if key in found] if group.rank == 0 else []
        lock, index = _take(locks, keys, todo, path) if group.rank == 0 else (None, None)
        index = group.agree(index)
        if index is None:
            if not waited and group.rank == 0:
                print(f"waiting for other processes, which hold {len(todo)} points in {locks}", file=sys.stderr)
            waited = True
            time.sleep(0.5)
            continue
        name, sampler, seed = points[index]
        try:
            row = evaluation.measure(name, sampler, seed)
            if row:
                results.append(path, [row])
        except UserError as error:
            if refused is None:
                raise
            refused(points[index], error)
            left_out.add(keys[index])
        finally:
            if lock:
                lock.release()


def strip(evaluation: Evaluation, options: Sequence[str]) -> Any:
    """A picture uint8 [H, W, 3] of the first seeds: a row for each seed, a column for each sampler in turn.

    Captions give the values of ``options``.
    """
    cfg, chosen = evaluation.cfg, evaluation.chosen[:STRIP_COLUMNS]
    seeds = range(cfg.seed, cfg.seed + min(STRIP_ROWS, evaluation.num))
    columns, captions = [], []
    for name, sampler in chosen:
        values = tables.dotted(samplers.options(sampler))
        captions.append(" ".join(str(values.get(key, name)) for key in options))
        with restat.applied(statistics(cfg, evaluation.view, sampler)):
            batch = next(sampler.stream(evaluation.view, seeds, len(seeds), evaluation.plan, cfg.noise_mode))
        columns.append(to_uint8(batch.images).permute(0, 2, 3, 1).cpu().numpy())
    return pictures.captioned(pictures.grid(np.concatenate(np.stack(columns, 1)), len(columns)), captions)


def _found(path: Path) -> dict[str, dict[str, Any]]:
    return {results.identity(row): row for row in results.read(path)}


def _take(locks: Path, keys: Sequence[str], todo: Sequence[int], path: Path) -> tuple[FileLock | None, int | None]:
    locks.mkdir(exist_ok=True)
    for index in todo:
        lock = FileLock(locks / keys[index])
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        if keys[index] not in _found(path):  # it may have been finished just before the lock was free
            return lock, index
        lock.release()
    return None, None


def _numbers(made: Sequence[Sampler], key: str) -> bool:
    values = [tables.dotted(samplers.options(sampler)).get(key) for sampler in made]
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
