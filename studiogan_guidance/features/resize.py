"""Images of 8 bits to the size of a feature network, by the host's resizers: bit for bit on the CPU, and on a GPU.

``legacy`` is torch's bilinear interpolation, which leaves pixels out where it makes images smaller; ``clean`` (Parmar
et al. 2022, arXiv:2104.11222) and ``friendly`` (Kang et al. 2022, arXiv:2206.09479) are Pillow's filters on floats.
"""

from __future__ import annotations

import functools
import os
import sys
from concurrent.futures import ThreadPoolExecutor

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
    """``resize`` on the device of ``images``, as two matrix products; differs from Pillow by rounding (1e-4 of 255)."""
    pixels = images.float()
    if filter == "legacy":
        return _legacy(pixels, size)
    rows = weights(filter, images.shape[2], size, images.device)
    columns = weights(filter, images.shape[3], size, images.device)
    with true_float32():
        return (rows @ pixels) @ columns.T


@functools.cache
def weights(filter: str, size: int, target: int, device: torch.device) -> Tensor:
    """Share of each of ``size`` pixels along one axis in each of ``target``, float32 [target, size]: Pillow's own."""
    unit = Image.fromarray(np.eye(size, dtype=np.float32))  # row i becomes the share of pixel i in every target
    return torch.from_numpy(np.array(unit.resize((target, size), FILTERS[filter]))).T.contiguous().to(device)


def _legacy(pixels: Tensor, size: int) -> Tensor:
    return F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False).clamp_(0, 255)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return ThreadPoolExecutor(cores, "resize")  # Pillow lets other threads run while it resizes
