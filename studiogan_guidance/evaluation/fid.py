"""Frechet distance between two Gaussians (Dowson and Landau 1982; FID: Heusel et al. 2017, arXiv:1706.08500, eq. 6)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def moments(features: Array) -> tuple[Array, Array]:
    """Mean [D] and unbiased covariance [D, D], float64, of features [N, D]; ValueError if N < 2."""
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 images, found {len(features)}")
    wide = np.asarray(features, dtype=np.float64)
    return wide.mean(0), np.atleast_2d(np.cov(wide, rowvar=False))


def frechet_distance(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float:
    """|mu1 - mu2|^2 + Tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), computed in float64.

    The trace of the root is the sum of the square roots of the eigenvalues of sigma1^(1/2) sigma2 sigma1^(1/2), two
    symmetric eigenproblems in place of a general matrix root; rank-deficient covariances need no jitter.

    Args:
        mu1, mu2: means [D].
        sigma1, sigma2: covariances [D, D], symmetric positive semi-definite.

    Returns:
        The squared distance, 0 for equal Gaussians (up to rounding: it may come out as -1e-12).

    Raises:
        ValueError: shapes that do not fit each other.

    Example:
        >>> import numpy as np
        >>> frechet_distance(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2))
        4.0
    """
    mu1, mu2 = np.atleast_1d(np.asarray(mu1, np.float64)), np.atleast_1d(np.asarray(mu2, np.float64))
    sigma1, sigma2 = np.atleast_2d(np.asarray(sigma1, np.float64)), np.atleast_2d(np.asarray(sigma2, np.float64))
    if not (mu1.shape == mu2.shape and sigma1.shape == sigma2.shape == (mu1.size, mu1.size)):
        raise ValueError(
            f"shapes do not fit: means {mu1.shape}, {mu2.shape}, covariances {sigma1.shape}, {sigma2.shape}"
        )
    values, vectors = np.linalg.eigh(sigma1)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    product = np.linalg.eigvalsh(root @ sigma2 @ root)
    trace_of_root = np.sqrt(product.clip(min=0)).sum()
    diff = mu1 - mu2
    return float(diff @ diff + np.trace(sigma1) + np.trace(sigma2) - 2 * trace_of_root)
