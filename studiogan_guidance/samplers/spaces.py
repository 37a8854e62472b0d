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
    that u is about standard normal (our design: w has no tractable density). S is estimated on the first row of w, and
    all rows move by the same u S. The part of w outside the span of S stays, and so does the layer noise.

    Raises:
        UserError: space w on a generator without w.
    """
    if space == "z":
        return _prior_noise(view, inputs)
    check_space(view, space)
    return _whitened_w(view, inputs)


def check_space(view: LatentView, space: str) -> None:
    """Raise UserError if a generator has no such space."""
    if space == "w" and view.rows is None:
        raise UserError(f"space w needs a generator with w, {view.networks.backbone} has none: use space=z")


def _prior_noise(view: LatentView, inputs: Inputs) -> Latent:
    prior, info = view.split(inputs.z)

    def images(u: Tensor) -> Tensor:
        z = torch.cat([u, info], 1)
        return view.decode(view.encode(z, inputs.labels), z, inputs.noise)

    return Latent(prior, images, lambda gens: view.prior(gens).to(prior), view.networks.z_prior == "gaussian")


def _whitened_w(view: LatentView, inputs: Inputs) -> Latent:
    # Split the first row of w into u and the part that does not move.
    spread, inverse = spread_of_w(view)
    code = view.encode(inputs.z, inputs.labels)
    start = (code - view.class_means()[inputs.labels])[:, 0] @ inverse
    fixed = code - (start @ spread)[:, None]

    def images(u: Tensor) -> Tensor:
        return view.decode(fixed + (u @ spread)[:, None], inputs.z, inputs.noise)

    return Latent(start, images, lambda gens: rng.randn(gens, spread.shape[0]).to(start))


def spread_of_w(view: LatentView) -> tuple[Tensor, Tensor]:
    """S [D, w_dim], where S^T S is the covariance of w within classes, and its pseudo-inverse [w_dim, D]."""
    return view.once("spread of w", lambda: _spread(view))


def _spread(view: LatentView) -> tuple[Tensor, Tensor]:
    """``spread_of_w``, from draws of w about the means of their classes."""
    # Draw w of all classes.
    offsets = []
    with view.frozen(), torch.no_grad():
        means = view.class_means()[:, 0]
        for start in range(0, PRIOR_DRAWS, 500):
            inputs = view.draw(range(rng.PILOTS + start, rng.PILOTS + start + 500), 0, LabelPlan(), "const")
            offsets.append(view.encode(inputs.z, inputs.labels)[:, 0] - means[inputs.labels])
    centred = torch.cat(offsets).double()

    # Find the axes of their covariance, with the same signs on every machine.
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0)[None]).sign()

    # Leave thin directions out.
    wide = values > THIN * values[-1]
    root = values[wide].sqrt()
    axes = vectors[:, wide]
    return (root[:, None] * axes.T).to(means), (axes / root).to(means)
