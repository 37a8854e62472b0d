"""What lowers a checkpoint's distance, chosen by itself: ``tune --auto``.

Many settings of several kinds are tried on a few images, the better ones on more (see ``halving``). The best one is
compared with plain sampling on fresh seeds, in the space of the run's feature network and in a second one, and plain
sampling is chosen unless the other is significantly better (see ``decision``).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studiogan_guidance import progress, samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, nearest, one_line, say
from studiogan_guidance.evaluation import choice, distributed, results
from studiogan_guidance.evaluation.decision import Decision, decide
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.halving import Family, Setting, Trial, finalists, halve
from studiogan_guidance.evaluation.parts import feasible, part
from studiogan_guidance.evaluation.search import Options
from studiogan_guidance.evaluation.source import open_source, validated
from studiogan_guidance.evaluation.starts import MOST, OBJECTIVES, default_ranges
from studiogan_guidance.evaluation.sweep import complete
from studiogan_guidance.latents import LatentView
from studiogan_guidance.options import Spec
from studiogan_guidance.progress import Bar
from studiogan_guidance.rng import check_images
from studiogan_guidance.samplers import SAMPLERS, GANdance, choices

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of the images, in the rounds of the search
LEAST = 4  # evaluations of a search: two settings in each round
JUDGES = ("random",)  # second feature spaces where the run names none
GAUSSIAN = (0.5, 2.5)  # range of the scale of ``joint: gaussian``, which overshoots less
PROFILES = {"coarse layers": (1.0, 0.0), "fine layers": (0.0, 1.0)}
PLAIN = Spec("plain")


@dataclass(frozen=True)
class Start:
    """What training starts from.

    Attributes:
        scale: of two-knob guidance; 1 is plain.
        spread: within the classes; 1 is plain.
        sampler: the best free setting of all, as a command line has it.
    """

    scale: float = 1.0
    spread: float = 1.0
    sampler: str = PLAIN.name


def auto(
    cfg: RunConfig,
    over: Mapping[str, tuple[float, float]] | None = None,
    objective: str = "fid",
    budget: int = 24,
    repeats: int = 4,
    groups: Sequence[Sequence[Family]] = (),
    searches: int = 1,
) -> dict[str, Any]:
    """Choose among plain sampling and settings of several kinds, on the validation split.

    Tried are the scale with the spread within the classes, the closed form of Gaussians where codes are w, and guidance
    of the coarser or the finer half of the layers; and what ``groups`` names. A setting is chosen if it is
    significantly better than plain sampling (``decision``), on seeds that the search has not seen. ``scale: auto``
    stands for the choice from then on.

    Args:
        cfg: the run; its sampler is gandance, whose options, such as a joint, all settings have.
        over: range of each number that is searched; see ``tune``.
        objective: fid, fid_infinity, kid or class_fid, to be made small.
        budget: evaluations in all, where one of a part of the images counts as that part; ``2 * repeats`` of them are
            the comparison with plain sampling.
        repeats: fresh seed ranges of that comparison, 2 or more.
        groups: further families of settings; each group has a search of its own, of the same part of the budget.
        searches: into how many parts the budget of the search is divided, at least; see ``best_start``.

    Returns:
        ``choice`` (name and options of the sampler), ``reason`` (a sentence), ``is_plain``, ``kind`` (of the best
        setting), ``found`` and ``plain`` (options, metrics over the fresh seeds), ``paired`` (found minus plain: mean
        and standard error of each metric), ``interval`` (that of the objective, 95 %), ``judges`` (those of the second
        spaces), ``trials``, ``evaluations``, ``seconds``, ``reference``, ``generator_sha256`` and ``config`` (the file
        written); in processes above rank 0, nothing.

    Raises:
        UserError: another sampler, options that are not plain sampling at scale 1, an unknown objective, a budget too
            small, what the run lacks.
    """
    started = time.perf_counter()
    searches = max(searches, 1 + len(groups))
    with _contest(cfg, objective, budget, repeats, searches) as contest:
        evaluation = contest.evaluation
        contest.search(families(cfg, evaluation.view, over))
        for group in groups:
            contest.search(group)

        # Compare the best with plain sampling on fresh seeds.
        best = contest.best()
        seeds = [evaluation.cfg.seed + (i + 1) * evaluation.num for i in range(repeats)]
        found, plain = (
            [contest.row(setting, seed=seed)["metrics"] for seed in seeds] for setting in (best.setting, None)
        )
        result = _outcome(contest, best, found, plain)
        if evaluation.group.rank:
            return {}

    # Write, and keep the choice for ``scale: auto``.
    spec = Spec.parse(result["choice"])
    known = choices.facts(evaluation.view.bare, spec)
    choices.keep(known)
    result = {**known, **result, "seconds": round(time.perf_counter() - started, 1)}
    return choice.written(Path(cfg.out), dataclasses.replace(evaluation.cfg, judges=cfg.judges), spec, result)


def best_start(
    cfg: RunConfig,
    over: Mapping[str, tuple[float, float]] | None = None,
    objective: str = "fid",
    budget: int = 24,
    repeats: int = 4,
    searches: int = 2,
) -> Start:
    """The best free settings that the first search of ``auto`` finds, which that then reads from results.jsonl.

    Training starts from them, or from plain sampling where that is better.
    """
    with _contest(cfg, objective, budget, repeats, searches) as contest:
        kinds = families(cfg, contest.evaluation.view, over)
        contest.search(kinds)
        better = [trial.setting for trial in finalists(contest.trials) if trial.difference < 0]
        scale, *spread = next((setting.values for setting in better if setting.family is kinds[0]), (1.0, 1.0))
        return Start(scale, (spread or [1.0])[0], _text(better[0]) if better else PLAIN.name)


def _text(setting: Setting) -> str:
    """A setting as a command line has it, such as gandance:scale=1.1,psi=1.2."""
    pairs = {
        key: ":".join(map(str, value)) if isinstance(value, tuple) else value for key, value in setting.options.items()
    }
    return f"{setting.family.sampler}:{','.join(f'{key}={value}' for key, value in pairs.items())}"


@contextmanager
def _contest(cfg: RunConfig, objective: str, budget: int, repeats: int, searches: int) -> Iterator[Contest]:
    """What ``cfg`` points at, opened on the validation split, with a second feature space; see ``auto``."""
    _check_request(cfg, objective, budget, repeats, searches)
    source = open_source(cfg)
    metrics = tuple(dict.fromkeys([*cfg.metrics, OBJECTIVES[objective]]))
    judges = cfg.judges or (() if cfg.reference_stats else JUDGES)  # a file of statistics has one space
    cfg = dataclasses.replace(validated(cfg, source), metrics=metrics, judges=judges)
    folder = results.writable(Path(cfg.out))

    with distributed.group() as group, progress.bar("evaluation", budget, numbered=True) as shown:
        evaluation = Evaluation(cfg, group, [PLAIN, Spec(cfg.sampler, _fixed(cfg, ()))], source)
        check_images(cfg.seed, (1 + repeats) * evaluation.num)
        yield Contest(evaluation, folder, objective, budget - 2 * repeats, searches, shown)


def _check_request(cfg: RunConfig, objective: str, budget: int, repeats: int, searches: int) -> None:
    """Raise UserError for another sampler, an unknown objective, a budget that is too small."""
    if objective not in OBJECTIVES:
        raise UserError(f"the objective is '{objective}': {nearest(objective, OBJECTIVES)}")

    # The sampler, and evaluations for it.
    if SAMPLERS[cfg.sampler].target is not GANdance:
        raise UserError(f"--auto chooses among settings of gandance, found '{cfg.sampler}': leave out --sampler")
    least = 2 * max(2, repeats) + LEAST * searches
    if not (2 <= repeats <= MOST and least <= budget <= MOST):
        raise UserError(
            f"a budget of {budget} with {repeats} repeats is none for --auto: give 2 repeats or more and a --budget "
            f"from {least} to {MOST}"
        )

    # Options that all settings have.
    fixed = _fixed(cfg, ("psi", "tau"))
    if not samplers.create(cfg.sampler, {**fixed, "scale": 1.0}).neutral:
        raise UserError(
            f"--auto compares with plain sampling, which {cfg.sampler} is not with "
            f"{', '.join(f'{key}={value}' for key, value in fixed.items())}: leave out what has an effect at scale 1"
        )


def _fixed(cfg: RunConfig, searched: Sequence[str]) -> Options:
    """The options of the run that all settings have."""
    return {key: value for key, value in cfg.options.items() if key not in ("scale", *searched)}


def families(cfg: RunConfig, view: LatentView, over: Mapping[str, tuple[float, float]] | None = None) -> list[Family]:
    """The kinds of settings that cost nothing but the search, on this generator."""
    ranges = dict(over or default_ranges(dataclasses.replace(cfg, options={}), view))
    fixed = _fixed(cfg, tuple(ranges))
    by_shift = {"joint": "class_shift"} if view.rows is not None else {}
    found = [Family("scale and spread", fixed={**by_shift, **fixed}, ranges=ranges, weight=2)]

    # Gaussians in w.
    if view.rows is not None and "joint" not in fixed:
        ranges_of_gaussian = {key: GAUSSIAN if key == "scale" and not over else ends for key, ends in ranges.items()}
        found.append(Family("gaussian", fixed={**fixed, "joint": "gaussian"}, ranges=ranges_of_gaussian))

    # One half of the layers.
    if view.blocks > 1 and not {"layers", "profile"} & set(fixed):
        for name, profile in PROFILES.items():
            found.append(Family(name, fixed={**by_shift, **fixed, "profile": profile}, ranges=ranges))
    return found


class Contest:
    """Settings measured on parts of the images, and searches among them.

    Attributes:
        evaluation: of all images.
        objective: the metric that is to be small.
        spent: evaluations so far, where one of a part of the images counts as that part.
        trials: of all searches.
    """

    def __init__(
        self, evaluation: Evaluation, folder: Path, objective: str, budget: float, searches: int, shown: Bar
    ) -> None:
        self.evaluation = evaluation
        self.objective = objective
        self.spent = 0.0
        self.trials: list[Trial] = []
        self._folder = folder
        self._shown = shown
        self._budget = budget / searches
        self._shares = feasible(evaluation, SHARES)
        self._parts = {share: part(evaluation, share) for share in self._shares}
        self._rows: dict[str, dict[str, Any]] = {}

    def takes(self, family: Family) -> bool:
        """Whether the generator takes settings of a family; one that is refused is named on stderr."""
        values = tuple(high for _, high in family.ranges.values())
        try:
            self.evaluation.checked(samplers.create(family.sampler, Setting(family, values).options))
        except UserError as error:
            say(f"{family.name} is left out: {one_line(error, limit=1000)}")
            return False
        return True

    def search(self, kinds: Sequence[Family]) -> None:
        """Try settings of these families, within one share of the budget."""
        taken = [family for family in kinds if self.takes(family)]
        if taken:
            self.trials += halve(taken, self.value, self._budget, self._shares)

    def best(self) -> Trial:
        """The best finalist, of those that no second space finds worse than plain sampling if there are any."""
        ranked = finalists(self.trials)
        if not ranked:
            raise UserError("no setting of --auto works on this generator: see the lines above")
        accepted = [trial for trial in ranked if not self._is_worse_elsewhere(trial.setting)]
        return (accepted or ranked)[0]

    def _is_worse_elsewhere(self, setting: Setting) -> bool:
        metrics, plain = (self.row(each)["metrics"] for each in (setting, None))
        return any(metrics[key] > plain[key] for key in judged(metrics) if key in judged(plain))

    def value(self, setting: Setting | None, share: float) -> float:
        """The objective of a setting, or of plain sampling, on a part of the images; infinite where it is no number."""
        value = self.row(setting, share)["metrics"].get(self.objective)
        if setting is None and value is None:
            raise UserError(f"{self.objective} cannot be measured here: raise --num")
        return math.inf if value is None else float(value)

    def row(self, setting: Setting | None, share: float = 1, seed: int | None = None) -> dict[str, Any]:
        """The row of a setting, or of plain sampling, in every process; measured once."""
        evaluation = self._parts.get(share, self.evaluation)
        name = setting.family.sampler if setting else PLAIN.name
        sampler = evaluation.checked(samplers.create(name, setting.options if setting else {}))
        seed = evaluation.cfg.seed if seed is None else seed
        key = json.dumps([name, samplers.options(sampler), share, seed], sort_keys=True)
        if key not in self._rows:
            rows = complete(evaluation, [(name, sampler, seed)], self._folder)
            self._rows[key] = evaluation.group.agree(rows[0] if rows else {})
            self.spent += share
            self._shown.move(self.spent)
        return self._rows[key]


def judged(metrics: Mapping[str, Any]) -> list[str]:
    """The distances in second feature spaces among the metrics of a row."""
    return [key for key, value in metrics.items() if key.startswith("fid@") and value is not None]


def _outcome(
    contest: Contest, best: Trial, found: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What was found, and what is chosen; ``found`` and ``plain`` are the metrics over the fresh seeds."""
    evaluation = contest.evaluation
    spaces = [key for key in judged(found[0]) if all(key in judged(row) for row in (*found, *plain))]
    by_space = {key: ([row[key] for row in found], [row[key] for row in plain]) for key in spaces}
    values, plain_values = ([row[contest.objective] for row in rows] for rows in (found, plain))
    decision = decide(values, plain_values, by_space)

    # The choice with all its options, paths from anywhere.
    setting = best.setting
    options = {key: _absolute(key, value) for key, value in setting.options.items()}
    chosen = PLAIN if decision.is_plain else Spec(setting.family.sampler, options)
    return {
        "choice": results.plain_data(chosen.to_dict()),
        "is_plain": decision.is_plain,
        "reason": decision.sentence,
        "objective": contest.objective,
        "kind": setting.family.name,
        "found": {"sampler": setting.family.sampler, "options": options, "metrics": list(found)},
        "plain": {"metrics": list(plain)},
        "paired": {
            key: results.paired(*([row.get(key) for row in rows] for rows in (found, plain))) for key in found[0]
        },
        **_intervals(decision),
        "trials": [_trial(contest, trial) for trial in contest.trials],
        "evaluations": round(contest.spent, 3),
        "reference": evaluation.real.fingerprint.get("reference"),
    }


def _intervals(decision: Decision) -> dict[str, Any]:
    """The intervals of a decision as plain data."""
    return {
        "interval": dataclasses.asdict(decision.tuning),
        "judges": {key: dataclasses.asdict(interval) for key, interval in decision.judges.items()},
    }


def _trial(contest: Contest, trial: Trial) -> dict[str, Any]:
    setting = trial.setting
    return {
        "kind": setting.family.name,
        "sampler": setting.family.sampler,
        "options": setting.options,
        "share": trial.share,
        "difference": trial.difference,
        "metrics": contest.row(setting, trial.share)["metrics"],
    }


def _absolute(key: str, value: Any) -> Any:
    """The value of an option; the path of a file does not depend on the current folder."""
    is_path = key.endswith("_ckpt") and isinstance(value, str)
    return str(Path(value).resolve()) if is_path else value
