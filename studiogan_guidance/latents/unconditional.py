"""Generators that take no class and have no latent but z (DCGAN, SNGAN, WGAN-GP, BigGAN without labels)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from studiogan_guidance.latents.base import LatentView, Networks


class UnconditionalView(LatentView):
    """Code = nothing, [B, 0]: images are made of the noise alone, so what moves codes has nothing to move here."""

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        self._forward: Any = self.generator

    def encode(self, z: Tensor, labels: Tensor) -> Tensor:
        return z.new_empty(len(z), 0)

    def decode(self, code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        self.ledger.cost["synthesis"] += len(z)
        placeholder = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        images: Tensor = self._forward(z, placeholder, eval=True)
        return images
