"""Importance weights of latents: a small network of noise and class for a frozen generator, and its file.

Issenhuth et al. 2022, arXiv:2110.09803: images of latents that are drawn with density w(z) p(z) are nearer to the data
than those of the prior. The condition on the class, with an average of 1 within each of them, is our addition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import LatentView
from studiogan_guidance.latents.learned import fingerprint
from studiogan_guidance.latents.stored import Kind, wrong_size, wrong_tensor

KIND = Kind(
    "file of latent weights",
    "latent_reweighting.safetensors",
    "studiogan_guidance.latent_reweighting",
    "latent_reweighting",
    "weights_ckpt",
)
SIZES = ("z_width", "num_classes", "hidden", "depth")  # whole numbers in the metadata


class ImportanceWeights(nn.Module):
    """w(z, c) = softplus(a(z, c)) / log 2, above 0, for an MLP a that is 0 at the start, where all weights are 1.

    The class is a vector that is added to the first hidden layer.

    Args:
        z_width: numbers of noise an image, InfoGAN's included.
        num_classes: C.
        hidden: width of the hidden layers.
        depth: their number, 1 or more.
        base: the sampler on top of which the generator is reweighted, as ``samplers.options`` writes one.
    """

    def __init__(
        self, z_width: int, num_classes: int, hidden: int = 256, depth: int = 3, base: object = "plain"
    ) -> None:
        super().__init__()
        self.shape = {"z_width": z_width, "num_classes": num_classes, "hidden": hidden, "depth": depth}
        self.base = base

        # Layers; the last one is 0.
        self.first = nn.Linear(z_width, hidden)
        self.classes = nn.Embedding(num_classes, hidden)
        self.inner = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth - 1))
        self.last = nn.Linear(hidden, 1)
        nn.init.normal_(self.classes.weight, std=0.5)  # about what noise adds to the first layer
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """The weights [B] of noise [B, Z] with labels int64 [B], or class weights float [B, C]."""
        of_class = self.classes(labels) if labels.dim() == 1 else labels @ self.classes.weight
        hidden = F.leaky_relu(self.first(z) + of_class, 0.2)
        for layer in self.inner:
            hidden = F.leaky_relu(layer(hidden), 0.2)
        weights: Tensor = F.softplus(self.last(hidden).squeeze(1)) / math.log(2)
        return weights


def create(view: LatentView, hidden: int = 256, depth: int = 3, base: object = "plain") -> ImportanceWeights:
    """A network for a view whose weights are all 1."""
    return ImportanceWeights(_width(view), view.num_classes, hidden, depth, base).to(view.device)


def _width(view: LatentView) -> int:
    net = view.networks
    return net.z_dim + net.info_discrete * net.info_discrete_dim + net.info_continuous


def save(path: Path, weights: ImportanceWeights, view: LatentView, facts: Mapping[str, object]) -> None:
    """Write the network, with its generator and ``facts`` about its training, plain data, as metadata."""
    metadata = {
        "backbone": view.networks.backbone,
        "generator_sha256": fingerprint(view.generator),
        **weights.shape,
        "base": weights.base,
        "training": facts,
    }
    KIND.write(path, weights, metadata)


def load(path: Path, view: LatentView) -> ImportanceWeights:
    """The network in a file, on the view's device, in evaluation mode.

    Raises:
        UserError: a missing or damaged file, or one that was learned on another generator; the first thing that
            differs is named.
    """
    metadata, state = KIND.read(path)
    KIND.refuse_damage(path, _damage(metadata, state))

    # Refuse the weights of another generator.
    generator = {
        "backbone": view.networks.backbone,
        "z_width": _width(view),
        "num_classes": view.num_classes,
        "generator_sha256": fingerprint(view.generator),
    }
    for key, value in generator.items():
        if metadata.get(key) != value:
            raise UserError(
                f"the weights {path} were learned on another generator: their {key} is "
                f"{str(metadata.get(key))[:12]}, here it is {str(value)[:12]}: give those of this checkpoint, or train "
                "some"
            )

    weights = create(view, metadata["hidden"], metadata["depth"], metadata.get("base"))
    weights.load_state_dict(state)
    return weights.eval().requires_grad_(False)


def _damage(metadata: Mapping[str, Any], state: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the content of a file, None if nothing is; nothing is allocated by what the metadata say."""
    if reason := wrong_size(metadata, SIZES):
        return reason
    if not 1 <= metadata["depth"] <= len(state):
        return f"its depth is {metadata['depth']:,}, and it has {len(state)} tensors"
    return wrong_tensor(state, _shapes(metadata))


def _shapes(metadata: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors by the sizes; see ``ImportanceWeights``."""
    hidden = metadata["hidden"]
    shapes: dict[str, tuple[int, ...]] = {
        "first.weight": (hidden, metadata["z_width"]),
        "first.bias": (hidden,),
        "classes.weight": (metadata["num_classes"], hidden),
        "last.weight": (1, hidden),
        "last.bias": (1,),
    }
    for i in range(metadata["depth"] - 1):
        shapes[f"inner.{i}.weight"] = (hidden, hidden)
        shapes[f"inner.{i}.bias"] = (hidden,)
    return shapes


def of_view(view: LatentView, ckpt: str | None) -> ImportanceWeights:
    """The network in the file ``ckpt``, by default the one beside the checkpoint; loaded once a view."""
    return view.bare.once(("latent weights", ckpt), lambda: load(KIND.path(view, ckpt), view))
