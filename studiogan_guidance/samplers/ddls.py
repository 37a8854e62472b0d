"""Discriminator-driven latent sampling: a Langevin chain in the latent space, and its Metropolis-corrected form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import LabelPlan
from studiogan_guidance.samplers.base import SAMPLERS, check_at_least, check_positive
from studiogan_guidance.samplers.chain import SpaceChain, Target, Walk, value_and_gradient

PILOTS = 32  # chains that a step is adapted on
PILOT_MOVES = 120  # of each of them; the second half counts
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


def adapted_step(target: Target, step: float, acceptance: float) -> float:
    """The step at which about the share ``acceptance`` of the moves of ``mala`` is accepted, from ``step`` on.

    log(step) grows by the accepted share of all chains less ``acceptance`` after each move, and the answer is its mean
    over the second half (Robbins and Monro 1951; for chains: Andrieu and Thoms 2008, section 5).
    """
    z = target.latent.start
    state = (z, *value_and_gradient(target.energy, z))
    log_step = math.log(step)
    late = []
    for move in range(PILOT_MOVES):
        state, moved = mala(state, target.energy, math.exp(log_step), target.noise(), target.chance())
        log_step += float(moved.float().mean()) - acceptance
        if move >= PILOT_MOVES // 2:
            late.append(log_step)
    return math.exp(sum(late) / len(late))


@dataclass(frozen=True)
class LangevinChain(SpaceChain):
    """A ``SpaceChain`` with Langevin steps.

    Args:
        step: epsilon, positive: gradients are multiplied by epsilon / 2, noise by sqrt(epsilon).
        target_acceptance: share of Metropolis-corrected steps that is to be accepted, between 0 and 1: the step is
            adapted to it, from ``step`` on, on 32 pilot chains, and is then the same for all images; None keeps
            ``step``.
    """

    step: float = 0.01
    target_acceptance: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        name = SAMPLERS.name_of(self)
        check_positive(f"{name}.step", self.step, f"{type(self).step:g} is usual")
        if self.target_acceptance is not None and not 0 < self.target_acceptance < 1:
            raise UserError(
                f"{name}.target_acceptance must be between 0 and 1, found {self.target_acceptance}: 0.67 is usual"
            )

    def step_of(self, target: Target) -> float:
        """The size of the steps of a batch: the same for all batches."""
        if self.target_acceptance is None:
            return self.step
        noise_mode = target.inputs.noise_mode
        return target.view.once(f"step of {self} {noise_mode}", lambda: self._adapted(target, noise_mode))

    def _adapted(self, target: Target, noise_mode: str) -> float:
        assert self.target_acceptance is not None
        pilots = target.view.draw(range(rng.PILOTS, rng.PILOTS + PILOTS), 0, LabelPlan(), noise_mode)
        return adapted_step(self.target(target.view, pilots), self.step, self.target_acceptance)


@SAMPLERS.register(
    "ddls",
    "runs a Langevin chain in the latent, towards what the discriminator prefers",
    "Che et al. 2020, arXiv:2003.06060",
    family="discriminator",
    needs=("discriminator", "gradient"),
    neutral={"steps": 0},
)
@dataclass(frozen=True)
class DDLS(LangevinChain):
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
        target_acceptance: with ``mala``, see ``LangevinChain``; 0.67 is that of Samsonov et al. 2022, arXiv:2111.02702,
            whose code changes the step while it samples; None keeps ``step``.
        space: z, or w for generators that have it, under a Gaussian fitted to w within classes.
        base, calibration, calibration_images: see ``RatioSampler``.

    Notes of each image: ``score`` and ``score_start``, the log ratio at both ends; ``norm``, |z| / sqrt(D), 1 in the
    prior; ``acceptance`` and ``step`` with ``mala``.

    Raises:
        UserError: values out of range, mala at another temperature than 1, target_acceptance without mala, space w
            without w, no discriminator.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("ddls", {"steps": 2, "step": 0.05, "calibration_images": 100})
        >>> batch = next(sampler.stream(view, range(2), 2, LabelPlan()))
        >>> batch.cost["backward"], sorted(batch.notes)[-3:]
        (4, ['norm', 'score', 'score_start'])
    """

    steps: int = 1000
    temperature: float = 1.0
    mala: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, temperature=0)
        if self.target_acceptance is not None and not self.mala:
            raise UserError("ddls.target_acceptance adapts Metropolis-corrected steps only: add mala=true")
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
        step = self.step_of(target)
        state = (z, *value_and_gradient(target.energy, z))
        accepted = torch.zeros(len(z))
        for _ in range(self.steps):
            state, moved = mala(state, target.energy, step, target.noise(), target.chance())
            accepted += moved.cpu()

        target.count(proposed=len(z) * self.steps, accepted=float(accepted.sum()))
        return state[0], {"acceptance": accepted / self.steps, "step": torch.full((len(z),), step)}
