"""Discriminator rejection sampling: propose, and accept with the density ratio over its largest value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView
from studiogan_guidance.samplers.base import SAMPLERS, Sampled, check_at_least, check_finite
from studiogan_guidance.samplers.ratio import RatioSampler, with_facts

TRIES = 10_000  # proposals for one image before giving up
LEAST = 50  # fakes behind the bound of a class


def acceptance(ratio: Tensor, bound: float | Tensor, gamma: float | Tensor = 0.0, epsilon: float = 1e-6) -> Tensor:
    """F = delta - log(1 - exp(delta - epsilon)) - gamma with delta = ratio - bound, at most 0; any shape.

    A fake is accepted with probability sigmoid(F); for gamma = 0 and epsilon -> 0 that is exp(delta), ordinary
    rejection. Azadi et al. 2019, arXiv:1810.06758, eq. 8.
    """
    delta = (ratio - bound).clamp(max=0)
    return delta - torch.log(-torch.expm1(delta - epsilon)) - gamma


@SAMPLERS.register(
    "drs", "rejection by the discriminator, with bounds for each class", "Azadi et al. 2019, arXiv:1810.06758"
)
@dataclass(frozen=True)
class DRS(RatioSampler):
    """Draw images of the wanted class until the discriminator accepts one; each seed gives exactly one image.

    The bound of a class is the largest log ratio among ``burn_in`` fakes, and gamma the percentile of F among them.
    Both are fixed then (the paper raises them as it goes, which would make images depend on each other); a fake beyond
    the bound is accepted with the probability of one at the bound. The first proposal is the plain image.

    Paper: Azadi et al., "Discriminator rejection sampling", ICLR 2019, arXiv:1810.06758, algorithm 1.

    Args:
        percentile: of F, 0 to 100, that becomes gamma; more accepts fewer, better images; 80 to 95 is usual; None
            accepts everything (neutral).
        gamma: that number itself instead; 0 is ordinary rejection.
        epsilon: positive; keeps F finite at the bound.
        burn_in: number of fakes in all behind the bounds, shared by the classes, at least 50 each.
        base, calibration, calibration_images: see ``RatioSampler``.

    Notes of each image: ``score``, its log ratio; ``tries``, its number of proposals.

    Raises:
        UserError: values out of range, no discriminator, or 10,000 proposals in vain.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("drs", {"burn_in": 100, "calibration": "none"})
        >>> batch = next(sampler.stream(view, range(4), 4, LabelPlan(classes=(3,))))
        >>> batch.cost["accepted"], batch.cost["proposed"] >= 4
        (4, True)
    """

    percentile: float | None = 80.0
    gamma: float | None = None
    epsilon: float = 1e-6
    burn_in: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, percentile=0, burn_in=1)
        if self.percentile is not None and self.percentile > 100:
            raise UserError(f"drs.percentile must be at most 100, found {self.percentile}: 80 is usual")
        if not self.epsilon > 0:
            raise UserError(f"drs.epsilon must be positive, found {self.epsilon}: 1e-6 is usual")
        if self.gamma is not None:
            check_finite("drs.gamma", self.gamma)

    @property
    def _is_identity(self) -> bool:
        return self.gamma is None and self.percentile is None

    def limits(self, view: LatentView, label: int, mode: str) -> tuple[float, float]:
        """(bound, gamma) of a class."""
        size = max(LEAST, math.ceil(self.burn_in / view.num_classes))

        def made() -> tuple[float, float]:
            ratios = torch.from_numpy(self.pool_ratios(view, label, size, mode))
            found = acceptance(ratios, float(ratios.max()), epsilon=self.epsilon).numpy()
            gamma = float(np.percentile(found, self.percentile or 0)) if self.gamma is None else self.gamma
            return float(ratios.max()), gamma

        return view.once(f"limits {label} {mode} of {self}", made)

    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        ratio, labels = self.ratio(view, inputs.noise_mode), inputs.labels.tolist()
        count, mode = len(labels), inputs.noise_mode
        limits = torch.tensor([self.limits(view, label, mode) for label in labels], dtype=torch.float64)
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        tries = torch.zeros(count)
        rows, proposal = list(range(count)), inputs
        while True:
            images = view.images(proposal)
            ratios = ratio(images, proposal.labels)
            bound, gamma = limits[rows].unbind(1)
            chance = torch.sigmoid(acceptance(ratios.cpu().double(), bound, gamma, self.epsilon))
            accepted = rng.unit(proposal.generators) < chance
            for i, row in enumerate(rows):  # an image's proposals stand in their order: the first accepted one counts
                if row not in kept:
                    tries[row] += 1
                    if accepted[i]:
                        kept[row] = images[i], ratios[i]
            todo = [row for row in range(count) if row not in kept]
            if not todo:
                break
            if tries.max() >= TRIES:
                raise UserError(f"{self} accepted none of {TRIES} images of class {labels[todo[0]]}: lower percentile")
            rows = todo * (count // len(todo))  # few images left: several proposals for each at once
            seeds = [int(rng.randint([inputs.generators[row]], 2**31 - 1)) for row in rows]
            proposal = view.draw(seeds, 0, LabelPlan(tuple(labels[row] for row in rows)), mode)
        view.ledger.cost["proposed"] += int(tries.sum())
        view.ledger.cost["accepted"] += count
        return Sampled(
            torch.stack([kept[row][0] for row in range(count)]),
            with_facts(ratio, score=torch.stack([kept[row][1] for row in range(count)]), tries=tries),
        )
