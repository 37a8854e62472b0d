"""A random generator per image, so that image i depends neither on the batch size nor on the number of processes.

Image i of a run that starts at seed K has seed K + i. The idea is NVlabs edm2's ``StackedRandomGenerator``; here all
numbers are drawn on the CPU, so an image is the same on every device up to the arithmetic of its networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from studiogan_guidance.devices import is_pinned_for
from studiogan_guidance.errors import UserError

# Seeds of what is not an image of a run; a CPU generator takes the low 32 bits of a seed, and images have those below
# ``IMAGES``. No two ranges overlap.
IMAGES = 2**31
RESERVED = {
    "peers": range(2**31, 2**31 + 2**20),
    "fakes": range(2**31 + 2**20, 2**31 + 2**24),
    "pilots": range(2**31 + 2**24, 2**31 + 2**24 + 2**28),
    "networks": range(2**31 + 2**24 + 2**28, 2**31 + 2**29),
    "pools": range(2**31 + 2**29, 2**31 + 2**29 + 2**30),
    "tables": range(2**32 - 2**29, 2**32 - 2**28),
    "statistics": range(2**32 - 2**28, 2**32),
}
PEERS = RESERVED["peers"].start  # the images that share a minibatch statistic with the one that is scored
FAKES = RESERVED["fakes"].start  # what discriminators are calibrated on
PILOTS = RESERVED["pilots"].start  # draws that bounds, priors, centres and constants are estimated from
NETWORKS = RESERVED["networks"].start  # weights of networks that are never trained
POOLS = RESERVED["pools"].start  # pools that images are chosen from
TABLES = RESERVED["tables"].start  # draws behind class means
STATISTICS = RESERVED["statistics"].start  # images that batch-norm statistics are accumulated over


def check_images(first: int, count: int) -> None:
    """Raise UserError unless ``count`` images from the seed ``first`` on have seeds of their own, below ``IMAGES``."""
    if first + count > IMAGES:
        raise UserError(
            f"{count} images from seed {first} on need seeds up to {first + count - 1}, but those of images end at "
            f"{IMAGES - 1}: choose a seed of at most {IMAGES - count}"
        )


def generators(seeds: Sequence[int]) -> list[Generator]:
    """One CPU generator per seed, ``torch.Generator().manual_seed(seed)``."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def randn(gens: Sequence[Generator], *shape: int, device: torch.device | None = None) -> Tensor:
    """Standard normal numbers, [len(gens), *shape], row i from generator i alone; on ``device``."""
    return _rows(gens, shape, Tensor.normal_, device=device)


def uniform(gens: Sequence[Generator], *shape: int) -> Tensor:
    """Uniform numbers in [-1, 1), [len(gens), *shape], row i from generator i alone."""
    return unit(gens, *shape) * 2 - 1


def randint(gens: Sequence[Generator], high: int, *shape: int) -> Tensor:
    """Whole numbers in [0, high), int64 [len(gens), *shape], row i from generator i alone."""
    return _rows(gens, shape, partial(Tensor.random_, to=high), torch.int64)


def unit(gens: Sequence[Generator], *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Uniform numbers in [0, 1), [len(gens), *shape], row i from generator i alone."""
    return _rows(gens, shape, Tensor.uniform_, dtype)


def _rows(
    gens: Sequence[Generator],
    shape: Sequence[int],
    fill: Callable[..., Tensor],
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Numbers [len(gens), *shape] on ``device``; rows are filled in place, with the bits of tensors of their own."""
    device = device or torch.device("cpu")
    rows = torch.empty(len(gens), *shape, dtype=dtype, pin_memory=is_pinned_for(device))
    if rows.numel():
        for row, gen in zip(rows.unbind(), gens):
            fill(row, generator=gen)
    return rows.to(device, non_blocking=True)
