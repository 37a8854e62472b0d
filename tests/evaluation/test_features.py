from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from studiogan_guidance.evaluation.features import accumulate, to_uint8


class Flat:
    """Pixels as features, the first three of them as logits."""

    classifies = False

    def __init__(self) -> None:
        self.protocol: dict[str, Any] = {}

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.flatten(1), images.flatten(1)[:, :3]


def test_moments_equal_numpy_at_any_batch_size_and_far_from_zero() -> None:
    images = torch.randn(50, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double() + 1e6
    labels = torch.arange(50)
    wide = images.flatten(1).numpy()
    for size in (50, 7, 1):
        stats = accumulate(zip(images.split(size), labels.split(size)), Flat())
        assert stats.count == 50
        np.testing.assert_allclose(stats.mean, wide.mean(0), rtol=1e-14)
        np.testing.assert_allclose(stats.cov, np.cov(wide, rowvar=False), rtol=1e-7, atol=1e-8)
        assert stats.labels.tolist() == list(range(50))


def test_what_no_metric_needs_is_not_kept() -> None:
    batches = [(torch.randn(4, 3, 2, 2), torch.zeros(4))]
    lean = accumulate(batches, Flat(), features=False, probabilities=False)
    assert lean.features is None
    assert lean.probabilities is None
    full = accumulate(batches, Flat())
    assert full.features is not None
    assert full.probabilities is not None
    np.testing.assert_allclose(full.probabilities.sum(1), 1, rtol=1e-6)


def test_one_image_is_too_few() -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        accumulate([(torch.zeros(1, 3, 2, 2), torch.zeros(1))], Flat())


def test_quantising_rounds_to_nearest_and_clips() -> None:
    levels = torch.arange(256) / 127.5 - 1
    assert to_uint8(levels).tolist() == list(range(256))
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
    assert to_uint8(levels[:-1] + 0.9 / 255).tolist() == list(range(255))  # not yet the next level
