"""From images to the input of a feature network, and networks in other memory formats."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studiogan_guidance.errors import UserError
from studiogan_guidance.features.resize import resize, resize_on_device
from studiogan_guidance.features.stats import to_uint8


class Preparation:
    """Images in [-1, 1] to the input of a network, in the host's steps: 8 bits, resized, (x / 255 - mean) / std.

    Args:
        size: side of the network's input.
        name: the filter, as in ``resize``.
        mean: of each channel.
        std: of each channel.
        device: the network's.
        resize_on: cpu (the host's numbers, bit for bit) or device.
        channels_last: memory format of the result.
    """

    def __init__(
        self,
        size: int,
        name: str,
        mean: Tensor,
        std: Tensor,
        device: torch.device,
        resize_on: str = "cpu",
        channels_last: bool = False,
    ) -> None:
        self.size, self.name, self.device, self.resize_on = size, name, device, resize_on
        self.mean, self.std = (values.view(1, 3, 1, 1).to(device) for values in (mean, std))
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] on any device -> [B, 3, size, size] on the network's."""
        if self.resize_on == "device":
            pixels = resize_on_device(to_uint8(images.to(self.device)), self.size, self.name)
        else:
            pixels = resize(to_uint8(images), self.size, self.name)
            if self.device.type == "cuda":
                pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        return pixels.div_(255.0).sub_(self.mean).div_(self.std).contiguous(memory_format=self.layout)

    def soft(self, images: Tensor) -> Tensor:
        """The same on the network's device without rounding to 8 bits, so that gradients pass."""
        pixels = ((images.to(self.device) + 1) * 127.5).clamp(0, 255)
        inputs = (resize_on_device(pixels, self.size, self.name) / 255.0 - self.mean) / self.std
        return inputs.contiguous(memory_format=self.layout)


def tuned(network: nn.Module, channels_last: bool, compile: bool) -> Callable[[Tensor], Any]:
    """``network`` in another memory format, compiled, or as it is; values change by rounding only."""
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    return Compiled(network) if compile else network


class Compiled:
    """A network through torch.compile; batches smaller than the largest so far are filled up, not compiled for anew.

    Raises:
        UserError: it cannot be compiled here.
    """

    def __init__(self, network: nn.Module) -> None:
        self._net, self._size = torch.compile(network, dynamic=False), 0

    def __call__(self, prepared: Tensor) -> Any:
        count, self._size = len(prepared), max(self._size, len(prepared))
        if count < self._size:
            prepared = torch.cat([prepared, prepared[-1:].expand(self._size - count, *prepared.shape[1:])])
        try:
            found = self._net(prepared)
        except torch.OutOfMemoryError:
            self._size = 0
            raise
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise UserError(f"torch.compile failed ({_line(error)}): leave out --compile") from error
        return tuple(value[:count] for value in found) if isinstance(found, tuple) else found[:count]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read --backbone {path}: {error.strerror or error}; give an existing file") from error
    return digest.hexdigest()[:16]


def _line(error: BaseException, which: int = 0) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[which] if lines else type(error).__name__)[:160]
