"""Truncation of w towards the nearest of many centres, so that modes far from the mean are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.batches import Halving
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import LabelPlan, LatentView
from studiogan_guidance.progress import bar, track
from studiogan_guidance.samplers import pool
from studiogan_guidance.samplers.base import SAMPLERS, check_at_least, options
from studiogan_guidance.samplers.conditional_truncation import TruncationTowards

VERSION = 1  # raise it when centres of the same draws change
BATCH_SIZE = 500  # of mapping calls


def centres_of(points: Tensor, count: int) -> Tensor:
    """The ``count`` centres that k-means finds in ``points`` [N, D], started at a fixed seed; [count, D]."""
    from sklearn.cluster import KMeans

    with bar("k-means"):
        fit = KMeans(count, n_init=1, random_state=0).fit(points.numpy())
    return torch.from_numpy(fit.cluster_centers_)


def nearest_centre(points: Tensor, centres: Tensor) -> Tensor:
    """The number of the centre [K, D] that is nearest to each point [B, D] by L2, int64 [B]."""
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


@dataclass(frozen=True)
class DistinctRows:
    """The rows of w that differ from each other: most generators have equal rows, which need not be clustered twice.

    Attributes:
        picks: one row of each group of equal rows, int64 [groups].
        groups: the group of each row, int64 [rows].
        weights: roots of the sizes of the groups, [groups, 1]: with them, distances are those over all rows.
    """

    picks: Tensor
    groups: Tensor
    weights: Tensor

    def weighted(self, code: Tensor) -> Tensor:
        """Codes [B, rows, w_dim] as points [B, groups * w_dim]."""
        return (code[:, self.picks] * self.weights).flatten(1)

    def codes(self, points: Tensor) -> Tensor:
        """The codes [B, rows, w_dim] of points."""
        return (points.view(len(points), len(self.picks), -1) / self.weights)[:, self.groups]


@SAMPLERS.register(
    "cluster_truncation",
    "pulls w towards the nearest of many k-means centres",
    "Mokady et al. 2022, arXiv:2202.12211",
    family="code",
    needs=("w",),
    neutral={"psi": 1.0},
)
@dataclass(frozen=True)
class ClusterTruncation(TruncationTowards):
    """Cluster draws of w by k-means, and move each w towards the nearest centre: fidelity, with the modes kept.

    w' = q + psi * (w - q), where q is the centre nearest to w by L2 over all rows. One cluster is truncation towards
    the mean of all draws; one cluster a class with ``per_class`` is ``conditional_truncation``. The paper finds the
    nearest centre by LPIPS between images; L2 in w is what StyleGAN-XL does.

    Paper: Mokady et al., "Self-Distilled StyleGAN", SIGGRAPH 2022, arXiv:2202.12211 (multi-modal
    truncation); distance: Sauer et al. 2022, arXiv:2202.00273.

    Args:
        psi: finite number; 1 is plain (neutral), 0 is the centre itself, more than 1 spreads.
        cutoff: number of leading w rows to move; None moves all.
        clusters: number of centres, from 1 up; with ``per_class`` of each class.
        draws: number of w that are clustered, of uniform classes; with ``per_class`` shared by the classes.
        per_class: cluster the draws of each class separately, and move w towards centres of the image's class.
        base: see ``BasedSampler``; codes of the base are clustered.

    Notes of each image: ``distance``, |w - q| / sqrt(rows).

    Raises:
        UserError: a generator without w, values out of range, fewer draws than centres.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("cluster_truncation", {"clusters": 8, "draws": 1000})
        >>> batch = next(sampler.stream(view, range(2), 2, LabelPlan()))
        >>> batch.cost["mapping"], view.ledger.setup["mapping"]  # the draws, and one more to compare rows
        (2, 1001)
    """

    clusters: int = 64
    draws: int = 60_000
    per_class: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, clusters=1, draws=1)

    def check(self, view: LatentView) -> None:
        super().check(view)
        if self.per_class:
            view.networks.check_conditional("cluster_truncation.per_class", "leave it out")
        share = self._share(view)
        if share < self.clusters:
            raise UserError(
                f"cluster_truncation.draws is {self.draws}, which is {share} for {self.clusters} centres: "
                "give more draws"
            )

    def _share(self, view: LatentView) -> int:
        """Number of draws that are clustered together."""
        return math.ceil(self.draws / view.num_classes) if self.per_class else self.draws

    def centres(self, view: LatentView, labels: Tensor, code: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self._rows(view)
        points = rows.weighted(code)
        groups = labels.tolist() if self.per_class else [0] * len(labels)

        # The nearest centre of each point, in the table of its group [clusters, width].
        tables = view.once(f"centres {self.clusters} {self.draws} {self.per_class}", lambda: self._tables(view))
        centres = []
        for group, point in zip(groups, points):
            number = nearest_centre(point[None], tables[group])
            centres.append(tables[group][number])
        nearest = torch.cat(centres)

        distance = torch.linalg.vector_norm(points - nearest, dim=1) / len(rows.groups) ** 0.5
        return rows.codes(nearest), {"distance": distance.float().cpu()}

    def _rows(self, view: LatentView) -> DistinctRows:
        """The rows of w that differ, as one pilot draw shows."""

        def compare() -> DistinctRows:
            with view.frozen(), torch.no_grad():
                inputs = view.draw([rng.PILOTS], 0, LabelPlan(), "const")
                code = view.encode(inputs.z, inputs.labels)[0]
            _, groups, sizes = torch.unique_consecutive(code, dim=0, return_inverse=True, return_counts=True)
            return DistinctRows(sizes.cumsum(0) - 1, groups, sizes.to(code).sqrt()[:, None])

        return view.once("rows of w that differ", compare)

    def _tables(self, view: LatentView) -> Tensor:
        """Centres of each class, or of all classes together, [groups, clusters, width]."""
        key = {
            "version": VERSION,
            "base": options(self)["base"],
            **self.files(view),
            "share": self._share(view),
            "clusters": self.clusters,
            "per_class": self.per_class,
        }

        def compute(groups: range) -> Tensor:
            return torch.stack([centres_of(self._points(view, group), self.clusters) for group in groups])

        # One table a class, or one in all.
        count = view.num_classes if self.per_class else 1
        return torch.from_numpy(pool.values(view, "cluster centres", key, count, compute)).to(view.device)

    def _points(self, view: LatentView, label: int) -> Tensor:
        """Points that are clustered, of the class ``label`` or of all, [draws, width], on the CPU."""
        rows = self._rows(view)
        plan = LabelPlan((label,)) if self.per_class else LabelPlan()
        share = self._share(view)
        halving = Halving()
        points: list[Tensor] = []

        def encode(seeds: range) -> Tensor:
            inputs = view.draw(seeds, 0, plan, "const")
            return rows.weighted(view.encode(inputs.z, inputs.labels)).cpu()

        for start in track(range(0, share, BATCH_SIZE), "draws for k-means", share, BATCH_SIZE):
            points += halving(encode, range(rng.PILOTS + start, rng.PILOTS + min(start + BATCH_SIZE, share)))
        return torch.cat(points)
