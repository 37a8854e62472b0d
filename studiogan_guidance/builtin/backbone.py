"""The built-in's feature network: a classifier of digits."""

from __future__ import annotations

import torch
from torch import Tensor

from studiogan_guidance import builtin
from studiogan_guidance.errors import UserError
from studiogan_guidance.features.preparation import tuned
from studiogan_guidance.features.stats import to_uint8


class BuiltinBackbone:
    """The built-in feature net, a digit classifier, as a Backbone."""

    def __init__(
        self, device: torch.device | str, classifies: bool = True, channels_last: bool = False, compile: bool = False
    ) -> None:
        net, digest = builtin.load(builtin.network.FeatureNet, "features", device)
        self._net = tuned(net, channels_last, compile)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device, self.classifies = torch.device(device), classifies
        self.protocol = {"backbone": "builtin", "backbone_sha256": digest[:16], "resizer": "none"}

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, 32, 32] in [-1, 1] in 256 steps; UserError for another size."""
        height, width = images.shape[2:]
        if (height, width) != (builtin.network.IMAGE_SIZE,) * 2:
            raise UserError(f"--backbone builtin takes images of 32x32, found {width}x{height}: choose another")
        return (to_uint8(images.to(self.device)).float() / 127.5 - 1).contiguous(memory_format=self._layout)

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self._net(prepared)
        return features, logits

    def soft(self, images: Tensor) -> Tensor:
        """Features [B, D] of images in [-1, 1], with gradients."""
        features: Tensor = self._net(images.to(self.device).clamp(-1, 1))[0]
        return features
