"""The built-in GAN: network, real data, feature net and weights, so that every command runs without a host or a GPU."""

from __future__ import annotations

import copy
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from studiogan_guidance import submodules
from studiogan_guidance.builtin import data, network
from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.files import file_digest
from studiogan_guidance.latents.base import Companions, Networks, weights_digest

__all__ = ["data", "discriminator", "load", "network", "networks"]

M = TypeVar("M", bound=nn.Module)


def load(kind: type[M], name: str, device: str | torch.device = "cpu") -> tuple[M, str]:
    """One of the shipped networks (generator, discriminator, features) in evaluation mode, and its file's SHA-256."""
    from safetensors.torch import load_file

    net = kind()
    with as_file(files(__package__).joinpath(f"{name}.safetensors")) as path:
        net.load_state_dict(load_file(path))
        digest = file_digest(path)
    return net.to(device).eval().requires_grad_(False), digest


def networks(device: str | torch.device = "cpu") -> Networks:
    """The built-in generator (moving average of its weights): MNIST digits, 32x32, 10 classes."""
    generator, _ = load(network.Generator, "generator", device)

    return Networks(
        generator=generator,
        backbone="builtin",
        num_classes=network.NUM_CLASSES,
        z_dim=network.Z_DIM,
        image_size=network.IMAGE_SIZE,
        device=torch.device(device),
        digest=weights_digest(generator),
        source="the built-in GAN",
        companions=Companions(
            discriminator=lambda: discriminator(device),
            held_out=held_out,
            held_out_name=lambda: "valid split of MNIST-5k",
            snapshot=lambda path: snapshot(generator, path),
        ),
    )


def discriminator(device: str | torch.device = "cpu") -> network.Discriminator:
    """The discriminator that the built-in generator was trained against."""
    net, _ = load(network.Discriminator, "discriminator", device)
    return net


def held_out(count: int) -> tuple[Tensor, Tensor]:
    """Up to ``count`` digits of the valid split, which the discriminator has not seen, and their labels."""
    images, labels = data.digits("valid")
    return images[:count], labels[:count]


def snapshot(generator: network.Generator, path: str) -> network.Generator:
    """A copy of ``generator`` with the weights of a safetensors file, as ``python -m ...builtin.train`` writes it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    other = copy.deepcopy(generator)
    try:
        other.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"cannot read the built-in's weights in {path}: {one_line(error)}") from error
    return other.eval().requires_grad_(False)


if not TYPE_CHECKING:  # where types are checked, a name that is missing is an error
    __getattr__ = submodules(__name__)
