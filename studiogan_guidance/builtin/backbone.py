"""The built-in's feature network: a classifier of digits."""

from __future__ import annotations

import torch
from torch import Tensor

from studiogan_guidance import builtin
from studiogan_guidance.errors import UserError
from studiogan_guidance.features.preparation import tuned
from studiogan_guidance.features.stats import to_uint8


class BuiltinBackbone:
    """The built-in feature net, a digit classifier, as a Backbone.

    Args:
        device: where the network runs.
        classifies: whether its classes are the labels of the generator that is measured.
        channels_last: memory format of the network and its input.
        compile: run it through torch.compile.
    """

    def __init__(
        self, device: torch.device | str, classifies: bool = True, channels_last: bool = False, compile: bool = False
    ) -> None:
        net, digest = builtin.load(builtin.network.FeatureNet, "features", device)
        self._net = tuned(net, channels_last, compile)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device = torch.device(device)
        self.classifies = classifies
        self.protocol = {"backbone": "builtin", "backbone_sha256": digest[:16], "resizer": "none"}

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, 32, 32] in [-1, 1] in 256 steps; UserError for another size."""
        size = builtin.network.IMAGE_SIZE
        height, width = images.shape[2:]
        if (height, width) != (size, size):
            raise UserError(f"--backbone builtin takes images of 32x32, found {width}x{height}: choose another")
        quantised = to_uint8(images.to(self.device)).float() / 127.5 - 1
        return quantised.contiguous(memory_format=self._layout)

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self._net(prepared)
        return features, logits

    def soft(self, images: Tensor) -> Tensor:
        """Features [B, D] of images in [-1, 1], with gradients."""
        features: Tensor = self._net(images.to(self.device).clamp(-1, 1))[0]
        return features
