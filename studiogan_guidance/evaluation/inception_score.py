"""The Inception Score (Salimans et al. 2016, arXiv:1606.03498, section 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def inception_score(probabilities: NDArray[Any], splits: int = 1) -> float:
    """exp of the mean KL divergence of each image's class probabilities from their mean, averaged over splits.

    Args:
        probabilities: rows that sum to 1, [N, C]; zeros are fine (0 log 0 = 0).
        splits: equal parts that are scored one by one; the literature uses 10, the host 1.

    Returns:
        A number from 1 (all images alike) to C (certain and balanced).

    Raises:
        ValueError: fewer images than splits.

    Example:
        >>> import numpy as np
        >>> inception_score(np.eye(10))
        10.0
    """
    p = np.asarray(probabilities, np.float64)
    if not 1 <= splits <= len(p):
        raise ValueError(f"{splits} splits need at least as many images, found {len(p)}")

    scores = []
    for j in range(splits):
        part = p[j * len(p) // splits : (j + 1) * len(p) // splits]
        ratio = np.where(part > 0, part, 1) / np.where(part > 0, part.mean(0), 1)  # 1 where 0 log 0 is meant
        scores.append(np.exp((part * np.log(ratio)).sum(1).mean()))
    return float(np.mean(scores).round(12))
