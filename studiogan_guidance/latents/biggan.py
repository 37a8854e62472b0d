"""The shared class embedding of the BigGAN family."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from studiogan_guidance.latents.base import LatentView, Networks


class EmbeddingView(LatentView):
    """Code = the class embedding that every conditional batch norm reads, [B, g_shared_dim]; it ignores z.

    So all estimators of the joint but ``class_subset`` are the mean embedding, and guidance costs no forward pass.
    """

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        self._forward: Any = self.generator
        self._embedding: Any = self.generator.shared

    def encode(self, z: Tensor, labels: Tensor) -> Tensor:
        table: Tensor = self._embedding.weight
        return table[labels] if labels.dim() == 1 else labels @ table

    def class_codes(self) -> Tensor | None:
        table: Tensor = self._embedding.weight
        return table

    def decode(self, code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        self.ledger.cost["synthesis"] += len(code)
        images: Tensor = self._forward(z, None, shared_label=code, eval=True)
        return images
