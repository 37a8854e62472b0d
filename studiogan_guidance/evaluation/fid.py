"""Frechet distance between two Gaussians (Dowson and Landau 1982; FID: Heusel et al. 2017, arXiv:1706.08500, eq. 6)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
INFINITY_POINTS = 15  # sizes at which the distance is taken before extrapolating


def moments(features: Array) -> tuple[Array, Array]:
    """Mean [D] and unbiased covariance [D, D], float64, of features [N, D]; ValueError if N < 2."""
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 images, found {len(features)}")
    wide = np.asarray(features, dtype=np.float64)
    return wide.mean(0), np.atleast_2d(np.cov(wide, rowvar=False))


def factor(sigma: Array) -> Array:
    """A factor L [D, D] with L L^T = ``sigma``, a symmetric positive semi-definite matrix [D, D]; float64."""
    values, vectors = np.linalg.eigh(np.atleast_2d(np.asarray(sigma, np.float64)))
    return np.asarray(vectors * np.sqrt(values.clip(min=0)))


def frechet_distance(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array, factor1: Array | None = None) -> float:
    """|mu1 - mu2|^2 + Tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), computed in float64.

    The trace of the root is the sum of the square roots of the eigenvalues of L^T sigma2 L, where L L^T = sigma1. These
    are two symmetric eigenproblems in place of a general matrix root, or one if L is known already; rank-deficient
    covariances need no jitter.

    Args:
        mu1: mean [D] of the first Gaussian.
        sigma1: its covariance [D, D], symmetric positive semi-definite.
        mu2: mean [D] of the second Gaussian.
        sigma2: its covariance [D, D].
        factor1: ``factor(sigma1)`` [D, D], to save time where many distances from the same Gaussian are wanted.

    Returns:
        The squared distance, 0 for equal Gaussians (up to rounding: it may come out as -1e-12).

    Raises:
        ValueError: shapes that do not fit each other.

    Example:
        >>> import numpy as np
        >>> frechet_distance(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2))
        4.0
    """
    # Check the shapes.
    mu1 = np.atleast_1d(np.asarray(mu1, np.float64))
    mu2 = np.atleast_1d(np.asarray(mu2, np.float64))
    sigma1 = np.atleast_2d(np.asarray(sigma1, np.float64))
    sigma2 = np.atleast_2d(np.asarray(sigma2, np.float64))
    if not (mu1.shape == mu2.shape and sigma1.shape == sigma2.shape == (mu1.size, mu1.size)):
        raise ValueError(
            f"shapes do not fit: means {mu1.shape}, {mu2.shape}, covariances {sigma1.shape}, {sigma2.shape}"
        )

    # The trace of the root of the product, then the distance.
    root = factor(sigma1) if factor1 is None else factor1
    trace_of_root = np.sqrt(np.linalg.eigvalsh(root.T @ sigma2 @ root).clip(min=0)).sum()
    diff = mu1 - mu2
    return float(diff @ diff + np.trace(sigma1) + np.trace(sigma2) - 2 * trace_of_root)


def frechet_distance_of(real: Array, fake: Array) -> float:
    """The Frechet distance of the Gaussians of two sets of features [N, D] and [M, D].

    Where a set has fewer images than D, no covariance is formed: with A and B the centred features over sqrt(N - 1) and
    sqrt(M - 1), the trace of the root is the sum of the singular values of A B^T, an [N, M] matrix.

    Raises:
        ValueError: fewer than 2 images of a kind.
    """
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"a covariance needs at least 2 images, found {len(real)} real and {len(fake)} fake")
    if min(len(real), len(fake)) > real.shape[1]:
        return frechet_distance(*moments(real), *moments(fake))

    # Few images: the centred features stand in for the covariances.
    x = np.asarray(real, np.float64)
    y = np.asarray(fake, np.float64)
    a = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    b = (y - y.mean(0)) / np.sqrt(len(y) - 1)
    diff = x.mean(0) - y.mean(0)
    trace_of_root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(diff @ diff + (a * a).sum() + (b * b).sum() - 2 * trace_of_root)


def frechet_infinity(features: Array, mu: Array, sigma: Array, factor1: Array | None = None, seed: int = 0) -> float:
    """FID-infinity: the distance extrapolated to infinitely many fakes (Chong and Forsyth 2020, arXiv:1911.07023).

    The bias of the distance is nearly proportional to 1 / N: a line through the distances of subsets against 1 / N is
    read off at 0. ``INFINITY_POINTS`` subsets, from half to all of the fakes, grow in one random order, so that one
    pass is enough. (The paper starts lower; where a subset is not much larger than D, its distance is off the line.)

    Args:
        features: fakes [N, D], N >= 3 D and at least ``2 * INFINITY_POINTS``.
        mu: mean [D] of the real images, whose number stays finite: the bias from that is not removed.
        sigma: covariance [D, D] of the real images.
        factor1: ``factor(sigma)``, if it is known already.
        seed: of the random order.

    Returns:
        The intercept; below 0 by noise where the distributions are equal.

    Raises:
        ValueError: too few images for D.
    """
    least = max(3 * len(mu), 2 * INFINITY_POINTS)
    if len(features) < least:
        raise ValueError(f"FID-infinity of {len(mu)} features needs at least {least} images, found {len(features)}")
    root = factor(sigma) if factor1 is None else factor1

    # Half of the images, and the parts by which the subset grows.
    order = np.random.default_rng(seed).permutation(len(features))
    half, rest = np.array_split(order, 2)
    parts = [half, *np.array_split(rest, INFINITY_POINTS - 1)]

    # Distances of growing subsets, by running sums about the real mean.
    count = 0
    total = np.zeros(len(mu))
    scatter = np.zeros((len(mu), len(mu)))
    inverse = []
    distances = []
    for part in parts:
        wide = np.asarray(features[np.sort(part)], np.float64) - mu
        count += len(part)
        total = total + wide.sum(0)
        scatter = scatter + wide.T @ wide
        mean = total / count
        cov = (scatter - count * np.outer(mean, mean)) / (count - 1)
        inverse.append(1 / count)
        distances.append(frechet_distance(mu, sigma, mu + mean, cov, root))

    # The line's value at 1 / N = 0.
    return float(np.polynomial.Polynomial.fit(inverse, distances, 1).convert().coef[0])
