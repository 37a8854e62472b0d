"""A search along lines: numbers among options, chosen by a score that costs an evaluation each time it is asked for.

Nothing here knows of generators or files: what is searched is a function of options.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from studiogan_guidance.options import dotted, nested

Options = dict[str, Any]
Score = tuple[float, float]  # how far recall falls short, then the objective; smaller is better

GOLDEN = 0.381966  # 2 - golden ratio
STEPS = 4  # of the first look along a line
SHARES = (0.0, 2.0)  # range of a share of the profile
FINEST = 0.005  # the smallest step of a search, as a part of the range
BESIDE = (0.5, 1.5)  # the part of the diagonal that is searched, where 0 is its start and 1 the best point so far
NEAR = 0.15  # how far a shorter line reaches to each side, as a part of the range
OFF = {"psi": 1.0, "tau": 1.0}  # what an option that is off amounts to


@dataclass(frozen=True)
class Line:
    """A number to search between ``low`` and ``high``.

    Attributes:
        low: the lower end.
        high: the upper end.
        put: sets the number among options.
        get: reads it from options; None where they are not on the line.
        steps: points of the first look, the two ends among them.
    """

    low: float
    high: float
    put: Callable[[Options, float], Options]
    get: Callable[[Options], float | None]
    steps: int = STEPS


class Scores(Protocol):
    """Scores of options, each measured once; smaller is better."""

    @property
    def evaluations(self) -> int:
        """How many have been measured so far."""

    def score(self, options: Options) -> Score:
        """The score of these options."""


def lines_of(over: Mapping[str, tuple[float, float]]) -> list[Line]:
    """A line for each option; one of a base has a name with a dot."""
    return [Line(*ends, partial(_put, name), partial(_get, name)) for name, ends in over.items()]


def profile_lines(groups: int) -> list[Line]:
    """A line for the share of the guidance that each of this many equal groups of layers gets."""
    return [Line(*SHARES, partial(_put_share, i, groups), partial(_get_share, i, groups)) for i in range(groups)]


def _put(name: str, options: Options, x: float) -> Options:
    return nested({**options, name: x})


def _get(name: str, options: Options) -> float | None:
    value = dotted(options).get(name)
    return OFF.get(name) if value is None else value


def _put_share(group: int, groups: int, options: Options, x: float) -> Options:
    shares = list(options.get("profile") or [1.0] * groups)
    shares[group] = x
    return {**options, "profile": shares}


def _get_share(group: int, groups: int, options: Options) -> float | None:
    return float((options.get("profile") or [1.0] * groups)[group])


def search(scores: Scores, together: Sequence[Line], after: Sequence[Line], start: Options, budget: int) -> Options:
    """The best options that a search from ``start`` meets.

    It follows each of the lines ``together``; with several, also their diagonal, once: the line from the start through
    the best point so far, which is the way down where the best value of one number depends on that of another (Powell,
    "An efficient method for finding the minimum of a function of several variables", 1964). Then it follows each of the
    lines ``after``. What is left of the budget goes to shorter lines of the first kind about the best point, as long as
    they gain something.

    Args:
        scores: what is to be small.
        together: lines of numbers that depend on each other.
        after: lines to follow at the end.
        start: where to start; its score is known.
        budget: the most evaluations; what a line does not use goes to the next ones.
    """
    last = scores.evaluations + budget
    best = start
    turns: list[Line | None] = [*together, *([None] if len(together) > 1 else []), *after]
    for i, turn in enumerate(turns):
        line = turn or diagonal(together, start, best)
        left = last - scores.evaluations
        best = along(scores, line, best, min(left, max(line.steps, left // (len(turns) - i))))

    # Numbers that depend on each other, once more; a single one is where it should be.
    before = None
    while len(together) > 1 and best != before and scores.evaluations < last:
        before = best
        for line in together:
            best = along(scores, _shorter(line, best), best, last - scores.evaluations)
    return best


def _shorter(line: Line, best: Options) -> Line:
    """The part of a line about its best point; the line itself where that is not on it."""
    middle = line.get(best)
    if middle is None or not line.low <= middle <= line.high:
        return line
    reach = NEAR * (line.high - line.low)
    ends = [round(end, _digits(line)) for end in (max(line.low, middle - reach), min(line.high, middle + reach))]
    return dataclasses.replace(line, low=ends[0], high=ends[1], steps=2)


def diagonal(lines: Sequence[Line], start: Options, best: Options) -> Line:
    """The line from ``start``, its 0, through ``best``, its 1; the first line where these differ in one number only."""
    # The numbers that moved, from where and how far.
    moved: list[tuple[Line, float, float]] = []
    for line in lines:
        origin, end = line.get(start), line.get(best)
        if origin is not None and end is not None and origin != end:
            moved.append((line, origin, end - origin))
    if len(moved) < 2:
        return lines[0]

    # As far as all of them stay within their ranges.
    low, high = BESIDE
    for line, origin, step in moved:
        ends = sorted(((line.low - origin) / step, (line.high - origin) / step))
        low, high = max(low, ends[0]), min(high, ends[1])
    if high - low < FINEST:
        return lines[0]

    def put(options: Options, x: float) -> Options:
        for line, origin, step in moved:
            options = line.put(options, round(origin + x * step, _digits(line)))
        return options

    def get(options: Options) -> float | None:
        return 1.0 if options == best else None

    return Line(low, high, put, get, steps=2)


def _digits(line: Line) -> int:
    """Decimals of the numbers of a line."""
    return 3 - math.floor(math.log10(line.high - line.low))


def along(scores: Scores, line: Line, best: Options, share: int) -> Options:
    """The best options along a line, ``best`` among them, by at most ``share`` evaluations.

    The first look is at a few equal steps, so a second valley wider than these is seen. Then follow the lowest point of
    the parabola through the best point and its neighbours, or where there is none, the golden section of the wider gap.
    """
    last = scores.evaluations + share
    start = line.get(best)
    width = line.high - line.low
    digits = _digits(line)
    candidates: dict[float, Options] = {}
    values: dict[float, Score] = {}

    def look(x: float) -> None:
        candidates[x] = best if x == start else line.put(best, x)
        values[x] = scores.score(candidates[x])

    # The point of ``best``, if it is on the line, and a few equal steps.
    if start is not None and line.low <= start <= line.high:
        look(start)
    inner = [round(line.low + width * i / (line.steps - 1), digits) for i in range(1, line.steps - 1)]
    for x in (line.low, *inner, line.high):
        if x not in values and scores.evaluations < last:
            look(x)

    # Between them, until the steps are too fine.
    while values and scores.evaluations < last:
        middle = min(sorted(values), key=values.__getitem__)
        x = round(_between(values, middle), digits)
        if x in values or abs(x - middle) < FINEST * width:
            break
        look(x)

    return min([best, *candidates.values()], key=scores.score)


def _between(values: Mapping[float, Score], middle: float) -> float:
    """Where to look next, beside the best point ``middle``."""
    points = sorted(values)
    i = points.index(middle)
    if 0 < i < len(points) - 1:
        three = points[i - 1 : i + 2]
        vertex = _vertex(three, [values[x] for x in three])
        if vertex is not None:
            return vertex
    return middle + GOLDEN * _wider_gap(points, i)


def _vertex(x: Sequence[float], scores: Sequence[Score]) -> float | None:
    """The lowest point of the parabola through three points, the lowest in the middle; None without such a one."""
    y = [value for _, value in scores]
    if not all(map(math.isfinite, y)) or len({shortfall for shortfall, _ in scores}) > 1:
        return None
    left = (x[1] - x[0]) * (y[1] - y[2])
    right = (x[1] - x[2]) * (y[1] - y[0])
    if left == right:
        return None
    return x[1] - ((x[1] - x[0]) * left - (x[1] - x[2]) * right) / (2 * (left - right))


def _wider_gap(points: Sequence[float], i: int) -> float:
    """The signed distance from point ``i`` to the farther one of its neighbours among sorted ``points``."""
    neighbours = [*points[max(i - 1, 0) : i], *points[i + 1 : i + 2]]
    return max((x - points[i] for x in neighbours), key=abs, default=0.0)
