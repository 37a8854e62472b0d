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
        weights: how often each class counts in means over classes, [C], sum 1; None: all alike.
    """

    subset: int = 8
    ckpt: str | None = None
    network: nn.Module | None = None
    scale: float = 1.2
    weights: Tensor | None = None


OF_CODES = (
    "global_mean",
    "gaussian",
    "gaussian_shift",
    "frechet",
    "amortised",
)  # functions of code and class, of class means, too
WITHOUT_Z = ("class_mean", "global_mean", "class_shift", "mean_embedding")  # one joint, where codes ignore z
SMALLEST = 1e-9  # weight of a class that is never drawn, among a few that are averaged
GANDANCE = "Zhang et al., GANdance, ECCV 2024"
OURS = f"this package, after {GANDANCE}"
Estimator = Callable[[LatentView, Inputs, Tensor, JointOptions], Tensor]
JOINTS: Registry[Estimator] = Registry("joint", "studiogan_guidance.joints")


@JOINTS.register("class_mean", "mean of f(z, c) over all classes, same z (C mapping passes)", GANDANCE)
def class_mean(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """(1/C) sum_c f(z, c), or the mean by the weights of the classes."""
    labels = torch.arange(view.num_classes, device=code.device).expand(len(code), -1)
    weights = None if options.weights is None else options.weights.expand(len(code), -1)
    return view.mean_over_classes(inputs.z, labels, weights)


@JOINTS.register("class_subset", "mean of f(z, c) over K classes drawn for each image (K mapping passes)", OURS)
def class_subset(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """(1/K) sum_k f(z, c_k), the c_k drawn without repetition from the image's own generator; K is at most C."""
    subsets = [torch.randperm(view.num_classes, generator=gen)[: options.subset] for gen in inputs.generators]
    labels = to_device(torch.stack(subsets), code.device)
    weights = None if options.weights is None else options.weights.clamp_min(SMALLEST)[labels]
    return view.mean_over_classes(inputs.z, labels, weights)


@JOINTS.register("global_mean", "one mean code over noise and classes (free; scale < 1 is psi truncation)", OURS)
def global_mean(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """E f(z, c), the same for every image; of w it is the average that training kept, over the labels of training."""
    if view.rows is None and options.weights is not None:
        return mean_of_classes(view.class_means(), options).expand_as(code)
    return view.global_mean().expand_as(code)


@JOINTS.register("class_shift", "code minus the offset of its class mean from the mean of all (free)", OURS)
def class_shift(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """f(z, c) - (m_c - m), with the class means m_c and their mean m."""
    means = view.class_means()
    return code - (of_class(means, inputs.labels) - mean_of_classes(means, options))


@JOINTS.register("mean_embedding", "f(z, mean one-hot label) (one mapping pass)", OURS)
def mean_embedding(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """f(z, (1/C, ..., 1/C)), or the weights of the classes in its place; off the training domain of f."""
    return view.encode(inputs.z, _mean_label(view, options).expand(len(code), -1))


def _mean_label(view: LatentView, options: JointOptions) -> Tensor:
    """The weights of the classes, [1, C]."""
    if options.weights is not None:
        return options.weights[None]
    return torch.full((1, view.num_classes), 1 / view.num_classes, device=view.device)


def with_code(name: str, view: LatentView, inputs: Inputs, options: JointOptions) -> tuple[Tensor, Tensor]:
    """The codes of a batch and their joint, both [B, ...]; out of one pass where both come from the same network."""
    if name in TOGETHER:
        return TOGETHER[name](view, inputs, options)
    code = view.encode(inputs.z, inputs.labels)
    return code, JOINTS[name].target(view, inputs, code, options)


def _with_class_mean(view: LatentView, inputs: Inputs, options: JointOptions) -> tuple[Tensor, Tensor]:
    return view.encode_with_class_mean(inputs.z, inputs.labels, options.weights)


def _with_mean_embedding(view: LatentView, inputs: Inputs, options: JointOptions) -> tuple[Tensor, Tensor]:
    labels = inputs.labels
    weights = view.unit_vectors()[labels] if labels.dim() == 1 else labels
    mean = _mean_label(view, options).expand_as(weights)
    code, joint = view.encode(inputs.z.repeat(2, 1), torch.cat([weights, mean])).split(len(labels))
    return code, joint


TOGETHER: dict[str, Callable[[LatentView, Inputs, JointOptions], tuple[Tensor, Tensor]]] = {
    "class_mean": _with_class_mean,
    "mean_embedding": _with_mean_embedding,
}


def mean_of_classes(table: Tensor, options: JointOptions) -> Tensor:
    """The mean of ``table`` [C, ...] over classes, by their weights; [...]."""
    return table.mean(0) if options.weights is None else torch.tensordot(options.weights, table, 1)


def of_class(table: Tensor, labels: Tensor) -> Tensor:
    """The rows of ``table`` [C, ...] for labels int64 [B], or their mean for class weights [B, C]; [B, ...]."""
    return table[labels] if labels.dim() == 1 else torch.tensordot(labels, table, 1)
