"""Find the guidance scale, and other options that are numbers, on validation data, in few evaluations.

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
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from studiogan_guidance import samplers
from studiogan_guidance.config import INPUTS, RunConfig
from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.evaluation import distributed, results, tables
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.source import open_source, validated
from studiogan_guidance.evaluation.sweep import complete
from studiogan_guidance.files import replacing
from studiogan_guidance.options import Spec, dotted, nested
from studiogan_guidance.rng import check_images
from studiogan_guidance.samplers import SAMPLERS

OBJECTIVES = {  # each with the metric that gives it
    "fid": "fid",
    "fid_infinity": "fid_infinity",
    "kid": "kid",
    "class_fid": "per_class",
}
OVER = {"scale": (0.8, 2.0)}  # options that are searched by default, with their ranges
GOLDEN = 0.381966  # 2 - golden ratio
FARTHEST = 1e6  # end of a range
MOST = 10_000  # evaluations
MOST_GROUPS = 100  # of w rows
STEPS = 4  # of the first look along a line
SHARES = (0.0, 2.0)  # range of a share of the profile
FINEST = 0.005  # the smallest step of a search, as a part of the range
# Keys that tuned.yaml lacks.
UNPORTABLE = ("sampler", "options", "host", "out", "seed", "num", "reference", "reference_stats", "metrics")
Options = dict[str, Any]
Score = tuple[float, float]  # how far recall falls short, then the objective; smaller is better


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

    The search starts from plain sampling, or from the options of ``cfg`` with the neutral ones of the sampler, if these
    are better. Where the options to search have no effect there (such as the step of a chain of no steps), it starts
    from the options of ``cfg``.

    Args:
        cfg: the run; the split is that of validation unless ``cfg.reference`` names another.
        over: range of each option, searched one line after the other; with several, the first once more at the end.
        objective: fid, fid_infinity, kid or class_fid, to be made small.
        min_recall: candidates below this recall count only where none reaches it; None for no such bound. On the fresh
            seeds it is the mean that must reach it, within its standard error.
        budget: evaluations in all, up to ``2 * repeats`` of them for the comparison with plain sampling.
        repeats: seed ranges of that comparison, 2 or more.
        groups: after that, search ``profile``, the share of the guidance that each of this many equal groups of w rows
            gets, from 0 to 2; 0: no such search.

    Returns:
        ``plain``, ``found`` and ``chosen``, the better of the two (options; values, mean and deviation over the fresh
        seeds of the objective and of recall), ``difference`` (found minus plain, paired by seeds), ``evaluations``,
        ``searched`` (options and metrics of each candidate), ``reference`` (the split), ``config`` (the file written);
        in processes above rank 0, nothing.

    Raises:
        UserError: an unknown objective, an empty range, a budget too small, options that have no meaning on this
            generator, a sampler that is plain sampling with no options.
    """
    _check_request(cfg, over, objective, groups)
    lines = _lines(over, groups)
    if min_recall is not None and not 0 <= min_recall <= 1:
        raise UserError(f"--min-recall must be between 0 and 1, as recall is, found {min_recall:g}")
    _check_budget(budget, repeats, len(lines))
    plain, start = _starts(cfg, lines)

    # Measure what the objective needs, on the validation split.
    source = open_source(cfg)
    recall = ("prdc",) if min_recall is not None else ()
    metrics = tuple(dict.fromkeys([*cfg.metrics, OBJECTIVES[objective], *recall]))
    cfg = dataclasses.replace(validated(cfg, source), metrics=metrics)
    folder = results.writable(Path(cfg.out))
    with distributed.group() as group:
        wanted = [Spec(cfg.sampler, options) for options in (plain, start, *_ends(lines, start))]
        evaluation = Evaluation(cfg, group, wanted, source)
        check_images(cfg.seed, (1 + repeats) * evaluation.num)
        search = Search(evaluation, folder, objective, min_recall)
        if search.score(plain)[1] == math.inf:
            raise UserError(f"{objective} cannot be measured here: raise --num")

        # Search one line after the other; evaluations that a line does not use go to the next ones.
        candidates = [start] if _is_idle(cfg.sampler, lines, plain) else [plain, start]
        best = min(candidates, key=search.score)
        for i, line in enumerate(lines):
            left = budget - 2 * repeats - search.evaluations
            best = search.along(line, best, left // (len(lines) - i))

        # Compare with plain sampling on fresh seeds.
        seeds = [cfg.seed + (i + 1) * evaluation.num for i in range(repeats)]
        result = _outcome(search, best, plain, seeds)
        if group.rank:
            return {}
    return _written(folder, cfg, result)


def _check_request(cfg: RunConfig, over: Mapping[str, tuple[float, float]], objective: str, groups: int) -> None:
    """Raise UserError for an unknown objective, no range or an empty one, a wrong option, useless groups."""
    if objective not in OBJECTIVES:
        raise UserError(f"the objective is '{objective}': {nearest(objective, OBJECTIVES)}")

    if not over:
        raise UserError("no option to search: add --over with an option and its range, such as scale=0.8:2")
    kinds = typing.get_type_hints(SAMPLERS[cfg.sampler].target)
    if over is OVER and not set(OVER) <= set(kinds):
        numbers = [name for name, kind in kinds.items() if _takes_fractions(kind)]
        one_of = f"with one of {', '.join(numbers)}" if numbers else "with a number of its base"
        raise UserError(f"'{cfg.sampler}' has no scale to search: add --over OPTION=LOW:HIGH, {one_of}")
    for name, (low, high) in over.items():
        if not -FARTHEST <= low < high <= FARTHEST:
            raise UserError(
                f"--over {name}={low:g}:{high:g} is no range: give a lower and a higher number, within {FARTHEST:g}"
            )
        if name in kinds and not _takes_fractions(kinds[name]):
            raise UserError(f"--over {name} is no option to search: only numbers with a fraction are, such as scale")

    if groups > MOST_GROUPS:
        raise UserError(f"--per-layer must be at most {MOST_GROUPS}, found {groups}: no generator has more w rows")
    if groups < 0 or (groups and "scale" not in over):
        raise UserError(f"--per-layer {groups} shares out the scale among groups of w rows: add --over scale=0.8:2")
    if groups and cfg.options.get("profile"):
        raise UserError("--per-layer searches a profile, and one is given: drop one of the two")


def _takes_fractions(kind: Any) -> bool:
    """Whether an option's type is float, or float or None."""
    return float in (kind, *typing.get_args(kind)) and typing.get_origin(kind) is not tuple


def _check_budget(budget: int, repeats: int, lines: int) -> None:
    """Raise UserError unless each of ``lines`` line searches can take its first look."""
    least = 2 * repeats + 1 + STEPS * lines
    if max(budget, repeats) > MOST:
        raise UserError(
            f"--budget and --repeats are at most {MOST}, found {budget} and {repeats}: each is a measurement of "
            "seconds to hours, and a search ends long before"
        )
    if repeats < 2 or budget < least:
        raise UserError(
            f"a budget of {budget} with {repeats} repeats is too small for {lines} line searches: give at least 2 "
            f"repeats and --budget {max(least, 5 + STEPS * lines)}"
        )


def _starts(cfg: RunConfig, lines: Iterable[Line]) -> tuple[Options, Options]:
    """The options of plain sampling, and those from which the search starts."""
    entry = SAMPLERS[cfg.sampler]
    if entry.neutral is None:
        raise UserError(
            f"'{entry.name}' is plain sampling with no options, and tune compares with that: use sweep or compare"
        )
    values = samplers.options(samplers.create(entry.name, cfg.options))
    options: Options = {key: values[key] for key in nested(cfg.options)}
    start: Options = {**options, **entry.neutral}

    # Plain sampling: without options such as a base or psi, which have an effect of their own.
    effective = [key for key, value in start.items() if _has_effect(entry.name, {**entry.neutral, key: value})]
    plain = {key: value for key, value in start.items() if key not in effective}
    if not _is_plain(entry.name, plain):
        raise UserError(
            f"'{entry.name}' is not plain sampling at {tables.format_options(plain)}: tune cannot start there"
        )

    # An option without an effect at plain sampling is searched from the options of the run.
    if _is_idle(entry.name, lines, start):
        start = options
    if _is_idle(entry.name, lines, start):
        raise UserError(f"the options of --over have no effect on '{entry.name}': switch it on by -o")
    return plain, start


def _ends(lines: Iterable[Line], options: Options) -> list[Options]:
    """``options`` with the lowest and the highest value of each line."""
    return [line.put(options, x) for line in lines for x in (line.low, line.high)]


def _is_idle(sampler: str, lines: Iterable[Line], options: Options) -> bool:
    """Whether the sampler is plain sampling all along every line through ``options``."""
    return all(_is_plain(sampler, end) for end in _ends(lines, options))


def _is_plain(sampler: str, options: Options) -> bool:
    """Whether the images of a sampler are those of the generator, by its name or by its options."""
    created = samplers.create(sampler, options)
    return SAMPLERS[sampler].name == "plain" or created.neutral


def _has_effect(sampler: str, options: Options) -> bool:
    """Whether options are not plain sampling; those that are refused without another option are no effect."""
    try:
        return not _is_plain(sampler, options)
    except UserError:  # such as the file of a learned joint without joint=learned
        return False


class Search:
    """Scores of options, each measured once; ``seen`` holds the rows of the search in their order."""

    def __init__(self, evaluation: Evaluation, folder: Path, objective: str, min_recall: float | None) -> None:
        self.evaluation = evaluation
        self.folder = folder
        self.objective = objective
        self.min_recall = min_recall
        self.seen: dict[str, dict[str, Any]] = {}

    @property
    def evaluations(self) -> int:
        """How many rows the search has asked for."""
        return len(self.seen)

    def row(self, options: Options, seed: int) -> dict[str, Any]:
        """The row of ``options`` from ``seed`` on, in every process."""
        evaluation = self.evaluation
        name = evaluation.cfg.sampler
        sampler = evaluation.checked(samplers.create(name, options))
        key = json.dumps([seed, samplers.options(sampler)], sort_keys=True)
        if key not in self.seen:
            rows = complete(evaluation, [(name, sampler, seed)], self.folder)
            self.seen[key] = evaluation.group.agree(rows[0] if rows else {})
        return self.seen[key]

    def score(self, options: Options, seed: int | None = None) -> Score:
        """The score of ``options`` at the seeds of the search, or at those from ``seed`` on."""
        metrics = self.row(options, self.evaluation.cfg.seed if seed is None else seed)["metrics"]
        value = metrics.get(self.objective)
        if value is None or math.isnan(value):
            value = math.inf
        shortfall = 0.0 if self.min_recall is None else max(0.0, self.min_recall - metrics["recall"])
        return shortfall, value

    def along(self, line: Line, best: Options, share: int) -> Options:
        """The best options along a line, ``best`` among them, by at most ``share`` evaluations."""
        last = self.evaluations + share
        start = line.get(best)
        width = line.high - line.low
        digits = 3 - math.floor(math.log10(width))
        candidates: dict[float, Options] = {}
        scores: dict[float, Score] = {}

        def look(x: float) -> None:
            candidates[x] = best if x == start else line.put(best, x)
            scores[x] = self.score(candidates[x])

        # The point of ``best``, if it is on the line, and a few equal steps.
        if start is not None and line.low <= start <= line.high:
            look(start)
        inner = [round(line.low + width * i / (STEPS - 1), digits) for i in range(1, STEPS - 1)]
        for x in (line.low, *inner, line.high):
            if x not in scores and self.evaluations < last:
                look(x)

        # The golden section of the wider gap beside the best point, until the gaps are too fine.
        while self.evaluations < last:
            middle = min(sorted(scores), key=scores.__getitem__)
            x = round(middle + GOLDEN * _wider_gap(sorted(scores), middle), digits)
            if x in scores or abs(x - middle) < FINEST * width:
                break
            look(x)

        return min([best, *candidates.values()], key=self.score)

    def summary(self, options: Options, seeds: list[int]) -> dict[str, Any]:
        """The objective and recall of ``options`` over ``seeds``: values, mean and standard deviation."""
        summary: dict[str, Any] = {"options": options}
        for name in (self.objective, "recall"):
            values = [self.row(options, seed)["metrics"].get(name) for seed in seeds]
            if all(isinstance(value, (int, float)) for value in values):
                summary[name] = {"mean": statistics.mean(values), "std": statistics.stdev(values), "values": values}
        return summary

    def mean(self, options: Options, seeds: list[int]) -> Score:
        """Score of the means over ``seeds``; recall falls short if it does by more than its standard error."""
        value = statistics.mean(self.score(options, seed)[1] for seed in seeds)
        if self.min_recall is None:
            return 0.0, value
        recalls = [self.row(options, seed)["metrics"]["recall"] for seed in seeds]
        error = statistics.stdev(recalls) / math.sqrt(len(recalls))
        return max(0.0, self.min_recall - statistics.mean(recalls) - error), value


def _wider_gap(points: list[float], middle: float) -> float:
    """The signed distance from ``middle`` to the farther one of its neighbours among sorted ``points``."""
    i = points.index(middle)
    neighbours = [*points[max(i - 1, 0) : i], *points[i + 1 : i + 2]]
    return max((x - middle for x in neighbours), key=abs)


def _lines(over: Mapping[str, tuple[float, float]], groups: int) -> list[Line]:
    """A line for each option; with several, the first once more; then one for each group of rows."""
    options = [Line(*ends, partial(_put, name), partial(_get, name)) for name, ends in over.items()]
    again = options[:1] if len(options) > 1 else []
    shares = [Line(*SHARES, partial(_put_share, i, groups), partial(_get_share, i, groups)) for i in range(groups)]
    return [*options, *again, *shares]


def _put(name: str, options: Options, x: float) -> Options:
    return nested({**options, name: x})


def _get(name: str, options: Options) -> float | None:
    value = dotted(options).get(name)
    return 1.0 if value is None and name == "psi" else value  # where psi is off, it is 1


def _put_share(group: int, groups: int, options: Options, x: float) -> Options:
    shares = list(options.get("profile") or [1.0] * groups)
    shares[group] = x
    return {**options, "profile": shares}


def _get_share(group: int, groups: int, options: Options) -> float | None:
    return float((options.get("profile") or [1.0] * groups)[group])


def _outcome(search: Search, best: Options, plain: Options, seeds: list[int]) -> dict[str, Any]:
    """What the search found, and what is chosen: plain sampling unless the best candidate beats it on fresh seeds."""
    searched = [{"options": row["options"], "metrics": row["metrics"]} for row in search.seen.values()]
    is_better = best is not plain and search.mean(best, seeds) < search.mean(plain, seeds)
    chosen = best if is_better else plain

    # The difference on each range of seeds.
    pairs = [search.score(best, seed)[1] - search.score(plain, seed)[1] for seed in seeds]
    return {
        "objective": search.objective,
        "min_recall": search.min_recall,
        "reference": search.evaluation.real.fingerprint.get("reference"),
        "found": search.summary(best, seeds),
        "chosen": search.summary(chosen, seeds),
        "plain": search.summary(plain, seeds),
        "difference": {"mean": statistics.mean(pairs), "std": statistics.stdev(pairs)},
        "evaluations": search.evaluations,
        "searched": searched,
    }


def _written(folder: Path, cfg: RunConfig, result: dict[str, Any]) -> dict[str, Any]:
    """The result with the path of the configuration; writes tuned.yaml and tuned.json."""
    result = {**result, "config": str(folder / "tuned.yaml")}
    choice = yaml.safe_dump(_portable(cfg, result["chosen"]["options"]), sort_keys=False)
    data = json.dumps(results.plain_data(result), indent=1) + "\n"
    for name, text in (("tuned.yaml", choice), ("tuned.json", data)):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return result


def _portable(cfg: RunConfig, best: Options) -> dict[str, Any]:
    """What ``eval`` needs to use the choice from any folder; seeds, split and number of images are left to it."""
    defaults, values = (results.plain_data(config.to_dict()) for config in (RunConfig(), cfg))
    changed = {key: value for key, value in values.items() if key not in UNPORTABLE and value != defaults[key]}

    # Paths that do not depend on the current folder; host_config is absolute, or a name inside the host.
    for key in INPUTS:
        if key in changed and Path(changed[key]).exists():
            changed[key] = str(Path(changed[key]).resolve())
    kind, _, path = str(changed.get("backbone", "")).partition(":")
    if path and Path(path).exists():
        changed["backbone"] = f"{kind}:{Path(path).resolve()}"

    options = {key: value for key, value in best.items() if value is not None}
    return {"sampler": {"name": cfg.sampler, **results.plain_data(options)}, **changed, **values["host"]}
