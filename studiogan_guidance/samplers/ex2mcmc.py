"""Explore and exploit: jumps by resampling among fresh draws, and Metropolis-adjusted Langevin steps between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance.samplers.base import SAMPLERS, check_at_least
from studiogan_guidance.samplers.chain import Target, Walk, value_and_gradient
from studiogan_guidance.samplers.ddls import LangevinChain, mala
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
class Ex2MCMC(LangevinChain):
    """Sample the latent from p0(z) exp(d(G(z))), d the log density ratio: by jumps between modes, and walks in them.

    Each step is one move of ``isir`` among the current latent and fresh ones, then ``mala_steps`` moves of ``ddls``
    with ``mala``; both leave the same law as it is. Layer noise and InfoGAN's numbers of an image stay as they are
    (unlike in ``isir``: the Langevin moves need one and the same function of z).

    Paper: Samsonov et al., "Local-global MCMC kernels: the best of both worlds", NeurIPS 2022, arXiv:2111.02702,
    algorithm 2; particles, mala_steps and step are those of its GAN experiments (there the drift is step, here it is
    step / 2). They go on to change the step while they sample, by 5 % at a time, to an acceptance of 0.67; see
    ``target_acceptance``. The number of steps is our choice.

    Args:
        steps: number of jumps, from 0 (neutral) up, each with its Langevin moves.
        particles: number of latents that a jump chooses among, from 2 up, the current one included.
        mala_steps: Langevin moves after each jump, from 1 up.
        step: epsilon of the Langevin moves, positive: gradients are multiplied by epsilon / 2, noise by sqrt(epsilon).
        target_acceptance: share of Langevin moves that is to be accepted, between 0 and 1, such as 0.67: ``step`` is
            adapted to it on 32 pilot chains, and is then the same for all images, so none depends on another; None
            keeps ``step``.
        space: z, or w for generators that have it, under a Gaussian fitted to w within classes.
        base, calibration, calibration_images: see ``RatioSampler``.

    Notes of each image: ``score`` and ``score_start``, the log ratio at both ends; ``norm``, |z| / sqrt(D), 1 in the
    prior; ``acceptance``, the share of Langevin moves that were accepted; ``step``, their size; ``jumps``, the share of
    jumps that moved.

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
    step: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, particles=2, mala_steps=1)

    def walk(self, target: Target) -> Walk:
        z = target.latent.start
        step = self.step_of(target)
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
                state, moved = mala(state, target.energy, step, target.noise(), target.chance())
                accepted += moved.cpu()
            z, energy, _ = state
            score = target.latent.energy(z) - energy

        moves = self.steps * self.mala_steps
        proposed = len(z) * (self.steps * (self.particles - 1) + moves)
        target.count(proposed, accepted=float(jumps.sum() + accepted.sum()))
        notes = {"score": score, "acceptance": accepted / moves, "jumps": jumps / self.steps}
        return z, notes | {"step": torch.full((len(z),), step)}

    def jump(self, target: Target, z: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """The latents that are chosen, [B, D], and whether they are fresh, bool [B]; ``score`` [B] is d(G(z))."""
        fresh = [target.latent.draw(target.inputs.generators) for _ in range(self.particles - 1)]
        log_weights = torch.stack([score, *map(target.log_ratio, fresh)], 1)
        choice = isir_choice(log_weights, target.chance())
        rows = torch.arange(len(z), device=z.device)
        return torch.stack([z, *fresh])[choice, rows], choice > 0
