"""Calibration: maps from logits to log odds that an image is real, and how good they are; numpy in, numpy out.

They are fitted on held-out real images and fresh fakes of the very generator that will be sampled (Turner et al. 2019,
arXiv:1811.11357, section 4). N is the number of images, K the number of features of an image that a map reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Flags = NDArray[np.bool_]
Map = Callable[[Array], Array]  # evidence [N, K] -> log odds [N]

FOLDS = 5
PENALTIES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]  # inverse L2 penalties to choose from
TOLERANCE = 1e-10  # of the gradient at the end of a fit: chains amplify what a looser one leaves to the order of sums
STEPS = 10_000  # of a fit, at most
GRID = 2**-10  # of the largest weight of a head: far below its error, and above what other orders of sums change


def logistic_map(evidence: Array, real: Flags) -> tuple[Array, float]:
    """(weights [K], offset) of the log odds ``evidence @ weights + offset``, for evidence [N, K] and flags [N].

    Without a penalty for K = 1 (Platt scaling); else with an L2 penalty that is chosen by cross-validation.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from threadpoolctl import threadpool_limits

    # Standardise, so that one penalty suits all.
    centre = evidence.mean(0)
    unit = np.maximum(evidence.std(0), 1e-12)
    standard = (evidence - centre) / unit

    # Fit to convergence; one thread adds up in one order.
    model = LogisticRegression(C=1e6, class_weight="balanced", tol=TOLERANCE, max_iter=STEPS)
    with threadpool_limits(1):
        if evidence.shape[1] > 1:
            search = GridSearchCV(model, {"C": PENALTIES}, scoring="neg_log_loss", cv=_folds(len(real)))
            model = search.fit(standard, real).best_estimator_
        else:
            model.fit(standard, real)

    # The same head, whatever the number of threads that the features come from.
    weights = model.coef_[0]
    if len(weights) > 1 and weights.any():
        step = GRID * 2 ** np.ceil(np.log2(np.abs(weights).max()))
        weights = np.round(weights / step) * step

    # Undo the standardisation.
    weights = weights / unit
    return weights, float(model.intercept_[0] - weights @ centre)


def _folds(count: int) -> list[tuple[Array, Array]]:
    numbers = np.arange(count)
    fold_of = numbers % FOLDS
    return [(numbers[fold_of != fold], numbers[fold_of == fold]) for fold in range(FOLDS)]


def isotonic_map(scores: Array, real: Flags) -> tuple[Array, Array]:
    """Knots (scores, log odds) of a non-decreasing map, constant beyond its ends; log odds are finite.

    Probabilities of 0 and 1 become 1 / (N + 2) and 1 less that.
    """
    from sklearn.isotonic import IsotonicRegression

    weights = np.where(real, 0.5 / max(real.sum(), 1), 0.5 / max((~real).sum(), 1))
    model = IsotonicRegression(out_of_bounds="clip").fit(scores, real.astype(float), weights)

    floor = 1 / (len(scores) + 2)
    p = np.clip(model.y_thresholds_, floor, 1 - floor)
    return model.X_thresholds_, np.log(p) - np.log1p(-p)


def cross_fitted(fit: Callable[[Array, Flags], Map], evidence: Array, real: Flags) -> Array:
    """Log odds [N] of each half of the images, the even and the odd ones, by the map that is fitted on the other half.

    Args:
        fit: (evidence [M, K], flags [M]) -> the map that is fitted on them.
        evidence: [N, K].
        real: flags [N].
    """
    numbers = np.arange(len(real))
    log_odds = np.empty(len(real))
    for half in (0, 1):
        inside = numbers % 2 == half
        fitted = fit(evidence[~inside], real[~inside])
        log_odds[inside] = fitted(evidence[inside])
    return log_odds


def quality(log_odds: Array, logits: Array, real: Flags) -> dict[str, float]:
    """How good cross-fitted ``log_odds`` are, [N], against the ``logits`` that they were made of, [N].

    ``calibration_z`` and ``calibration_z_raw`` are the ``calibration_statistic`` of both; ``auc`` is the chance that a
    held-out real image has higher log odds than a fake, ties counted half.
    """
    from sklearn.metrics import roc_auc_score

    return {
        "calibration_z": calibration_statistic(log_odds, real),
        "calibration_z_raw": calibration_statistic(logits, real),
        "auc": float(roc_auc_score(real, log_odds)),
    }


def calibration_statistic(log_odds: Array, real: Flags) -> float:
    """Z = sum(y - p) / sqrt(sum p (1 - p)), about N(0, 1) if the probabilities p are calibrated; y is 1 for real.

    Turner et al. 2019, arXiv:1811.11357, section 4 (after Dawid 1997). ``log_odds`` and ``real`` are [N].
    """
    p = 1 / (1 + np.exp(-log_odds))
    return float((real - p).sum() / max(np.sqrt((p * (1 - p)).sum()), 1e-12))
