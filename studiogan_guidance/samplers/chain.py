"""Where chains move: a latent with a prior, and the way from it to images, the same for every family of generators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from studiogan_guidance import rng
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView
from studiogan_guidance.samplers.base import check_at_least, check_choice
from studiogan_guidance.samplers.ratio import GradientSampler

SPACES = ("z", "w")
PRIOR_DRAWS = 10_000  # behind the spread of w
THIN = 1e-6  # directions of w with less than this share of the largest variance do not move


@dataclass(frozen=True)
class Latent:
    """A latent u [B, D] for each image of a batch.

    Attributes:
        start: u of the plain images, drawn from the prior.
        images: u -> images [B, 3, H, W], differentiable.
        draw: generators -> fresh u from the prior, [B, D] on the device.
        energy: u -> -log prior, up to a constant, [B].
        inside: u -> u reflected into the support of the prior.
        gaussian: whether the prior is standard normal; else it is uniform on [-1, 1].
    """

    start: Tensor
    images: Callable[[Tensor], Tensor]
    draw: Callable[[Sequence[Generator]], Tensor]
    gaussian: bool = True

    def energy(self, u: Tensor) -> Tensor:
        """-log prior up to a constant, [B]: half the squared norm, or 0 inside the cube and infinity outside."""
        if self.gaussian:
            return u.square().sum(1) / 2
        outside = (u.abs() > 1).any(1)
        return torch.where(outside, math.inf, 0.0).to(u)

    def inside(self, u: Tensor) -> Tensor:
        """``u`` itself, or reflected at the faces of the cube [-1, 1]^D."""
        return u if self.gaussian else 1 - ((u + 1) % 4 - 2).abs()


def of_inputs(view: LatentView, inputs: Inputs, space: str = "z") -> Latent:
    """The latent of a batch: the prior noise ``z`` (InfoGAN's numbers stay), or ``w`` of a class, whitened.

    ``w``: w = m_c + u S, with the class mean m_c and S S^T the covariance of w within classes over 10,000 draws, so
    that u is about standard normal (our design: w has no tractable density). It is that of the first row; all rows move
    alike. What of w lies outside of the span of S, where w does not move, stays, and so does the layer noise.

    Raises:
        UserError: space w on a generator without w.
    """
    labels, noise = inputs.labels, inputs.noise
    if space == "z":
        z, info = view.split(inputs.z)

        def images(u: Tensor) -> Tensor:
            whole = torch.cat([u, info], 1)
            return view.decode(view.encode(whole, labels), whole, noise)

        return Latent(z, images, lambda gens: view.prior(gens).to(z), view.networks.z_prior == "gaussian")
    check(view, space)
    spread, inverse = view.once("spread of w", lambda: _spread(view))
    code = view.encode(inputs.z, labels)
    start = (code - view.class_means()[labels])[:, 0] @ inverse
    fixed = code - (start @ spread)[:, None]

    def styled(u: Tensor) -> Tensor:
        return view.decode(fixed + (u @ spread)[:, None], inputs.z, noise)

    return Latent(start, styled, lambda gens: rng.randn(gens, spread.shape[0]).to(start))


def check(view: LatentView, space: str) -> None:
    """Raise UserError if a generator has no such space."""
    if space == "w" and view.rows is None:
        raise UserError(f"space w needs a generator with w, {view.networks.backbone} has none: use space=z")


@dataclass(frozen=True)
class LatentChain(GradientSampler):
    """A ``GradientSampler`` that moves a latent, from that of the plain image, in ``steps`` steps.

    Args:
        steps: from 0 (neutral) up.
        space: z, or w for generators that have it, under a Gaussian fitted to w within classes.
    """

    steps: int = 0
    space: str = "z"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, steps=0)
        check_choice(self, space=SPACES)

    @property
    def _is_identity(self) -> bool:
        return self.steps == 0

    def check(self, view: LatentView) -> None:
        super().check(view)
        check(view, self.space)


def _spread(view: LatentView) -> tuple[Tensor, Tensor]:
    """S [D, w_dim] and its pseudo-inverse [w_dim, D], from draws of w about the means of their classes."""
    offsets = []
    with view.frozen(), torch.no_grad():
        means = view.class_means()[:, 0]
        for start in range(0, PRIOR_DRAWS, 500):
            inputs = view.draw(range(rng.PILOTS + start, rng.PILOTS + start + 500), 0, LabelPlan(), "const")
            offsets.append(view.encode(inputs.z, inputs.labels)[:, 0] - means[inputs.labels])
    centred = torch.cat(offsets).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0)[None]).sign()  # the same signs on every machine
    keep = values > THIN * values[-1]
    root, axes = values[keep].sqrt(), vectors[:, keep]
    return (root[:, None] * axes.T).to(means), (axes / root).to(means)


def climb(function: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    """Values [B] of a function of each row of u [B, D], and their gradients [B, D]; keeps no graph."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        values = function(u)
        (slope,) = torch.autograd.grad(values.sum(), u)
    return values.detach(), slope
