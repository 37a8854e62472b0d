from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression

from studiogan_guidance.critics.calibration import (
    Array,
    Flags,
    Map,
    calibration_statistic,
    cross_fitted,
    isotonic_map,
    logistic_map,
    quality,
)
from studiogan_guidance.critics.log_ratio import LogRatio


def scores(real_shift: float, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Scores of real images N(shift, 1) and of fakes N(0, 1): their log ratio is shift * s - shift^2 / 2."""
    draws = np.random.default_rng(0).normal(size=2 * count)
    is_real = np.arange(2 * count) < count
    return draws + real_shift * is_real, is_real


def test_platt_scaling_finds_the_log_ratio_of_gaussians_whatever_the_logit_was_multiplied_by() -> None:
    s, is_real = scores(1.5)
    weights, offset = logistic_map(10 * s[:, None] + 3, is_real)
    np.testing.assert_allclose([10 * weights[0], 3 * weights[0] + offset], [1.5, -1.125], atol=0.08)


def test_isotonic_calibration_undoes_a_monotone_distortion_and_agrees_with_scikit_learn() -> None:
    s, is_real = scores(1.5)
    distorted = np.sign(s) * np.abs(s) ** 3  # far from a log ratio
    ratio = LogRatio(None, None, torch.ones(1), knots=tuple(map(torch.from_numpy, isotonic_map(distorted, is_real))))
    found = ratio.of_evidence(torch.from_numpy(distorted)[:, None]).numpy()
    assert (np.diff(found[np.argsort(distorted)]) >= 0).all()
    middle = np.abs(s - 0.75) < 1.5
    assert np.abs(found - (1.5 * s - 1.125))[middle].mean() < 0.15
    fit = IsotonicRegression(out_of_bounds="clip").fit(distorted, is_real)
    inside = (found > -6) & (found < 6)
    grid = 1 / (1 + np.exp(-found[inside]))
    np.testing.assert_allclose(grid, fit.predict(distorted)[inside], atol=0.02)


def test_the_calibration_statistic_is_standard_normal_if_calibrated_and_large_if_not() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(0.1, 0.9, (400, 500))
    real = rng.uniform(size=p.shape) < p
    found = [calibration_statistic(np.log(q / (1 - q)), y) for q, y in zip(p, real)]
    assert abs(np.mean(found)) < 0.15
    assert abs(np.std(found) - 1) < 0.1
    assert calibration_statistic(np.log(p[0] / (1 - p[0])) + 1, real[0]) < -4


def test_no_image_has_a_say_in_its_own_cross_fitted_log_odds() -> None:
    """A map that gives back the mean of the evidence it was fitted on: even images get that of the odd ones."""

    def mean(evidence: Array, real: Flags) -> Map:
        assert evidence.shape == (4 if real.all() else 3, 2)
        return lambda unseen: np.full(len(unseen), evidence.mean())

    evidence = np.arange(14.0).reshape(7, 2)
    is_real = np.arange(7) % 2 == 0  # the four even ones
    log_odds = cross_fitted(mean, evidence, is_real)
    assert log_odds[0::2].tolist() == [evidence[1::2].mean()] * 4
    assert log_odds[1::2].tolist() == [evidence[0::2].mean()] * 3


def test_quality_tells_calibrated_odds_from_raw_logits() -> None:
    s, is_real = scores(1.5)
    facts = quality(1.5 * s - 1.125, 10 * s, is_real)
    assert abs(facts["calibration_z"]) < 3 < abs(facts["calibration_z_raw"])
    assert facts["auc"] == pytest.approx(0.8556, abs=0.01)  # Phi(1.5 / sqrt 2)
    assert quality(0 * s, s, is_real)["auc"] == 0.5  # ties count half


def test_a_head_does_not_depend_on_the_order_of_sums() -> None:
    """Features that differ by the rounding of float32, as with another number of threads, give the same weights."""
    gen = np.random.default_rng(0)
    real = np.arange(400) < 200
    common = gen.normal(size=(400, 1)) + 0.3 * real[:, None]
    evidence = common + 0.05 * gen.normal(size=(400, 40))  # nearly parallel features: a fit that stops early drifts
    rounded = evidence * (1 + 1e-7 * gen.normal(size=evidence.shape))
    weights, offset = logistic_map(evidence, real)
    again, shifted = logistic_map(rounded, real)
    assert np.abs(weights - again).max() < 1e-6 * np.abs(weights).max()
    assert abs(offset - shifted) < 1e-5


def test_evidence_that_tells_nothing_has_a_map_of_no_odds() -> None:
    weights, offset = logistic_map(np.full((40, 3), 0.5), np.arange(40) % 2 == 0)
    assert weights.tolist() == [0, 0, 0]
    assert offset == pytest.approx(0, abs=1e-6)
