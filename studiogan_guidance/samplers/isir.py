"""Iterated sampling importance resampling: choose among fresh proposals and the current image, again and again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.samplers.base import SAMPLERS, Sampled, check_at_least
from studiogan_guidance.samplers.ratio import RatioSampler, with_facts


def isir_choice(log_weights: Tensor, chance: Tensor) -> Tensor:
    """The number of the particle that each row takes, int64 [B], with probability softmax(log_weights).

    Samsonov et al. 2022, arXiv:2111.02702, algorithm 1. ``log_weights`` is [B, N], ``chance`` is uniform in [0, 1),
    [B]. A particle of weight 0 is never taken.
    """
    edges = log_weights.double().softmax(1).cumsum(1)
    aim = chance.double() * edges[:, -1]
    return torch.searchsorted(edges, aim[:, None], right=True)[:, 0]


@SAMPLERS.register(
    "isir",
    "resamples among the current image and fresh proposals by their density ratios",
    "Samsonov et al. 2022, arXiv:2111.02702",
    family="discriminator",
    needs=("discriminator",),
    neutral={"steps": 0},
)
@dataclass(frozen=True)
class ISIR(RatioSampler):
    """In each step draw fresh proposals of the class, and take one of them or the current image by their weights.

    The weights are exp(d), d the log density ratio, so the chain's law is p_g(x|c) exp(d(x)), without gradients. A
    proposal draws everything anew that is random about an image, layer noise and InfoGAN's numbers too, so it need not
    be near the current one. The chain starts at the plain image.

    The particles of a step come one batch after the other. Each replaces the choice among those before it with the
    probability of its share of the weights up to it. That is the same law, and keeps one proposal in memory.

    Paper: Samsonov et al., "Local-global MCMC kernels: the best of both worlds", NeurIPS 2022, arXiv:2111.02702,
    algorithm 1; 10 particles as there.

    Args:
        steps: length of the chain, from 0 (neutral) up.
        particles: from 2 up, the current image included; each of the others is a pass of generator and discriminator.
        base, calibration, calibration_images: see ``RatioSampler``.

    Notes of each image: ``score`` and ``score_start``, the log ratio at both ends; ``acceptance``, the share of steps
    that changed the image.

    Raises:
        UserError: values out of range, no discriminator.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("isir", {"steps": 2, "particles": 3, "calibration_images": 100})
        >>> batch = next(sampler.stream(view, range(2), 2, LabelPlan()))
        >>> batch.cost["proposed"], batch.cost["discriminator"]
        (8, 10)
    """

    steps: int = 100
    particles: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, steps=0, particles=2)

    @property
    def _is_identity(self) -> bool:
        return self.steps == 0

    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        ratio = self.ratio(view, inputs.noise_mode)
        count = len(inputs.z)
        images = view.images(inputs).clone()
        start = ratio(images, inputs.labels)

        score = start
        changes = torch.zeros(count)
        for _ in range(self.steps):
            total = score  # of the weights so far, as a logarithm
            changed = torch.zeros(count, dtype=torch.bool, device=score.device)
            for _ in range(self.particles - 1):
                # Draw a fresh particle.
                proposal = view.redraw(inputs)
                candidates = view.images(proposal)
                d = ratio(candidates, proposal.labels)

                # Choose between it and the choice among those before it.
                chance = rng.unit(inputs.generators).to(d)
                fresh = isir_choice(torch.stack([total, d], 1), chance) == 1
                total = torch.logaddexp(total, d)

                # Replace the images where it was chosen.
                images[fresh] = candidates[fresh]
                score = torch.where(fresh, d, score)
                changed |= fresh
            changes += changed.cpu()

        view.ledger.cost["proposed"] += count * self.steps * (self.particles - 1)
        view.ledger.cost["accepted"] += int(changes.sum())
        return Sampled(images, with_facts(ratio, score=score, score_start=start, acceptance=changes / self.steps))
