"""Successive halving and the decision, on toys whose best setting is known, without networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from studiogan_guidance.evaluation.decision import Decision, decide, interval, student_t
from studiogan_guidance.evaluation.halving import Family, Setting, Trial, finalists, halve, lowest_points, spread

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
RANGES = {"scale": (0.8, 2.0), "psi": (0.7, 1.8)}
CLASSES, WIDTH = 5, 4


class Toy:
    """Real x = R m_c + S eps, generated s m_c + psi eps: the best setting is s = R, psi = S.

    The distance is that of Gaussians fitted to finite samples, whose noise is shared by all settings of a range of
    seeds, as it is with a generator.
    """

    def __init__(self, seed: int, R: float, S: float, num: int = 800) -> None:
        means = np.random.default_rng(99).normal(size=(CLASSES, WIDTH))
        self.means = means - means.mean(0)
        self.seed, self.num, self.spent = seed, num, 0.0
        noise = np.random.default_rng([seed, 0]).normal(size=(4000, WIDTH))
        real = R * self.means[np.arange(4000) % CLASSES] + S * noise
        self.mean, self.cov = real.mean(0), np.cov(real.T)

    def distance(self, knobs: tuple[float, float], share: float, turn: int = 0) -> float:
        """On the first images of a range of seeds."""
        count = int(self.num * share)
        draws = np.random.default_rng([self.seed, 1 + turn])
        labels = draws.integers(0, CLASSES, self.num)[:count]
        noise = draws.normal(size=(self.num, WIDTH))[:count]
        x = knobs[0] * self.means[labels] + knobs[1] * noise
        cov = np.cov(x.T)
        roots = np.sqrt(np.linalg.eigvals(cov @ self.cov).real.clip(0))
        self.spent += share
        return float(((x.mean(0) - self.mean) ** 2).sum() + np.trace(cov) + np.trace(self.cov) - 2 * roots.sum())


def knobs(setting: Setting | None) -> tuple[float, float]:
    """What a setting does to the toy: guidance of some layers does nothing to its scale."""
    if setting is None:
        return 1.0, 1.0
    scale, psi = setting.values
    return (1.0 if setting.family.name == "idle layers" else scale), psi


def contest(toy: Toy, budget: float = 24, repeats: int = 4) -> tuple[Decision, tuple[float, float]]:
    """The whole of ``tune --auto``: the search, and the best setting against plain sampling on fresh seeds."""
    kinds = [Family("knobs", ranges=RANGES, weight=2), Family("idle layers", ranges=RANGES)]
    trials = halve(kinds, lambda setting, share: toy.distance(knobs(setting), share), budget - 2 * repeats, SHARES)
    best = knobs(finalists(trials)[0].setting)
    turns = range(1, repeats + 1)
    values, plain = ([toy.distance(each, 1, turn) for turn in turns] for each in (best, (1.0, 1.0)))
    assert toy.spent <= budget
    return decide(values, plain), best


def test_plain_is_chosen_where_it_is_right() -> None:
    decisions = [contest(Toy(seed, 1.0, 1.0))[0] for seed in range(20)]
    assert sum(decision.is_plain for decision in decisions) >= 19
    assert {decision.sentence for decision in decisions if decision.is_plain} == {
        "plain: nothing is significantly better on fresh seeds"
    }


@pytest.mark.parametrize(("R", "S"), [(1.6, 0.8), (1.0, 1.5), (1.3, 1.2)])
def test_the_optimum_is_found_where_it_is_elsewhere(R: float, S: float) -> None:
    gains = []
    for seed in range(5):
        toy = Toy(seed, R, S)
        decision, best = contest(toy)
        assert not decision.is_plain
        plain, found, least = (toy.distance(each, 1, turn=9) for each in ((1.0, 1.0), best, (R, S)))
        gains.append((plain - found) / (plain - least))
    assert np.mean(gains) > 0.93  # of what the best setting gains
    assert min(gains) > 0.8


def test_rounds_compare_equal_numbers_of_images_and_keep_the_better_half() -> None:
    calls: list[tuple[Any, float]] = []

    def measure(setting: Setting | None, share: float) -> float:
        calls.append((setting, share))
        return 0.0 if setting is None else (setting.values[0] - 1.4) ** 2 - 0.16

    trials = halve([Family("one", ranges={"scale": (0.8, 2.0)})], measure, 8, SHARES)
    by_share = {share: [trial for trial in trials if trial.share == share] for share in SHARES}
    counts = [len(by_share[share]) for share in SHARES]
    assert counts == [15, 7, 3, 1]  # and plain sampling: two evaluations a round
    assert sum(share for _, share in calls) <= 8
    assert [share for setting, share in calls if setting is None] == list(SHARES)
    for share, following in zip(SHARES, SHARES[1:]):
        ranked = sorted(trial.difference for trial in by_share[share])
        worst = max(trial.difference for trial in by_share[following])
        assert worst <= ranked[(len(ranked) - 1) // 2]
    assert finalists(trials)[0].setting.values[0] == pytest.approx(1.4, abs=0.002)  # by the fitted parabola


def test_fitted_surfaces_have_their_lowest_point_where_the_function_has_it() -> None:
    family = Family("two", ranges=RANGES, is_plain_at_one=False)

    def bowl(setting: Setting) -> float:
        x, y = setting.position
        return float(3 * (x - 0.3) ** 2 + 2 * (y - 0.6) ** 2 + (x - 0.3) * (y - 0.6) - 1)

    points = spread([family], 8)
    assert len(set(points)) == 8
    assert all(0 <= part <= 1 for setting in points for part in setting.position)
    (found,) = lowest_points([Trial(setting, 0.5, bowl(setting)) for setting in points])
    assert found.position.tolist() == pytest.approx([0.3, 0.6], abs=0.002)
    assert lowest_points([Trial(setting, 0.5, -bowl(setting)) for setting in points]) == []  # a hill has none
    assert lowest_points([Trial(setting, 0.5, bowl(setting)) for setting in points[:5]]) == []  # six coefficients


def test_settings_are_shared_among_families_by_weight() -> None:
    kinds = [Family("a", ranges=RANGES, weight=2), Family("b", ranges=RANGES), Family("c", fixed={"proposals": 3})]
    settings = spread(kinds, 10)
    names = [setting.family.name for setting in settings]
    assert [names.count(name) for name in "abc"] == [6, 3, 1]  # the last has one setting only
    assert settings[-1].options == {"proposals": 3}
    assert settings[0].options == {"scale": settings[0].values[0], "psi": settings[0].values[1]}


def test_students_quantiles_are_those_of_the_tables() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 10: 2.228, 30: 2.042}  # two-sided, 95 %
    assert {freedom: round(student_t(freedom), 3) for freedom in table} == table


def test_intervals_hold_the_truth_in_95_of_100_cases() -> None:
    draws = np.random.default_rng(0).normal(-0.3, 2.0, (2000, 4))
    shared = np.random.default_rng(1).normal(0, 50, (2000, 4))  # what pairs have in common cancels
    intervals = [interval((row + noise).tolist(), noise.tolist()) for row, noise in zip(draws, shared)]
    held = np.mean([each.low <= -0.3 <= each.high for each in intervals])
    assert held == pytest.approx(0.95, abs=0.015)


def test_a_second_space_can_turn_a_choice_down() -> None:
    plain = [10.0, 11.0, 12.0, 13.0]
    better = [9.0, 9.9, 11.1, 12.0]
    worse = [value + 1 for value in plain[:-1]] + [14.1]
    assert decide(plain, plain).is_plain
    assert not decide(better, plain).is_plain
    assert not decide(better, plain, {"fid@random": (plain, plain)}).is_plain
    refused = decide(better, plain, {"fid@a": (better, plain), "fid@random": (worse, plain)})
    assert refused.is_plain
    assert refused.sentence == "plain: the best setting is significantly worse by fid@random"
    assert refused.judges["fid@random"].low > 0 > refused.tuning.high
