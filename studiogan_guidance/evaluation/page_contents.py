"""What a page tells of a sweep, a comparison or a search: a title, sentences, tables and curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studiogan_guidance.evaluation import charts, page_svg, page_tables
from studiogan_guidance.evaluation.page_tables import Cell, Column, Line, Table, best_of, is_plain, minus
from studiogan_guidance.evaluation.tables import (
    format_difference,
    format_metric,
    format_options,
    format_spread,
    metric_heading,
    present_metrics,
)
from studiogan_guidance.options import dotted

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A chart as SVG with a caption."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Content:
    """What a page tells: a title, sentences, tables and charts."""

    title: str
    summary: Sequence[str]
    tables: Sequence[Table]
    charts: Sequence[Picture] = field(default_factory=tuple)


def of_sweep(rows: Sequence[Row]) -> Content:
    """A grid of options."""
    metrics = present_metrics(rows)
    plain = next(filter(is_plain, rows), None)
    guided = [row for row in rows if row["sampler"] != "plain"] or rows
    names = ", ".join(dict.fromkeys(row["sampler"] for row in guided))

    # What was measured, and the best row.
    protocol = rows[0]["protocol"]
    count = f"{len(guided)} settings of {names}" if len(guided) > 1 else f"One setting of {names}"
    summary = [f"{count} on {rows[0]['generator'].get('source', 'a generator')}: {_measured(protocol)}."]
    keys, _ = page_tables.options_of(rows)
    if metrics:
        summary.append(_best_of_rows(rows, plain, metrics[0], keys))

    # Curves along the first option that is a number.
    axis = next((key for key in keys if _is_axis(guided, key)), None)
    curves = _curves(guided, axis, plain, metrics[0]) if axis and metrics else []
    table = page_tables.of_rows(f"All settings on the same {protocol.get('num', '')} seeds", rows)
    return Content(f"Sweep of {names} on {protocol.get('data', 'data')}", summary, [table], curves)


def _measured(protocol: Mapping[str, Any]) -> str:
    """What a protocol compares, in words."""
    real = f"{protocol.get('num_real', 'the')} real images of {protocol.get('data', 'the data')}"
    return f"{protocol.get('num')} images each, against {real} ({protocol.get('reference')} split)"


def _is_axis(rows: Sequence[Row], key: str) -> bool:
    values = [dotted(row["options"]).get(key) for row in rows]
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return len(numbers) == len(rows) and all(map(math.isfinite, numbers))


def _best_of_rows(rows: Sequence[Row], plain: Row | None, metric: str, keys: Sequence[str]) -> str:
    """A sentence about the row that is best by a metric, and plain sampling beside it."""
    known = [row for row in rows if row["metrics"].get(metric) is not None]
    if not known:
        return f"No row has a value of {metric_heading(metric)}."
    choose = min if best_of(metric) == "low" else max
    best = choose(known, key=lambda row: row["metrics"][metric])
    value = best["metrics"][metric]
    name = metric_heading(metric)
    options = {key: value for key, value in dotted(best["options"]).items() if key in keys}
    best_name = f"{best['sampler']} {format_options(options)}".strip()
    sentence = f"The best {name} is {format_metric(metric, value)}, of {best_name}"
    if plain is None or plain["metrics"].get(metric) is None:
        return f"{sentence}; plain sampling is not among the rows."

    # Beside plain sampling.
    if is_plain(best):
        return f"{sentence}, which is plain sampling: nothing is better."
    difference = {"mean": value - plain["metrics"][metric], "se": None}
    return (
        f"{sentence}; plain sampling has {format_metric(metric, plain['metrics'][metric])}. The difference is "
        f"{minus(format_difference(metric, difference))}, on one range of seeds, so without an error."
    )


def _curves(rows: Sequence[Row], axis: str, plain: Row | None, metric: str) -> list[Picture]:
    """The first metric along an option, and precision against recall."""
    found = []
    if charts.have(rows, metric):
        chart = charts.over_option(rows, axis, plain, metric)
        found.append(_picture(chart, "over", f"{metric_heading(metric)} against {axis}"))
    if charts.have(rows, "precision", "recall"):
        chart = charts.trade_off(rows, axis, plain)
        found.append(_picture(chart, "trade", "Precision against recall: up is fidelity, right is diversity"))
    return found


def _picture(chart: charts.Chart, name: str, caption: str) -> Picture:
    return Picture(page_svg.svg(chart, name, caption), caption)


def of_comparison(result: Mapping[str, Any]) -> Content:
    """Samplers beside each other."""
    rows = result["rows"]
    protocol = result["protocol"]
    metrics = present_metrics(rows)
    source = rows[0]["generator"].get("source", "a generator")
    names = len({row["sampler"] for row in rows})

    # What was measured, and the best row.
    seeds = protocol.get("seed")
    ranges = f", on {len(seeds)} ranges of seeds" if isinstance(seeds, list) else ""
    summary = [f"{len(rows)} settings of {names} samplers on {source}: {_measured(protocol)}{ranges}."]
    known = [row for row in rows if metrics and row["metrics"].get(metrics[0], {}).get("mean") is not None]
    if known:
        summary.append(_best_of_records(known, metrics[0]))

    # The trade-off.
    scatter = charts.scatter(result)
    caption = "Fidelity (up) against diversity (right); bars: standard deviation over ranges of seeds"
    curves = [_picture(scatter, "scatter", caption)] if scatter else []
    title = f"Comparison of {names} samplers on {protocol.get('data', 'data')}"
    return Content(title, summary, [page_tables.of_comparison(result)], curves)


def _best_of_records(records: Sequence[Row], metric: str) -> str:
    """As ``_best_of_rows``, over ranges of seeds."""
    choose = min if best_of(metric) == "low" else max
    best = choose(records, key=lambda record: record["metrics"][metric]["mean"])
    plain = next(filter(is_plain, records), None)
    value = format_spread(metric, best["metrics"][metric])
    sentence = f"The best {metric_heading(metric)} is {value}, of {best['label']}"
    if plain is None:
        return f"{sentence}; plain sampling is not among the rows."
    if is_plain(best):
        return f"{sentence}, which is plain sampling: nothing is better."
    beside = f"{sentence}; plain sampling has {format_spread(metric, plain['metrics'][metric])}."
    return f"{beside} {_difference(metric, best['paired'].get(metric, {}))}"


def _difference(metric: str, value: Mapping[str, Any]) -> str:
    """A sentence about a difference to plain sampling on equal seeds."""
    error = "standard error" if value.get("se") is not None else "one range of seeds, so without an error"
    return f"The difference on equal seeds is {minus(format_difference(metric, value))} ({error})."


def of_search(result: Mapping[str, Any], rows: Sequence[Row]) -> Content:
    """Options that ``tune`` has searched."""
    metric = result["objective"]
    sampler = next((row["sampler"] for row in reversed(rows)), "gandance")
    chosen, found, plain = (result[name]["options"] for name in ("chosen", "found", "plain"))
    count = len(result["plain"][metric]["values"])

    # The choice.
    candidates = [{"sampler": sampler, **step} for step in result["searched"]]
    keys, _ = page_tables.options_of(candidates)
    name = f"{sampler} {format_options({key: found[key] for key in keys if key in found})}".strip()
    summary = [
        f"{len(candidates)} candidates were measured on the {result['reference']} split; the best one, {name}, and "
        f"plain sampling then on {count} fresh ranges of seeds.",
        f"{metric_heading(metric)} is {format_spread(metric, result['found'][metric])} there, and "
        f"{format_spread(metric, result['plain'][metric])} with plain sampling. "
        + _difference(metric, result["paired"].get(metric, {})),
        "Chosen: plain sampling." if chosen == plain else f"Chosen: {name}.",
    ]

    # Tables: fresh seeds, then the search.
    fresh = []
    for label, options in (("plain", plain), ("found", found), ("chosen", chosen)):
        cells = [Cell(label), Cell(format_options(options))]
        cells += [page_tables.spread_cell(key, result[label].get(key, {})) for key in (metric, "recall")]
        fresh.append(Line(cells, options == plain))
    columns = [Column("what", is_number=False), Column("options", is_number=False)]
    columns += page_tables.metric_columns([metric, "recall"])
    note = f"After ±: standard deviation over {count} ranges of seeds."
    tables = [
        page_tables.table("The best candidate and plain sampling on fresh seeds", columns, fresh, [note]),
        page_tables.of_rows("Candidates in the order of the search", candidates),
    ]

    # Curves along the first number.
    axis = next((key for key in keys if _is_axis(candidates, key)), None)
    curves = _curves(candidates, axis, next(filter(is_plain, candidates), None), metric) if axis else []
    data = next((row["protocol"].get("data") for row in rows), "data")
    return Content(f"Search for {sampler} on {data}", summary, tables, curves)


def of_choice(result: Mapping[str, Any], rows: Sequence[Row]) -> Content:
    """What ``tune --auto`` has chosen."""
    metric = result["objective"]
    found = result["found"]
    name = f"{found['sampler']} {format_options(found['options'])}".strip()
    values, plain_values = ([row[metric] for row in result[key]["metrics"]] for key in ("found", "plain"))
    trials = result["trials"]

    # The choice.
    interval = ", ".join(minus(format_metric(metric, result["interval"][end])) for end in ("low", "high"))
    summary = [
        f"{len(trials)} settings were tried on the {result['reference']} split; the best one is {name}.",
        f"On {len(values)} fresh ranges of seeds its {metric_heading(metric)} is "
        f"{format_metric(metric, statistics.mean(values))}, that of plain sampling "
        f"{format_metric(metric, statistics.mean(plain_values))}. "
        + _difference(metric, result["paired"][metric])
        + f" It lies within {interval} with 95 %.",
        f"Chosen: {result['choice']['name']}, because of this: {result['reason']}.",
    ]

    # Tables: differences on fresh seeds, then the trials.
    lines = []
    for key, value in result["paired"].items():
        means = [statistics.mean(row[key] for row in result[who]["metrics"]) for who in ("plain", "found")]
        cells = [Cell(metric_heading(key)), *(page_tables.metric_cell(key, mean) for mean in means)]
        lines.append(Line([*cells, page_tables.difference_cell(key, value)]))
    columns = [
        Column("metric", is_number=False),
        Column("plain"),
        Column("found"),
        Column("found \N{MINUS SIGN} plain"),
    ]
    note = f"Means over {len(values)} ranges of seeds; after ±: standard error of the difference on equal seeds."
    kinds = [Cell(trial["kind"]) for trial in trials]
    shares = [Cell(f"{trial['share']:g}", trial["share"]) for trial in trials]
    differences = [page_tables.metric_cell(metric, trial["difference"]) for trial in trials]
    more = [
        (Column("kind", is_number=False), kinds),
        (Column("share", "of the images"), shares),
        (Column(f"Δ {metric_heading(metric)}", "to plain", best_of(metric)), differences),
    ]
    tables = [
        page_tables.table("The best setting and plain sampling on fresh seeds", columns, lines, [note]),
        page_tables.of_rows("Settings in the order of the search", trials, more),
    ]
    data = next((row["protocol"].get("data") for row in rows), "data")
    return Content(f"Choice of a sampler on {data}", summary, tables, _trials(trials, rows))


def _trials(trials: Sequence[Row], rows: Sequence[Row]) -> list[Picture]:
    """Fidelity against diversity of the trials on all images, and of plain sampling on the same seeds."""
    first = min(rows, key=lambda row: (-row["protocol"]["num"], row["protocol"]["seed"]), default=None)
    plain = [row for row in rows if first and is_plain(row) and row["protocol"] == first["protocol"]]
    records = []
    for row in [*plain[:1], *(trial for trial in trials if trial["share"] == 1)]:
        metrics = {key: {"mean": value, "std": None} for key, value in row["metrics"].items()}
        records.append({"sampler": row["sampler"], "label": row.get("kind", "plain"), "metrics": metrics})
    scatter = charts.scatter({"rows": records}) if records else None
    caption = "Settings on all images: fidelity (up) against diversity (right)"
    return [_picture(scatter, "scatter", caption)] if scatter else []
