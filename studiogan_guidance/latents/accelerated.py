"""Views whose images are made in fast mode."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from studiogan_guidance import fast
from studiogan_guidance.fast import FilledIn, Graphed
from studiogan_guidance.latents.base import LatentView


def accelerated(view: LatentView, precision: str, size: int) -> LatentView:
    """``view`` with a generator under a precision and, on a GPU, as a CUDA graph; codes stay as they are.

    The graph is captured at the first batch. Calls with gradients, with hooks on the generator's feature maps or in
    training mode run without it, and where batch norms get other statistics it is captured anew. The weights of plain
    convolutions are laid out anew, channels last, which changes the rounding of ``view``, too.

    Args:
        view: of a generator itself.
        precision: one of ``fast.PRECISIONS``.
        size: images a batch; see ``Graphed``.
    """
    if view.channels_last:
        view.generator.to(memory_format=torch.channels_last)

    def run(code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        with FilledIn():
            return view.decode(code, z, noise)

    graph = Graphed(
        fast.lowered(run, precision, view.device),
        size,
        fast.capture_on(view.device),
        fast.memory_of(view.generator),
        "generator",
    )

    def decode(code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        with view.ledger.pausing():  # what is warmed up counts as nothing, and a replay does not count by itself
            images: Tensor = graph(code, z, noise)
        view.ledger.cost["synthesis"] += len(code)
        return images

    # What is cached on disk under the hash of the weights would not be that of the exact generator.
    networks = view.networks
    altered = view.altered(decode=decode)
    if precision != "float32" and networks.digest:
        altered.networks = dataclasses.replace(networks, digest=f"{networks.digest} {precision}")
    return altered
