"""Discriminator optimal transport: the latent moves no farther than the discriminator's gain pays for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.batches import Halving
from studiogan_guidance.critics.log_ratio import BATCH_SIZE, LogRatio
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import LabelPlan, LatentView
from studiogan_guidance.progress import track
from studiogan_guidance.samplers import spaces
from studiogan_guidance.samplers.base import SAMPLERS, check_at_least, check_choice, check_positive
from studiogan_guidance.samplers.chain import LatentChain, Target, Walk

PROJECTIONS = ("tangent", "none")
DELTA = 1e-3  # keeps the distance differentiable where the transport starts


def transport_slope(z: Tensor, start: Tensor, slope: Tensor) -> Tensor:
    """The gradient of ``|z - start + delta|_2 - d(G(z)) / k``, [B, D]; ``slope`` is that of d / k.

    Tanaka 2019, arXiv:1910.06832, algorithm 2 (in the latent).
    """
    away = z - start + DELTA
    towards: Tensor = away / torch.linalg.vector_norm(away, dim=1, keepdim=True)
    return towards - slope


def projected(gradient: Tensor, z: Tensor, projection: str) -> Tensor:
    """``gradient`` [B, D] without its radial part: ``g - z (z . g) / |z|^2``, which keeps |z|; ``none`` is g itself."""
    if projection == "none":
        return gradient
    square = z.square().sum(1, keepdim=True).clamp_min(1e-12)
    return gradient - z * (z * gradient).sum(1, keepdim=True) / square


@SAMPLERS.register(
    "dot",
    "moves the latent towards higher logits, by no more than they pay for",
    "Tanaka 2019, arXiv:1910.06832",
    family="discriminator",
    needs=("discriminator", "gradient"),
    neutral={"steps": 0},
)
@dataclass(frozen=True)
class DOT(LatentChain):
    """Move each latent z_y to where the discriminator's logit, over its Lipschitz constant, gains most per distance.

    min_z |z - z_y + delta|_2 - d(G(z)) / k_eff, delta = 0.001, by gradient descent from z_y. k_eff is the largest
    |d(G(z1)) - d(G(z2))| / |z1 - z2| over pairs of draws of the class, estimated once; where the slope of d is less
    than k_eff, moving does not pay. For k_eff the logit of a projection discriminator goes without the term of the
    class, as in the published code (other conditional logits are no such sums, and count with their class).

    A Gaussian prior has the radial part of the gradient removed, a uniform one clips z to [-1, 1]. Layer noise and
    InfoGAN's numbers of an image stay as they are. Calibration by a logistic map changes nothing, as k_eff is in the
    same units; but it refuses a discriminator that ranks fakes first.

    The published code removes about sqrt(D) times the radial part, which drives |z| away; here it is removed exactly.

    Paper: Tanaka, "Discriminator optimal transport", NeurIPS 2019, arXiv:1910.06832, algorithm 2; steps and rate
    as in its scripts, which take up to 30 steps with classes and up to 100 without.

    Args:
        steps: from 0 (neutral) up.
        rate: step size of the descent, positive.
        k_eff: positive, the same for all classes; None estimates it for each class.
        pairs: number of pairs of draws behind each estimate, from 1 up; the scripts take 50 with classes, 100 without.
        projection: for Gaussian priors, tangent, or none.
        base, calibration, calibration_images: see ``RatioSampler``.

    Notes of each image: ``score`` and ``score_start``, the log ratio at both ends; ``norm``, |z| / sqrt(D), 1 in the
    prior; ``moved``, |z - z_y|; ``k_eff``.

    Raises:
        UserError: values out of range, no discriminator, or one that is constant over the pairs of a class.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("dot", {"steps": 2, "pairs": 10, "calibration_images": 100})
        >>> batch = next(sampler.stream(view, range(2), 2, LabelPlan(classes=(3,))))
        >>> batch.cost["backward"], batch.notes["k_eff"].unique().numel()
        (4, 1)
    """

    steps: int = 30
    rate: float = 0.01
    k_eff: float | None = None
    pairs: int = 100
    projection: str = "tangent"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, pairs=1)
        check_choice(self, projection=PROJECTIONS)
        check_positive("dot.rate", self.rate, "leave it out for the default")
        if self.k_eff is not None:
            check_positive("dot.k_eff", self.k_eff, "leave it out for the default")

    def walk(self, target: Target) -> Walk:
        start = target.latent.start
        labels = target.inputs.labels.tolist()
        k = torch.tensor([self.constant(target.view, label, target.ratio) for label in labels]).to(start)

        # Descend, and stay in the prior.
        z = start
        for _ in range(self.steps):
            _, slope = target.slope(z)
            gradient = transport_slope(z, start, slope / k[:, None])
            if target.latent.gaussian:
                z = z - self.rate * projected(gradient, z, self.projection)
            else:
                z = (z - self.rate * gradient).clamp(-1, 1)
        return z, {"moved": torch.linalg.vector_norm(z - start, dim=1), "k_eff": k}

    def constant(self, view: LatentView, label: int, ratio: LogRatio) -> float:
        """k_eff of a class: the largest slope of the log ratio between the two draws of a pair.

        Raises:
            UserError: a discriminator that is constant over the pairs.
        """
        if self.k_eff is not None:
            return self.k_eff
        return view.once(f"k_eff of {label} of {self}", lambda: self._largest_slope(view, label, ratio))

    def _largest_slope(self, view: LatentView, label: int, ratio: LogRatio) -> float:
        largest = 0.0
        halving = Halving()
        with view.frozen(), torch.no_grad():
            for first in track(range(0, self.pairs, BATCH_SIZE), "pairs for k_eff", self.pairs, BATCH_SIZE):
                pairs = range(first, min(first + BATCH_SIZE, self.pairs))
                for slopes in halving(partial(self._slopes, view, label, ratio), pairs):
                    largest = max(largest, float(slopes.max()))
        if not largest > 0:
            raise UserError(f"the discriminator is constant over class {label}, so nothing can move: give dot.k_eff")
        return largest

    def _slopes(self, view: LatentView, label: int, ratio: LogRatio, pairs: range) -> Tensor:
        """|d(G(z1)) - d(G(z2))| / |z1 - z2| of each pair."""
        seeds = [rng.PILOTS + (label * self.pairs + pair) % 2**28 for pair in pairs]
        inputs = view.draw(seeds, 0, LabelPlan((label,)), "const")
        latent = spaces.of_inputs(view, inputs)
        z1 = latent.start
        z2 = latent.draw(inputs.generators)

        ratio = replace(ratio, with_class=False)
        gain = ratio(latent.images(z1), inputs.labels) - ratio(latent.images(z2), inputs.labels)
        distance: Tensor = torch.linalg.vector_norm(z1 - z2, dim=1)
        return gain.abs() / distance
