"""The built-in GAN: network, real data, feature net and weights, so that every command runs without a host or a GPU."""

from __future__ import annotations

import hashlib
from importlib.resources import as_file, files
from typing import TypeVar

import torch
from torch import nn

from studiogan_guidance.builtin import data, network
from studiogan_guidance.latents.base import Networks

__all__ = ["data", "load", "network", "networks"]

M = TypeVar("M", bound=nn.Module)


def load(kind: type[M], name: str, device: str | torch.device = "cpu") -> tuple[M, str]:
    """One of the shipped networks (generator, discriminator, features) in evaluation mode, and its file's SHA-256."""
    from safetensors.torch import load_file

    with as_file(files(__package__).joinpath(f"{name}.safetensors")) as path:
        net = kind()
        net.load_state_dict(load_file(path))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return net.to(device).eval().requires_grad_(False), digest


def networks(device: str | torch.device = "cpu") -> Networks:
    """The built-in generator (moving average of its weights): MNIST digits, 32x32, 10 classes."""
    generator, digest = load(network.Generator, "generator", device)
    return Networks(
        generator=generator,
        backbone="builtin",
        num_classes=network.NUM_CLASSES,
        z_dim=network.Z_DIM,
        image_size=network.IMAGE_SIZE,
        device=torch.device(device),
        digest=digest,
        source="the built-in GAN",
    )
