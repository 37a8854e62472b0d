"""The built-in networks: a small class-conditional style GAN for 32x32 digits and the feature net that measures it.

The generator has a mapping network and a synthesis network, as in StyleGAN (Karras et al. 2019, arXiv:1812.04948), so
the estimators of the joint code really differ on it; w steers batch norms in residual blocks, as class embeddings do in
BigGAN (Brock et al. 2019, arXiv:1809.11096). The discriminator is a projection discriminator (Miyato and
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
GENERATOR = {4: 64, 8: 64, 16: 32, 32: 32}  # width of the feature maps at each resolution
DISCRIMINATOR = {4: 96, 8: 64, 16: 32, 32: 16}


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
        self.gain = lr_mul / math.sqrt(fan_in)
        self.lr_mul = lr_mul

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias * self.lr_mul)


class EqualConv(nn.Module):
    """3x3 or 1x1 convolution with equalised learning rate."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(fan_out))
        self.gain = 1 / math.sqrt(fan_in * kernel**2)
        self.padding = kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.gain, self.bias, padding=self.padding)


class StyleNorm(nn.Module):
    """Batch norm whose gain and bias are linear in one row of w, then a ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = nn.Linear(W_DIM, channels, bias=False)
        self.bias = nn.Linear(W_DIM, channels, bias=False)
        nn.init.orthogonal_(self.gain.weight, 0.5)
        nn.init.orthogonal_(self.bias.weight, 0.5)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return F.relu(self.norm(x) * (1 + self.gain(w)[:, :, None, None]) + self.bias(w)[:, :, None, None])


def conv(fan_in: int, fan_out: int, kernel: int = 3) -> nn.Conv2d:
    """Convolution that keeps the size, with orthogonal weights."""
    layer = nn.Conv2d(fan_in, fan_out, kernel, padding=kernel // 2)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class Block(nn.Module):
    """Residual block that doubles the resolution and reads two rows of w."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([StyleNorm(fan_in), StyleNorm(fan_out)])
        self.convs = nn.ModuleList([conv(fan_in, fan_out), conv(fan_out, fan_out)])
        self.skip = conv(fan_in, fan_out, kernel=1)

    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        y = self.convs[0](F.interpolate(self.norms[0](x, first), scale_factor=2))
        y = self.convs[1](self.norms[1](y, second))
        out: Tensor = y + F.interpolate(self.skip(x), scale_factor=2)
        return out


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
    """w [B, num_ws, 64] -> grey images [B, 3, 32, 32] in [-1, 1] (three equal channels)."""

    def __init__(self) -> None:
        super().__init__()
        widths = list(GENERATOR.values())
        self.start = nn.Linear(W_DIM, widths[0] * 16)
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip(widths, widths[1:]))
        self.norm = StyleNorm(widths[-1])
        self.grey = conv(widths[-1], 1)
        self.num_ws = 2 + 2 * len(self.blocks)

    def forward(self, ws: Tensor) -> Tensor:
        x = self.start(ws[:, 0]).view(len(ws), -1, 4, 4)
        for i, block in enumerate(self.blocks):
            x = block(x, ws[:, 2 * i + 1], ws[:, 2 * i + 2])
        images = torch.tanh(self.grey(self.norm(x, ws[:, -1])))
        return images.expand(-1, 3, -1, -1)


class Generator(nn.Module):
    """Mapping and synthesis of the built-in GAN, with the moving average of w that truncation needs."""

    def __init__(self) -> None:
        super().__init__()
        self.synthesis = Synthesis()
        self.mapping = Mapping(self.synthesis.num_ws)
        self.register_buffer("w_avg", torch.zeros(W_DIM))

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        images: Tensor = self.synthesis(self.mapping(z, c))
        return images


class Discriminator(nn.Module):
    """Grey images [B, 3, 32, 32] and labels [B] -> logits [B] of a projection discriminator.

    ``latent`` guesses z from the same features, as InfoGAN does (Chen et al. 2016, arXiv:1606.03657): it keeps the
    generator from ignoring z, which 300 images a class otherwise tempt it to.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = list(reversed(DISCRIMINATOR.values()))
        self.stem = EqualConv(1, widths[0], kernel=1)
        self.convs = nn.ModuleList()
        self.skips = nn.ModuleList()
        for a, b in zip(widths, widths[1:]):
            self.convs += [EqualConv(a, a), EqualConv(a, b)]
            self.skips.append(EqualConv(a, b, kernel=1))

        width = widths[-1]
        self.last = EqualConv(width, width)
        self.dense = EqualLinear(width * 16, width)
        self.out = EqualLinear(width, 1)
        self.embed = nn.Parameter(torch.randn(NUM_CLASSES, width))
        self.latent = EqualLinear(width, Z_DIM)

    def features(self, images: Tensor) -> Tensor:
        """What both heads read, [B, 96]."""
        x = F.leaky_relu(self.stem(images[:, :1]), 0.2)
        for i, skip in enumerate(self.skips):
            y = activate(self.convs[2 * i](x))
            y = activate(F.avg_pool2d(self.convs[2 * i + 1](y), 2))
            x = (y + skip(F.avg_pool2d(x, 2))) * math.sqrt(0.5)
        return activate(self.dense(activate(self.last(x)).flatten(1)))

    def class_term(self, features: Tensor, labels: Tensor) -> Tensor:
        """What the label adds to the logit, [B]: the projection."""
        return (features * self.embed[labels]).sum(1) / math.sqrt(features.shape[1])

    def score(self, features: Tensor, labels: Tensor) -> Tensor:
        """Logits [B] from features."""
        logits: Tensor = self.out(features).squeeze(1) + self.class_term(features, labels)
        return logits

    def class_logits(self, features: Tensor) -> Tensor:
        """Logits of all classes from features, [B, 10]."""
        logits: Tensor = self.out(features) + features @ self.embed.T / math.sqrt(features.shape[1])
        return logits

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.score(self.features(images), labels)


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
