"""The built-in GAN as a source of networks and real images."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from studiogan_guidance import builtin
from studiogan_guidance.builtin.images import BuiltinImages
from studiogan_guidance.latents.base import Networks


class BuiltinSource:
    """The shipped generator, discriminator and digits; see ``evaluation.source.Source``."""

    checkout = None
    model_digest = ""
    splits = tuple(builtin.data.SPLITS)
    num_classes = builtin.network.NUM_CLASSES
    default_split = "test"
    validation_split = "valid"
    held_out_split = "valid"
    default_backbone = "builtin"
    image_size = builtin.network.IMAGE_SIZE

    def __init__(self) -> None:
        self.protocol: dict[str, Any] = {}
        self._networks: dict[torch.device, Networks] = {}

    def networks(self, device: torch.device) -> Networks:
        """The built-in generator, loaded once for each device."""
        if device not in self._networks:
            self._networks[device] = builtin.networks(device)
        return self._networks[device]

    def discriminator(self, device: torch.device) -> torch.nn.Module:
        """Its discriminator, loaded anew."""
        return builtin.discriminator(device)

    def real(
        self, split: str, image_size: int = builtin.network.IMAGE_SIZE, classes: Collection[int] = ()
    ) -> BuiltinImages:
        """The digits of one split (train, valid or test), by default of all classes."""
        return BuiltinImages(split, classes)
