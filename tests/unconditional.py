"""Tiny generators without classes, and their discriminators: a DCGAN whose latent is z, and a style GAN with w."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.latents import Networks
from studiogan_guidance.latents.base import Companions

Z_DIM = 8
W_DIM = 6
IMAGE_SIZE = 8
INFO = {"info_discrete": 1, "info_discrete_dim": 3, "info_continuous": 2}  # five more numbers of z


class DeepConv(nn.Module):
    """z [B, 8 or 13] -> images [B, 3, 8, 8]; it takes labels, as the host's generators do, and reads none."""

    def __init__(self, width: int = Z_DIM) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 8 * 4)
        self.blocks = nn.ModuleList(
            [
                nn.ModuleList([nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU())]),
                nn.ModuleList([nn.Sequential(nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU())]),
            ]
        )
        self.rgb = nn.Conv2d(4, 3, 3, 1, 1)

    def forward(self, z: Tensor, label: Tensor, shared_label: Tensor | None = None, eval: bool = False) -> Tensor:
        x = self.linear(z).view(-1, 8, 2, 2)
        for block in self.blocks:
            for layer in block:  # type: ignore[union-attr]
                x = layer(x)
        return torch.tanh(self.rgb(x))


class Mapping(nn.Module):
    """z -> w [B, 3, 6], with labels of width 0 or any other, which are not read."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(Z_DIM, W_DIM), nn.LeakyReLU(0.2), nn.Linear(W_DIM, W_DIM))
        self.register_buffer("w_avg", torch.full((W_DIM,), 0.1))

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        return self.layers(z)[:, None].expand(-1, 3, -1)


class Synthesis(nn.Module):
    """w [B, 3, 6] -> images [B, 3, 8, 8]; a row of w for each of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.num_ws = 3
        self.start = nn.Linear(W_DIM, 8 * 16)
        self.styles = nn.ModuleList([nn.Linear(W_DIM, 8), nn.Linear(W_DIM, 8)])
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)])
        self.rgb = nn.Conv2d(8, 3, 1)

    def forward(self, ws: Tensor) -> Tensor:
        x = self.start(ws[:, 0]).view(-1, 8, 4, 4)
        for row, (style, conv) in enumerate(zip(self.styles, self.blocks), 1):
            x = F.leaky_relu(conv(x * (1 + style(ws[:, row])[:, :, None, None])), 0.2)
        return torch.tanh(self.rgb(F.interpolate(x, scale_factor=2)))


class Style(nn.Module):
    """A style GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = Mapping()
        self.synthesis = Synthesis()


class Discriminator(nn.Module):
    """Images -> features and one logit, as the host's without a condition: [B], or [] for a single image."""

    d_cond_mtd = "W/O"

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 4, 2, 1), nn.ReLU())
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor, label: Tensor, eval: bool = False, adc_fake: bool = False) -> dict[str, Tensor]:
        h = self.convs(x).sum((2, 3))
        return {"h": h, "adv_output": torch.squeeze(self.out(h))}


def unconditional(kind: str, labels: Callable[[int], Tensor] = torch.arange, **more: Any) -> Networks:
    """Networks of "deep_conv", "deep_conv+info" or "style", with weights from a fixed seed.

    Held-out images are brighter than those of the generator and have any classes, ``labels(count)``; a snapshot has
    parameters half as large.
    """

    def generator() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            made: nn.Module = Style() if kind == "style" else DeepConv(Z_DIM + 5 * ("info" in kind))
            for module in made.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                    nn.init.normal_(module.weight, 0, 0.5)
                if isinstance(module, nn.BatchNorm2d):
                    assert module.running_mean is not None
                    nn.init.normal_(module.running_mean)
        return made.eval().requires_grad_(False)

    def snapshot(path: str) -> nn.Module:
        other = generator()
        for parameter in other.parameters():
            parameter.mul_(0.5)
        return other

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        discriminator = Discriminator().eval().requires_grad_(False)

    def held_out(count: int) -> tuple[Tensor, Tensor]:
        gen = torch.Generator().manual_seed(5)
        return torch.rand(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=gen) * 1.5 - 0.5, labels(count)

    return Networks(
        generator(),
        "builtin" if kind == "style" else "deep_conv",
        1,
        Z_DIM,
        IMAGE_SIZE,
        torch.device("cpu"),
        **{
            "digest": "",
            "source": "a tiny GAN",
            "g_cond_mtd": "W/O",
            "companions": Companions(lambda: discriminator, held_out, lambda: "noise", snapshot),
            **(INFO if "info" in kind else {}),
            **more,
        },
    )
