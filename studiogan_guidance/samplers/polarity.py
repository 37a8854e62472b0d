"""Polarity sampling: latents are chosen by how much the generator stretches the latent space there."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.samplers import pool
from studiogan_guidance.samplers.base import SAMPLERS, BasedSampler, Sampled, check_at_least, check_finite, options

VERSION = 1  # raise it when volumes of the same draws change
SMALLEST = 1e-12  # singular value: smaller ones count as this


def log_volume(jacobian: Tensor, k: int) -> Tensor:
    """S = sum_{j <= k} log sigma_j of the largest k singular values of each Jacobian [B, rows, columns]; [B]."""
    sigma: Tensor = torch.linalg.svdvals(jacobian.double())
    return sigma[:, :k].clamp_min(SMALLEST).log().sum(1)


def polarity_weights(volumes: Tensor, rho: float) -> Tensor:
    """softmax(rho S) over a pool [N], which is prod_j sigma_j^rho without its over- and underflow.

    Humayun et al. 2022, arXiv:2203.01993 (whose code clips products to 1e-200 and 1e200).
    """
    return torch.softmax(rho * volumes.double(), 0)


def projection(pixels: int, count: int) -> Tensor:
    """``count`` random orthonormal directions, the same each time, [pixels, count]; at most ``pixels`` of them."""
    gen = torch.Generator().manual_seed(0)
    basis: Tensor = torch.linalg.qr(torch.randn(pixels, min(count, pixels), generator=gen))[0]
    return basis


@SAMPLERS.register(
    "polarity",
    "resamples z by the generator's volume change to the power rho",
    "Humayun et al. 2022, arXiv:2203.01993",
    family="pool",
    needs=("gradient",),
    neutral={"rho": 0.0},
)
@dataclass(frozen=True)
class Polarity(BasedSampler):
    """Choose latents by how much the generator stretches there: rho < 0 for modes and quality, rho > 0 for variety.

    p(z) ~ p0(z) (prod_{j <= k} sigma_j)^rho over a pool of z for each class. sigma are the singular values of the
    Jacobian d(P G(z, c)) / dz, and P are random orthonormal directions of the image. rho = 1 is MaGNET: uniform on the
    manifold of images, up to the singular values beyond k. The volumes are computed once for each class that occurs,
    and cached on disk.

    A generator that normalises z (StyleGAN2, StyleGAN3, the built-in) does not read |z|, but its Jacobian has a factor
    1 / |z|, which would be noise in the weights of p: k log|z| in log sigma_1 ... sigma_k. So volumes are those by the
    normalised z, z sqrt(D) / |z|, an improvement over the official code.

    Paper: Humayun et al., "Polarity sampling: quality and diversity control of pre-trained generative networks via
    singular values", CVPR 2022, arXiv:2203.01993. It resamples a pool without replacement; here each image draws
    from the pool by itself, so that none depends on another, and a pool with few effective members gives duplicates.

    Args:
        rho: finite number; 0 is plain (neutral); the paper uses -2 to 2.
        k: number of singular values, from 1 up to the rank that is possible; the paper uses 10 to 30.
        pool: number of z in all, shared by the classes; each costs one pass of G and ``projections`` backward passes.
        projections: number of directions of the image, at most that of its pixels.
        official: keep the factor of |z| in the weights of generators that normalise z, as the official code does.
        base: see ``BasedSampler``; Jacobians are those of the base.

    Notes of each image: ``effective``, the effective share of the pool of its class, 1 / (N sum_i p_i^2): 1 for equal
    weights; the number of different images is N times that at most.

    Raises:
        UserError: values out of range, more singular values than the Jacobian has.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("polarity", {"rho": -1, "k": 4, "pool": 80, "projections": 8})
        >>> batch = next(sampler.stream(view, range(2), 2, LabelPlan(classes=(3,))))
        >>> view.ledger.setup["backward"], bool((batch.notes["effective"] < 1).all())
        (64, True)
    """

    rho: float = -0.5
    k: int = 15
    pool: int = 200_000
    projections: int = 128
    official: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("polarity.rho", self.rho)
        check_at_least(self, k=1, pool=1, projections=1)

    @property
    def _is_identity(self) -> bool:
        return self.rho == 0

    def check(self, view: LatentView) -> None:
        super().check(view)
        directions = view.networks.z_dim - view.normalises_z  # images do not change along z where it is normalised
        rank = min(directions, self.projections, 3 * view.networks.image_size**2)
        if not self._is_identity and self.k > rank:
            raise UserError(f"polarity.k is {self.k}, but these Jacobians have rank {rank} at most: lower k")

    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        labels = inputs.labels.tolist()
        noise_mode = inputs.noise_mode
        chances = rng.unit(inputs.generators).double()

        # Draw a member of the pool of each image's class.
        members = []
        effective = torch.zeros(len(labels))
        for row, label in enumerate(labels):
            edges, effective[row] = self.edges(view, label, noise_mode)
            member = torch.searchsorted(edges, chances[row] * edges[-1], right=True)
            members.append(int(member.clamp(max=len(edges) - 1)))

        images = view.images(pool.inputs(view, labels, self._size(view), members, noise_mode))
        return Sampled(images, {"effective": effective})

    def edges(self, view: LatentView, label: int, noise_mode: str) -> tuple[Tensor, float]:
        """Sums of the weights of the pool of a class up to each member, float64 [N], and its effective share."""

        def accumulate() -> tuple[Tensor, float]:
            weights = polarity_weights(self.volumes(view, label, noise_mode), self.rho)
            return weights.cumsum(0), float(1 / (len(weights) * weights.square().sum()))

        return view.once(f"edges {label} {noise_mode} of {self}", accumulate)

    def volumes(self, view: LatentView, label: int, noise_mode: str) -> Tensor:
        """S of each member of the pool of a class, float64 [N]; cached on disk."""
        size = self._size(view)
        key = {
            "version": VERSION,
            "base": options(self)["base"],
            **self.files(view),
            "noise": noise_mode,
            "of": size,
            "class": label,
            "k": self.k,
            "projections": self.projections,
        }
        if self._is_norm_free(view):
            key["by"] = "normalised z"

        def compute(draws: range) -> Tensor:
            return self.volume(view, pool.inputs(view, [label] * len(draws), size, draws, noise_mode))

        return torch.from_numpy(pool.values(view, "log volumes", key, size, compute))

    def volume(self, view: LatentView, inputs: Inputs) -> Tensor:
        """S of each image, float64 [B]; where z is normalised, by the normalised z, so that S(2 z) = S(z)."""
        volumes = log_volume(self.jacobian(view, inputs), self.k)
        if self._is_norm_free(view):
            volumes = volumes + self.k * inputs.z.double().square().mean(1).sqrt().log()
        return volumes

    def _is_norm_free(self, view: LatentView) -> bool:
        """Whether the factor of |z| is taken out."""
        return view.normalises_z and not self.official

    def jacobian(self, view: LatentView, inputs: Inputs) -> Tensor:
        """d(P G(z)) / dz of each image, [B, directions, z_dim], by one backward pass a direction."""
        prior, info = view.split(inputs.z)
        with torch.enable_grad():
            # P G(z), one row of numbers for each direction.
            z = prior.detach().requires_grad_()
            images = view.images(dataclasses.replace(inputs, z=torch.cat([z, info], 1))).flatten(1)
            projected = (images @ self._projection(view, images.shape[1])).unbind(1)

            # Its gradients by z.
            rows = []
            for values in projected:
                (slope,) = torch.autograd.grad(values.sum(), z, retain_graph=True)
                rows.append(slope)
        view.ledger.cost["backward"] += len(z) * len(rows)
        return torch.stack(rows, 1)

    def _projection(self, view: LatentView, width: int) -> Tensor:
        """P, as ``projection``, on the device of the view."""
        key = f"projection {width} {self.projections}"
        return view.once(key, lambda: projection(width, self.projections).to(view.device))

    def _size(self, view: LatentView) -> int:
        """Number of members of the pool of a class."""
        return math.ceil(self.pool / view.num_classes)
