"""Real images as metrics and calibration read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Real(Protocol):
    """Real images of one split."""

    fingerprint: dict[str, Any]

    def __len__(self) -> int: ...
    def labels(self) -> list[int]: ...
    def batches(
        self, batch_size: int, first: int = 0, step: int = 1, only: Sequence[int] | None = None
    ) -> Iterable[tuple[Tensor, Tensor]]: ...


def spread_images(real: Real, count: int) -> tuple[Tensor, Tensor]:
    """Up to ``count`` real images, evenly spread over the split, [N, 3, H, W] in [-1, 1], and their labels [N]."""
    count = min(count, len(real))
    parts = list(real.batches(64, only=[i * len(real) // count for i in range(count)]))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def told(real: Real) -> str:
    """The split of real images and a hash of all that is known about them."""
    digest = hashlib.sha256(json.dumps(real.fingerprint, sort_keys=True).encode()).hexdigest()
    return f"{real.fingerprint['reference']} split {digest[:16]}"
