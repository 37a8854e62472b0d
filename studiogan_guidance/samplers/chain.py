"""Chains in a latent space: the law that they sample, and the base classes of the samplers that walk."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.critics.log_ratio import LogRatio
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.samplers import spaces
from studiogan_guidance.samplers.base import Sampled, check_at_least, check_choice
from studiogan_guidance.samplers.ratio import GradientSampler, with_facts
from studiogan_guidance.samplers.spaces import Latent


def value_and_gradient(function: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    """Values [B] of a function of each row of u [B, D], and their gradients [B, D]; keeps no graph."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        values = function(u)
        (slope,) = torch.autograd.grad(values.sum(), u)
    return values.detach(), slope


@dataclass(frozen=True)
class Target:
    """The law p0(u) exp(d(G(u))) of the latents of a batch, p0 their prior and d the log density ratio of the images.

    Attributes:
        view: the view of the base, whose ledger counts the passes.
        latent: of the batch.
        ratio: of images and labels.
        inputs: of the batch: labels, and each image's own generator.
        scores: the first log ratio that was asked for, [B]: that of the start of the chains.
    """

    view: LatentView
    latent: Latent
    ratio: LogRatio
    inputs: Inputs
    scores: list[Tensor] = field(default_factory=list)

    def log_ratio(self, u: Tensor) -> Tensor:
        """d(G(u)), [B]."""
        d = self.ratio(self.latent.images(u), self.inputs.labels)
        if not self.scores:
            self.scores.append(d.detach())
        return d

    def energy(self, u: Tensor) -> Tensor:
        """E(u) = -log p0(u) - d(G(u)), [B]. It is for ``value_and_gradient``: a backward pass is counted, too."""
        self.view.ledger.cost["backward"] += len(u)
        return self.latent.energy(u) - self.log_ratio(u)

    def slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """d(G(u)), [B], and its gradient by u, [B, D]."""
        d, slope = value_and_gradient(self.log_ratio, u)
        self.view.ledger.cost["backward"] += len(u)
        return d, slope

    def noise(self) -> Tensor:
        """Standard normal numbers for a step of each chain, [B, D]."""
        return rng.randn(self.inputs.generators, self.latent.start.shape[1]).to(self.latent.start)

    def chance(self) -> Tensor:
        """Uniform numbers in [0, 1) for a decision of each chain, [B]."""
        return rng.unit(self.inputs.generators).to(self.latent.start)

    def count(self, proposed: int, accepted: float) -> None:
        """Count proposals in the ledger."""
        self.view.ledger.cost["proposed"] += proposed
        self.view.ledger.cost["accepted"] += round(accepted)


Walk = tuple[Tensor, dict[str, Tensor]]  # the last state u [B, D], and notes about each chain, [B]


@dataclass(frozen=True)
class LatentChain(GradientSampler):
    """A ``GradientSampler`` that moves a latent, from that of the plain image, in ``steps`` steps.

    Subclasses write ``walk``. Notes of each image are those of the walk and ``score`` and ``score_start``, the log
    ratio at both ends, and ``norm``, |u| / sqrt(D), about 1 in a Gaussian prior.

    Args:
        steps: from 0 (neutral) up.
    """

    steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, steps=0)

    @property
    def _is_identity(self) -> bool:
        return self.steps == 0

    @abstractmethod
    def walk(self, target: Target) -> Walk:
        """The last state and notes of chains that start at ``target.latent.start``.

        The first call of ``target.log_ratio``, ``energy`` or ``slope`` must be at the start: it is the note
        ``score_start``. A uniform prior has borders, at which ``target.latent.inside`` reflects. A walk that knows the
        log ratio of its last state gives it as the note ``score``, which saves a pass.
        """

    def latent(self, view: LatentView, inputs: Inputs) -> Latent:
        """The latent that moves."""
        return spaces.of_inputs(view, inputs)

    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        target = self.target(view, inputs)
        u, notes = self.walk(target)

        # Look at where the chains ended.
        images = target.latent.images(u)
        score = notes.pop("score") if "score" in notes else target.ratio(images, inputs.labels)
        norm = torch.linalg.vector_norm(u, dim=1) / u.shape[1] ** 0.5
        facts = with_facts(target.ratio, score=score, score_start=target.scores[0], norm=norm, **notes)
        return Sampled(images, facts)

    def target(self, view: LatentView, inputs: Inputs) -> Target:
        """The law of the latents of a batch."""
        return Target(view, self.latent(view, inputs), self.ratio(view, inputs.noise_mode), inputs)


@dataclass(frozen=True)
class SpaceChain(LatentChain):
    """A ``LatentChain`` in z, or in w.

    Args:
        space: z, or w for generators that have it, under a Gaussian fitted to w within classes.
    """

    space: str = "z"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, space=spaces.SPACES)

    def check(self, view: LatentView) -> None:
        super().check(view)
        spaces.check_space(view, self.space)

    def latent(self, view: LatentView, inputs: Inputs) -> Latent:
        return spaces.of_inputs(view, inputs, self.space)
