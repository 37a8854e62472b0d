"""Generators that take no class and have no latent but z (DCGAN, SNGAN, WGAN-GP, BigGAN without labels)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import LatentView, Networks


class UnconditionalView(LatentView):
    """Code = nothing, [B, 0]: images are made of the noise alone, so what moves codes has nothing to move here.

    Raises:
        UserError: a BigGAN-deep without InfoGAN's numbers, whose blocks give a condition to norms that take none.
    """

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        norms = {type(module).__name__ for module in self.generator.modules()}
        if "big_resnet_deep" in networks.backbone and "ConditionalBatchNorm2d" not in norms:
            raise UserError(
                f"an unconditional {networks.backbone} gives a condition to batch norms that take none: the host "
                "cannot run such a generator either; use big_resnet"
            )
        self._forward: Any = self.generator

    def encode(self, z: Tensor, labels: Tensor) -> Tensor:
        return z.new_empty(len(z), 0)

    def decode(self, code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        self.ledger.cost["synthesis"] += len(z)
        placeholder = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        images: Tensor = self._forward(z, placeholder, eval=True)
        return images
