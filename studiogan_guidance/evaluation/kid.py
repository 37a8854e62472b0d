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
    return float(np.mean([_mmd2(*(x[rng.choice(len(x), size, False)] for x in (real, fake))) for _ in range(subsets)]))


def _mmd2(x: Array, y: Array) -> float:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, width = x.shape
    xx, yy, xy = ((a @ b.T / width + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(within / (n * (n - 1)) - 2 * xy.mean())
