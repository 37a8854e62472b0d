"""Metropolis-Hastings over independent proposals of the generator, each judged once by the discriminator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from studiogan_guidance import rng
from studiogan_guidance.critics.log_ratio import LogRatio
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.samplers import pool
from studiogan_guidance.samplers.base import SAMPLERS, Sampled, check_at_least
from studiogan_guidance.samplers.ratio import RatioSampler, with_facts


def moves(old: Tensor, new: Tensor, chance: Tensor) -> Tensor:
    """Whether an independence chain moves between log ratios ``old`` and ``new``, bool; any shape.

    alpha = min(1, (1/D(old) - 1) / (1/D(new) - 1)) = min(1, exp(new - old)), since 1/D - 1 = exp(-log ratio); moves
    where ``chance``, uniform, is below. Turner et al. 2019, arXiv:1811.11357, eq. 3.
    """
    return chance.log() < new - old


@SAMPLERS.register(
    "metropolis", "the last state of a Metropolis-Hastings chain over proposals", "Turner et al. 2019, arXiv:1811.11357"
)
@dataclass(frozen=True)
class Metropolis(RatioSampler):
    """For each image, walk through ``proposals`` images of its class by Metropolis' rule, and keep the last state.

    The chain starts from the score of a held-out real image of the class, which is never put out (with
    calibration=none: at the first proposal); a chain that accepts nothing is repeated from its first proposal. The
    first proposal is the plain image.

    Paper: Turner et al., "Metropolis-Hastings generative adversarial networks", ICML 2019, arXiv:1811.11357, algorithm
    1; also registered as ``mh``.

    Args:
        proposals: length K of each chain, from 0 (neutral) up; K passes of generator and discriminator an image.
        pool: number of proposals of a class that all chains share, judged once and kept on disk; each chain takes K of
            them in an order of its own, without replacement. Cheap, but images may repeat: take it far larger than the
            number of images. None: fresh proposals for every image.
        base, calibration, calibration_images: see ``RatioSampler``; isotonic, as in the paper, by default.

    Notes of each image: ``score``, its log ratio; ``acceptance``, the share of proposals that were accepted.

    Raises:
        UserError: values out of range, a pool smaller than a chain, no discriminator.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("mh", {"proposals": 4, "calibration_images": 100})
        >>> batch = next(sampler.stream(view, range(2), 2, LabelPlan()))
        >>> batch.cost["discriminator"]
        8
    """

    calibration: str = "isotonic"
    proposals: int = 640
    pool: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, proposals=0, pool=max(1, self.proposals))

    @property
    def _is_identity(self) -> bool:
        return self.proposals == 0

    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        ratio = self.ratio(view, inputs.noise_mode)
        start = torch.stack([_real(ratio, int(c), g) for c, g in zip(inputs.labels, inputs.generators)]).to(view.device)
        chosen, score, accepted = (self._pooled if self.pool else self._fresh)(view, ratio, inputs, start.double())
        view.ledger.cost["proposed"] += self.proposals * len(chosen.z)
        view.ledger.cost["accepted"] += int(accepted.sum())
        return Sampled(view.images(chosen), with_facts(ratio, score=score, acceptance=accepted / self.proposals))

    def _fresh(self, view: LatentView, ratio: LogRatio, inputs: Inputs, start: Tensor) -> tuple[Inputs, Tensor, Tensor]:
        proposal, accepted = inputs, torch.zeros(len(start), device=start.device)
        chain, again = _Chain(inputs, start), _Chain(inputs, torch.full_like(start, -torch.inf))
        for k in range(self.proposals):
            proposal = view.redraw(inputs) if k else inputs
            images = view.images(proposal)
            new, chance = ratio(images, proposal.labels).double(), rng.unit(inputs.generators).to(start)
            accepted += chain.step(proposal, new, chance)
            again.step(proposal, new, chance)
        stuck = accepted == 0
        chain.inputs.put(stuck, again.inputs)
        return chain.inputs, torch.where(stuck, again.ratio, chain.ratio), accepted

    def _pooled(
        self, view: LatentView, ratio: LogRatio, inputs: Inputs, start: Tensor
    ) -> tuple[Inputs, Tensor, Tensor]:
        size, accepted, scores = self.pool or 0, torch.zeros(len(start)), torch.zeros(len(start))
        found: list[Inputs] = []
        mode = inputs.noise_mode
        for row, (label, gen) in enumerate(zip(inputs.labels.tolist(), inputs.generators)):
            ratios = self._pool(view, label, size, mode)
            order = torch.randperm(size, generator=gen)[: self.proposals]
            chance = torch.rand(self.proposals, generator=gen)
            states = walk(start[row].cpu(), ratios[order], chance)
            accepted[row] = len(states)
            last = int(order[(states or walk(torch.tensor(-torch.inf), ratios[order], chance))[-1]])
            scores[row] = ratios[last]
            found.append(pool.inputs(view, label, size, [last], mode))
        z = torch.cat([one.z for one in found])
        noise = [torch.cat(layers) for layers in zip(*(one.noise or [] for one in found))] if inputs.noise else None
        return Inputs(inputs.seeds, z, inputs.labels, noise, inputs.generators), scores, accepted

    def _pool(self, view: LatentView, label: int, size: int, mode: str) -> Tensor:
        return view.once(
            f"pool {label} {mode} of {self}", lambda: torch.from_numpy(self.pool_ratios(view, label, size, mode))
        )


def walk(start: Tensor, ratios: Tensor, chance: Tensor) -> list[int]:
    """The numbers of the proposals, of log ratios [K], to which a chain moves from a state of log ratio ``start``."""
    state, states = start, []
    for k, (new, u) in enumerate(zip(ratios, chance)):
        if moves(state, new, u):
            state = new
            states.append(k)
    return states


class _Chain:
    """States of the chains of a batch: inputs of the current images, and their log ratios [B]."""

    def __init__(self, inputs: Inputs, ratio: Tensor) -> None:
        noise = inputs.noise and [layer.clone() for layer in inputs.noise]
        self.inputs = Inputs(inputs.seeds, inputs.z.clone(), inputs.labels, noise, inputs.generators)
        self.ratio = ratio

    def step(self, proposal: Inputs, new: Tensor, chance: Tensor) -> Tensor:
        moved = moves(self.ratio, new, chance)
        self.inputs.put(moved, proposal)
        self.ratio = torch.where(moved, new, self.ratio)
        return moved


def _real(ratio: LogRatio, label: int, gen: Generator) -> Tensor:
    """The log ratio of a random held-out real image of a class (of any, if the class has none); -inf without any."""
    if ratio.real is None:
        return torch.tensor(-torch.inf, dtype=torch.float64)
    ratios, labels = ratio.real
    own = ratios[labels == label] if (labels == label).any() else ratios
    return own[torch.randint(len(own), (), generator=gen)]


SAMPLERS.alias("mh", "metropolis")
