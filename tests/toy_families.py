"""Toy generators whose code is a class embedding (as BigGAN's) or a label vector (as a cBN ResNet's), in two blocks."""

from __future__ import annotations

import torch
from conftest import ToyGAN, toy_networks
from torch import Tensor, nn

from studiogan_guidance.latents import LatentView, Networks, view_for

CLASSES = 5


class ConditionalBatchNorm2d(nn.Module):
    """Gain and bias of every channel, linear in the condition y."""

    def __init__(self, in_features: int, seed: int) -> None:
        super().__init__()
        self.in_features = in_features
        gen = torch.Generator().manual_seed(seed)
        self.gain, self.bias = torch.randn(2, in_features, 3, generator=gen)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * (1 + y @ self.gain)[:, :, None, None] + (y @ self.bias)[:, :, None, None]


class Block(nn.Module):
    """Two conditional batch norms, with a sine between them."""

    def __init__(self, in_features: int, seed: int) -> None:
        super().__init__()
        self.bn1 = ConditionalBatchNorm2d(in_features, seed)
        self.bn2 = ConditionalBatchNorm2d(in_features, seed + 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.bn2(self.bn1(x, y).sin(), y)


class Shared(nn.Module):
    """z [B, 6] in three chunks: for the first layer and for two blocks, which also read an embedding of 7 numbers."""

    def __init__(self) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(1)
        self.shared = nn.Embedding.from_pretrained(torch.randn(CLASSES, 7, generator=gen))
        self.weight = torch.randn(2, 12, generator=gen)
        self.blocks = nn.ModuleList(Block(9, seed) for seed in (2, 4))

    def forward(self, z: Tensor, label: None, shared_label: Tensor, eval: bool) -> Tensor:
        first, *chunks = z.split(2, 1)
        x = (first @ self.weight).view(-1, 3, 2, 2)
        for block, chunk in zip(self.blocks, chunks):
            x = block(x, torch.cat([shared_label, chunk], 1))
        return x


class Labelled(nn.Module):
    """z [B, 4] for the first layer; two blocks are given one-hot labels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
        self.blocks = nn.ModuleList(Block(CLASSES, seed) for seed in (2, 4))

    def forward(self, z: Tensor, label: Tensor, eval: bool) -> Tensor:
        y = torch.zeros(len(z), CLASSES).scatter_(1, label[:, None], 1)
        x = (z @ self.weight).view(-1, 3, 2, 2)
        for block in self.blocks:
            x = block(x, y)
        return x


def toy_of(family: str) -> LatentView:
    """The view of a toy of a family: "builtin" (codes w), "big_resnet" (embeddings) or "resnet" (label vectors)."""
    if family == "builtin":
        return view_for(toy_networks(ToyGAN()))
    generator, z_dim = (Shared(), 6) if family == "big_resnet" else (Labelled(), 4)
    return view_for(Networks(generator, family, CLASSES, z_dim, 2, torch.device("cpu"), "", "a toy"))
