"""Whether a setting is better than plain sampling, from values over the same fresh ranges of seeds: pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """The mean of paired differences to plain sampling, with the interval that holds the true one in 95 of 100 cases.

    Attributes:
        mean: of the differences.
        low: the lower end.
        high: the upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def is_below(self) -> bool:
        """Whether the setting is significantly below plain sampling."""
        return self.high < 0

    @property
    def is_above(self) -> bool:
        """Whether the setting is significantly above plain sampling."""
        return self.low > 0


@dataclass(frozen=True)
class Decision:
    """What is chosen, and why.

    Attributes:
        is_plain: whether plain sampling is chosen.
        tuning: the difference in the space that was tuned in.
        judges: the difference in each second space.
        sentence: the reason, for the report.
    """

    is_plain: bool
    tuning: Interval
    judges: dict[str, Interval]
    sentence: str


def interval(values: Sequence[float], plain_values: Sequence[float]) -> Interval:
    """The paired difference over ranges of seeds, with Student's interval, mean +- t s / sqrt(n).

    Args:
        values: of the setting, two or more.
        plain_values: of plain sampling on the same ranges.
    """
    differences = [value - plain for value, plain in zip(values, plain_values, strict=True)]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = student_t(len(differences) - 1) * error
    return Interval(mean, mean - half, mean + half)


def decide(
    values: Sequence[float],
    plain_values: Sequence[float],
    judged: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Decision:
    """Plain sampling, unless the setting is significantly better, and in no second space significantly worse.

    Args:
        values: what is to be small, over fresh ranges of seeds.
        plain_values: that of plain sampling on the same ranges.
        judged: both in each second feature space.
    """
    tuning = interval(values, plain_values)
    judges = {name: interval(*pair) for name, pair in (judged or {}).items()}
    worse = [name for name, judge in judges.items() if judge.is_above]
    if not tuning.is_below:
        return Decision(True, tuning, judges, "plain: nothing is significantly better on fresh seeds")
    if worse:
        return Decision(True, tuning, judges, f"plain: the best setting is significantly worse by {', '.join(worse)}")
    second = f", and not worse by {', '.join(judges)}" if judges else ""
    return Decision(False, tuning, judges, f"significantly better than plain on fresh seeds{second}")


def student_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t that a Student variable of ``freedom`` degrees stays within, on both sides, with this probability.

    Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4, inverted by bisection.

    Example:
        >>> round(student_t(2), 3), round(student_t(7), 3)
        (4.303, 2.365)
    """
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """The probability that a Student variable of ``freedom`` degrees lies between -t and t."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = freedom % 2

    # The sum over powers of the cosine, of the other parity than the degrees.
    term = cosine if is_odd else 1.0
    total = term if freedom > 1 else 0.0
    for power in range(3 if is_odd else 2, freedom - 1, 2):
        term *= (power - 1) / power * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
