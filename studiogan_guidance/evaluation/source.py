"""What a configuration points at, opened: the generator, the real images, the feature network."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studiogan_guidance.builtin.backbone import BuiltinBackbone
from studiogan_guidance.builtin.images import BuiltinImages
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.features.dinov2 import DinoV2
from studiogan_guidance.features.images import Real, spread_images, told
from studiogan_guidance.features.stats import Backbone
from studiogan_guidance.features.torchscript import TorchScript
from studiogan_guidance.latents import Networks
from studiogan_guidance.latents.base import Companions


@dataclass(frozen=True)
class Bench:
    """What a generator is measured with."""

    real: Real
    backbone: Backbone
    protocol: dict[str, Any]


def device_of(name: str) -> torch.device:
    """auto, cpu, cuda (under torchrun: this process's) or cuda:N as a device that exists here; UserError otherwise."""
    own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    name = {"auto": own if torch.cuda.is_available() else "cpu", "cuda": own}.get(name, name)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device is '{name}': give auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is '{name}': give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device is '{name}', but {torch.cuda.device_count()} CUDA devices are visible: use --device cpu"
        )
    return device


def open_networks(cfg: RunConfig) -> Networks:
    """The generator of a configuration: the host's checkpoint or the built-in."""
    device = device_of(cfg.device)
    if not cfg.uses_host:
        from studiogan_guidance import builtin

        return builtin.networks(device)
    from studiogan_guidance.host import networks
    from studiogan_guidance.host.locate import locate

    loaded = networks.load(cfg, locate(cfg.studiogan), device)
    real = functools.cache(lambda: _held_out(cfg, loaded))
    companions = Companions(
        discriminator=lambda: open_discriminator(cfg),
        held_out=lambda count: spread_images(real(), count),
        held_out_name=lambda: told(real()),
        snapshot=lambda path: networks.snapshot(loaded.generator, path, cfg),
    )
    return dataclasses.replace(loaded, companions=companions)


def held_out_split(cfg: RunConfig) -> str:
    """The split of a checkpoint's data that its discriminator was not trained on: valid, or test for CIFAR."""
    return "test" if validation_split(cfg) == "train" else "valid"


def _held_out(cfg: RunConfig, networks: Networks) -> Real:
    if not (cfg.held_out or cfg.data):
        raise UserError(
            "this sampler calibrates the discriminator on held-out real images: add --held-out DIR (or --data DIR), or "
            "say -o calibration=none"
        )
    return open_real(dataclasses.replace(cfg, data=cfg.held_out or cfg.data, reference=held_out_split(cfg)), networks)


def open_discriminator(cfg: RunConfig) -> torch.nn.Module:
    """The discriminator beside the generator of a configuration."""
    device = device_of(cfg.device)
    if not cfg.uses_host:
        from studiogan_guidance import builtin

        return builtin.load(builtin.network.Discriminator, "discriminator", device)[0]
    from studiogan_guidance.host import networks
    from studiogan_guidance.host.locate import locate

    return networks.load_discriminator(cfg, locate(cfg.studiogan), device)


def open_real(cfg: RunConfig, networks: Networks) -> Real:
    """The real images of a configuration."""
    if not cfg.uses_host:
        return BuiltinImages(cfg.reference or "test")
    from studiogan_guidance.host.images import RealImages
    from studiogan_guidance.host.locate import locate
    from studiogan_guidance.host.networks import host_yaml

    checkout = locate(cfg.studiogan)
    return RealImages(cfg, checkout, _data_name(host_yaml(cfg, checkout)), networks.image_size)


def validation_split(cfg: RunConfig) -> str:
    """The split to choose options on: valid, or train for CIFAR, which has no other than train and test."""
    if not cfg.uses_host:
        return "valid"
    from studiogan_guidance.host.locate import locate
    from studiogan_guidance.host.networks import host_yaml

    return "train" if _data_name(host_yaml(cfg, locate(cfg.studiogan))).startswith("CIFAR") else "valid"


def _model_digest(cfg: RunConfig) -> str:
    """A hash of the sections of the host's YAML that a generator is built from."""
    if not cfg.uses_host:
        return ""
    from studiogan_guidance.host.locate import locate
    from studiogan_guidance.host.networks import host_yaml

    sections = host_yaml(cfg, locate(cfg.studiogan))
    built = {key: sections.get(key) for key in ("DATA", "MODEL", "STYLEGAN")}
    return hashlib.sha256(json.dumps(built, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _data_name(sections: Mapping[str, Any]) -> str:
    return str((sections.get("DATA") or {}).get("name", "CIFAR10"))


def open_bench(cfg: RunConfig, networks: Networks) -> Bench:
    """The real images and the feature network of a configuration."""
    real, backbone = open_real(cfg, networks), open_backbone(cfg, networks.device)
    if not cfg.uses_host:
        return Bench(real, backbone, {})
    from studiogan_guidance.host.locate import locate

    return Bench(real, backbone, {"host_commit": locate(cfg.studiogan).commit or "unknown"})


HOST = ("InceptionV3_tf", "InceptionV3_torch", "ResNet50_torch", "SwAV_torch", "DINO_torch", "Swin-T_torch")
KNOWN = ("builtin", *(f"host:{name}" for name in HOST), "torchscript:PATH", "dinov2:PATH")


def open_backbone(cfg: RunConfig, device: torch.device) -> Backbone:
    """The feature network that ``cfg.backbone`` names; by default the host's Inception, the built-in GAN's own.

    ====================  ==============================================================================================
    builtin               the classifier of digits, for images of 32x32
    host:NAME, or NAME    one of the host's networks (see HOST), with the host's resizers
    torchscript:PATH      takes uint8 images [B, 3, H, W], returns features [B, D], or them and class logits [B, K];
                          ``return_features`` of its forward (NVIDIA's inception-2015-12-05.pt) is set to true
    dinov2:PATH           facebook's or timm's weights of a DINOv2 ViT, as .pth or .safetensors; needs timm
    ====================  ==============================================================================================

    Raises:
        UserError: an unknown name, a missing, damaged or foreign file, a missing package.
    """
    spec = cfg.backbone or ("host:InceptionV3_tf" if cfg.uses_host else "builtin")
    kind, _, name = spec.partition(":")
    if spec in HOST:
        kind, name = "host", spec
    if spec == "builtin":
        return BuiltinBackbone(device, not cfg.uses_host, cfg.channels_last, cfg.compile)
    if kind == "torchscript" and name:
        if cfg.channels_last or cfg.compile or cfg.resize_on != "cpu":
            raise UserError(
                f"--backbone {spec} runs as it was saved: leave out --channels-last, --compile, --resize-on"
            )
        return TorchScript(Path(name), device)
    if kind == "dinov2" and name:
        return DinoV2(Path(name), device, cfg.resize_on, cfg.channels_last, cfg.compile)
    if kind == "host" and name in HOST:
        from studiogan_guidance.host.backbone import HostBackbone
        from studiogan_guidance.host.locate import locate

        checkout = locate(cfg.studiogan)
        return HostBackbone(name, checkout, device, cfg.resizer, cfg.resize_on, cfg.channels_last, cfg.compile)
    raise UserError(f"--backbone is '{spec}': {nearest(spec, KNOWN)}")
