"""StyleGAN2's minibatch statistic, taken over an image and fixed peers, so that its score depends on no other image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LAYER = "MinibatchStdLayer"  # the host's name
GROUP_SIZE = 4  # of a layer that takes the whole batch for a group


class MinibatchPeers:
    """The images that share the minibatch statistic of every scored image.

    Without such a layer, or before ``fix`` is called, the discriminator works as without this class.

    Args:
        discriminator: the network whose layer this is about; it is left as it was found.
    """

    def __init__(self, discriminator: nn.Module) -> None:
        layers = (module for module in discriminator.modules() if type(module).__name__ == LAYER)
        self.layer: Any = next(layers, None)
        self.maps: Tensor | None = None

    @property
    def count(self) -> int:
        """How many peers an image has; 0 without such a layer."""
        return 0 if self.layer is None else int(self.layer.group_size or GROUP_SIZE) - 1

    def fix(self, count: int, forward: Callable[[], object]) -> None:
        """Keep the feature maps that ``forward`` sends to the layer; the first ``count`` of them are the peers."""
        inputs: list[Tensor] = []
        handle = self.layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        with torch.no_grad():
            forward()
        handle.remove()
        self.maps = inputs[0][:count]

    @contextmanager
    def joined(self, count: int) -> Iterator[None]:
        """While inside, each of the ``count`` images of a batch has a group of its own, with the peers."""
        peers = self.maps
        if peers is None:
            yield
            return

        def join(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            # The layer's groups are strided: image i, then all that are i places behind a multiple of ``count``.
            return (torch.cat([args[0], peers.repeat_interleave(count, 0)]),)

        group_size = self.layer.group_size
        self.layer.group_size = len(peers) + 1
        handles = [
            self.layer.register_forward_pre_hook(join),
            self.layer.register_forward_hook(lambda module, args, out: out[:count]),
        ]
        try:
            yield
        finally:
            self.layer.group_size = group_size
            for handle in handles:
                handle.remove()
