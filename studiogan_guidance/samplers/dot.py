"""Discriminator optimal transport: the latent moves no farther than the discriminator's gain pays for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.critics.log_ratio import BATCH_SIZE, LogRatio
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView
from studiogan_guidance.samplers import chain
from studiogan_guidance.samplers.base import SAMPLERS, Sampled, check_at_least, check_choice, check_finite
from studiogan_guidance.samplers.chain import climb
from studiogan_guidance.samplers.ratio import GradientSampler, with_facts

PROJECTIONS = ("tangent", "coded", "none")
DELTA = 1e-3  # keeps the distance differentiable where the transport starts


def transport_slope(z: Tensor, start: Tensor, slope: Tensor) -> Tensor:
    """The gradient of ``|z - start + delta|_2 - d(G(z)) / k``, [B, D]; ``slope`` is that of d / k.

    Tanaka 2019, arXiv:1910.06832, algorithm 2 (in the latent).
    """
    away = z - start + DELTA
    towards: Tensor = away / torch.linalg.vector_norm(away, dim=1, keepdim=True)
    return towards - slope


def projected(gradient: Tensor, z: Tensor, projection: str) -> Tensor:
    """``gradient`` [B, D] less its radial part: ``g - z (z . g) / |z|^2`` for tangent, which keeps |z|.

    ``coded`` divides by sqrt(D) instead of |z|^2, about D, so it takes sqrt(D) times as much; ``none`` is g itself.
    """
    if projection == "none":
        return gradient
    square = z.square().sum(1, keepdim=True).clamp_min(1e-12) if projection == "tangent" else z.shape[1] ** 0.5
    return gradient - z * (z * gradient).sum(1, keepdim=True) / square


@SAMPLERS.register(
    "dot",
    "transport of the latent towards higher logits, by no more than they pay for",
    "Tanaka 2019, arXiv:1910.06832",
)
@dataclass(frozen=True)
class DOT(GradientSampler):
    """Move each latent z_y to where the discriminator's logit, over its Lipschitz constant, gains most per distance.

    min_z |z - z_y + delta|_2 - d(G(z)) / k_eff, delta = 0.001, by gradient descent from z_y. k_eff is the largest
    |d(G(z1)) - d(G(z2))| / |z1 - z2| over pairs of draws of the class, made once; where the slope of d is less than
    k_eff, moving does not pay. Of Gaussian priors the radial part of the gradient is taken away, uniform ones clip z to
    [-1, 1]. Layer noise and InfoGAN's numbers of an image stay as they are. Calibration by a logistic map changes
    nothing, as k_eff is in the same units; but it refuses a discriminator that ranks fakes first.

    Paper: Tanaka, "Discriminator optimal transport", NeurIPS 2019, arXiv:1910.06832, algorithm 2; rate as in its
    scripts, which take 10 to 100 steps.

    Args:
        steps: from 0 (neutral) up.
        rate: of the descent, positive.
        k_eff: positive: that number for all classes; None estimates it for each.
        pairs: of draws behind each estimate, from 1 up.
        projection: for Gaussian priors, tangent (exact), coded (as in the published code: takes away about sqrt(D)
            times the radial part, so |z| runs off, and without end where the gradient points inwards), or none.
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

    steps: int = 20
    rate: float = 0.01
    k_eff: float | None = None
    pairs: int = 100
    projection: str = "tangent"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, steps=0, pairs=1)
        check_choice(self, projection=PROJECTIONS)
        for name in ("rate", "k_eff"):
            value = getattr(self, name)
            if value is not None:
                check_finite(f"dot.{name}", value)
                if not value > 0:
                    raise UserError(f"dot.{name} must be positive, found {value}: leave it out for the default")

    @property
    def _is_identity(self) -> bool:
        return self.steps == 0

    def constant(self, view: LatentView, label: int, ratio: LogRatio) -> float:
        """k_eff of a class: the largest slope of the log ratio between the two draws of a pair."""

        def slopes(some: range) -> Tensor:
            seeds = [rng.PILOTS + (label * self.pairs + i) % 2**28 for i in some]
            inputs = view.draw(seeds, 0, LabelPlan((label,)), "const")
            place = chain.of_inputs(view, inputs)
            one, two = place.start, place.draw(inputs.generators)
            gain = ratio(place.images(one), inputs.labels) - ratio(place.images(two), inputs.labels)
            apart: Tensor = torch.linalg.vector_norm(one - two, dim=1)
            return gain.abs() / apart

        def made() -> float:
            starts = range(0, self.pairs, BATCH_SIZE)
            with view.frozen(), torch.no_grad():
                found = max(float(slopes(range(s, min(s + BATCH_SIZE, self.pairs))).max()) for s in starts)
            if not found > 0:
                raise UserError(
                    f"the discriminator is constant over class {label}, so nothing can move: give dot.k_eff"
                )
            return found

        return view.once(f"k_eff of {label} of {self}", made) if self.k_eff is None else self.k_eff

    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        ratio, place, labels = self.ratio(view, inputs.noise_mode), chain.of_inputs(view, inputs), inputs.labels
        k = torch.tensor([self.constant(view, label, ratio) for label in labels.tolist()]).to(place.start)
        z, start = place.start, None
        for _ in range(self.steps):
            d, slope = climb(lambda u: ratio(place.images(u), labels), z)
            view.ledger.cost["backward"] += len(z)
            start = d if start is None else start
            gradient = transport_slope(z, place.start, slope / k[:, None])
            if place.gaussian:
                z = z - self.rate * projected(gradient, z, self.projection)
            else:
                z = (z - self.rate * gradient).clamp(-1, 1)
        images = place.images(z)
        norm = torch.linalg.vector_norm(z, dim=1) / z.shape[1] ** 0.5
        moved = torch.linalg.vector_norm(z - place.start, dim=1)
        assert start is not None  # without steps this is not called
        return Sampled(
            images, with_facts(ratio, score=ratio(images, labels), score_start=start, norm=norm, moved=moved, k_eff=k)
        )
