"""Discriminator-driven latent sampling: a Langevin chain in the latent space, and its Metropolis-corrected form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance.errors import UserError
from studiogan_guidance.samplers.base import SAMPLERS, check_at_least, check_positive
from studiogan_guidance.samplers.chain import SpaceChain, Target, Walk, value_and_gradient

Energy = Callable[[Tensor], Tensor]  # [B, D] -> [B]


def ula(z: Tensor, energy: Energy, step: float, noise: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """One unadjusted Langevin step, ``z - step/2 grad E(z) + temperature sqrt(step) noise``; the new z and E(z) [B].

    Che et al. 2020, arXiv:2003.06060, algorithm 1. ``z`` and ``noise`` are [B, D]. For a Gaussian of variance 1 the
    chain's own variance is temperature^2 / (1 - step/4).
    """
    values, slope = value_and_gradient(energy, z)
    return z - step / 2 * slope + temperature * step**0.5 * noise, values


State = tuple[Tensor, Tensor, Tensor]  # z [B, D], E(z) [B], its gradient [B, D]


def mala(state: State, energy: Energy, step: float, noise: Tensor, chance: Tensor) -> tuple[State, Tensor]:
    """One Metropolis-adjusted Langevin step; the new state, and whether each chain moved, bool [B].

    log alpha = E(z) - E(z') + log q(z|z') - log q(z'|z), q(z'|z) = N(z - step/2 grad E(z), step I); moves where
    ``chance``, uniform [B], is below alpha (Roberts and Tweedie 1996, Bernoulli 2(4); with DDLS: section 3.2 of
    arXiv:2003.06060).
    """
    # Propose z' by a Langevin step.
    z, old, slope = state
    proposal = z - step / 2 * slope + step**0.5 * noise
    new, new_slope = value_and_gradient(energy, proposal)

    # Accept it with probability alpha.
    back = (z - proposal + step / 2 * new_slope).square().sum(1) / (2 * step)  # -log q(z|z')
    forth = (noise.square().sum(1)) / 2  # -log q(z'|z)
    moved = chance.log() < old - new - back + forth
    rows = moved[:, None]
    state = (torch.where(rows, proposal, z), torch.where(moved, new, old), torch.where(rows, new_slope, slope))
    return state, moved


@SAMPLERS.register(
    "ddls",
    "runs a Langevin chain in the latent, towards what the discriminator prefers",
    "Che et al. 2020, arXiv:2003.06060",
    family="discriminator",
    needs=("discriminator", "gradient"),
    neutral={"steps": 0},
)
@dataclass(frozen=True)
class DDLS(SpaceChain):
    """Sample the latent from p0(z) exp(d(G(z))), d the log density ratio, so images follow the data better than p_g.

    E(z) = -log p0(z) - d(G(z)); z <- z - step/2 grad E(z) + temperature sqrt(step) n, started at the plain z. A uniform
    prior reflects at its borders. Layer noise and InfoGAN's numbers of an image stay as they are.

    Paper: Che et al., "Your GAN is secretly an energy-based model", NeurIPS 2020, arXiv:2003.06060, algorithm 1.
    Defaults are those of its CIFAR-10 experiments, as we recall them; we did not see the official code.

    Args:
        steps: length of the chain, from 0 (neutral) up.
        step: epsilon, positive: gradients are multiplied by epsilon / 2, noise by sqrt(epsilon).
        temperature: multiplies the noise, from 0 up; 1 is the sampler of the paper, less is cooler.
        mala: correct each step by Metropolis' rule, which makes the target exact at any step.
        space: z, or w for generators that have it, under a Gaussian fitted to w within classes.
        base, calibration, calibration_images: see ``RatioSampler``.

    Notes of each image: ``score`` and ``score_start``, the log ratio at both ends; ``norm``, |z| / sqrt(D), 1 in the
    prior; ``acceptance`` with ``mala``.

    Raises:
        UserError: values out of range, mala at another temperature than 1, space w without w, no discriminator.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("ddls", {"steps": 2, "step": 0.05, "calibration_images": 100})
        >>> batch = next(sampler.stream(view, range(2), 2, LabelPlan()))
        >>> batch.cost["backward"], sorted(batch.notes)[-3:]
        (4, ['norm', 'score', 'score_start'])
    """

    steps: int = 1000
    step: float = 0.01
    temperature: float = 1.0
    mala: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, temperature=0)
        check_positive("ddls.step", self.step, "0.01 is usual")
        if self.mala and self.temperature != 1:
            raise UserError(f"ddls.mala is exact at temperature 1 only, found {self.temperature}: drop one of the two")

    def walk(self, target: Target) -> Walk:
        if self.mala:
            return self._adjusted_walk(target)

        z = target.latent.start
        for _ in range(self.steps):
            z, _ = ula(z, target.energy, self.step, target.noise(), self.temperature)
            z = target.latent.inside(z)
        return z, {}

    def _adjusted_walk(self, target: Target) -> Walk:
        z = target.latent.start
        state = (z, *value_and_gradient(target.energy, z))
        accepted = torch.zeros(len(z))
        for _ in range(self.steps):
            state, moved = mala(state, target.energy, self.step, target.noise(), target.chance())
            accepted += moved.cpu()

        target.count(proposed=len(z) * self.steps, accepted=float(accepted.sum()))
        return state[0], {"acceptance": accepted / self.steps}
