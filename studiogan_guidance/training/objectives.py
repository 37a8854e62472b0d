"""Distances between samples that stages descend: pure functions of tensors, with gradients."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'| of samples [N, D] and [M, D]; 0 only for equal distributions.

    Szekely and Rizzo 2013, "Energy statistics", J. Stat. Plan. Inference 143(8), eq. 2.5, as a U-statistic: unbiased,
    so noise makes it negative where the distributions are alike. N and M must be at least 2.
    """
    n = len(x)
    m = len(y)
    pairs = functools.partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")  # products would cancel

    between = pairs(x, y).mean()
    within_x = pairs(x, x).sum() / (n * n - n)
    within_y = pairs(y, y).sum() / (m * m - m)
    distance: Tensor = 2 * between - within_x - within_y
    return distance


def energy_descent(x: Tensor, earlier: Tensor, y: Tensor) -> Tensor:
    """A number whose gradient is that of the energy distance of ``x`` to ``y``, with fewer numbers by chance.

    The rows of ``x`` [N, D] are compared with those of ``y`` [M, D], and with each other and ``earlier`` [K, D], which
    are samples of (nearly) the same distribution and carry no gradient: 2 E|x - y| - 2 E|x - x'|. N >= 2.
    """
    n = len(x)
    between = torch.cdist(x, y).mean()
    fixed = x.detach()
    others = (torch.cdist(x, fixed) * (1 - torch.eye(n, device=x.device))).sum() + torch.cdist(x, earlier).sum()
    within = others / (n * (n - 1 + len(earlier)))
    return 2 * (between - within)


def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """Mean squared 2-Wasserstein distance of samples [N, D] and [N, D] along unit vectors ``directions`` [K, D].

    Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters", J. Math. Imaging Vis. 51, eq. 9.
    """
    sorted_x = (x @ directions.T).sort(0).values
    sorted_y = (y @ directions.T).sort(0).values
    return (sorted_x - sorted_y).square().mean()


def frechet(features: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """The Frechet distance of ``evaluation.fid`` with gradients, from features [N, D] to a Gaussian.

    With Y the centred features over sqrt(N - 1) and L L^T the covariance of the Gaussian, the trace of the root is the
    sum of the singular values of Y L, whose gradient is finite for any N.

    Args:
        features: [N, D], N >= 2.
        mean: of the Gaussian, [D].
        factor: L of the Gaussian, [D, D].
    """
    centre = features.mean(0)
    centred = (features - centre) / math.sqrt(len(features) - 1)
    trace_of_root = torch.linalg.svdvals(centred @ factor).sum()

    spread = factor.square().sum() + centred.square().sum()
    distance: Tensor = (centre - mean).square().sum() + spread - 2 * trace_of_root
    return distance
