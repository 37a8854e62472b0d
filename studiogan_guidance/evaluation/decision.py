"""Whether a setting is better than plain sampling, from values over the same fresh ranges of seeds: pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
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
        judge: the difference in a second space; None where there is none.
        sentence: the reason, for the report.
    """

    is_plain: bool
    tuning: Interval
    judge: Interval | None
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
    judged: Sequence[float] = (),
    plain_judged: Sequence[float] = (),
) -> Decision:
    """Plain sampling, unless the setting is significantly better, and not significantly worse in a second space.

    Args:
        values: what is to be small, over fresh ranges of seeds.
        plain_values: that of plain sampling on the same ranges.
        judged: the same in a second feature space; empty for none.
        plain_judged: that of plain sampling.
    """
    tuning = interval(values, plain_values)
    judge = interval(judged, plain_judged) if judged else None
    if not tuning.is_below:
        return Decision(True, tuning, judge, "plain: nothing is significantly better on fresh seeds")
    if judge is not None and judge.is_above:
        return Decision(True, tuning, judge, "plain: what is better here is significantly worse in the second space")
    second = "" if judge is None else ", and not worse in the second space"
    return Decision(False, tuning, judge, f"significantly better than plain on fresh seeds{second}")


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
