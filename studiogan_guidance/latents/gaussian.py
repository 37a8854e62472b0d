"""Gaussian guidance: samples of p(w|c)^s p(w)^(1-s) in closed form, for codes that are Gaussian within each class.

This density is what classifier-free guidance means by a scale s (Ho & Salimans 2022, arXiv:2207.12598). Let all classes
share the covariance S_W about their means m_c, let p(w) be the Gaussian of mean m and covariance S_W + S_B, where S_B
is that of the means, and let T diagonalise both: T' S_W T = I, T' S_B T = diag(b). Then

    w_g = m + [k (m_c - m) T + g (w - m_c) T] T^-1,   k = s (1 + b) / (1 + s b),   g = sqrt((1 + b) / (1 + s b))

has that density. Where classes overlap (b near 0) it is vector arithmetic: k = s, g = 1. Where they are far apart it
moves no mean (k = 1) and only narrows them (g = 1 / sqrt(s)), while vector arithmetic leaves the data there. The map
does not depend on the basis of w: guide(w A) = guide(w) A. (The closed form is our own.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.batches import Halving
from studiogan_guidance.errors import UserError
from studiogan_guidance.files import Arrays, cached
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.latents.joint import JOINTS, OURS, JointOptions, mean_of_classes, of_class
from studiogan_guidance.latents.stylegan import MAX_ROWS, TABLE_DRAWS, TABLE_SEED, TABLE_VERSION
from studiogan_guidance.progress import track

CODES = 4 * TABLE_DRAWS  # behind the covariance within classes, in all
LEAST = 40  # of each class
VERSION = 1  # raise it when the covariance of the same draws changes
SMALLEST = 1e-9  # variance between classes, relative to the largest, that is still more than rounding


@dataclass(frozen=True)
class Directions:
    """The directions of w in which classes differ, at most C - 1 of them; no other one is guided.

    Attributes:
        ratio: b, the variance between classes over that within them, [R].
        to: T, from w to these directions, [D, R].
        back: the rows of T^-1 that lead back, [R, D].
        largest: the largest ratio, as a number.
    """

    ratio: Tensor
    to: Tensor
    back: Tensor
    largest: float

    def joint(self, code: Tensor, class_mean: Tensor, mean: Tensor, scale: float, spread: bool = True) -> Tensor:
        """What ``guide(code, joint, scale)`` has to move away from, of the shape of ``code``.

        It is code - (w_g - code) / (scale - 1), in a form without a division by zero at scale 1.

        Args:
            code: [..., D].
            class_mean: the mean of each code's class.
            mean: of the class means.
            scale: s; more than -1 / ``largest``, below which the density has no integral.
            spread: whether the spread within classes follows the scale; else g = 1.
        """
        if 1 + scale * self.largest <= 0:
            raise UserError(
                f"gandance.scale is {scale:g}, but Gaussian guidance of this generator needs more than "
                f"{-1 / self.largest:.3g}: below, no density is left"
            )

        # Means of classes: (k - 1) / (s - 1) = 1 / (1 + s b).
        precision = 1 + scale * self.ratio
        step = (class_mean - mean) @ self.to / precision

        # The spread within them: (g - 1) / (s - 1) = -b / ((1 + s b) (1 + g)).
        if spread:
            gain = ((1 + self.ratio) / precision).sqrt()
            step = step - (code - class_mean) @ self.to * (self.ratio / (precision * (1 + gain)))
        return code - step @ self.back


def directions(means: Tensor, within: Tensor, weights: Tensor | None = None) -> Directions:
    """The directions of class means, float64 [C, D], with a covariance within classes, float64 [D, D].

    ``weights`` [C], of sum 1, say how often each class counts; None: all alike.

    Raises:
        UserError: a covariance that is not positive definite.
    """
    # A basis in which the covariance within classes is the identity.
    root, failure = torch.linalg.cholesky_ex(within)
    if failure:
        raise UserError(
            "Gaussian guidance needs codes that vary within a class, but those of this generator do not: use "
            "class_shift"
        )
    shares = torch.full_like(means[:, 0], 1 / len(means)) if weights is None else weights
    offsets = shares.sqrt()[:, None] * (means - shares @ means)

    # The directions of the class means in it, at most one fewer than classes.
    whitened = torch.linalg.solve_triangular(root, offsets.T, upper=False)
    basis, spread, _ = torch.linalg.svd(whitened, full_matrices=False)
    ratio = spread.square()
    kept = int((ratio > SMALLEST * ratio[0]).sum())
    ratio, basis = ratio[:kept], basis[:, :kept]
    to = torch.linalg.solve_triangular(root.T, basis, upper=True)
    return Directions(ratio, to, basis.T @ root.T, float(ratio[0]) if kept else 0.0)


def shrunk(scatter: Tensor, fourth: float, count: int) -> Tensor:
    """A covariance from ``count`` deviations x of known mean, mixed with the identity as their number asks.

    Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".

    Args:
        scatter: the sum of x x', float64 [D, D].
        fourth: the sum of |x|^4.
        count: how many they are.
    """
    cov = scatter / count
    variance = cov.diagonal().mean()
    target = variance * torch.eye(len(cov), dtype=cov.dtype)
    distance = (cov - target).square().sum()
    error = ((fourth / count - cov.square().sum()) / count).clamp_min(0)
    share = (error / distance.clamp_min(1e-300)).clamp_max(1)
    return share * target + (1 - share) * cov


def of_view(view: LatentView, weights: Tensor | None = None) -> Directions:
    """The directions of a view with w rows, float32 on its device; computed once. Weights as in ``directions``.

    Raises:
        UserError: codes that ignore z.
    """
    return view.once("gaussian directions", lambda: _of_view(view, weights), weights)


def within(view: LatentView) -> Tensor:
    """The covariance of w about the mean of its class, of all classes together, shrunk; float64 [D, D] on the CPU.

    It is that of the first row of w, as all rows are equal. It is computed once, and cached on disk as class means are.

    Raises:
        UserError: codes that ignore z.
    """
    check(view)
    return view.once("covariance within classes", lambda: _within(view))


def whitening(view: LatentView) -> Tensor:
    """A matrix that gives w the identity as covariance, over all classes: w @ matrix; float32 [D, D]."""
    means = view.class_means()[:, 0].double().cpu()
    offsets = means - means.mean(0)
    root = torch.linalg.cholesky(within(view) + offsets.T @ offsets / len(means))
    identity = torch.eye(len(root), dtype=root.dtype)
    matrix: Tensor = torch.linalg.solve_triangular(root.T, identity, upper=True)
    return matrix.float().to(view.device)


def check(view: LatentView) -> None:
    """Raise UserError unless codes vary within a class."""
    if view.rows is None:
        raise UserError(
            f"Gaussian guidance needs codes that vary within a class, but those of {view.networks.backbone} ignore z: "
            "use class_shift, to which it comes down as far as it moves classes"
        )


def _of_view(view: LatentView, weights: Tensor | None) -> Directions:
    means = view.class_means()[:, 0].double().cpu()
    found = directions(means, within(view), None if weights is None else weights.double().cpu())
    ratio, to, back = (value.float().to(view.device) for value in (found.ratio, found.to, found.back))
    return Directions(ratio, to, back, found.largest)


def _within(view: LatentView) -> Tensor:
    networks = view.networks
    key = {
        "version": f"{TABLE_VERSION}.{VERSION}",
        "weights": networks.digest,
        "prior": f"{networks.z_prior} {networks.z_dim}",
        "info": [networks.info_discrete, networks.info_discrete_dim, networks.info_continuous],
        "seed": TABLE_SEED,
        "codes": [CODES, LEAST, TABLE_DRAWS],
    }
    on_disk = view.on_disk and view.bare is view
    with view.frozen(), torch.no_grad():
        arrays = cached("class-covariance", key, partial(_covariance, view), enabled=on_disk)
    return torch.from_numpy(arrays["within"])


def _covariance(view: LatentView) -> Arrays:
    """``within``: the covariance, float64 [D, D]."""
    # Prior draws, those of the class means, in turn for all classes.
    gens = rng.generators(range(TABLE_SEED, TABLE_SEED + TABLE_DRAWS))
    z = torch.cat([view.prior(gens), view.info(gens)], 1).to(view.device)
    count = min(TABLE_DRAWS, max(LEAST, CODES // view.num_classes))
    places = torch.arange(count, device=view.device)

    # Sums over all classes.
    halving = Halving()
    means = view.class_means()[:, 0].double()
    width = means.shape[1]
    scatter = torch.zeros(width, width, dtype=torch.float64, device=view.device)
    fourth = torch.zeros((), dtype=torch.float64, device=view.device)
    for label in track(range(view.num_classes), "spread of codes"):
        for part in z[(label * count + places) % TABLE_DRAWS].split(MAX_ROWS):
            for deviations in halving(partial(_deviations, view, means, label), part):
                scatter.addmm_(deviations.T, deviations)
                fourth += deviations.square().sum(1).square().sum()

    cov = shrunk(scatter.cpu(), float(fourth), count * view.num_classes)
    return {"within": cov.numpy()}


def _deviations(view: LatentView, means: Tensor, label: int, z: Tensor) -> Tensor:
    """w of one class minus its mean, float64 [B, D]."""
    labels = torch.full((len(z),), label, device=view.device)
    return view.encode(z, labels)[:, 0].double() - means[label]


def _joint(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions, spread: bool) -> Tensor:
    means = view.class_means()
    class_mean = of_class(means, inputs.labels)
    mean = mean_of_classes(means, options)
    return of_view(view, options.weights).joint(code, class_mean, mean, options.scale, spread)


@JOINTS.register("gaussian", "p(w|c)^s p(w)^(1-s) for Gaussian classes: no class leaves the data (free)", OURS)
def gaussian(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """The code that guidance by ``options.scale`` leaves for a sample of p(w|c)^s p(w)^(1-s)."""
    return _joint(view, inputs, code, options, spread=True)


@JOINTS.register("gaussian_shift", "gaussian, but for the spread within classes, which stays (free)", OURS)
def gaussian_shift(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """As ``gaussian`` with g = 1: the means of the classes move, and the spread about them is left to psi."""
    return _joint(view, inputs, code, options, spread=False)
