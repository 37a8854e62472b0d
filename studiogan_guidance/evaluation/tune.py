"""Find the guidance scale (and whatever else is a number) on validation data, in few evaluations.

All candidates are measured on the same seeds and labels (common random numbers), so differences between them are far
less noisy than the values. Each line search looks at a few equal steps, then at the golden section of the wider gap
beside the best point so far, so it needs no derivative and is not misled by a second valley narrower than its steps.
The winner is then compared with plain sampling on fresh seeds, and gives way to it unless it is better there, too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from studiogan_guidance import samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.evaluation import distributed, results, tables
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.source import open_source
from studiogan_guidance.evaluation.sweep import complete
from studiogan_guidance.files import replacing

OBJECTIVES = {"fid": "fid", "fid_infinity": "fid_infinity", "kid": "kid", "class_fid": "per_class"}  # and their metric
GOLDEN = 0.381966  # 2 - golden ratio
STEPS = 4  # of the first look along a line
SHARES = 0.0, 2.0  # range of the profile's
FINEST = 0.005  # of a range: finer differences are not looked for
Options = dict[str, Any]
Score = tuple[float, float]  # how far recall falls short, then the objective: both to be small


OVER = {"scale": (0.8, 2.0)}  # the ranges of options that are searched by default


@dataclass(frozen=True)
class Line:
    """A number to search between ``low`` and ``high``; ``put`` sets it among options, ``get`` reads it."""

    low: float
    high: float
    put: Callable[[Options, float], Options]
    get: Callable[[Options], float | None]


def tune(
    cfg: RunConfig,
    over: Mapping[str, tuple[float, float]] = OVER,
    objective: str = "fid",
    min_recall: float | None = None,
    budget: int = 16,
    repeats: int = 3,
    groups: int = 0,
) -> dict[str, Any]:
    """Choose options of ``cfg.sampler`` on the validation split; the choice is a configuration that ``eval`` takes.

    Args:
        cfg: the run; the split is that of validation unless ``cfg.reference`` names another.
        over: range of each option, searched one line after the other; with several, the first once more at the end.
        objective: fid, fid_infinity, kid or class_fid, to be made small.
        min_recall: candidates below this recall count only where none reaches it; None for no such bound. On the fresh
            seeds it is the mean that must reach it, within its standard error.
        budget: evaluations in all, up to ``2 * repeats`` of them for the comparison with plain sampling.
        repeats: seed ranges of that comparison, 2 or more.
        groups: after that, search ``profile``, the share of the guidance that each of so many equal groups of w rows
            gets, from 0 to 2; 0: none.

    Returns:
        ``plain``, ``found`` and ``chosen``, the better of the two (options; values, mean and deviation over the fresh
        seeds of the objective and of recall), ``difference`` (found minus plain, paired by seeds), ``evaluations``,
        ``searched`` (options and metrics of each candidate), ``reference`` (the split), ``config`` (the file written);
        in processes above rank 0, nothing.

    Raises:
        UserError: an unknown objective, an empty range, a budget too small, options without a meaning here.
    """
    if objective not in OBJECTIVES:
        raise UserError(f"the objective is '{objective}': {nearest(objective, OBJECTIVES)}")
    for name, (low, high) in over.items():
        if not (math.isfinite(low) and low < high < math.inf):
            raise UserError(f"--over {name}={low:g}:{high:g} is no range: give a lower and a higher number")
    if groups < 0 or (groups and "scale" not in over):
        raise UserError(f"--per-layer {groups} shares out the scale among groups of w rows: add --over scale=0.8:2")
    if groups and cfg.options.get("profile"):
        raise UserError("--per-layer searches a profile, and one is given: drop one of the two")
    lines = _lines(over, groups)
    least = 2 * repeats + 1 + STEPS * len(lines)
    if not over or repeats < 2 or budget < least:
        raise UserError(
            f"a budget of {budget} with {repeats} repeats is too small for {len(lines)} line searches: give at least 2 "
            f"repeats and --budget {max(least, 5 + STEPS * len(lines))}"
        )
    needed = (OBJECTIVES[objective], *(("prdc",) if min_recall is not None else ()))
    metrics = tuple(dict.fromkeys((*cfg.metrics, *needed)))
    source = open_source(cfg)
    cfg = dataclasses.replace(cfg, reference=cfg.reference or source.validation_split, metrics=metrics)
    folder = results.writable(Path(cfg.out))
    known = samplers.options(samplers.create(cfg.sampler))
    neutral: Options = {key: known[key] for key in ("psi", "threshold") if key in known}
    start: Options = {**cfg.options, **({"scale": 1.0} if "scale" in known else {})}
    plain = {**start, **neutral}
    for name in over:
        if name in known and not isinstance(known[name], float) and name not in neutral:
            raise UserError(f"--over {name} is no option to search: only numbers with a fraction are, such as scale")
    with distributed.group() as group:
        ends = [line.put(start, x) for line in lines for x in (line.low, line.high)]
        evaluation = Evaluation(cfg, group, [(cfg.sampler, options) for options in (plain, start, *ends)], source)
        if not evaluation.chosen[0][1].neutral:
            raise UserError(
                f"'{cfg.sampler}' is not plain sampling at {tables.format_options(plain)}: tune cannot start there"
            )
        search = Search(evaluation, folder, objective, min_recall)
        best = min((plain, start), key=search.score)
        if search.score(plain)[1] == math.inf:
            raise UserError(f"{objective} cannot be measured here: raise --num")
        for i, line in enumerate(lines):
            best = search.along(line, best, (budget - 2 * repeats - search.evaluations) // (len(lines) - i))
        return _finish(search, cfg, best, plain, [cfg.seed + (r + 1) * evaluation.num for r in range(repeats)], folder)


class Search:
    """Scores of options, each measured once; ``seen`` keeps the rows of the search in their order."""

    def __init__(self, evaluation: Evaluation, folder: Path, objective: str, min_recall: float | None) -> None:
        self.evaluation, self.folder, self.objective, self.min_recall = evaluation, folder, objective, min_recall
        self.seen: dict[str, dict[str, Any]] = {}

    @property
    def evaluations(self) -> int:
        """How many were asked for so far."""
        return len(self.seen)

    def row(self, options: Options, seed: int) -> dict[str, Any]:
        """The row of ``options`` from ``seed`` on, in every process."""
        evaluation = self.evaluation
        name, group = evaluation.cfg.sampler, evaluation.group
        sampler = evaluation.checked(samplers.create(name, options))
        key = json.dumps([seed, samplers.options(sampler)], sort_keys=True)
        if key not in self.seen:
            rows = complete(evaluation, [(name, sampler, seed)], self.folder)
            self.seen[key] = group.agree(rows[0] if rows else {})
        return self.seen[key]

    def score(self, options: Options, seed: int | None = None) -> Score:
        """What is to be made small, at the seeds of the search or from ``seed`` on."""
        metrics = self.row(options, self.evaluation.cfg.seed if seed is None else seed)["metrics"]
        value = metrics.get(self.objective)
        value = math.inf if value is None or math.isnan(value) else value
        return 0.0 if self.min_recall is None else max(0.0, self.min_recall - metrics["recall"]), value

    def along(self, line: Line, best: Options, share: int) -> Options:
        """The best options found along a line through ``best``, which is among them, with ``share`` evaluations."""
        spent_at_the_end = self.evaluations + share
        scores: dict[float, tuple[Score, Options]] = {}
        start, width = line.get(best), line.high - line.low
        digits = 3 - math.floor(math.log10(width))

        def look(x: float) -> None:
            options = best if x == start else line.put(best, x)
            scores[x] = self.score(options), options

        if start is not None and line.low <= start <= line.high:
            look(start)
        inner = [round(line.low + width * i / (STEPS - 1), digits) for i in range(1, STEPS - 1)]
        for x in (line.low, *inner, line.high):
            if x not in scores and self.evaluations < spent_at_the_end:
                look(x)
        while self.evaluations < spent_at_the_end:
            xs = sorted(scores)
            middle = min(range(len(xs)), key=lambda i: scores[xs[i]][0])
            gaps = [xs[j] - xs[middle] for j in (middle - 1, middle + 1) if 0 <= j < len(xs)]
            x = round(xs[middle] + GOLDEN * max(gaps, key=abs), digits)
            if x in scores or abs(x - xs[middle]) < FINEST * width:
                break
            look(x)
        return min([(self.score(best), best), *scores.values()], key=lambda pair: pair[0])[1]

    def summary(self, options: Options, seeds: list[int]) -> dict[str, Any]:
        """The objective and recall of ``options`` over ``seeds``: values, mean and standard deviation."""
        found: dict[str, Any] = {"options": options}
        for name in (self.objective, "recall"):
            values = [self.row(options, seed)["metrics"].get(name) for seed in seeds]
            if all(isinstance(value, (int, float)) for value in values):
                found[name] = {"mean": statistics.mean(values), "std": statistics.stdev(values), "values": values}
        return found

    def mean(self, options: Options, seeds: list[int]) -> Score:
        """Score of the means over ``seeds``; recall falls short if it does by more than its standard error."""
        value, short = statistics.mean(self.score(options, seed)[1] for seed in seeds), 0.0
        if self.min_recall is not None:
            recalls = [self.row(options, seed)["metrics"]["recall"] for seed in seeds]
            error = statistics.stdev(recalls) / math.sqrt(len(recalls))
            short = max(0.0, self.min_recall - statistics.mean(recalls) - error)
        return short, value


def _lines(over: Mapping[str, tuple[float, float]], groups: int) -> list[Line]:
    def put(name: str, options: Options, x: float) -> Options:
        return {**options, name: x}

    def get(name: str, options: Options) -> float | None:
        value = options.get(name)
        return 1.0 if value is None and name == "psi" else value

    def put_group(part: int, options: Options, x: float) -> Options:
        shares = list(options.get("profile") or [1.0] * groups)
        return {**options, "profile": [*shares[:part], x, *shares[part + 1 :]]}

    def get_group(part: int, options: Options) -> float | None:
        return float((options.get("profile") or [1.0] * groups)[part])

    singles = [Line(*over[name], partial(put, name), partial(get, name)) for name in over]
    parts = [Line(*SHARES, partial(put_group, i), partial(get_group, i)) for i in range(groups)]
    return [*singles, *(singles[:1] if len(singles) > 1 else []), *parts]


def _finish(
    search: Search, cfg: RunConfig, best: Options, plain: Options, seeds: list[int], folder: Path
) -> dict[str, Any]:
    searched = [{"options": row["options"], "metrics": row["metrics"]} for row in search.seen.values()]
    found = best
    if best is not plain and not search.mean(best, seeds) < search.mean(plain, seeds):
        best = plain  # what the search found did not last on fresh seeds
    pairs = [search.score(found, seed)[1] - search.score(plain, seed)[1] for seed in seeds]
    result = {
        "objective": search.objective,
        "min_recall": search.min_recall,
        "reference": cfg.reference,
        "found": search.summary(found, seeds),
        "chosen": search.summary(best, seeds),
        "plain": search.summary(plain, seeds),
        "difference": {"mean": statistics.mean(pairs), "std": statistics.stdev(pairs)},
        "evaluations": search.evaluations,
        "searched": searched,
        "config": str(folder / "tuned.yaml"),
    }
    if search.evaluation.group.rank:
        return {}
    with replacing(folder / "tuned.yaml") as beside:
        beside.write_text(yaml.safe_dump(_portable(cfg, best), sort_keys=False), encoding="utf-8")
    with replacing(folder / "tuned.json") as beside:
        beside.write_text(json.dumps(results.plain_data(result), indent=1) + "\n", encoding="utf-8")
    return result


def _portable(cfg: RunConfig, best: Options) -> dict[str, Any]:
    """What ``eval`` needs to use the choice from any folder; seeds, split and number of images stay its own."""
    usual, given = (results.plain_data(config.to_dict()) for config in (RunConfig(), cfg))
    left_out = ("sampler", "options", "host", "out", "seed", "num", "reference", "metrics")
    kept = {key: value for key, value in given.items() if key not in left_out and value != usual[key]}
    for key in ("ckpt", "data", "held_out", "studiogan"):
        if key in kept and Path(kept[key]).exists():
            kept[key] = str(Path(kept[key]).resolve())
    kind, _, path = str(kept.get("backbone", "")).partition(":")
    if path and Path(path).exists():
        kept["backbone"] = f"{kind}:{Path(path).resolve()}"
    chosen = {key: value for key, value in best.items() if value is not None}
    return {"sampler": {"name": cfg.sampler, **results.plain_data(chosen)}, **kept, **given["host"]}
