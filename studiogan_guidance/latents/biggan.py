"""The shared class embedding of the BigGAN family."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from studiogan_guidance.latents.base import LatentView, Networks
from studiogan_guidance.latents.blocks import ConditionalBlocks


class EmbeddingView(LatentView):
    """Code = the class embedding that every conditional batch norm reads, [B, g_shared_dim]; it ignores z.

    So all estimators of the joint but ``class_subset`` are the mean embedding, and guidance costs no forward pass. A
    code may also hold an embedding for each block, [B, blocks, g_shared_dim].
    """

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        self._forward: Any = self.generator
        embedding: Any = self.generator.shared
        self._embedding = embedding
        self._blocks = ConditionalBlocks(self.generator, int(self._embedding.weight.shape[1]))
        self.blocks = max(1, len(self._blocks))

        # BigGAN splits z among its first layer and its blocks, unless a layer has mixed it with InfoGAN's numbers.
        if networks.backbone == "big_resnet" and not hasattr(self.generator, "info_mix_linear"):
            self.noise_chunks = 1 + self.blocks

    def encode(self, z: Tensor, labels: Tensor) -> Tensor:
        table: Tensor = self._embedding.weight
        return table[labels] if labels.dim() == 1 else labels @ table

    def class_codes(self) -> Tensor | None:
        table: Tensor = self._embedding.weight
        return table

    def decode(self, code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        self.ledger.cost["synthesis"] += len(code)
        images: Tensor
        if code.dim() == 2:
            images = self._forward(z, None, shared_label=code, eval=True)
            return images

        with self._blocks.given(code):
            images = self._forward(z, None, shared_label=code[:, 0], eval=True)
            return images
