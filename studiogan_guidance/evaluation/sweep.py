"""A grid over the options of a sampler; every finished point is a line of results.jsonl.

A sweep that was killed continues where it stopped, and processes may share a folder: each measures the points whose
locks it gets, and finds the other ones in results.jsonl.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from studiogan_guidance import progress, samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, say
from studiogan_guidance.evaluation import charts, distributed, pictures, results, tables
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.generation import norm_statistics
from studiogan_guidance.evaluation.source import current_device, open_source
from studiogan_guidance.evaluation.starts import default_grid
from studiogan_guidance.features.stats import to_uint8
from studiogan_guidance.options import Spec, dotted
from studiogan_guidance.progress import Bar
from studiogan_guidance.samplers import Sampler, restat

Point = tuple[str, Sampler, int]  # name, sampler, first seed
POINTS = 10_000  # of a grid
STRIP_ROWS = 8
STRIP_COLUMNS = 16
PAUSE = 0.5  # seconds between looks at the points of other processes


def sweep(cfg: RunConfig, grid: Mapping[str, Sequence[Any]] | None = None) -> list[dict[str, Any]]:
    """Measure the sampler of ``cfg`` at every combination of the options in ``grid``, on the same seeds and labels.

    Args:
        cfg: the run; with ``compare_plain``, plain sampling is measured too, unless a point is plain by its options.
        grid: values of each option; the first option with several numbers is the axis of the pictures. By default, of
            gandance, the scale and the spread within the classes together (``starts.GRID``).

    Returns:
        One row a point, in the order of the grid, plain first; in processes above rank 0, nothing. In ``cfg.out`` are
        results.jsonl (which may hold more than this grid), table.csv, fid.png, precision_recall.png and strip.png.

    Raises:
        UserError: an empty grid, unknown options, values out of range, a folder that cannot be written.
    """
    source = None
    if grid is None:
        source = open_source(cfg)
        grid = default_grid(cfg, source.networks(current_device(cfg.device)))
    if not grid or not all(grid.values()):
        raise UserError("a sweep needs a grid: give --grid scale=0.9,1,1.1 with any option of the sampler")

    # The points, with plain sampling in front if none of them is plain.
    count = math.prod(map(len, grid.values()))
    if count > POINTS:
        raise UserError(
            f"this grid has {count} points, each of them a measurement of seconds to hours: give fewer values, at most "
            f"{POINTS} points"
        )
    combinations = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    wanted = [Spec(cfg.sampler, {**cfg.options, **options}) for options in combinations]
    grid_samplers = [samplers.create(spec) for spec in wanted]
    if cfg.compare_plain and not any(sampler.neutral for sampler in grid_samplers):
        wanted.insert(0, Spec("plain"))

    # Measure what results.jsonl lacks.
    folder = results.writable(Path(cfg.out))
    with distributed.group() as group:
        evaluation = Evaluation(cfg, group, wanted, source)
        rows = complete(evaluation, [(name, sampler, cfg.seed) for name, sampler in evaluation.chosen], folder)
        if group.rank:
            return []

        # Table and pictures.
        tables.save_csv(folder / "table.csv", rows)
        axis = next((key for key in grid if len(grid[key]) > 1 and _is_numeric(grid_samplers, key)), None)
        if axis:
            plain = _row_of_plain(rows, [sampler for _, sampler in evaluation.chosen])
            charts.save_charts(folder, rows, axis, plain)
        pictures.save_strip(folder / "strip.png", strip(evaluation, list(grid)))
    return rows


def _is_numeric(grid_samplers: Sequence[Sampler], option: str) -> bool:
    """Whether an option is a finite number in all samplers of a grid."""
    values = [dotted(samplers.options(sampler)).get(option) for sampler in grid_samplers]
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)


def _row_of_plain(rows: Sequence[dict[str, Any]], chosen: Sequence[Sampler]) -> dict[str, Any] | None:
    """The first row whose sampler is plain, by its name or by its options."""
    for row, sampler in zip(rows, chosen):
        if row["sampler"] == "plain" or sampler.neutral:
            return row
    return None


def complete(
    evaluation: Evaluation,
    points: Sequence[Point],
    folder: Path,
    refused: Callable[[Point, UserError], None] | None = None,
) -> list[dict[str, Any]]:
    """The rows of ``points`` in their order: those in the folder's results.jsonl, and the others measured and added.

    Waits for points that another process is measuring. Returns nothing in processes above rank 0. A point that is
    refused while it is measured raises its UserError; with ``refused``, that is called with the error, and the point is
    left out.
    """
    with progress.bar("point", len(points) if len(points) > 1 else None, numbered=True) as shown:
        return _completed(evaluation, points, folder, refused, shown)


def _completed(
    evaluation: Evaluation,
    points: Sequence[Point],
    folder: Path,
    refused: Callable[[Point, UserError], None] | None,
    shown: Bar,
) -> list[dict[str, Any]]:
    """See ``complete``; ``shown`` counts the points."""
    group = evaluation.group
    path = folder / results.FILE
    results.appendable(path)
    keys = [results.identity(evaluation.facts(*point)) for point in points]
    captions = _captions(points)
    left_out: set[str] = set()
    is_first = True
    is_waiting = False
    while True:
        # Look for what is missing; rank 0 alone reads and writes.
        rows = results.by_identity(path) if group.rank == 0 else {}
        missing = [i for i, key in enumerate(keys) if key not in rows and key not in left_out]
        if not group.agree(bool(missing)):
            break
        done = len(keys) - len(missing)
        if is_first:
            shown.begin(done)
        is_first = False

        # Take a point that no other process has, or wait for theirs.
        lock, index = _take(folder, keys, missing) if group.rank == 0 else (None, None)
        index = group.agree(index)
        if index is None:
            if group.rank == 0 and not is_waiting:
                where = folder / results.LOCKS
                say(f"waiting for other processes, which hold {len(missing)} points in {where}")
            is_waiting = True
            time.sleep(PAUSE)
            continue

        # Measure it.
        shown.move(done, captions[index])
        name, sampler, seed = points[index]
        try:
            row = evaluation.measure(name, sampler, seed)
        except UserError as error:
            results.remove_locks(folder, [keys[index]])
            if refused is None:
                raise
            refused(points[index], error)
            left_out.add(keys[index])
        else:
            if row:
                results.append(path, [row])
        finally:
            if lock:
                lock.release()
    if group.rank:
        return []
    results.remove_locks(folder, keys)
    return [rows[key] for key in keys if key in rows]


def _captions(points: Sequence[Point]) -> list[str]:
    """The name of each point, with the options in which those of one sampler differ."""
    options = [dotted(samplers.options(sampler)) for _, sampler, _ in points]
    is_grid = len({name for name, _, _ in points}) == 1
    varied = [key for key in options[0] if any(one.get(key) != options[0][key] for one in options)] if is_grid else []
    return [
        f"{name} {tables.format_options({key: one.get(key) for key in varied})}".strip()
        for (name, _, _), one in zip(points, options)
    ]


def _take(folder: Path, keys: Sequence[str], missing: Sequence[int]) -> tuple[FileLock | None, int | None]:
    """The lock and the index of the first missing point that no other process has; None and None if there is none."""
    for index in missing:
        lock = results.claim(folder, keys[index])
        if lock is None:
            continue
        if keys[index] not in results.by_identity(folder / results.FILE):
            return lock, index
        lock.release()  # it was finished just before its lock was free
    return None, None


def strip(evaluation: Evaluation, options: Sequence[str]) -> pictures.Strip:
    """Images of the first seeds: a row for each seed, a column for each sampler in turn.

    Captions give the values of ``options``, or the name of a sampler that has none of them.
    """
    cfg = evaluation.cfg
    view = evaluation.view
    seeds = range(cfg.seed, cfg.seed + min(STRIP_ROWS, evaluation.num))
    columns = []
    captions = []
    for name, sampler in evaluation.chosen[:STRIP_COLUMNS]:
        values = dotted(samplers.options(sampler))
        words = [f"{key}={values[key]}" for key in options if key in values]
        captions.append(" ".join(words) or name)
        with restat.applied(norm_statistics(cfg, view, sampler)):
            batches = sampler.stream(view, seeds, len(seeds), evaluation.plan, cfg.noise_mode)
            images = torch.cat([batch.images for batch in batches])
        columns.append(to_uint8(images).permute(0, 2, 3, 1).cpu().numpy())

    # From [columns, rows, ...] to one list of images, row by row.
    cells = np.concatenate(np.stack(columns, 1))
    return pictures.Strip(pictures.grid(cells, len(columns)), captions)
