"""The search along lines, on functions whose lowest point is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from studiogan_guidance.evaluation.search import Options, Score, along, diagonal, lines_of, profile_lines, search


class Function:
    """Scores of a function of options; each point counts once."""

    def __init__(self, function: Callable[[Options], float]) -> None:
        self.function = function
        self.seen: dict[str, Score] = {}

    @property
    def evaluations(self) -> int:
        return len(self.seen)

    def score(self, options: Options) -> Score:
        return self.seen.setdefault(str(sorted(options.items())), (0.0, self.function(options)))


def distance(options: Options, R: float, S: float, between: Any, within: Any) -> float:
    """The Frechet distance of N(0, R^2 B + S^2 W) and N(0, s^2 B + psi^2 W), with B and W diagonal."""
    real = np.sqrt(R**2 * between + S**2 * within)
    fake = np.sqrt(options["scale"] ** 2 * between + options.get("psi", 1.0) ** 2 * within)
    return float(((real - fake) ** 2).sum())


@pytest.mark.parametrize(("R", "S"), [(1.6, 0.8), (1.2, 1.5), (0.9, 1.4), (1.0, 1.0)])
def test_scale_and_spread_together_reach_the_closed_form(R: float, S: float) -> None:
    """Data x = R m_c + S eps, generator m_c + eps: the lowest point is s = R, psi = S, where the distance is 0."""
    between, within = np.array([3.0, 1.0, 0.3, 0.1]), np.array([0.5, 0.5, 1.0, 1.0])
    function = Function(lambda options: distance(options, R, S, between, within))
    lines = lines_of({"scale": (0.8, 2.0), "psi": (0.7, 1.8)})
    best = search(function, lines, [], {"scale": 1.0}, budget=17)
    assert function.evaluations <= 18
    assert (best["scale"], best.get("psi", 1.0)) == pytest.approx((R, S), abs=0.06)
    plain = function.score({"scale": 1.0})[1]
    assert function.score(best)[1] <= 0.03 * plain


def test_the_diagonal_gains_where_two_numbers_depend_on_each_other() -> None:
    """A valley along a diagonal: each line stops at its wall, the line through the start and that point goes on."""

    def valley(options: Options) -> float:
        x, y = options["scale"] - 1.6, options["psi"] - 1.5
        return (x - y) ** 2 + 0.02 * (x + y) ** 2 if x > -2 else 9.0

    lines = lines_of({"scale": (0.8, 2.0), "psi": (0.7, 1.8)})
    start = {"scale": 0.8, "psi": 0.8}
    function = Function(valley)
    best = start
    for line in lines:
        best = along(function, line, best, 6)
    across = diagonal(lines, start, best)
    assert across.get(best) == 1
    further = along(function, across, best, 6)
    assert function.score(further)[1] < 0.9 * function.score(best)[1]
    origin = np.array([best["scale"] - start["scale"], best["psi"] - start["psi"]])
    moved = np.array([further["scale"] - start["scale"], further["psi"] - start["psi"]])
    assert abs(origin[0] * moved[1] - origin[1] * moved[0]) < 1e-3  # on the line from the start
    assert all(line.low <= line.get(further) <= line.high for line in lines)


def test_a_diagonal_of_one_number_is_its_line() -> None:
    lines = lines_of({"scale": (0.8, 2.0), "psi": (0.7, 1.8)})
    assert diagonal(lines, {"scale": 1.0}, {"scale": 1.3}) is lines[0]
    assert diagonal(lines, {"scale": 1.0}, {"scale": 1.3, "psi": 1.0}) is lines[0]  # psi is off at 1


def test_a_parabola_is_found_in_one_step_beyond_the_first_look() -> None:
    (line,) = lines_of({"scale": (0.8, 2.0)})
    function = Function(lambda options: (options["scale"] - 1.37) ** 2)
    best = along(function, line, {"scale": 1.0}, 20)
    assert best["scale"] == pytest.approx(1.37, abs=1e-3)
    assert function.evaluations <= 7  # five of the first look, the vertex, and one to see that it is the lowest point


def test_shares_of_layers_are_searched_after_the_scale() -> None:
    """Guidance helps in the second of three groups only: effective scales 1, 1.5 and 1."""

    def layered(options: Options) -> float:
        shares = options.get("profile") or [1.0, 1.0, 1.0]
        effective = [1 + (options["scale"] - 1) * share for share in shares]
        return float(np.square(np.array(effective) - [1.0, 1.5, 1.0]).sum())

    function = Function(layered)
    best = search(function, lines_of({"scale": (0.8, 2.0)}), profile_lines(3), {"scale": 1.0}, budget=40)
    assert function.evaluations <= 41
    assert layered(best) < 0.2 * min(layered({"scale": scale}) for scale in np.linspace(0.8, 2, 121))
    assert max(best["profile"][0], best["profile"][2]) < 0.3
    assert best["profile"][1] > 1
