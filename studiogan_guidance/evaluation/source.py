"""What a configuration points at: the generator, the real images, the feature network."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from studiogan_guidance import devices
from studiogan_guidance.builtin.backbone import BuiltinBackbone
from studiogan_guidance.builtin.source import BuiltinSource
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, nearest, torchrun_number
from studiogan_guidance.features.dinov2 import DinoV2
from studiogan_guidance.features.efficientnet import EfficientNetLite0
from studiogan_guidance.features.images import Real
from studiogan_guidance.features.random_network import RandomNetwork
from studiogan_guidance.features.stats import Backbone
from studiogan_guidance.features.torchscript import TorchScript
from studiogan_guidance.host.locate import Checkout, locate
from studiogan_guidance.latents import Networks


class Source(Protocol):
    """Where networks and real images come from: the host's checkpoint of a configuration, or the built-in GAN.

    Nothing is opened before it is asked for. Under torchrun each process has a source of its own.

    Attributes:
        checkout: the host, located once; None for the built-in.
        protocol: what a row says about the source: the host's commit, or nothing.
        model_digest: a hash of what the generator was built from; empty for the built-in.
        splits: the splits of real images that are there; none where the run names no folder.
        num_classes: classes that the generator takes; 0 if it takes none. It is known without a checkpoint.
        default_split: the split of real images to measure against where the configuration names none.
        validation_split: the split to choose options on.
        held_out_split: the split that the discriminator was not trained on.
        default_backbone: the feature network where the configuration names none.
        image_size: side of the images.
    """

    @property
    def checkout(self) -> Checkout | None: ...
    @property
    def protocol(self) -> dict[str, Any]: ...
    @property
    def model_digest(self) -> str: ...
    @property
    def splits(self) -> tuple[str, ...]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def default_split(self) -> str: ...
    @property
    def validation_split(self) -> str: ...
    @property
    def held_out_split(self) -> str: ...
    @property
    def default_backbone(self) -> str: ...
    @property
    def image_size(self) -> int: ...

    def networks(self, device: torch.device) -> Networks:
        """The generator with its companions, the same object at each call."""

    def discriminator(self, device: torch.device) -> torch.nn.Module:
        """The discriminator of the generator's step, loaded anew at each call."""

    def real(self, split: str, image_size: int, classes: Collection[int] = ()) -> Real:
        """The real images of a split, of the size that the generator makes; by default of all classes.

        Raises:
            UserError: a class without images.
        """


def open_source(cfg: RunConfig) -> Source:
    """The source of a configuration. Whether that is the host or the built-in GAN is asked here and nowhere else."""
    if not cfg.uses_host:
        return BuiltinSource()
    from studiogan_guidance.host.source import HostSource

    return HostSource(cfg)


def validated(cfg: RunConfig, source: Source) -> RunConfig:
    """``cfg`` measured on the validation split, unless it names a split, or a file of statistics, itself."""
    if cfg.reference_stats:
        return cfg
    return dataclasses.replace(cfg, reference=cfg.reference or source.validation_split)


def device_of(name: str) -> torch.device:
    """auto, cpu, cuda (under torchrun: this process's) or cuda:N as a device that exists here; UserError otherwise.

    The environment variable ``devices.DEVICE`` says what auto means; where it is not set: a GPU if there is one.
    """
    # The word that counts, and where it comes from.
    default = devices.default() if name == "auto" else "auto"
    asked = name if default == "auto" else default
    option = "--device" if default == "auto" else devices.DEVICE

    # The device that it stands for.
    local = torchrun_number("LOCAL_RANK", 0)
    word = "cpu" if asked == "auto" and devices.cpu_only() else asked
    is_own = word in ("auto", "cuda")
    unknown = f"{option} is '{asked}': give auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(f"cuda:{local}" if is_own else word)
    except RuntimeError as error:
        raise UserError(unknown) from error

    # Refuse what is not here.
    if device.type not in ("cpu", "cuda"):
        raise UserError(unknown)
    visible = torch.cuda.device_count() if device.type == "cuda" and torch.cuda.is_available() else 0
    if device.type == "cpu" or (device.index or 0) < visible:
        return device
    if is_own and visible:
        processes = os.environ.get("LOCAL_WORLD_SIZE", local + 1)
        raise UserError(
            f"torchrun started {processes} processes on this node, which has {visible} GPUs: give --nproc-per-node "
            f"{visible}, or --device cpu"
        )
    raise UserError(f"{option} is '{asked}', but {visible} CUDA devices are visible: use --device cpu")


def current_device(name: str) -> torch.device:
    """``device_of``, and a GPU is the current one from now on: what pins memory would wake the first GPU otherwise."""
    device = device_of(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


HOST_NETWORKS = ("InceptionV3_tf", "InceptionV3_torch", "ResNet50_torch", "SwAV_torch", "DINO_torch", "Swin-T_torch")


def open_backbone(cfg: RunConfig, source: Source, device: torch.device, also: Sequence[str] = ()) -> Backbone:
    """The feature network that ``cfg.backbone`` names, by default that of the source.

    Errors name the known ones, and ``also`` these.

    ====================  ==============================================================================================
    builtin               the classifier of digits, for images of 32x32
    host:NAME, or NAME    one of the host's networks (see HOST_NETWORKS), with the host's resizers
    torchscript:PATH      takes uint8 images [B, 3, H, W], returns features [B, D], or them and class logits [B, K];
                          ``return_features`` of its forward (NVIDIA's inception-2015-12-05.pt) is set to true
    dinov2:PATH           facebook's or timm's weights of a DINOv2 ViT, as .pth or .safetensors; needs timm
    efficientnet          EfficientNet-Lite0 with ImageNet weights, 1280 features; needs the extra ``features``
    random                convolutions with random weights, the same ones for everyone
    ====================  ==============================================================================================

    Raises:
        UserError: an unknown name, a missing, damaged or foreign file, a missing package.
    """
    spec = cfg.backbone or source.default_backbone
    kind, _, name = (f"host:{spec}" if spec in HOST_NETWORKS else spec).partition(":")
    if kind not in BACKBONES or not BACKBONES[kind].takes(name):
        raise UserError(f"--backbone is '{spec}': {nearest(spec, [*known_backbones(), *also])}")
    return BACKBONES[kind].open(cfg, source, name, device)


@dataclass(frozen=True)
class BackboneKind:
    """The word before the colon of ``--backbone``: how it is opened, and the names that may follow (None: a path)."""

    open: Callable[[RunConfig, Source, str, torch.device], Backbone]
    names: tuple[str, ...] | None = None

    def takes(self, name: str) -> bool:
        """Whether ``name`` may stand behind the colon."""
        return bool(name) if self.names is None else name in self.names


def known_backbones() -> list[str]:
    """What ``--backbone`` takes, for errors: builtin, host:InceptionV3_tf, ..., torchscript:PATH."""
    return [
        f"{word}:{name}".rstrip(":")
        for word, kind in BACKBONES.items()
        for name in (("PATH",) if kind.names is None else kind.names)
    ]


def _channels_last(cfg: RunConfig) -> bool:
    """Whether a run wants the channels last in the memory of its feature network."""
    return cfg.channels_last or cfg.fast


def _builtin(cfg: RunConfig, source: Source, name: str, device: torch.device) -> Backbone:
    classifies = source.default_backbone == "builtin"  # its classes are those of the built-in generator only
    return BuiltinBackbone(device, classifies, _channels_last(cfg), cfg.compile)


def _of_host(cfg: RunConfig, source: Source, name: str, device: torch.device) -> Backbone:
    from studiogan_guidance.host.backbone import HostBackbone

    checkout = source.checkout or locate(cfg.studiogan)
    inception = Path(cfg.inception) if cfg.inception else None
    layout = _channels_last(cfg)
    return HostBackbone(name, checkout, device, cfg.resizer, cfg.resize_on, layout, cfg.compile, inception)


def _torchscript(cfg: RunConfig, source: Source, path: str, device: torch.device) -> Backbone:
    if cfg.channels_last or cfg.compile or cfg.resize_on == "device":
        raise UserError(
            f"--backbone torchscript:{path} runs as it was saved: leave out --channels-last, --compile, --resize-on"
        )
    return TorchScript(Path(path), device)


def _dinov2(cfg: RunConfig, source: Source, path: str, device: torch.device) -> Backbone:
    return DinoV2(Path(path), device, cfg.resize_on, _channels_last(cfg), cfg.compile)


def _efficientnet(cfg: RunConfig, source: Source, name: str, device: torch.device) -> Backbone:
    return EfficientNetLite0(device, _channels_last(cfg), cfg.compile)


def _random(cfg: RunConfig, source: Source, name: str, device: torch.device) -> Backbone:
    return RandomNetwork(device, cfg.resize_on, _channels_last(cfg), cfg.compile)


# A new feature network is a line here, and one in the table of ``open_backbone``.
BACKBONES = {
    "builtin": BackboneKind(_builtin, ("",)),
    "host": BackboneKind(_of_host, HOST_NETWORKS),
    "torchscript": BackboneKind(_torchscript),
    "dinov2": BackboneKind(_dinov2),
    "efficientnet": BackboneKind(_efficientnet, ("",)),
    "random": BackboneKind(_random, ("",)),
}
