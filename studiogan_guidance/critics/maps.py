"""What all convolutions of a discriminator see of an image, as one vector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.critics.critic import Critic


class PooledMaps:
    """``maps(images) -> features [B, F]`` of a discriminator, which is not changed by it; gradients flow to the images.

    For each channel of each convolution they are the mean and the root mean square over the pixels of the map's
    positive part; the features of the discriminator's last layer follow. The first layers see what the last have
    forgotten, as the features of a discriminator that has been fooled have.

    Args:
        critic: the discriminator.
    """

    def __init__(self, critic: Critic) -> None:
        self.critic = critic
        self._convolutions = [module for module in critic.module.modules() if _is_convolution(module)]

    def __call__(self, images: Tensor) -> Tensor:
        with self._noted() as pooled:
            features, _ = self.critic(images)
        return torch.cat([*pooled, features.float()], 1)

    @contextmanager
    def _noted(self) -> Iterator[list[Tensor]]:
        """A list that receives the statistics of the maps that are computed in the block."""
        pooled: list[Tensor] = []

        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            maps = F.relu(output.float()).flatten(2)
            pooled.extend([maps.mean(2), (maps.square().mean(2) + 1e-8).sqrt()])

        hooks = [module.register_forward_hook(note) for module in self._convolutions]
        try:
            yield pooled
        finally:
            for hook in hooks:
                hook.remove()


def _is_convolution(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 4
