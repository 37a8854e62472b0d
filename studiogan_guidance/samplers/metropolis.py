"""Metropolis-Hastings over independent proposals of the generator, each scored once by the discriminator."""

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
    "metropolis",
    "keeps the last state of a Metropolis-Hastings chain over proposals",
    "Turner et al. 2019, arXiv:1811.11357",
    family="discriminator",
    needs=("discriminator",),
    neutral={"proposals": 0},
)
@dataclass(frozen=True)
class Metropolis(RatioSampler):
    """For each image, walk through ``proposals`` images of its class by Metropolis' rule, and keep the last state.

    The chain starts from the score of a held-out real image of the class, which is itself never a sample (with
    calibration=none, it starts at the first proposal). A chain that accepts nothing is repeated from its first
    proposal. The first proposal is the plain image.

    Paper: Turner et al., "Metropolis-Hastings generative adversarial networks", ICML 2019, arXiv:1811.11357, algorithm
    1; also registered as ``mh``.

    Args:
        proposals: length K of each chain, from 0 (neutral) up; K passes of generator and discriminator an image.
        pool: number of proposals of a class that all chains share, scored once and kept on disk; each chain takes K of
            them in an order of its own, without replacement. This is cheap, but images may repeat: make the pool far
            larger than the number of images. None draws fresh proposals for every image.
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
        starts = [_real_score(ratio, int(c), gen) for c, gen in zip(inputs.labels, inputs.generators)]
        start = torch.stack(starts).to(view.device).double()
        if self.pool:
            last, score, accepted = self._through_pool(view, inputs, start.cpu(), self.pool)
        else:
            last, score, accepted = self._through_fresh(view, ratio, inputs, start)

        view.ledger.cost["proposed"] += self.proposals * len(last.z)
        view.ledger.cost["accepted"] += int(accepted.sum())
        return Sampled(view.images(last), with_facts(ratio, score=score, acceptance=accepted / self.proposals))

    def _through_fresh(
        self, view: LatentView, ratio: LogRatio, inputs: Inputs, start: Tensor
    ) -> tuple[Inputs, Tensor, Tensor]:
        """Inputs of the last states, their log ratios [B] and numbers of accepted proposals [B]."""
        accepted = torch.zeros(len(start), device=start.device)
        chain = _Chain(inputs, start)
        repeated = _Chain(inputs, torch.full_like(start, -torch.inf))  # from the first proposal
        for k in range(self.proposals):
            # Propose; the first proposal is the plain image.
            proposal = view.redraw(inputs) if k else inputs
            d = ratio(view.images(proposal), proposal.labels).double()
            chance = rng.unit(inputs.generators).to(start)

            # Move both chains.
            accepted += chain.step(proposal, d, chance)
            repeated.step(proposal, d, chance)

        # Chains that never moved are repeated.
        stuck = accepted == 0
        chain.inputs.put(stuck, repeated.inputs)
        return chain.inputs, torch.where(stuck, repeated.ratio, chain.ratio), accepted

    def _through_pool(
        self, view: LatentView, inputs: Inputs, start: Tensor, size: int
    ) -> tuple[Inputs, Tensor, Tensor]:
        """As ``_through_fresh``, among the ``size`` proposals of each class that all chains share."""
        accepted = torch.zeros(len(start))
        scores = torch.zeros(len(start))
        members = []
        for row, (label, gen) in enumerate(zip(inputs.labels.tolist(), inputs.generators)):
            ratios = self._ratios(view, label, size, inputs.noise_mode)

            # Take K of them in an order of this image's own.
            order = torch.randperm(size, generator=gen)[: self.proposals]
            chance = torch.rand(self.proposals, generator=gen)

            # Walk through them; a chain that never moved is repeated from its first proposal.
            states = walk(start[row], ratios[order], chance)
            accepted[row] = len(states)
            if not states:
                states = walk(torch.tensor(-torch.inf), ratios[order], chance)

            # Keep the last state.
            members.append(int(order[states[-1]]))
            scores[row] = ratios[members[-1]]

        last = pool.inputs(view, inputs.labels.tolist(), size, members, inputs.noise_mode)
        return last, scores, accepted

    def _ratios(self, view: LatentView, label: int, size: int, noise_mode: str) -> Tensor:
        """Log ratios [size] of the shared proposals of a class."""
        key = f"pool {label} {noise_mode} of {self}"
        return view.once(key, lambda: torch.from_numpy(self.pool_ratios(view, label, size, noise_mode)))


def walk(start: Tensor, ratios: Tensor, chance: Tensor) -> list[int]:
    """The numbers of the proposals, of log ratios [K], to which a chain moves from a state of log ratio ``start``."""
    state = start
    states = []
    for k, (d, u) in enumerate(zip(ratios, chance)):
        if moves(state, d, u):
            state = d
            states.append(k)
    return states


class _Chain:
    """States of the chains of a batch: inputs of the current images, and their log ratios [B]."""

    def __init__(self, inputs: Inputs, ratio: Tensor) -> None:
        noise = inputs.noise and [layer.clone() for layer in inputs.noise]
        self.inputs = Inputs(inputs.seeds, inputs.z.clone(), inputs.labels, noise, inputs.generators)
        self.ratio = ratio

    def step(self, proposal: Inputs, ratio: Tensor, chance: Tensor) -> Tensor:
        """Move to proposals of log ratio ``ratio`` by Metropolis' rule; which chains moved, bool [B]."""
        moved = moves(self.ratio, ratio, chance)
        self.inputs.put(moved, proposal)
        self.ratio = torch.where(moved, ratio, self.ratio)
        return moved


def _real_score(ratio: LogRatio, label: int, gen: Generator) -> Tensor:
    """The log ratio of a random held-out real image of a class (of any, if the class has none); -inf without any."""
    if ratio.real is None:
        return torch.tensor(-torch.inf, dtype=torch.float64)
    ratios, labels = ratio.real
    if (labels == label).any():
        ratios = ratios[labels == label]
    return ratios[torch.randint(len(ratios), (), generator=gen)]


SAMPLERS.alias("mh", "metropolis")
