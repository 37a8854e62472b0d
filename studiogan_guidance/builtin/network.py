"""The built-in networks: a small class-conditional style GAN for 32x32 digits and the feature net that measures it.

The generator has a mapping network and a synthesis network, as in StyleGAN2 (Karras et al. 2020, arXiv:1912.04958),
so the estimators of the joint code really differ on it; the discriminator is a projection discriminator (Miyato and
Koyama 2018, arXiv:1802.05637) trained with the logistic loss, so its logit is a log density ratio at the optimum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 10
IMAGE_SIZE = 32
Z_DIM = 32
W_DIM = 64
CHANNELS = {4: 96, 8: 64, 16: 32, 32: 16}  # width of the feature maps at each resolution


def unit_rms(x: Tensor) -> Tensor:
    """Scale each row of ``x`` [B, D] to root mean square 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class EqualLinear(nn.Module):
    """Fully connected layer with equalised learning rate: unit-variance weights, scaled when used."""

    def __init__(self, fan_in: int, fan_out: int, bias: float = 0.0, lr_mul: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in) / lr_mul)
        self.bias = nn.Parameter(torch.full((fan_out,), bias / lr_mul))
        self.gain, self.lr_mul = lr_mul / math.sqrt(fan_in), lr_mul

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias * self.lr_mul)


class EqualConv(nn.Module):
    """3x3 or 1x1 convolution with equalised learning rate."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(fan_out))
        self.gain, self.padding = 1 / math.sqrt(fan_in * kernel**2), kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.gain, self.bias, padding=self.padding)


class StyleConv(nn.Module):
    """Convolution whose input channels are scaled by a style taken from one row of w, demodulated unless ``rgb``."""

    def __init__(self, fan_in: int, fan_out: int, rgb: bool = False) -> None:
        super().__init__()
        self.conv = EqualConv(fan_in, fan_out, kernel=1 if rgb else 3)
        self.style = EqualLinear(W_DIM, fan_in, bias=1.0)
        self.rgb = rgb

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style, weight = self.style(w), self.conv.weight * self.conv.gain
        x = F.conv2d(x * style[:, :, None, None], weight, padding=self.conv.padding)
        if not self.rgb:
            energy = style.square() @ weight.square().sum((2, 3)).t()
            x = x * (energy + 1e-8).rsqrt()[:, :, None, None]
        x = x + self.conv.bias[:, None, None]
        return x if self.rgb else activate(x)


class Mapping(nn.Module):
    """z [B, 32] and one-hot (or soft) labels [B, 10] -> w [B, num_ws, 64], all rows equal."""

    def __init__(self, num_ws: int) -> None:
        super().__init__()
        self.num_ws = num_ws
        self.embed = EqualLinear(NUM_CLASSES, W_DIM)
        widths = [Z_DIM + W_DIM, W_DIM, W_DIM, W_DIM]
        self.layers = nn.ModuleList(EqualLinear(a, b, lr_mul=0.1) for a, b in zip(widths, widths[1:]))

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        x = torch.cat([unit_rms(z), unit_rms(self.embed(c))], 1)
        for layer in self.layers:
            x = activate(layer(x))
        return x[:, None].expand(-1, self.num_ws, -1)


class Synthesis(nn.Module):
    """w [B, num_ws, 64] -> grey images [B, 3, 32, 32] in about [-1, 1] (three equal channels)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = list(CHANNELS)
        self.const = nn.Parameter(torch.randn(1, CHANNELS[4], 4, 4))
        self.convs = nn.ModuleList([StyleConv(CHANNELS[4], CHANNELS[4])])
        for low, high in zip(sizes, sizes[1:]):
            self.convs.append(StyleConv(CHANNELS[low], CHANNELS[high]))
            self.convs.append(StyleConv(CHANNELS[high], CHANNELS[high]))
        self.rgb = StyleConv(CHANNELS[IMAGE_SIZE], 1, rgb=True)
        self.num_ws = len(self.convs) + 1

    def forward(self, ws: Tensor) -> Tensor:
        x = self.const.expand(len(ws), -1, -1, -1)
        for i, conv in enumerate(self.convs):
            if i % 2 == 1:  # the first convolution of each higher resolution
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = conv(x, ws[:, i])
        images: Tensor = self.rgb(x, ws[:, -1]).expand(-1, 3, -1, -1)
        return images


class Generator(nn.Module):
    """Mapping and synthesis of the built-in GAN, with the moving average of w that truncation needs."""

    def __init__(self) -> None:
        super().__init__()
        self.synthesis = Synthesis()
        self.mapping = Mapping(self.synthesis.num_ws)
        self.num_ws, self.w_dim, self.z_dim = self.synthesis.num_ws, W_DIM, Z_DIM
        self.register_buffer("w_avg", torch.zeros(W_DIM))

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        images: Tensor = self.synthesis(self.mapping(z, c))
        return images


class Discriminator(nn.Module):
    """Grey images [B, 3, 32, 32] and labels [B] -> logits [B] of a projection discriminator."""

    def __init__(self) -> None:
        super().__init__()
        sizes = list(reversed(CHANNELS))
        self.stem = EqualConv(1, CHANNELS[IMAGE_SIZE], kernel=1)
        self.convs, self.skips = nn.ModuleList(), nn.ModuleList()
        for high, low in zip(sizes, sizes[1:]):
            self.convs += [EqualConv(CHANNELS[high], CHANNELS[high]), EqualConv(CHANNELS[high], CHANNELS[low])]
            self.skips.append(EqualConv(CHANNELS[high], CHANNELS[low], kernel=1))
        self.last = EqualConv(CHANNELS[4], CHANNELS[4])
        self.dense = EqualLinear(CHANNELS[4] * 16, CHANNELS[4])
        self.out = EqualLinear(CHANNELS[4], 1)
        self.embed = nn.Parameter(torch.randn(NUM_CLASSES, CHANNELS[4]))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(images[:, :1]), 0.2)
        for i, skip in enumerate(self.skips):
            y = activate(self.convs[2 * i](x))
            y = activate(F.avg_pool2d(self.convs[2 * i + 1](y), 2))
            x = (y + skip(F.avg_pool2d(x, 2))) * math.sqrt(0.5)
        x = activate(self.last(x))
        h = activate(self.dense(x.flatten(1)))
        logits: Tensor = self.out(h).squeeze(1) + (h * self.embed[labels]).sum(1) / math.sqrt(CHANNELS[4])
        return logits


class FeatureNet(nn.Module):
    """Grey images [B, 3, 32, 32] in [-1, 1] -> (features [B, 64], class logits [B, 10])."""

    dim = 64

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride, 1) for a, b, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2), (64, 64, 2))
        )
        self.dense = nn.Linear(64 * 16, self.dim)
        self.out = nn.Linear(self.dim, NUM_CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images[:, :1]
        for conv in self.convs:
            x = F.relu(conv(x))
        features = F.relu(self.dense(x.flatten(1)))
        return features, self.out(features)
