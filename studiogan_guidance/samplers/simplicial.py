"""Simplicial truncation: reject latents that lie between the cells into which the latent space is cut."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.critics import critic
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.samplers import pool
from studiogan_guidance.samplers.base import SAMPLERS, BasedSampler, Sampled, check_at_least, check_choice, options

CENTERS = ("clusters", "axes")
TRIES = 10_000  # latents for one image before giving up
QUANTILE_DRAWS = 10_000  # prior draws behind tau
VERSION = 1  # raise it when features of the same fakes change
FEWEST = 20  # images for each cell that a classifier is fitted on


def axes_logits(z: Tensor, axes: Tensor) -> Tensor:
    """sqrt(d) z_k / |z| for the coordinates ``axes`` [m]: likeness of z [B, d] to m equidistant centres; [B, m].

    Issenhuth et al. 2023, arXiv:2207.10541, as its code computes it.
    """
    norm: Tensor = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    logits: Tensor = z.shape[1] ** 0.5 * z[:, axes] / norm
    return logits


def confidence(logits: Tensor) -> Tensor:
    """max_j p_j of p = softmax(logits), [B] for [B, m]; z is kept where it is more than tau."""
    certain: Tensor = logits.softmax(1).amax(1)
    return certain


@dataclass(frozen=True)
class Cells:
    """A linear classifier of latents into cells, softmax(z @ weights + offsets): [d, m] and [m], float64 on the CPU.

    ``accuracy`` is the share of right cells among a fifth of the images, held out from the fit.
    """

    weights: Tensor
    offsets: Tensor
    accuracy: float


def cells_of(z: Tensor, features: Tensor, count: int) -> Cells:
    """Cut features [N, F] into ``count`` k-means clusters, and fit the way from z [N, d] to the cluster."""
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression

    # Cluster all features; every fifth image is held out from the fit.
    cells = KMeans(count, n_init=4, random_state=0).fit_predict(features.numpy())
    latents = z.double().numpy()
    held_out = np.arange(len(z)) % 5 == 4
    if len(np.unique(cells[~held_out])) < 2:
        raise UserError("simplicial finds no clusters, as the discriminator has the same features for all images")
    fit = LogisticRegression(max_iter=1000).fit(latents[~held_out], cells[~held_out])

    # Of two classes scikit-learn keeps the difference of their logits only.
    slopes = torch.from_numpy(fit.coef_)
    constants = torch.from_numpy(fit.intercept_)
    if len(fit.classes_) == 2:
        slopes = torch.cat([-slopes, slopes]) / 2
        constants = torch.cat([-constants, constants]) / 2

    # A cell whose images are all held out has probability 0.
    weights = slopes.new_zeros(z.shape[1], count)
    offsets = slopes.new_full((count,), -math.inf)
    weights[:, fit.classes_] = slopes.T
    offsets[fit.classes_] = constants
    return Cells(weights, offsets, float(fit.score(latents[held_out], cells[held_out])))


@SAMPLERS.register(
    "simplicial",
    "redraws z until it lies well inside a cluster of what images look like",
    "Issenhuth et al. 2023, arXiv:2207.10541",
    family="prior",
    needs=("discriminator",),
    neutral={"accept": 1.0},
)
@dataclass(frozen=True)
class Simplicial(BasedSampler):
    """Redraw latents until they lie well inside a cell of the latent space: max_j p_j(z) > tau.

    ``clusters``, our version: cells are k-means clusters, within a class, of the discriminator's features of images
    G(z, c), and p is a logistic regression from z to the cell. ``axes``, the paper's version: p = softmax_j(sqrt(d)
    z_kj / |z|) for random distinct coordinates k_j. The paper also trains the generator with this rejection; to a
    generator that was trained on the whole prior the axes mean nothing. The first latent is the plain one. Only the
    prior part of z is redrawn; InfoGAN's numbers and layer noise stay.

    Paper: Issenhuth et al., "Unveiling the latent space geometry of push-forward generative models", ICML 2023,
    arXiv:2207.10541 (simplicial truncation, as its code has it).

    Args:
        centers: clusters or axes.
        cells: number of cells (of each class) or of axes, from 2 up; at most z_dim axes.
        accept: share of the prior to keep, above 0: tau is the (1 - accept) quantile of max p over 10,000 prior draws,
            for each class separately; 1 is plain (neutral), less accepts fewer, more typical latents.
        threshold: tau itself instead, 0 to 1 (the paper's code: 0.135 on CIFAR-10, 0.08 and 0.2 on STL-10, for axes).
        draws: number of images that are clustered, shared by the classes, at least 20 for each cell.
        base: see ``BasedSampler``; images of the base are clustered.

    Notes of each image: ``confidence``, max p; ``tries``, the number of its latents; with clusters ``cell_accuracy``,
    the share of held-out latents whose cell is predicted correctly: at 1 / cells, z does not determine the cell.

    Raises:
        UserError: values out of range, no discriminator for clusters, or 10,000 latents of an image rejected.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("simplicial", {"cells": 4, "draws": 100, "accept": 0.5})
        >>> batch = next(sampler.stream(view, range(4), 4, LabelPlan(classes=(3,))))
        >>> batch.cost["accepted"], batch.cost["synthesis"], view.ledger.setup["discriminator"]
        (4, 4, 80)
    """

    centers: str = "clusters"
    cells: int = 10
    accept: float = 0.3
    threshold: float | None = None
    draws: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, centers=CENTERS)
        check_at_least(self, cells=2, draws=1, threshold=0)
        if not 0 < self.accept <= 1:
            raise UserError(f"simplicial.accept must be more than 0 and at most 1, found {self.accept}: 0.3 is usual")
        if self.threshold is not None and self.threshold >= 1:
            raise UserError(f"simplicial.threshold must be below 1, found {self.threshold}: no latent is so certain")

    @property
    def _is_identity(self) -> bool:
        return self.accept == 1 and self.threshold is None

    @property
    def _uses_discriminator(self) -> bool:
        return self.centers == "clusters" and not self._is_identity

    def files(self, view: LatentView) -> dict[str, str]:
        files = super().files(view)
        return files | {"discriminator_sha256": critic.digest_of(view)} if self._uses_discriminator else files

    def check(self, view: LatentView) -> None:
        super().check(view)
        width = view.networks.z_dim
        if self._uses_discriminator:
            critic.of_view(view)
        elif not self._is_identity and self.cells > width:
            raise UserError(f"simplicial.cells is {self.cells}, but z has {width} axes: use fewer")

    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        prior, info = view.split(inputs.z)
        labels = inputs.labels.tolist()
        tau = torch.tensor([self.tau(view, label) for label in labels], dtype=torch.float64)

        # Redraw latents until each is certain of its cell: max p > tau.
        z = prior.to("cpu", copy=True)
        certainty = self.certainty(view, z, labels)
        tries = torch.ones(len(labels))
        while rejected := (certainty <= tau).nonzero().flatten().tolist():
            if tries.max() >= TRIES:
                row = rejected[0]
                raise UserError(
                    f"simplicial kept none of {TRIES} latents of class {labels[row]} at tau {tau[row]:.3g}: "
                    "raise accept or lower threshold"
                )
            z[rejected] = view.prior([inputs.generators[row] for row in rejected])
            certainty[rejected] = self.certainty(view, z[rejected], [labels[row] for row in rejected])
            tries[rejected] += 1
        view.ledger.cost.update(proposed=int(tries.sum()), accepted=len(tries))

        images = view.images(dataclasses.replace(inputs, z=torch.cat([z.to(inputs.z), info], 1)))
        notes = {"confidence": certainty.float(), "tries": tries}
        if self.centers == "clusters":
            notes["cell_accuracy"] = torch.tensor([self.cells_of_class(view, label).accuracy for label in labels])
        return Sampled(images, notes)

    def certainty(self, view: LatentView, z: Tensor, labels: list[int]) -> Tensor:
        """max_j p_j of latents [B, z_dim] on the CPU, for their classes, float64 [B]."""
        z = z.double()
        if self.centers == "axes":
            order = torch.randperm(view.networks.z_dim, generator=torch.Generator().manual_seed(0))
            return confidence(axes_logits(z, order[: self.cells]))

        cells = [self.cells_of_class(view, label) for label in labels]
        weights = torch.stack([fit.weights for fit in cells])
        offsets = torch.stack([fit.offsets for fit in cells])
        return confidence((z[:, None] @ weights)[:, 0] + offsets)

    def tau(self, view: LatentView, label: int) -> float:
        """The bound of a class."""
        if self.threshold is not None:
            return self.threshold
        label = label if self.centers == "clusters" else 0

        def quantile() -> float:
            z = view.prior(rng.generators([rng.PILOTS]) * QUANTILE_DRAWS)  # all from one generator
            certainties = [self.certainty(view, part, [label] * len(part)) for part in z.split(1000)]
            return float(torch.cat(certainties).quantile(1 - self.accept))

        return view.once(f"tau {label} of {self}", quantile)

    def cells_of_class(self, view: LatentView, label: int) -> Cells:
        """The cells of a class; the features of its images are cached on disk."""
        size = max(FEWEST * self.cells, math.ceil(self.draws / view.num_classes))
        return view.once(f"cells {label} {self.cells} of {size}", lambda: self._fit(view, label, size))

    def _fit(self, view: LatentView, label: int, size: int) -> Cells:
        discriminator = critic.of_view(view)
        key = {
            "version": VERSION,
            "class": label,
            "of": size,
            "base": options(self)["base"],
            **self.files(view),
        }

        def compute(draws: range) -> Tensor:
            inputs = pool.inputs(view, [label] * len(draws), size, draws)
            images = view.images(inputs)
            view.ledger.cost["discriminator"] += len(images)
            features, _ = discriminator.judge(images, inputs.labels)
            return features.float()

        # The features of the pool of the class, and the prior noise behind them.
        features = torch.from_numpy(pool.values(view, "features of fakes", key, size, compute))
        inputs = pool.inputs(view, [label] * size, size, range(size), "const")
        prior, _ = view.split(inputs.z)
        return cells_of(prior.cpu(), features, self.cells)
