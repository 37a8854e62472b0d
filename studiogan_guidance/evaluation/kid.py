"""The Kernel Inception Distance (Binkowski et al. 2018, arXiv:1801.01401, section 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def kid(real: Array, fake: Array, subsets: int = 100, size: int = 1000, seed: int = 0) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, the mean over random subsets.

    Args:
        real: features [N, D].
        fake: features [M, D].
        subsets: how many pairs of subsets are drawn (without replacement within each).
        size: images of each kind in a subset; never more than there are.
        seed: of the draw.

    Returns:
        A number of expectation 0 for equal distributions (it may come out negative); papers often print it times 1000.

    Raises:
        ValueError: fewer than 2 images of a kind.

    Example:
        >>> import numpy as np
        >>> kid(np.zeros((8, 2)), np.zeros((8, 2)))
        0.0
    """
    size = min(size, len(real), len(fake))
    if size < 2:
        raise ValueError(f"KID needs at least 2 images of each kind, found {len(real)} real and {len(fake)} fake")

    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        x = real[rng.choice(len(real), size, False)]
        y = fake[rng.choice(len(fake), size, False)]
        values.append(squared_mmd(x, y))
    return float(np.mean(values))


def squared_mmd(x: Array, y: Array) -> float:
    """The unbiased squared maximum mean discrepancy of features [n, D] and [n, D], in float64; n >= 2."""
    x = np.asarray(x, np.float64)
    y = np.asarray(y, np.float64)
    n = len(x)
    xx = _kernel(x, x)
    yy = _kernel(y, y)
    xy = _kernel(x, y)
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(within / (n * (n - 1)) - 2 * xy.mean())


def _kernel(x: Array, y: Array) -> Array:
    values: Array = (x @ y.T / x.shape[1] + 1) ** 3
    return values
