"""Estimators of the joint: the code of "no particular class", from which guidance moves away.

Write f(z, c) = mu + a(z) + b(c) + i(z, c). Guided by scale s, ``class_mean`` multiplies b and i by s, ``class_shift``
b alone, ``global_mean`` a, b and i. The paper (GANdance, ECCV 2024) says that the joint comes from vector arithmetic in
the latent space of the conditional generator and is itself a distribution; it publishes no formula. ``class_mean`` is
our reading of it, the others are the alternatives. On embeddings and label vectors, which ignore z, all of them but
``class_subset`` and ``learned`` are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from studiogan_guidance.devices import to_device
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.registry import Registry


@dataclass(frozen=True)
class JointOptions:
    """What some estimators need to know.

    Attributes:
        subset: number of classes of ``class_subset``.
        ckpt: file of the learned joint; None: the one beside the checkpoint.
        network: a learned joint in memory, in place of the file.
        scale: the scale of guidance, for estimators that are to hit a target t at it: code - (t - code) / (scale - 1).
    """

    subset: int = 8
    ckpt: str | None = None
    network: nn.Module | None = None
    scale: float = 1.2


OF_CODES = ("global_mean", "gaussian", "gaussian_shift", "frechet")  # functions of code and class, of class means, too
WITHOUT_Z = ("class_mean", "global_mean", "class_shift", "mean_embedding")  # one joint, where codes ignore z
GANDANCE = "Zhang et al., GANdance, ECCV 2024"
OURS = f"this package, after {GANDANCE}"
Estimator = Callable[[LatentView, Inputs, Tensor, JointOptions], Tensor]
JOINTS: Registry[Estimator] = Registry("joint", "studiogan_guidance.joints")


@JOINTS.register("class_mean", "mean of f(z, c) over all classes, same z (C mapping passes)", GANDANCE)
def class_mean(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """(1/C) sum_c f(z, c)."""
    labels = torch.arange(view.num_classes, device=code.device).expand(len(code), -1)
    return view.mean_over_classes(inputs.z, labels)


@JOINTS.register("class_subset", "mean of f(z, c) over K classes drawn for each image (K mapping passes)", OURS)
def class_subset(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """(1/K) sum_k f(z, c_k), the c_k drawn without repetition from the image's own generator; K is at most C."""
    subsets = [torch.randperm(view.num_classes, generator=gen)[: options.subset] for gen in inputs.generators]
    return view.mean_over_classes(inputs.z, to_device(torch.stack(subsets), code.device))


@JOINTS.register("global_mean", "one mean code over noise and classes (free; scale < 1 is psi truncation)", OURS)
def global_mean(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """E f(z, c), the same for every image."""
    return view.global_mean().expand_as(code)


@JOINTS.register("class_shift", "code minus the offset of its class mean from the mean of all (free)", OURS)
def class_shift(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """f(z, c) - (m_c - m), with the class means m_c and their mean m."""
    means = view.class_means()
    return code - (of_class(means, inputs.labels) - means.mean(0))


@JOINTS.register("mean_embedding", "f(z, mean one-hot label) (one mapping pass)", OURS)
def mean_embedding(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """f(z, (1/C, ..., 1/C)); off the training domain of f."""
    weights = torch.full((len(code), view.num_classes), 1 / view.num_classes, device=code.device)
    return view.encode(inputs.z, weights)


def with_code(name: str, view: LatentView, inputs: Inputs, options: JointOptions) -> tuple[Tensor, Tensor]:
    """The codes of a batch and their joint, both [B, ...]; out of one pass where both come from the same network."""
    if name in TOGETHER:
        return TOGETHER[name](view, inputs, options)
    code = view.encode(inputs.z, inputs.labels)
    return code, JOINTS[name].target(view, inputs, code, options)


def _with_class_mean(view: LatentView, inputs: Inputs, options: JointOptions) -> tuple[Tensor, Tensor]:
    return view.encode_with_class_mean(inputs.z, inputs.labels)


def _with_mean_embedding(view: LatentView, inputs: Inputs, options: JointOptions) -> tuple[Tensor, Tensor]:
    labels = inputs.labels
    weights = view.unit_vectors()[labels] if labels.dim() == 1 else labels
    mean = torch.full_like(weights, 1 / view.num_classes)
    code, joint = view.encode(inputs.z.repeat(2, 1), torch.cat([weights, mean])).split(len(labels))
    return code, joint


TOGETHER: dict[str, Callable[[LatentView, Inputs, JointOptions], tuple[Tensor, Tensor]]] = {
    "class_mean": _with_class_mean,
    "mean_embedding": _with_mean_embedding,
}


def of_class(table: Tensor, labels: Tensor) -> Tensor:
    """The rows of ``table`` [C, ...] for labels int64 [B], or their mean for class weights [B, C]; [B, ...]."""
    return table[labels] if labels.dim() == 1 else torch.tensordot(labels, table, 1)
