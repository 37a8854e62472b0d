"""Precision, recall, density and coverage by k-nearest-neighbour balls, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BLOCK = 1024  # rows of a distance matrix held at a time


def prdc(real: NDArray[Any], fake: NDArray[Any], k: int = 5) -> dict[str, float]:
    """How much of the fakes lies inside the real manifold, and the other way round.

    A ball around each image reaches to its k-th nearest neighbour among its own kind; "inside" is strict, as in the
    reference code. precision: share of fakes inside at least one real ball. recall: share of reals inside at least one
    fake ball. density: mean number of real balls around a fake, divided by k. coverage: share of real balls that hold
    a fake. Precision and recall: Kynkaanniemi et al. 2019, arXiv:1904.06991, eq. 1-2; density and coverage: Naeem et
    al. 2020, arXiv:2002.09797, eq. 3-4.

    Args:
        real: features [N, D], N > k.
        fake: features [M, D], M > k.
        k: neighbour whose distance is the radius, from 1 up; 5 is the usual choice for density and coverage.

    Returns:
        precision, recall and coverage in [0, 1]; density in [0, N / k].

    Raises:
        ValueError: too few images for k, or features of different widths.

    Example:
        >>> import numpy as np
        >>> points = np.random.default_rng(0).normal(size=(64, 2))
        >>> prdc(points, points + 100)["precision"]
        0.0
    """
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be [N, D] and [M, D], found {real.shape} and {fake.shape}")
    if k < 1 or min(len(real), len(fake)) <= k:
        raise ValueError(
            f"k = {k} needs more than {k} images of each kind, found {len(real)} real and {len(fake)} fake"
        )
    real_radii, fake_radii = radii(real, k), radii(fake, k)
    around = np.zeros(len(fake))  # real balls around each fake
    recalled, covered = 0, 0
    for rows, distances in _distances(real, fake):
        inside = distances < real_radii[rows, None]
        around += inside.sum(0)
        recalled += int((distances < fake_radii).any(1).sum())
        covered += int((distances.min(1) < real_radii[rows]).sum())
    return {
        "precision": float((around > 0).mean()),
        "recall": recalled / len(real),
        "density": float(1 / k * around.mean()),
        "coverage": covered / len(real),
    }


def radii(features: NDArray[Any], k: int) -> Array:
    """Distance of each row of features [N, D] to its k-th nearest other row, [N] float64."""
    wide = np.asarray(features, np.float64)
    out = np.empty(len(wide))
    for rows, distances in _distances(wide, wide):
        distances[np.arange(len(distances)), np.arange(len(wide))[rows]] = 0  # exactly, whatever the rounding
        out[rows] = np.partition(distances, k, axis=1)[:, k]
    return out


def _distances(a: Array, b: Array) -> Iterator[tuple[slice, Array]]:
    a2, b2 = (a * a).sum(1), (b * b).sum(1)
    for start in range(0, len(a), BLOCK):
        rows = slice(start, min(start + BLOCK, len(a)))
        yield rows, np.sqrt((a2[rows, None] + b2 - 2 * (a[rows] @ b.T)).clip(min=0))
