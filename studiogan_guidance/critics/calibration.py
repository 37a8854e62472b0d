"""Calibration: from logits to log odds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Flags = NDArray[np.bool_]


def logistic_map(evidence: Array, real: Flags) -> tuple[Array, float]:
    """(weights [K], offset) of the log odds ``evidence @ weights + offset`` that an image is real, for [N, K] and [N].

    Without a penalty for K = 1 (Platt scaling); else with an L2 penalty that is chosen by cross-validation.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    centre, unit = evidence.mean(0), np.maximum(evidence.std(0), 1e-12)
    model = LogisticRegression(C=1e6, class_weight="balanced", max_iter=1000)
    if evidence.shape[1] > 1:
        grid = {"C": [1e-4, 1e-3, 1e-2, 1e-1, 1.0]}
        search = GridSearchCV(model, grid, scoring="neg_log_loss", cv=_folds(len(real))).fit(
            (evidence - centre) / unit, real
        )
        model = search.best_estimator_
    else:
        model.fit((evidence - centre) / unit, real)
    weights = model.coef_[0] / unit
    return weights, float(model.intercept_[0] - weights @ centre)


def _folds(count: int) -> list[tuple[Array, Array]]:
    numbers = np.arange(count)
    return [(numbers[numbers % 5 != fold], numbers[numbers % 5 == fold]) for fold in range(5)]


def isotonic_map(scores: Array, real: Flags) -> tuple[Array, Array]:
    """Knots (scores, log odds) of a non-decreasing map, constant beyond its ends; log odds are finite.

    Probabilities of 0 and 1 become 1 / (N + 2) and 1 less that.
    """
    from sklearn.isotonic import IsotonicRegression

    weights = np.where(real, 0.5 / max(real.sum(), 1), 0.5 / max((~real).sum(), 1))
    fit = IsotonicRegression(out_of_bounds="clip").fit(scores, real.astype(float), weights)
    floor = 1 / (len(scores) + 2)
    p = np.clip(fit.y_thresholds_, floor, 1 - floor)
    return fit.X_thresholds_, np.log(p) - np.log1p(-p)


def calibration_statistic(log_odds: Array, real: Flags) -> float:
    """Z = sum(y - p) / sqrt(sum p (1 - p)), about N(0, 1) if the probabilities p are calibrated; y is 1 for real.

    Turner et al. 2019, arXiv:1811.11357, section 4 (after Dawid 1997). ``log_odds`` and ``real`` are [N].
    """
    p = 1 / (1 + np.exp(-log_odds))
    return float((real - p).sum() / max(np.sqrt((p * (1 - p)).sum()), 1e-12))
