"""The label vector of generators that feed one-hot labels to conditional batch norms (SNGAN, SAGAN, DCGAN)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from studiogan_guidance.latents.base import LatentView, Networks


class LabelView(LatentView):
    """Code = the label vector, [B, C], one-hot for a plain sample.

    A conditional batch norm is linear in it (gain 1 + Wy, bias Vy), so arithmetic on the vector is arithmetic on every
    gain and bias, and negative entries are fine. InfoGAN's projection stands before the label in y and is kept.
    """

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        self._forward: Any = self.generator
        self._norms = [m for m in self.generator.modules() if type(m).__name__ == "ConditionalBatchNorm2d"]

    def encode(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.unit_vectors()[labels] if labels.dim() == 1 else labels

    def class_codes(self) -> Tensor | None:
        return self.unit_vectors()

    def decode(self, code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        self.ledger.cost["synthesis"] += len(code)

        # The label vector stands at the end of the condition y of every norm.
        def put_code(module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, y = args
            info = y[:, : -self.num_classes]
            return x, torch.cat([info, code], 1) if info.shape[1] else code

        handles = [norm.register_forward_pre_hook(put_code) for norm in self._norms]
        try:
            placeholder = torch.zeros(len(code), dtype=torch.int64, device=code.device)
            images: Tensor = self._forward(z, placeholder, eval=True)
            return images
        finally:
            for handle in handles:
                handle.remove()
