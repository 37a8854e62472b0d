"""A random generator per image, so that image i depends neither on the batch size nor on the number of processes.

Image i of a run that starts at seed K has seed K + i. The idea is NVlabs edm2's ``StackedRandomGenerator``; here all
numbers are drawn on the CPU, so an image is the same on every device up to the arithmetic of its networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def generators(seeds: Sequence[int]) -> list[Generator]:
    """One CPU generator per seed, ``torch.Generator().manual_seed(seed)``."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def randn(gens: Sequence[Generator], *shape: int) -> Tensor:
    """Standard normal numbers, [len(gens), *shape], row i from generator i alone."""
    return torch.stack([torch.randn(shape, generator=g) for g in gens])


def uniform(gens: Sequence[Generator], *shape: int) -> Tensor:
    """Uniform numbers in [-1, 1), [len(gens), *shape], row i from generator i alone."""
    return torch.stack([torch.rand(shape, generator=g) for g in gens]) * 2 - 1


def randint(gens: Sequence[Generator], high: int, *shape: int) -> Tensor:
    """Whole numbers in [0, high), int64 [len(gens), *shape], row i from generator i alone."""
    return torch.stack([torch.randint(high, shape, generator=g) for g in gens])
