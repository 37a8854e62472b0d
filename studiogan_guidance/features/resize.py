"""Images of 8 bits to the size of a feature network, by the host's resizers: the same bits on the CPU and on a GPU.

``legacy`` is torch's bilinear interpolation, which leaves pixels out where it makes images smaller; ``clean`` (Parmar
et al. 2022, arXiv:2104.11222) and ``friendly`` (Kang et al. 2022, arXiv:2206.09479) are Pillow's filters on floats.

On a device every product and every sum is an operation of its own, in the order of Pillow's and torch's loops, so that
IEEE arithmetic leaves no choice of a result.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from studiogan_guidance.evaluation.prdc import true_float32

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MEMORY = 256 * 2**20  # bytes of temporaries on a device
FRIENDLY = {"InceptionV3_torch": "lanczos", "Swin-T_torch": "bicubic"}  # as they were trained; the others bilinear


def filter_of(resizer: str, network: str) -> str:
    """The filter of the host's ``resizer`` (legacy, clean, friendly) for a network: legacy, or a key of FILTERS."""
    return {"legacy": "legacy", "clean": "bicubic", "friendly": FRIENDLY.get(network, "bilinear")}[resizer]


def resize(images: Tensor, size: int, filter: str) -> Tensor:
    """The host's resizing, bit for bit, on all cores.

    Args:
        images: uint8 [B, C, H, W].
        size: side of the result.
        filter: legacy, or a key of FILTERS.

    Returns:
        float32 [B, C, size, size] on the CPU, in [0, 255]; bicubic and lanczos overshoot.
    """
    pixels = images.cpu().float()
    if filter == "legacy":
        return _legacy(pixels, size)

    # Resize one channel of one image at a time, as Pillow's filters on floats take no more.
    resized = torch.empty(*images.shape[:2], size, size)
    source = pixels.numpy()
    target = resized.numpy()

    def resize_image(i: int) -> None:
        for channel, out in zip(source[i], target[i]):
            out[:] = Image.fromarray(channel).resize((size, size), FILTERS[filter])

    for _ in _threads().map(resize_image, range(len(images))):
        pass  # an error of a thread is raised here
    return resized


def resize_on_device(images: Tensor, size: int, filter: str) -> Tensor:
    """``resize`` on the device of ``images``, which it never waits for.

    All pixels are those of Pillow, and of torch on a CPU with FMA and two threads or more. (Torch's own bilinear
    interpolation is summed in another order in one thread, and without fused products on a CPU that has none: both
    differ by up to 1e-4 of 255. Pillow, from 13 on, filters columns first in images that are higher than wide.)
    """
    resized = torch.empty(*images.shape[:2], size, size, device=images.device)
    along = _bilinear if filter == "legacy" else functools.partial(_filtered, filter)

    # Resize as many images at a time as memory is meant for; first along rows, then along columns, as Pillow and torch.
    channels, *sides = images.shape[1:]
    temporaries = 8 if filter == "legacy" else 24  # bytes a pixel
    count = max(MEMORY // (channels * size * max(*sides, size) * temporaries), 1)
    for some, target in zip(images.contiguous().split(count), resized.split(count)):
        along(along(some, -1, size), -2, size, target)
    return resized.clamp_(0, 255) if filter == "legacy" else resized


def resize_smoothly(pixels: Tensor, size: int, filter: str) -> Tensor:
    """``resize`` of float32 pixels as two matrix products, through which gradients pass; differs by 1e-4 of 255."""
    if filter == "legacy":
        return _legacy(pixels, size)
    rows = weights(filter, pixels.shape[2], size, pixels.device)
    columns = weights(filter, pixels.shape[3], size, pixels.device)
    with true_float32():
        return (rows @ pixels) @ columns.T


@functools.cache
def weights(filter: str, size: int, target: int, device: torch.device) -> Tensor:
    """Share of each of ``size`` pixels along one axis in each of ``target``, float32 [target, size]: Pillow's own."""
    unit = Image.fromarray(np.eye(size, dtype=np.float32))  # row i becomes the share of pixel i in every target
    return torch.from_numpy(np.array(unit.resize((target, size), FILTERS[filter]))).T.contiguous().to(device)


def _filtered(filter: str, pixels: Tensor, axis: int, target: int, resized: Tensor | None = None) -> Tensor:
    """``pixels`` with ``target`` of them along an axis, by Pillow: sums in float64, tap after tap, then in float32."""
    size = pixels.shape[axis]
    if size == target:
        return _stored(pixels, resized)
    sources, shares = taps(filter, size, target, pixels.device)

    # Sum over the taps.
    total: Tensor | None = None
    for source, share in zip(sources, shares):
        term = pixels.index_select(axis, source) * _along(share, axis)
        total = term if total is None else total.add_(term)
    assert total is not None
    return _stored(total, resized)


def _bilinear(pixels: Tensor, axis: int, target: int, resized: Tensor | None = None) -> Tensor:
    """``pixels`` with ``target`` of them along an axis, as torch's CPU: fma(first, its share, second * its share).

    The fused sum is taken in float64, where the product of a pixel and a share is exact. The sum is exact, too, but for
    a few pixels beside the upper and left border: of all pixels, one in 10^12 may differ in its last bit.
    """
    size = pixels.shape[axis]
    if size == target:
        return _stored(pixels, resized)
    pair = neighbours(size, target, pixels.device)

    second = pixels.index_select(axis, pair.second) * _along(pair.second_share, axis)
    first = pixels.index_select(axis, pair.first)
    if resized is None:
        resized = torch.empty_like(second)
    return torch.addcmul(second, first, _along(pair.first_share, axis), out=resized)


def _stored(pixels: Tensor, resized: Tensor | None) -> Tensor:
    return pixels.float() if resized is None else resized.copy_(pixels)


def _along(share: Tensor, axis: int) -> Tensor:
    """A vector as one along an axis, -1 or -2, of images."""
    return share if axis == -1 else share.unsqueeze(-1)


@functools.cache
def taps(filter: str, size: int, target: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Source pixels and their shares along one axis, int64 and float64 [taps, target], to the bit as Pillow's.

    Targets with fewer taps than others have shares of zero at the end.
    """
    support, function = SHAPES[filter]
    scale = size / target
    stretch = max(scale, 1.0)
    reach = support * stretch

    # Compute the shares of the source pixels within reach of each target.
    rows = []
    for i in range(target):
        center = (i + 0.5) * scale
        first = max(int(center - reach + 0.5), 0)
        last = min(int(center + reach + 0.5), size)
        values = [function((x - center + 0.5) * (1.0 / stretch)) for x in range(first, last)]
        total = 0.0
        for value in values:
            total += value
        rows.append((first, [value / total for value in values]))

    # Lay them out by taps.
    count = max(len(shares) for _, shares in rows)
    sources = torch.tensor([[min(first + k, size - 1) for first, _ in rows] for k in range(count)])
    padded = [[shares[k] if k < len(shares) else 0.0 for _, shares in rows] for k in range(count)]
    return sources.to(device), torch.tensor(padded, dtype=torch.float64).to(device)


class Neighbours(NamedTuple):
    """The two source pixels of each target along one axis, int64, and their shares, all [target]."""

    first: Tensor
    second: Tensor
    first_share: Tensor  # float64, of values in float32
    second_share: Tensor  # float32


@functools.cache
def neighbours(size: int, target: int, device: torch.device) -> Neighbours:
    """The pixels and shares of torch's bilinear interpolation without aligned corners."""
    # Find the places of targets among the sources, rounded to float32 once, as a fused product is.
    scale = np.float64(np.float32(size) / np.float32(target))
    place = np.maximum(np.float32(scale * (np.arange(target) + 0.5) - 0.5), np.float32(0))

    # Split them into pixels and shares.
    first = np.minimum(place.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    second_share = np.clip(place - first.astype(np.float32), np.float32(0), np.float32(1))
    first_share = (np.float32(1) - second_share).astype(np.float64)
    return Neighbours(*(torch.from_numpy(a).to(device) for a in (first, second, first_share, second_share)))


def _triangle(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _cubic(x: float) -> float:
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2.0 else 0.0


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0


# The reach of each of Pillow's filters, and its values, in Pillow's order of operations.
SHAPES: dict[str, tuple[float, Callable[[float], float]]] = {
    "bilinear": (1.0, _triangle),
    "bicubic": (2.0, _cubic),
    "lanczos": (3.0, _lanczos),
}


def _legacy(pixels: Tensor, size: int) -> Tensor:
    return F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False).clamp_(0, 255)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return ThreadPoolExecutor(cores, "resize")  # Pillow lets other threads run while it resizes
