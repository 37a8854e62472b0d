"""Samplers beside each other on one checkpoint: equal seeds, equal labels, one table, one picture.

All measurements are in results.jsonl, a line for each sampler and range of seeds; the tables and the picture are made
of these lines.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studiogan_guidance import samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, one_line, say
from studiogan_guidance.evaluation import charts, distributed, results, tables
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.sweep import complete
from studiogan_guidance.files import replacing
from studiogan_guidance.options import Spec
from studiogan_guidance.rng import check_images
from studiogan_guidance.samplers import SAMPLERS, Sampler

Row = Mapping[str, Any]
Record = dict[str, Any]
PARTS = ("sampler", "options", "metrics", "protocol", "generator", "cost", "seconds")  # of every row
MOST_REPEATS = 1000  # ranges of seeds


def compare(cfg: RunConfig, repeats: int = 1, every: bool = False) -> dict[str, Any]:
    """Measure plain sampling, then the samplers of ``cfg.compare``, or every one at its defaults.

    Args:
        cfg: the run; its ``sampler`` has no part in it.
        repeats: ranges of seeds for each sampler, one after the other, from ``cfg.seed`` on.
        every: measure every sampler, where ``cfg.compare`` is empty. At the defaults, those of the papers, this may
            take days.

    Returns:
        See ``summary``; in processes above rank 0, nothing. In ``cfg.out`` are results.jsonl (which may hold more than
        this comparison), compare.txt, compare.csv, compare.json and compare.png.

    Raises:
        UserError: no samplers, or a list and ``every``; unknown samplers or options; options that have no meaning on
            this generator. (With ``every``, samplers that are refused are left out, with a line on stderr.)
    """
    if repeats < 1:
        raise UserError(f"--repeats must be a whole number from 1 up, found {repeats}")
    if repeats > MOST_REPEATS:
        raise UserError(f"--repeats must be at most {MOST_REPEATS}, found {repeats}: each of them is a measurement")
    candidates = [(SAMPLERS[spec.name].name, samplers.create(spec)) for spec in _specs(cfg, every)]
    folder = results.writable(Path(cfg.out))
    with distributed.group() as group:
        evaluation = Evaluation(cfg, group, [Spec("plain")])
        check_images(cfg.seed, repeats * evaluation.num)
        refusals = Refusals(are_errors=not every, are_printed=group.rank == 0)

        # Each sampler once, plain sampling first.
        chosen = {_settings(*pair): pair for pair in evaluation.chosen}
        for name, sampler in candidates:
            try:
                chosen.setdefault(_settings(name, sampler), evaluation.named(name, sampler))
            except UserError as error:
                refusals.add(name, error)

        # Measure what results.jsonl lacks; a sampler may also be refused by what it meets while it samples.
        ranges = [cfg.seed + i * evaluation.num for i in range(repeats)]
        points = [(name, sampler, seed) for name, sampler in chosen.values() for seed in ranges]
        rows = complete(evaluation, points, folder, lambda point, error: refusals.add(point[0], error))
        if group.rank:
            return {}
    return _written(folder, summary([row for row in rows if row["sampler"] not in refusals.names]))


def _specs(cfg: RunConfig, every: bool) -> list[Spec]:
    """The samplers of the configuration, or every one; UserError for none of the two, and for both."""
    if every and cfg.compare:
        raise UserError("--all is for every sampler, and a list of samplers is given: drop one of the two")
    if every:
        return [Spec(entry.name) for entry in SAMPLERS]
    if not cfg.compare:
        raise UserError(
            "no samplers to compare: add --with NAME[:KEY=VALUE,...] for each of them, or --all for every one at its "
            "defaults, which may take days"
        )
    return [Spec.parse(spec, "a sampler to compare") for spec in cfg.compare]


class Refusals:
    """Samplers that are refused on a generator.

    Args:
        are_errors: samplers were asked for by name, so a refusal ends the comparison; plain's always does.
        are_printed: print a line on stderr for each sampler that is left out.
    """

    def __init__(self, are_errors: bool, are_printed: bool) -> None:
        self.are_errors = are_errors
        self.are_printed = are_printed
        self.names: set[str] = set()

    def add(self, name: str, error: UserError) -> None:
        """Leave out the sampler ``name``, or raise UserError."""
        if name == "plain" or self.are_errors:
            raise UserError(f"{name}: {error}") from error
        if name not in self.names and self.are_printed:
            say(f"{name} is left out: {one_line(error, limit=1000)}")
        self.names.add(name)


def _settings(name: str, sampler: Sampler) -> str:
    """A text that is the same for samplers of the same name and options."""
    return json.dumps([name, samplers.options(sampler)], sort_keys=True)


def reread(cfg: RunConfig, paths: Sequence[Path]) -> dict[str, Any]:
    """Compare the rows of ``paths``, files results.jsonl or folders that hold one, and measure nothing.

    Raises:
        UserError: no rows in a path, or rows that cannot be compared: see ``summary``.
    """
    rows: list[Row] = []
    for path in paths:
        file = path / results.FILE if path.is_dir() else path
        complete_rows = [row for row in results.read(file) if {*PARTS} <= set(row)]
        if not complete_rows:
            raise UserError(f"no results in {file}: give files results.jsonl, or folders that hold one")
        rows += complete_rows
    result = summary(rows)
    return _written(results.writable(Path(cfg.out)), result)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows of results.jsonl as one record for each sampler, plain sampling first.

    Rows of ``eval``, ``sweep``, ``tune``, ``compare`` and of the host's own runs may stand together.

    Returns:
        ``protocol``, with the first seeds of all ranges if there are several, and ``rows``: sampler, options, those of
        them in which it ``differs`` from its defaults, a label, metrics (mean, standard deviation, values over the
        seeds), cost and notes (means), set-up (the largest), seconds, and ``time``, that of sampling as a multiple of
        plain sampling's, if both were timed on devices of the same name at the same batch size. ``paired`` is the
        difference of each metric to plain sampling over equal seeds, see ``results.paired``; empty in the record of
        plain sampling, and where that is not among the rows.

    Raises:
        UserError: rows of different protocols, generators, maths or seeds; the first difference is named.
    """
    for row in rows[1:]:
        _check_comparable(rows[0], row)

    # One group a sampler, plain sampling first; all over the same seeds.
    groups = sorted(_by_sampler(rows), key=lambda group: _any_row(group)["sampler"] != "plain")
    for group in groups[1:]:
        texts = [", ".join(map(str, _sorted_seeds(seeds))) for seeds in (groups[0], group)]
        _check_equal("seed", (_any_row(groups[0]), texts[0]), (_any_row(group), texts[1]))

    # One record a group.
    seeds = _sorted_seeds(groups[0])
    records = [_record([group[seed] for seed in seeds]) for group in groups]
    _add_times(records)
    _add_differences(records)
    _add_labels(records)
    return {"protocol": {**rows[0]["protocol"], "seed": seeds if len(seeds) > 1 else seeds[0]}, "rows": records}


def _check_comparable(first: Row, row: Row) -> None:
    """Raise UserError unless two rows have the same protocol (but for the seed), generator and maths."""
    facts = [_facts(first), _facts(row)]
    for key in {**facts[0], **facts[1]}:
        _check_equal(key, (first, facts[0].get(key)), (row, facts[1].get(key)))


def _facts(row: Row) -> dict[str, Any]:
    return {**row["protocol"], "seed": None, "generator": row["generator"].get("sha256"), "maths": results.maths(row)}


def _check_equal(what: str, *facts: tuple[Row, Any]) -> None:
    """Raise UserError unless two facts about rows are equal."""
    if facts[0][1] == facts[1][1]:
        return
    values = " and ".join(f"{value} ({row['sampler']})" for row, value in facts)
    raise UserError(f"rows of different {what} cannot be compared: found {values}; measure them alike")


def _by_sampler(rows: Sequence[Row]) -> list[dict[Any, Row]]:
    """The rows of each sampler with its options and files, by seed; of equal rows, the last one."""
    groups: dict[str, dict[Any, Row]] = {}
    for row in rows:
        key = results.identity({**row, "protocol": {}, "config": {}, "environment": {}})
        groups.setdefault(key, {})[row["protocol"].get("seed", 0)] = row
    return list(groups.values())


def _any_row(group: Mapping[Any, Row]) -> Row:
    return next(iter(group.values()))


def _sorted_seeds(seeds: Iterable[Any]) -> list[Any]:
    """Seeds in their order; those of unguided runs of the host, which are text, come last."""
    return sorted(seeds, key=lambda seed: (isinstance(seed, str), seed))


def _record(rows: Sequence[Row]) -> Record:
    """The rows of one sampler over all seeds as one."""
    # Set-up happens once a process: the largest is that of a process that did all of it.
    last = rows[-1]
    environment = last.get("environment") or {}
    config = last.get("config") or {}
    setup = Counter[str]()
    for row in rows:
        setup |= Counter(row.get("setup") or {})

    return {
        "sampler": last["sampler"],
        "options": last["options"],
        "differs": tables.non_default_options(last["sampler"], last["options"]),
        "metrics": {key: _spread([row["metrics"].get(key) for row in rows]) for key in last["metrics"]},
        "cost": _means(row["cost"] for row in rows),
        "setup": dict(setup),
        "notes": _means(row.get("notes") or {} for row in rows),
        "seconds": statistics.mean(row["seconds"] for row in rows),
        "generator": last["generator"],
        "timed_on": [environment.get("device"), environment.get("batch_size", config.get("batch_size"))],
    }


def _spread(values: list[float | None]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds; None where a value is missing, or where there is one only."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "std": None, "values": values}
    std = statistics.stdev(known) if len(known) > 1 else None
    return {"mean": statistics.mean(known), "std": std, "values": values}


def _means(mappings: Iterable[Mapping[str, float | None]]) -> dict[str, float]:
    """The mean of each key over the mappings that have it."""
    values: dict[str, list[float]] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            if value is not None:
                values.setdefault(key, []).append(value)
    return {key: statistics.mean(numbers) for key, numbers in values.items()}


def _add_times(records: Sequence[Record]) -> None:
    """Add ``time``, the seconds of sampling as a multiple of those of plain sampling, or None."""
    first = records[0]
    plain = first["cost"].get("sampling_seconds") if first["sampler"] == "plain" else None
    for record in records:
        seconds = record["cost"].get("sampling_seconds")
        is_comparable = plain and seconds is not None and record["timed_on"] == first["timed_on"]
        record["time"] = seconds / plain if is_comparable else None


def _add_differences(records: Sequence[Record]) -> None:
    """Add ``paired``, the difference of each metric to plain sampling: see ``results.paired``."""
    first = records[0]
    plain = first["metrics"] if first["sampler"] == "plain" else {}
    for record in records:
        others = {} if record is first else record["metrics"]
        record["paired"] = {
            key: results.paired(metric["values"], plain[key]["values"])
            for key, metric in others.items()
            if key in plain
        }


def _add_labels(records: Sequence[Record]) -> None:
    """Add ``label``: the sampler's name, with the options that differ if there are several of that name."""
    counts = Counter(record["sampler"] for record in records)
    for record in records:
        options = tables.format_options(record["differs"]) if counts[record["sampler"]] > 1 else ""
        record["label"] = f"{record['sampler']} {options}".strip()


def _written(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The result itself; writes compare.txt, compare.json, compare.csv and compare.png."""
    text = tables.compared(result)
    data = json.dumps(results.plain_data(result), indent=1)
    for name, content in (("compare.txt", text), ("compare.json", data)):
        with replacing(folder / name) as temporary:
            temporary.write_text(content + "\n", encoding="utf-8")
    tables.save_csv(folder / "compare.csv", [_csv_row(record, result["protocol"]) for record in result["rows"]])
    charts.save_scatter(folder / "compare.png", result)
    return result


def _csv_row(record: Record, protocol: Mapping[str, Any]) -> Record:
    """A record as a row: the mean of each metric, its deviation and its difference to plain sampling."""
    metrics = {key: value["mean"] for key, value in record["metrics"].items()}
    for key, value in record["metrics"].items():
        if value["std"] is not None:
            metrics[f"{key}_std"] = value["std"]
    for key, difference in record["paired"].items():
        metrics[f"{key}_paired"] = difference["mean"]
        metrics[f"{key}_paired_se"] = difference["se"]
    return {**record, "metrics": metrics, "cost": {**record["cost"], "time": record["time"]}, "protocol": protocol}
