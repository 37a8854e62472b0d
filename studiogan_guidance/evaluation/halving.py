"""Successive halving: many settings on few images, the better ones on more; and where to look next between them.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016. All settings of
a round are measured on the same seeds, and compared with each other only, as a Frechet distance depends on the number
of images. Between rounds, some of the places go to the lowest points of surfaces fitted to what was measured. Nothing
here knows of generators or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studiogan_guidance.options import nested

Array = NDArray[np.float64]
NEUTRAL = 1.0  # the value of every number that is searched at which a setting is plain sampling
DIGITS = 3  # decimals of the numbers that are tried
NEAR = 0.01  # two settings within this part of their ranges are one
PLAIN_WEIGHT = 4.0  # of plain sampling in a fit, whose difference to itself is known without error


@dataclass(frozen=True, eq=False)
class Family:
    """Settings of one kind: a sampler, options that all of them have, and numbers that are searched.

    Attributes:
        name: what a report calls it.
        sampler: its registered name.
        fixed: options that all of them have.
        ranges: the numbers that are searched, each with its range; none for a family of one setting.
        weight: how many of the settings it gets, relative to the others.
        is_plain_at_one: whether it is plain sampling where all numbers are 1.
    """

    name: str
    sampler: str = "gandance"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    weight: float = 1.0
    is_plain_at_one: bool = True


@dataclass(frozen=True)
class Setting:
    """A member of a family: a value for each number that is searched, in their order."""

    family: Family
    values: tuple[float, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The options of the sampler."""
        return nested({**self.family.fixed, **dict(zip(self.family.ranges, self.values))})

    @property
    def position(self) -> Array:
        """The values as parts of their ranges."""
        return np.array([(x - low) / (high - low) for x, (low, high) in zip(self.values, self.family.ranges.values())])


@dataclass(frozen=True)
class Trial:
    """A setting with the part of the images that it was measured on, and its difference to plain sampling there."""

    setting: Setting
    share: float
    difference: float


Measure = Callable[[Setting | None, float], float]  # of a setting (None: plain) on a part of the images


def halve(
    families: Sequence[Family],
    measure: Measure,
    budget: float,
    shares: Sequence[float],
    first: Sequence[Setting] = (),
) -> list[Trial]:
    """The trials of all rounds; those of the last one, on all images, are the finalists.

    Args:
        families: the kinds of settings to try.
        measure: what is to be small, of a setting (None: plain sampling) on a part of the images; each call is counted
            as that part of an evaluation.
        budget: evaluations, spent in equal parts on the rounds; each of them tries one setting at least.
        shares: the part of the images of each round, ending with 1.
        first: settings that the first round tries in any case, such as a guess by other means.
    """
    trials: list[Trial] = []
    spent = 0.0
    for i, share in enumerate(shares):
        # As many settings as the round can pay for, beside plain sampling.
        room = max(1, int((budget - spent) / (len(shares) - i) / share + 1e-9) - 1)
        settings = _survivors(trials, room) if trials else _unlike([*first, *spread(families, room)])[:room]

        # Measure them all on the same images.
        plain = measure(None, share)
        trials += [Trial(setting, share, measure(setting, share) - plain) for setting in settings]
        spent += share * (len(settings) + 1)
    return trials


def finalists(trials: Sequence[Trial]) -> list[Trial]:
    """The trials on all images, the best first."""
    return sorted((trial for trial in trials if trial.share == 1), key=_rank)


def _rank(trial: Trial) -> float:
    return trial.difference if math.isfinite(trial.difference) else math.inf


def _survivors(trials: Sequence[Trial], room: int) -> list[Setting]:
    """The better half of the last round, and the lowest points of fitted surfaces; ``room`` settings at most."""
    last = [trial for trial in trials if trial.share == trials[-1].share]
    ranked = [trial.setting for trial in sorted(last, key=_rank)]
    better = ranked[: max(1, math.ceil(len(ranked) / 2))]

    fitted = [setting for setting in lowest_points(trials) if not any(_alike(setting, each) for each in better)]
    places = min(len(fitted), max(1, room // 3) if room > 1 else 0)
    return _unlike([*better[: room - places], *fitted[:places]])


def _alike(one: Setting, other: Setting) -> bool:
    """Whether two settings are too near to each other to be worth two measurements."""
    return one.family is other.family and bool(np.all(np.abs(one.position - other.position) < NEAR))


def _unlike(settings: Sequence[Setting]) -> list[Setting]:
    """The settings without those that are near an earlier one."""
    chosen: list[Setting] = []
    for setting in settings:
        if not any(_alike(setting, each) for each in chosen):
            chosen.append(setting)
    return chosen


def spread(families: Sequence[Family], count: int) -> list[Setting]:
    """``count`` settings, shared among the families by their weights, and spread evenly over the ranges of each.

    The points of a family are the first ones of Roberts' additive sequence, "The unreasonable effectiveness of
    quasirandom sequences", 2018; a family of one setting has one.
    """
    counts = [0] * len(families)
    for _ in range(count):
        open_ones = [i for i, family in enumerate(families) if family.ranges or not counts[i]]
        if not open_ones:
            break
        counts[min(open_ones, key=lambda i: (counts[i] + 1) / families[i].weight)] += 1
    return [_point(family, i) for family, number in zip(families, counts) for i in range(number)]


def _point(family: Family, index: int) -> Setting:
    """The point ``index`` of the sequence of a family."""
    dimensions = len(family.ranges)
    root = 2.0
    for _ in range(60):  # the positive solution of x^(d+1) = x + 1
        root = (1 + root) ** (1 / (dimensions + 1))
    return _at(family, [(0.5 + (index + 1) * root**-power) % 1 for power in range(1, dimensions + 1)])


def _at(family: Family, position: Sequence[float]) -> Setting:
    """The setting at parts of the ranges."""
    values = [low + part * (high - low) for part, (low, high) in zip(position, family.ranges.values())]
    return Setting(family, tuple(round(value, DIGITS) for value in values))


def lowest_points(trials: Sequence[Trial]) -> list[Setting]:
    """The lowest point of the quadratic surface fitted to each family, in the order of the values there.

    Differences to plain sampling are fitted, which depend less on the number of images than the values do. A trial
    weighs by its part of the images, and less the worse it is, as a surface is quadratic near its lowest point only. A
    family with fewer trials than the surface has coefficients, or whose surface has no lowest point, has none.
    """
    found: list[tuple[float, Setting]] = []
    for family in dict.fromkeys(trial.setting.family for trial in trials):
        own = [trial for trial in trials if trial.setting.family is family and math.isfinite(trial.difference)]
        lowest = _lowest_point(family, own) if family.ranges else None
        if lowest is not None:
            found.append(lowest)
    return [setting for _, setting in sorted(found, key=lambda pair: pair[0])]


def _lowest_point(family: Family, trials: Sequence[Trial]) -> tuple[float, Setting] | None:
    """The value of the fitted surface at its lowest point within the ranges, and that point."""
    positions = [trial.setting.position for trial in trials]
    values = [trial.difference for trial in trials]
    weights = [trial.share for trial in trials]
    if family.is_plain_at_one:
        positions.append(Setting(family, (NEUTRAL,) * len(family.ranges)).position)
        values.append(0.0)
        weights.append(PLAIN_WEIGHT)

    # Fit: the rows of the design are 1, x_i and x_i x_j.
    x, y, weight = np.array(positions), np.array(values), np.array(weights)
    rows, columns = np.triu_indices(len(family.ranges))
    design = np.hstack([np.ones((len(x), 1)), x, x[:, rows] * x[:, columns]])
    if len(y) < design.shape[1]:
        return None
    excess = y - y.min()
    weight = np.sqrt(weight) / (1 + excess / (np.median(excess) or 1.0))
    coefficients = np.linalg.lstsq(design * weight[:, None], y * weight, rcond=None)[0]

    # The lowest point, if the surface has one.
    count = len(family.ranges)
    slope = coefficients[1 : count + 1]
    curvature = np.zeros((count, count))
    curvature[rows, columns] = coefficients[count + 1 :]
    curvature = curvature + curvature.T
    if np.linalg.eigvalsh(curvature)[0] <= 0:
        return None
    lowest = np.clip(np.linalg.solve(curvature, -slope), 0, 1)
    value = coefficients[0] + slope @ lowest + lowest @ curvature @ lowest / 2
    return float(value), _at(family, lowest.tolist())
