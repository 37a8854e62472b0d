"""Explore and exploit: jumps by resampling among fresh draws, and Metropolis-adjusted Langevin steps between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance.samplers.base import SAMPLERS, check_at_least, check_positive
from studiogan_guidance.samplers.chain import SpaceChain, Target, Walk, value_and_gradient
from studiogan_guidance.samplers.ddls import mala
from studiogan_guidance.samplers.isir import isir_choice


@SAMPLERS.register(
    "ex2mcmc",
    "alternates jumps among fresh latents and Langevin steps",
    "Samsonov et al. 2022, arXiv:2111.02702",
    family="discriminator",
    needs=("discriminator", "gradient"),
    neutral={"steps": 0},
)
@dataclass(frozen=True)
class Ex2MCMC(SpaceChain):
    """Sample the latent from p0(z) exp(d(G(z))), d the log density ratio: by jumps between modes, and walks in them.

    Each step is one move of ``isir`` among the current latent and fresh ones, then ``mala_steps`` moves of ``ddls``
    with ``mala``; both leave the same law as it is. Layer noise and InfoGAN's numbers of an image stay as they are
    (unlike in ``isir``: the Langevin moves need one and the same function of z).

    Paper: Samsonov et al., "Local-global MCMC kernels: the best of both worlds", NeurIPS 2022, arXiv:2111.02702,
    algorithm 2; particles and mala_steps are those of its GAN experiments, which adapt the step (to an acceptance of
    0.67, see the note ``acceptance``); steps and step are our choice.

    Args:
        steps: number of jumps, from 0 (neutral) up, each with its Langevin moves.
        particles: number of latents that a jump chooses among, from 2 up, the current one included.
        mala_steps: Langevin moves after each jump, from 1 up.
        step: epsilon of the Langevin moves, positive.
        space: z, or w for generators that have it, under a Gaussian fitted to w within classes.
        base, calibration, calibration_images: see ``RatioSampler``.

    Notes of each image: ``score`` and ``score_start``, the log ratio at both ends; ``norm``, |z| / sqrt(D), 1 in the
    prior; ``acceptance``, the share of Langevin moves that were accepted; ``jumps``, the share of jumps that moved.

    Raises:
        UserError: values out of range, space w without w, no discriminator.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("ex2mcmc", {"steps": 1, "particles": 3, "calibration_images": 100})
        >>> batch = next(sampler.stream(view, range(2), 2, LabelPlan()))
        >>> batch.cost["proposed"], batch.cost["backward"]
        (10, 8)
    """

    steps: int = 60
    particles: int = 10
    mala_steps: int = 3
    step: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, particles=2, mala_steps=1)
        check_positive("ex2mcmc.step", self.step, "0.1 is usual")

    def walk(self, target: Target) -> Walk:
        z = target.latent.start
        score = target.log_ratio(z)
        accepted = torch.zeros(len(z))
        jumps = torch.zeros(len(z))
        for _ in range(self.steps):
            # Jump among the current latent and fresh ones.
            z, jumped = self.jump(target, z, score)
            jumps += jumped.cpu()

            # Walk from there.
            state = (z, *value_and_gradient(target.energy, z))
            for _ in range(self.mala_steps):
                state, moved = mala(state, target.energy, self.step, target.noise(), target.chance())
                accepted += moved.cpu()
            z, energy, _ = state
            score = target.latent.energy(z) - energy

        moves = self.steps * self.mala_steps
        proposed = len(z) * (self.steps * (self.particles - 1) + moves)
        target.count(proposed, accepted=float(jumps.sum() + accepted.sum()))
        return z, {"score": score, "acceptance": accepted / moves, "jumps": jumps / self.steps}

    def jump(self, target: Target, z: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """The latents that are chosen, [B, D], and whether they are fresh, bool [B]; ``score`` [B] is d(G(z))."""
        fresh = [target.latent.draw(target.inputs.generators) for _ in range(self.particles - 1)]
        log_weights = torch.stack([score, *map(target.log_ratio, fresh)], 1)
        choice = isir_choice(log_weights, target.chance())
        rows = torch.arange(len(z), device=z.device)
        return torch.stack([z, *fresh])[choice, rows], choice > 0
