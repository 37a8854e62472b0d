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
from studiogan_guidance.samplers.base import SAMPLERS, Sampled, check_at_least, check_choice, check_finite
from studiogan_guidance.samplers.ratio import RatioSampler, with_facts

EPSILON = 1e-6  # keeps F finite at the bound
TRIES = 10_000  # proposals for one image before giving up
LEAST = 50  # fakes behind the bound of a class
BOUNDS = ("class", "global")


def acceptance(ratio: Tensor, bound: float | Tensor, gamma: float | Tensor = 0.0, epsilon: float = EPSILON) -> Tensor:
    """F = delta - log(1 - exp(delta - epsilon)) - gamma with delta = ratio - bound, at most 0; any shape.

    A fake is accepted with probability sigmoid(F); for gamma = 0 and epsilon -> 0 that is exp(delta), ordinary
    rejection. Azadi et al. 2019, arXiv:1810.06758, eq. 8.
    """
    delta = (ratio - bound).clamp(max=0)
    return delta - torch.log(-torch.expm1(delta - epsilon)) - gamma


@SAMPLERS.register(
    "drs",
    "proposes until the discriminator accepts, with a bound for each class or one for all",
    "Azadi et al. 2019, arXiv:1810.06758",
    family="discriminator",
    needs=("discriminator",),
    neutral={"percentile": None, "gamma": None},
)
@dataclass(frozen=True)
class DRS(RatioSampler):
    """Draw images of the wanted class until the discriminator accepts one; each seed gives exactly one image.

    The bound is the largest log ratio among ``burn_in`` fakes, and gamma the percentile of F among them: those of the
    class, or of all classes. Both stay fixed from then on (the paper raises the bound during sampling, which would make
    images depend on each other); a fake beyond the bound is accepted with the probability of one at the bound. The
    first proposal is the plain image.

    Paper: Azadi et al., "Discriminator rejection sampling", ICLR 2019, arXiv:1810.06758, algorithm 1, whose bound is
    global.

    Args:
        percentile: of F, 0 to 100; its value becomes gamma. A higher one accepts fewer, better images; 80 to 95 is
            usual; None accepts everything (neutral, if gamma is None, too).
        gamma: the value itself, which replaces the percentile; 0 is ordinary rejection.
        bound: class, one bound and one gamma for each class (our version: classes that the discriminator likes less
            need no more proposals), or global, one for all (the paper's; of many classes, each has few fakes for a
            bound of its own).
        burn_in: number of fakes behind the bounds; the classes share it equally, with bounds of their own at least 50
            each.
        base, calibration, calibration_images: see ``RatioSampler``.

    Notes of each image: ``score``, its log ratio; ``tries``, its number of proposals.

    Raises:
        UserError: values out of range, no discriminator, or 10,000 proposals of an image rejected.

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
    bound: str = "class"
    burn_in: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, percentile=0, burn_in=1)
        check_choice(self, bound=BOUNDS)
        if self.percentile is not None and self.percentile > 100:
            raise UserError(f"drs.percentile must be at most 100, found {self.percentile}: 80 is usual")
        if self.gamma is not None:
            check_finite("drs.gamma", self.gamma)

    @property
    def _is_identity(self) -> bool:
        return self.gamma is None and self.percentile is None

    def limits(self, view: LatentView, label: int, noise_mode: str) -> tuple[float, float]:
        """(bound, gamma) for an image of a class."""
        of = label if self.bound == "class" else None
        return view.once(f"limits {of} {noise_mode} of {self}", lambda: self._estimate(view, of, noise_mode))

    def _estimate(self, view: LatentView, label: int | None, noise_mode: str) -> tuple[float, float]:
        """(bound, gamma) of a class, or of all."""
        # The bound is the largest log ratio of the burn-in.
        size = self.burn_in if label is None else max(LEAST, math.ceil(self.burn_in / view.num_classes))
        ratios = torch.from_numpy(self.pool_ratios(view, label, size, noise_mode))
        bound = float(ratios.max())
        if self.gamma is not None:
            return bound, self.gamma

        # Gamma is a percentile of F.
        return bound, float(np.percentile(acceptance(ratios, bound).numpy(), self.percentile or 0))

    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        ratio = self.ratio(view, inputs.noise_mode)
        labels = inputs.labels.tolist()
        limits = torch.tensor([self.limits(view, label, inputs.noise_mode) for label in labels], dtype=torch.float64)
        count = len(labels)

        tries = torch.zeros(count)
        images: dict[int, Tensor] = {}
        scores: dict[int, Tensor] = {}
        rows = list(range(count))
        proposal = inputs
        while True:
            # Propose one image for each of ``rows``.
            candidates = view.images(proposal)
            ratios = ratio(candidates, proposal.labels)

            # Accept with probability sigmoid(F), eq. 8.
            bound, gamma = limits[rows].unbind(1)
            chance = torch.sigmoid(acceptance(ratios.cpu().double(), bound, gamma))
            accepted = rng.unit(proposal.generators) < chance

            # Several proposals of a row stand in their order: the first accepted one counts.
            for number, row in enumerate(rows):
                if row in images:
                    continue
                tries[row] += 1
                if accepted[number]:
                    images[row] = candidates[number]
                    scores[row] = ratios[number]

            # Propose again for the open rows; where few are left, several at once for each of them.
            open_rows = [row for row in range(count) if row not in images]
            if not open_rows:
                break
            if tries.max() >= TRIES:
                label = labels[open_rows[0]]
                raise UserError(f"{self} accepted none of {TRIES} images of class {label}: lower percentile")
            rows = open_rows * (count // len(open_rows))
            proposal = _proposals(view, inputs, rows)

        view.ledger.cost["proposed"] += int(tries.sum())
        view.ledger.cost["accepted"] += count
        score = torch.stack([scores[row] for row in range(count)])
        return Sampled(torch.stack([images[row] for row in range(count)]), with_facts(ratio, score=score, tries=tries))


def _proposals(view: LatentView, inputs: Inputs, rows: list[int]) -> Inputs:
    """A fresh draw of the class of each of ``rows``, by a seed from the row's own generator."""
    seeds = [int(rng.randint([inputs.generators[row]], 2**31 - 1)) for row in rows]
    classes = tuple(int(inputs.labels[row]) for row in rows)
    return view.draw(seeds, 0, LabelPlan(classes), inputs.noise_mode)
