"""The label vector of generators that feed one-hot labels to conditional batch norms (SNGAN, SAGAN, DCGAN)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from studiogan_guidance.latents.base import LatentView, Networks
from studiogan_guidance.latents.blocks import ConditionalBlocks


class LabelView(LatentView):
    """Code = the label vector, [B, C], one-hot for a plain sample; or one for each block, [B, blocks, C].

    A conditional batch norm is linear in it (gain 1 + Wy, bias Vy), so arithmetic on the vector is arithmetic on every
    gain and bias, and negative entries are fine. InfoGAN's projection stands before the label in y and is kept.
    """

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        self._forward: Any = self.generator
        self._blocks = ConditionalBlocks(self.generator, networks.num_classes)
        self.blocks = len(self._blocks)

    def encode(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.unit_vectors()[labels] if labels.dim() == 1 else labels

    def class_codes(self) -> Tensor | None:
        return self.unit_vectors()

    def decode(self, code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        self.ledger.cost["synthesis"] += len(code)
        if code.dim() == 2:
            code = code[:, None].expand(-1, self.blocks, -1)

        with self._blocks.given(code):
            placeholder = torch.zeros(len(code), dtype=torch.int64, device=code.device)
            images: Tensor = self._forward(z, placeholder, eval=True)
            return images
