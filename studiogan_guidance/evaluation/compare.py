"""Samplers beside each other on one checkpoint: equal seeds, equal labels, one table, one picture.

What was measured is in results.jsonl, a line for each sampler and range of seeds; all else is made of these lines.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studiogan_guidance import samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import distributed, pictures, results, tables
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.sweep import complete
from studiogan_guidance.files import replacing
from studiogan_guidance.samplers import SAMPLERS, Sampler

Row = Mapping[str, Any]
PARTS = ("sampler", "options", "metrics", "protocol", "generator", "cost", "seconds")  # of every row


def compare(cfg: RunConfig, seeds: int = 1) -> dict[str, Any]:
    """Measure plain sampling, then the samplers of ``cfg.compare`` or every one at its defaults.

    Args:
        cfg: the run; its ``sampler`` has no part in it.
        seeds: ranges of seeds for each sampler, one after the other, from ``cfg.seed`` on.

    Returns:
        See ``summary``; in processes above rank 0, nothing. In ``cfg.out`` lie results.jsonl (which may hold more than
        this comparison), compare.txt, compare.csv, compare.json and compare.png.

    Raises:
        UserError: unknown samplers or options, or such without a meaning here. (Without a list, samplers that are
            refused on this generator are left out, with a line on stderr.)
    """
    if not 1 <= seeds < 2**20:
        raise UserError(f"--seeds must be a whole number from 1 up, found {seeds}")
    listed = [_made({"name": spec} if isinstance(spec, str) else spec) for spec in cfg.compare]
    folder = results.writable(Path(cfg.out))
    refused: set[str] = set()
    with distributed.group() as group:
        evaluation = Evaluation(cfg, group, [("plain", {})])
        chosen = {_key(*pair): pair for pair in evaluation.chosen}

        def leave_out(name: str, error: UserError) -> None:
            if name == "plain" or listed:
                raise UserError(f"{name}: {error}") from error
            if name not in refused and group.rank == 0:
                print(f"{name} is left out: {' '.join(str(error).split())}", file=sys.stderr)
            refused.add(name)

        for name, sampler in listed or [(entry.name, samplers.create(entry.name)) for entry in SAMPLERS]:
            try:
                chosen.setdefault(_key(name, sampler), (name, evaluation.checked(sampler)))
            except UserError as error:
                leave_out(name, error)
        ranges = [cfg.seed + i * evaluation.num for i in range(seeds)]
        points = [(name, sampler, seed) for name, sampler in chosen.values() for seed in ranges]
        rows = complete(evaluation, points, folder, lambda point, error: leave_out(point[0], error))
        if group.rank:
            return {}
        return _written(folder, summary([row for row in rows if row["sampler"] not in refused]))


def reread(cfg: RunConfig, paths: Sequence[Path]) -> dict[str, Any]:
    """Compare the rows of ``paths``, files results.jsonl or folders that hold one, and measure nothing.

    Raises:
        UserError: no rows in a path, or rows that cannot be compared: see ``summary``.
    """
    rows: list[dict[str, Any]] = []
    for path in paths:
        file = path / "results.jsonl" if path.is_dir() else path
        found = [row for row in results.read(file) if {*PARTS} <= set(row)]
        if not found:
            raise UserError(f"no results in {file}: give files results.jsonl, or folders that hold one")
        rows += found
    result = summary(rows)
    return _written(results.writable(Path(cfg.out)), result)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows of results.jsonl as one record for each sampler, plain sampling first.

    Returns:
        ``protocol``, with the first seeds of all ranges if there are several, and ``rows``: sampler, options, what of
        them ``differs`` from the defaults, a label, metrics (mean, standard deviation, values over the seeds), cost and
        notes (means), set-up (the most), seconds, and ``time``, that of sampling as a multiple of plain sampling's, if
        both were timed on devices of the same name at the same batch size.

    Raises:
        UserError: rows of different protocols, generators or seeds; the first difference is named.
    """
    first = rows[0]
    groups: dict[str, dict[int, Row]] = {}  # by sampler, then by seed; of rows alike the last one counts
    for row in rows:
        its, own = ({**r["protocol"], "generator": r["generator"].get("sha256"), "seed": None} for r in (first, row))
        for key in {**its, **own}:
            _same(key, (first, its.get(key)), (row, own.get(key)))
        key = results.identity({**row, "protocol": {}, "config": {}, "environment": {}})
        groups.setdefault(key, {})[row["protocol"].get("seed", 0)] = row
    found = sorted(groups.values(), key=lambda group: next(iter(group.values()))["sampler"] != "plain")
    for group in found:
        _same("seed", *((next(iter(g.values())), ", ".join(map(str, sorted(g)))) for g in (found[0], group)))
    records = [_record([group[seed] for seed in sorted(group)]) for group in found]
    plain = records[0]["cost"].get("sampling_seconds") if records[0]["sampler"] == "plain" else None
    names = [record["sampler"] for record in records]
    for record in records:
        seconds, alike = record["cost"].get("sampling_seconds"), record["timed_on"] == records[0]["timed_on"]
        record["time"] = seconds / plain if plain and seconds is not None and alike else None
        alone = names.count(record["sampler"]) == 1
        record["label"] = f"{record['sampler']} {'' if alone else tables.format_options(record['differs'])}".strip()
    every = sorted(found[0])
    return {"protocol": {**first["protocol"], "seed": every if len(every) > 1 else every[0]}, "rows": records}


def non_default_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the defaults of the sampler, and those of its base likewise; off is ``false``."""
    try:
        usual = results.plain_data(samplers.options(samplers.create(name)))
    except UserError:  # a sampler of a package that is not installed here
        usual = {}
    words = {None: "none", False: "false"}
    found: dict[str, Any] = {}
    for key, value in options.items():
        if key in usual and value == usual[key]:
            continue
        inner = isinstance(value, Mapping) and non_default_options(
            value["name"], {k: v for k, v in value.items() if k != "name"}
        )
        named = {"name": value["name"], **inner} if isinstance(inner, dict) else value
        found[key] = words[value] if value is None or value is False else named
    return found


def _record(rows: Sequence[Row]) -> dict[str, Any]:
    last, setup = rows[-1], Counter[str]()
    for row in rows:
        setup |= Counter(row.get("setup") or {})
    return {
        "sampler": last["sampler"],
        "options": last["options"],
        "differs": non_default_options(last["sampler"], last["options"]),
        "metrics": {key: _spread([row["metrics"].get(key) for row in rows]) for key in last["metrics"]},
        "cost": _means(row["cost"] for row in rows),
        "setup": dict(setup),
        "notes": _means(row.get("notes") or {} for row in rows),
        "seconds": statistics.mean(row["seconds"] for row in rows),
        "generator": last["generator"],
        "timed_on": [(last.get("environment") or {}).get("device"), (last.get("config") or {}).get("batch_size")],
    }


def _spread(values: list[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    whole = len(known) == len(values)
    std = statistics.stdev(known) if whole and len(known) > 1 else None
    return {"mean": statistics.mean(known) if whole else None, "std": std, "values": values}


def _means(mappings: Iterable[Mapping[str, float | None]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            if value is not None:
                found.setdefault(key, []).append(value)
    return {key: statistics.mean(values) for key, values in found.items()}


def _same(what: str, *facts: tuple[Row, Any]) -> None:
    if facts[0][1] != facts[1][1]:
        found = " and ".join(f"{value} ({row['sampler']})" for row, value in facts)
        raise UserError(f"rows of different {what} cannot be compared: found {found}; measure them alike")


def _made(spec: Mapping[str, Any]) -> tuple[str, Sampler]:
    sampler = samplers.create(spec["name"], {key: value for key, value in spec.items() if key != "name"})
    return SAMPLERS[spec["name"]].name, sampler


def _key(name: str, sampler: Sampler) -> str:
    return json.dumps([name, samplers.options(sampler)], sort_keys=True)


def _written(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    text, data = tables.compared(result), json.dumps(results.plain_data(result), indent=1)
    for name, content in (("compare.txt", text), ("compare.json", data)):
        with replacing(folder / name) as beside:
            beside.write_text(content + "\n", encoding="utf-8")
    tables.save_csv(folder / "compare.csv", [_line(record, result["protocol"]) for record in result["rows"]])
    pictures.save_scatter(folder / "compare.png", result)
    return result


def _line(record: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {key: value["mean"] for key, value in record["metrics"].items()}
    metrics |= {f"{key}_std": value["std"] for key, value in record["metrics"].items() if value["std"] is not None}
    return {**record, "metrics": metrics, "cost": {**record["cost"], "time": record["time"]}, "protocol": protocol}
