"""Find the guidance scale, and other options that are numbers, on validation data, in few evaluations.

All candidates are measured on the same seeds and labels (common random numbers), so differences between them are far
less noisy than the values. How the search goes is in ``search``. The winner is then compared with plain sampling on
fresh seeds, and gives way to it unless it is better there, too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studiogan_guidance import progress, samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import choice, distributed, results
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.metrics import need
from studiogan_guidance.evaluation.one_pass import OnePass, one_pass
from studiogan_guidance.evaluation.parts import feasible, part
from studiogan_guidance.evaluation.search import Options, Score, lines_of, profile_lines, search
from studiogan_guidance.evaluation.source import current_device, open_source, validated
from studiogan_guidance.evaluation.starts import (
    OBJECTIVES,
    affordable,
    check_budget,
    check_request,
    default_ranges,
    ends,
    is_idle,
    least,
    starts,
)
from studiogan_guidance.evaluation.sweep import complete
from studiogan_guidance.latents import view_for
from studiogan_guidance.options import Spec
from studiogan_guidance.progress import Bar
from studiogan_guidance.rng import check_images
from studiogan_guidance.samplers import SAMPLERS, GANdance

PASSES = 2  # evaluations that the closed form counts as: at most three passes over half of the images
SHARE = 0.5


def tune(
    cfg: RunConfig,
    over: Mapping[str, tuple[float, float]] | None = None,
    objective: str = "fid",
    min_recall: float | None = None,
    budget: int = 24,
    repeats: int = 3,
    groups: int = 0,
) -> dict[str, Any]:
    """Choose options of ``cfg.sampler`` on the validation split; the choice is a configuration that ``eval`` takes.

    The search starts from plain sampling, or from the options of ``cfg`` with the neutral ones of the sampler, if these
    are better; or, by default and where features are kept (metric prdc), from scale and spread in closed form, which
    cost two evaluations, if these are. Where the options to search have no effect there (such as the step of a chain of
    no steps), it starts from the options of ``cfg``.

    Args:
        cfg: the run; the split is that of validation unless ``cfg.reference`` names another.
        over: range of each option; several are searched together, see ``search``. By default the scale, and the spread
            within the classes where the sampler is gandance: psi of codes with rows of w, else tau.
        objective: fid, fid_infinity, kid or class_fid, to be made small.
        min_recall: candidates below this recall count only where none reaches it; None for no such bound. On the fresh
            seeds it is the mean that must reach it, within its standard error.
        budget: evaluations in all, up to ``2 * repeats`` of them for the comparison with plain sampling. Where it is
            too small for both defaults of ``over``, the scale alone is searched.
        repeats: seed ranges of that comparison, 2 or more.
        groups: after that, search ``profile``, the share of the guidance that each of this many equal groups of layers
            gets, from 0 to 2; 0: no such search.

    Returns:
        ``plain``, ``found`` and ``chosen``, the better of the two (options; values, mean and deviation over the fresh
        seeds of the objective and of recall), ``difference`` (found minus plain, paired by seeds), ``paired`` (the same
        of every metric, with standard errors), ``one_pass`` (the start in closed form, if any), ``evaluations``,
        ``searched`` (options and metrics of each candidate), ``reference`` (the split), ``config`` (the file written);
        in processes above rank 0, nothing.

    Raises:
        UserError: an unknown objective, an empty range, a budget too small, options that have no meaning on this
            generator, a sampler that is plain sampling with no options.
    """
    # Refuse what cannot be searched, before anything is opened.
    check_request(cfg, over, objective, groups)
    ranges = default_ranges(cfg) if over is None else dict(over)
    if min_recall is not None and not 0 <= min_recall <= 1:
        raise UserError(f"--min-recall must be between 0 and 1, as recall is, found {min_recall:g}")
    check_budget(budget, repeats, len(ranges) + groups)
    starts(cfg, lines_of(ranges))

    # By default, what this generator calls the spread is searched, too.
    source = open_source(cfg)
    if over is None:
        view = view_for(source.networks(current_device(cfg.device)))
        ranges = affordable(default_ranges(cfg, view), budget, repeats, groups)
    together = lines_of(ranges)
    lines = [*together, *profile_lines(groups)]
    plain, start = starts(cfg, lines)

    # Measure what the objective needs, on the validation split.
    recall = ("prdc",) if min_recall is not None else ()
    metrics = tuple(dict.fromkeys([*cfg.metrics, OBJECTIVES[objective], *recall]))
    cfg = dataclasses.replace(validated(cfg, source), metrics=metrics)
    folder = results.writable(Path(cfg.out))
    with distributed.group() as group, progress.bar("evaluation", budget, numbered=True) as shown:
        wanted = [Spec(cfg.sampler, options) for options in (plain, start, *ends(lines, start))]
        evaluation = Evaluation(cfg, group, wanted, source)
        check_images(cfg.seed, (1 + repeats) * evaluation.num)
        measured = Measured(evaluation, folder, objective, min_recall, shown)
        if measured.score(plain)[1] == math.inf:
            raise UserError(f"{objective} cannot be measured here: raise --num")

        # Search from the best start, one of which may be known in closed form.
        candidates = [start] if is_idle(cfg.sampler, lines, plain) else [plain, start]
        if over is None and budget >= PASSES + 1 + least(repeats, len(lines)):
            candidates += measured.closed_form(start, ranges)
        best = min(candidates, key=measured.score)
        left = budget - 2 * repeats - measured.evaluations
        best = search(measured, together, lines[len(together) :], best, left)

        # Compare with plain sampling on fresh seeds.
        seeds = [cfg.seed + (i + 1) * evaluation.num for i in range(repeats)]
        result = _outcome(measured, best, plain, seeds)
        if group.rank:
            return {}
    return choice.written(folder, cfg, Spec(cfg.sampler, result["chosen"]["options"]), result)


class Measured:
    """Scores of options, each measured once; ``seen`` holds the rows of the search in their order."""

    def __init__(
        self, evaluation: Evaluation, folder: Path, objective: str, min_recall: float | None, shown: Bar
    ) -> None:
        self.evaluation = evaluation
        self.folder = folder
        self.objective = objective
        self.min_recall = min_recall
        self.shown = shown
        self.seen: dict[str, dict[str, Any]] = {}
        self.one_pass: OnePass | None = None

    @property
    def evaluations(self) -> int:
        """How many rows the search has asked for, and those that the closed form cost."""
        return len(self.seen) + (PASSES if self.one_pass else 0)

    def closed_form(self, start: Options, ranges: Mapping[str, tuple[float, float]]) -> list[Options]:
        """The options that one pass with each number moved finds best, within the ranges; see ``one_pass``.

        It takes half of the images. There are none for samplers other than gandance, without a metric that keeps
        features, and where the closed form is refused.
        """
        cfg = self.evaluation.cfg
        if SAMPLERS[cfg.sampler].target is not GANdance or not need(cfg, "features"):
            return []
        fixed = {key: value for key, value in start.items() if key not in ranges}
        spread = next((name for name in ranges if name != "scale"), None)
        try:
            shares = feasible(self.evaluation, [SHARE, 1])
            self.one_pass = one_pass(part(self.evaluation, shares[0]), fixed, spread)
        except UserError:
            return []
        return [{**start, **dict(zip(ranges, _within(ranges, self.one_pass.knobs)))}]

    def row(self, options: Options, seed: int) -> dict[str, Any]:
        """The row of ``options`` from ``seed`` on, in every process."""
        evaluation = self.evaluation
        name = evaluation.cfg.sampler
        sampler = evaluation.checked(samplers.create(name, options))
        key = json.dumps([seed, samplers.options(sampler)], sort_keys=True)
        if key not in self.seen:
            rows = complete(evaluation, [(name, sampler, seed)], self.folder)
            self.seen[key] = evaluation.group.agree(rows[0] if rows else {})
            self.shown.move(self.evaluations)
        return self.seen[key]

    def score(self, options: Options, seed: int | None = None) -> Score:
        """The score of ``options`` at the seeds of the search, or at those from ``seed`` on."""
        metrics = self.row(options, self.evaluation.cfg.seed if seed is None else seed)["metrics"]
        value = metrics.get(self.objective)
        if value is None or math.isnan(value):
            value = math.inf
        shortfall = 0.0 if self.min_recall is None else max(0.0, self.min_recall - metrics["recall"])
        return shortfall, value

    def summary(self, options: Options, seeds: list[int]) -> dict[str, Any]:
        """The objective and recall of ``options`` over ``seeds``: values, mean and standard deviation."""
        summary: dict[str, Any] = {"options": options}
        for name in (self.objective, "recall"):
            values = [self.row(options, seed)["metrics"].get(name) for seed in seeds]
            if all(isinstance(value, (int, float)) for value in values):
                summary[name] = {"mean": statistics.mean(values), "std": statistics.stdev(values), "values": values}
        return summary

    def paired(self, options: Options, plain: Options, seeds: list[int]) -> dict[str, dict[str, float | None]]:
        """The difference of each metric to plain sampling over ``seeds``, with its standard error."""
        rows = [[self.row(each, seed)["metrics"] for seed in seeds] for each in (options, plain)]
        return {
            name: results.paired([row[name] for row in rows[0]], [row.get(name) for row in rows[1]])
            for name in rows[0][0]
        }

    def mean(self, options: Options, seeds: list[int]) -> Score:
        """Score of the means over ``seeds``; recall falls short if it does by more than its standard error."""
        value = statistics.mean(self.score(options, seed)[1] for seed in seeds)
        if self.min_recall is None:
            return 0.0, value
        recalls = [self.row(options, seed)["metrics"]["recall"] for seed in seeds]
        error = statistics.stdev(recalls) / math.sqrt(len(recalls))
        return max(0.0, self.min_recall - statistics.mean(recalls) - error), value


def _within(ranges: Mapping[str, tuple[float, float]], values: Sequence[float]) -> list[float]:
    """The values as far as their ranges go, with three decimals."""
    return [round(min(max(value, low), high), 3) for value, (low, high) in zip(values, ranges.values())]


def _outcome(measured: Measured, best: Options, plain: Options, seeds: list[int]) -> dict[str, Any]:
    """What the search found, and what is chosen: plain sampling unless the best candidate beats it on fresh seeds."""
    searched = [{"options": row["options"], "metrics": row["metrics"]} for row in measured.seen.values()]
    is_better = best is not plain and measured.mean(best, seeds) < measured.mean(plain, seeds)
    chosen = best if is_better else plain

    # The difference on each range of seeds.
    pairs = [measured.score(best, seed)[1] - measured.score(plain, seed)[1] for seed in seeds]
    return {
        "objective": measured.objective,
        "min_recall": measured.min_recall,
        "reference": measured.evaluation.real.fingerprint.get("reference"),
        "found": measured.summary(best, seeds),
        "chosen": measured.summary(chosen, seeds),
        "plain": measured.summary(plain, seeds),
        "difference": {"mean": statistics.mean(pairs), "std": statistics.stdev(pairs)},
        "paired": measured.paired(best, plain, seeds),
        "one_pass": dataclasses.asdict(measured.one_pass) if measured.one_pass else None,
        "evaluations": measured.evaluations,
        "searched": searched,
    }
