"""From images to the input of a feature network; networks in another memory format, or compiled; their digests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studiogan_guidance import fast
from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.devices import to_device
from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.fast import Graphed
from studiogan_guidance.features.resize import resize, resize_on_device, resize_smoothly
from studiogan_guidance.features.stats import Backbone, to_uint8
from studiogan_guidance.files import file_digest


class Preparation:
    """Images in [-1, 1] to the input of a network, in the host's steps: 8 bits, resized, (x / 255 - mean) / std.

    Args:
        size: side of the network's input.
        filter: of the resizing, as in ``resize``.
        mean: of each channel, [3].
        std: standard deviation of each channel, [3].
        device: the network's.
        resize_on: cpu, device, or auto (on the network's device); pixels are the same bits.
        channels_last: memory format of the result.
    """

    def __init__(
        self,
        size: int,
        filter: str,
        mean: Tensor,
        std: Tensor,
        device: torch.device,
        resize_on: str = "auto",
        channels_last: bool = False,
    ) -> None:
        self.size = size
        self.filter = filter
        self.device = device
        self.on_device = resize_on == "device" or (resize_on == "auto" and device.type != "cpu")
        self.mean = mean.view(1, 3, 1, 1).to(device)
        self.std = std.view(1, 3, 1, 1).to(device)
        self.top = torch.tensor(255.0, device=device)  # a GPU divides by a tensor, but multiplies by 1 / number
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] on any device -> [B, 3, size, size] on the network's."""
        # Quantise and resize.
        if self.on_device:
            pixels = resize_on_device(to_device(to_uint8(images), self.device), self.size, self.filter)
        else:
            pixels = to_device(resize(to_uint8(images), self.size, self.filter), self.device)

        # Normalise in place.
        return pixels.div_(self.top).sub_(self.mean).div_(self.std).contiguous(memory_format=self.layout)

    def soft(self, images: Tensor) -> Tensor:
        """The same on the network's device without rounding to 8 bits, so that gradients pass."""
        pixels = ((images.to(self.device) + 1) * 127.5).clamp(0, 255)
        inputs = (resize_smoothly(pixels, self.size, self.filter) / 255.0 - self.mean) / self.std
        return inputs.contiguous(memory_format=self.layout)


def tuned(network: nn.Module, channels_last: bool, compile: bool) -> Callable[[Tensor], Any]:
    """``network`` with the channels last in memory, or compiled, or as it is; values change by rounding only."""
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    return Compiled(network) if compile else network


class Compiled:
    """A network through torch.compile.

    A batch smaller than the largest so far is filled up with copies of its last image: another size would be compiled
    anew.

    Raises:
        UserError: it cannot be compiled here.
    """

    def __init__(self, network: nn.Module) -> None:
        self._net = torch.compile(network, dynamic=False)
        self._size = 0

    def __call__(self, prepared: Tensor) -> Any:
        # Fill up the batch.
        count = len(prepared)
        self._size = max(self._size, count)
        if count < self._size:
            copies = prepared[-1:].expand(self._size - count, *prepared.shape[1:])
            prepared = torch.cat([prepared, copies])

        # Run the network.
        try:
            outputs = self._net(prepared)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise UserError(f"torch.compile failed ({one_line(error)}): leave out --compile") from error
        except Exception as error:
            if is_out_of_memory(error):
                self._size = 0
            raise

        # Leave out the copies.
        if isinstance(outputs, tuple):
            return tuple(output[:count] for output in outputs)
        return outputs[:count]


class Accelerated:
    """A feature network under a precision and, on a GPU, as a CUDA graph, as a Backbone; images are prepared as before.

    Args:
        backbone: the network.
        precision: one of ``fast.PRECISIONS``.
        size: images a batch; see ``Graphed``.
    """

    def __init__(self, backbone: Backbone, precision: str, size: int) -> None:
        self.device = backbone.device
        self.classifies = backbone.classifies
        self.protocol = backbone.protocol
        self.prepare = backbone.prepare
        self.prepares_on_cpu = getattr(backbone, "prepares_on_cpu", False)
        run = fast.lowered(backbone, precision, self.device)
        self._run = Graphed(run, size, fast.capture_on(self.device), what="feature network")

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor | None]:
        features, logits = self._run(prepared)
        return features, logits


def weights_sha256(path: Path) -> str:
    """The start of the SHA-256 of a network's file, as protocols hold it; UserError if the file cannot be read."""
    try:
        return file_digest(path)[:16]
    except OSError as error:
        raise UserError(f"cannot read --backbone {path}: {error.strerror or error}; give an existing file") from error
