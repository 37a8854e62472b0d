"""A feature network that nobody trained: convolutions with random weights, the same ones on every machine."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance import rng
from studiogan_guidance.features.preparation import Preparation, tuned

IMAGE_SIZE = 64
CHANNELS = (3, 32, 64, 128, 128, 256)  # of the image, and after each convolution
LEVELS = 3  # the last convolutions, whose outputs are features


class RandomNetwork:
    """Five convolutions of 3x3 and stride 2 with random weights and ReLU, as a Backbone.

    The 512 features are the means over the image of the outputs of the last three. No data set is in them, so nothing
    that was trained on one, or chosen by its features, is in favour with them. Distances between random features rank
    generators of images that those of ImageNet were not trained on: Naeem et al. 2020, arXiv:2002.09797, section 4.

    Images are resized to 64 by Pillow's bicubic filter. Weights are uniform, of the variance 2 / (9 C) for C input
    channels, which keeps the size of activations (He et al. 2015, arXiv:1502.01852). They are uniform numbers of a seed
    of their own times a constant, so they have the same bits on every CPU.

    Args:
        device: where it runs.
        resize_on: cpu, device, or auto (on ``device``); pixels are the same bits.
        channels_last: memory format of the network and its input.
        compile: run it through torch.compile.
    """

    classifies = False

    def __init__(
        self,
        device: torch.device,
        resize_on: str = "auto",
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        net = Convolutions()
        digest = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in net.buffers())).hexdigest()
        half = torch.full((3,), 0.5)

        self.device = device
        self._net = tuned(net.to(device), channels_last, compile)
        self._prepare = Preparation(IMAGE_SIZE, "bicubic", half, half, device, resize_on, channels_last)
        self.prepares_on_cpu = not self._prepare.on_device
        self.protocol = {"backbone": "random", "backbone_sha256": digest[:16], "resizer": "clean"}

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> [B, 3, 64, 64]."""
        return self._prepare(images)

    def __call__(self, prepared: Tensor) -> tuple[Tensor, None]:
        return self._net(prepared), None

    def soft(self, images: Tensor) -> Tensor:
        """Features [B, D] of images in [-1, 1], with gradients."""
        return self(self._prepare.soft(images))[0]


class Convolutions(nn.Module):
    """Images [B, 3, H, W] -> means of the outputs of the last ``LEVELS`` convolutions, [B, 512]; nothing is trained."""

    def __init__(self) -> None:
        super().__init__()
        generators = rng.generators([rng.NETWORKS])
        for level, (before, after) in enumerate(pairwise(CHANNELS)):
            bound = math.sqrt(3 * 2 / (9 * before))
            weight = rng.uniform(generators, after, before, 3, 3)[0] * bound
            self.register_buffer(f"weight_{level}", weight)

    def forward(self, images: Tensor) -> Tensor:
        outputs = images
        features = []
        for weight in self.buffers():
            outputs = F.conv2d(outputs, weight, stride=2, padding=1).relu()
            features.append(outputs.mean((2, 3)))
        return torch.cat(features[-LEVELS:], 1)
