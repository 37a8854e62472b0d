"""Distances between images that a network can be trained on: LPIPS, and one of pixels that needs no weights."""

from __future__ import annotations

import importlib.util
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.errors import UserError, notice_once, one_line
from studiogan_guidance.progress import downloads
from studiogan_guidance.weights import archives

ALEXNET = "alexnet-owt-7be5be79.pth"  # as torchvision names its file
ADDRESS = f"https://download.pytorch.org/models/{ALEXNET}"
NAMES = ("auto", "lpips", "pixels")
LEAST_SIDE = 31  # of images, for AlexNet's third layer to have a pixel
TINY = 1e-10  # least length of a vector of channels, as in the library


class Distance(nn.Module):
    """The distance of images [B, 3, H, W] in [-1, 1] to targets of this shape: a scalar, the mean over the batch.

    Images are not clamped. Gradients flow to images alone, not to targets. It has no parameters that train, is always
    in evaluation mode, and runs in float32 also inside autocast.

    Attributes:
        name: lpips or pixels.
        weights: default weights of a reconstruction loss in it, of real and of generated images.
    """

    name: str
    weights: tuple[float, float]

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self._mean(images.float(), targets.detach().float())

    def train(self, mode: bool = True) -> Distance:
        return super().train(False)

    def _mean(self, images: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError


class Lpips(Distance):
    """LPIPS of AlexNet, version 0.1 (Zhang et al. 2018, arXiv:1801.03924), with the weights of its authors' library.

    At each of AlexNet's five layers, vectors of channels have length 1, and their squared difference is summed with the
    layer's weights of channels; means over pixels are summed over layers. Images with a side below ``LEAST_SIDE``
    pixels are enlarged to it, bilinearly.

    Where all channels of a pixel are 0, the library's own gradient is NaN; here it is 0.

    Args:
        alexnet: file of torchvision's weights of AlexNet.

    Raises:
        UserError: the library is missing, or the file is missing, damaged or of another network.
    """

    name = "lpips"
    weights = (10.0, 3.0)  # as published

    def __init__(self, alexnet: Path) -> None:
        super().__init__()
        self._net = _library_network()
        layers: nn.Module = self._net.net
        layers.load_state_dict(_alexnet_weights(alexnet, layers))
        self.requires_grad_(False).eval()

    def _mean(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._features(targets)

        total = images.new_zeros(())
        for features, target, weights in zip(self._features(images), wanted, self._net.lins, strict=True):
            total = total + weights((features - target).square()).mean()
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        """The outputs of the five layers, with vectors of channels of length 1."""
        height, width = images.shape[2:]
        if min(height, width) < LEAST_SIDE:
            size = (max(height, LEAST_SIDE), max(width, LEAST_SIDE))
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)

        outputs = self._net.net(self._net.scaling_layer(images))
        return [F.normalize(output, dim=1, eps=TINY) for output in outputs]


class Pixels(Distance):
    """Root mean square difference of the pixels of an image, the mean over the batch.

    Images that differ by a constant c have the distance abs(c). The root makes all images of a batch equally important,
    and the gradient does not fade near the target. Absolute differences, also of means of 2 and 4 pixels a side, leave
    thin strokes out for longer.
    """

    name = "pixels"
    weights = (10.0, 3.0)

    def _mean(self, images: Tensor, targets: Tensor) -> Tensor:
        differences = (images - targets).flatten(1)
        lengths: Tensor = torch.linalg.vector_norm(differences, dim=1)  # its gradient at 0 is 0
        return lengths.mean() / math.sqrt(differences.shape[1])


def distance(name: str, alexnet: str, device: torch.device) -> Distance:
    """A distance by its name.

    Args:
        name: lpips; pixels; or auto, which is lpips where its library and weights are on this machine, and pixels
            elsewhere, with a notice.
        alexnet: file of AlexNet's weights for lpips; "" for that in torch's cache, which lpips, if asked for by name,
            downloads where it is missing.
        device: where it runs.

    Raises:
        UserError: an unknown name; ``alexnet`` with pixels; lpips is asked for, and its library or weights are missing
            or unfit.
    """
    if name not in NAMES:
        raise UserError(f"distance is '{name}': it is one of {', '.join(NAMES)}")
    if name == "pixels" and alexnet:
        raise UserError(f"distance is pixels, which reads no weights, but alexnet is {alexnet}: leave one out")

    if name == "auto" and not alexnet and (missing := missing_for_lpips()):
        notice_once(f"distance is pixels here, so results differ from published ones, of LPIPS: {': '.join(missing)}")
        name = "pixels"
    if name == "pixels":
        return Pixels().to(device)
    return Lpips(Path(alexnet) if alexnet else _downloaded()).to(device)


def missing_for_lpips() -> tuple[str, str] | None:
    """What LPIPS lacks on this machine, and how to get it; None if it lacks nothing."""
    if importlib.util.find_spec("lpips") is None:
        return "the package lpips is missing", "pip install lpips"
    if not cached_alexnet().is_file():
        return f"{cached_alexnet()} is missing", f"download it from {ADDRESS}"
    return None


def cached_alexnet() -> Path:
    """Where torch's cache has AlexNet's weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET


def _downloaded() -> Path:
    """The file of AlexNet's weights in torch's cache, downloaded if it is missing."""
    path = cached_alexnet()
    if path.is_file():
        return path

    sha256 = path.stem.rpartition("-")[2]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with downloads("AlexNet's weights"):
            torch.hub.download_url_to_file(ADDRESS, str(path), hash_prefix=sha256)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot download AlexNet's weights for LPIPS ({one_line(error, 100)}): download {ADDRESS} elsewhere and "
            f"copy it to {path}, or give alexnet=FILE"
        ) from error
    return path


def _library_network() -> Any:
    """LPIPS of the library with its weights of channels; AlexNet's own weights are random."""
    try:
        import lpips
    except (ImportError, RuntimeError) as error:  # torchvision of another torch raises the latter
        raise UserError(
            f"LPIPS needs the packages lpips and torchvision ({one_line(error)}): pip install lpips torchvision"
        ) from error

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an argument that torchvision has renamed
        return lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)


def _alexnet_weights(path: Path, layers: nn.Module) -> dict[str, Tensor]:
    """The weights in torchvision's file, by their names in the library.

    Raises:
        UserError: the file is missing, damaged or of another network.
    """
    state = archives.read(path, "AlexNet's weights")
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no dictionary of AlexNet's weights: give {ALEXNET} as torchvision has it")

    weights = {}
    for name, own in layers.state_dict().items():
        key = f"features.{name.partition('.')[2]}"  # the library names layers by slice and torchvision's number
        value = state.get(key)
        if not isinstance(value, Tensor) or value.shape != own.shape or not archives.is_finite(value):
            raise UserError(
                f"{path} has no finite {key} of shape {list(own.shape)}, so it is no AlexNet of torchvision: give "
                f"{ALEXNET} as torchvision has it"
            )
        weights[name] = value
    return weights
