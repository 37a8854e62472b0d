"""Statistics of the real images, computed once and cached under a key of everything that changes them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from studiogan_guidance.batches import progress
from studiogan_guidance.evaluation import fid, prdc
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.features.images import Real
from studiogan_guidance.features.stats import Backbone, FeatureStats, accumulate, merge
from studiogan_guidance.files import Arrays, cache_path, cached, locked, read_arrays, write_arrays

KIND = "reference"  # the folder of the cache
VERSION = 3  # of the cached statistics and what is derived from them: raise it when their maths change
PART_SEED = 0  # of the choice of images whose features are kept


class Reference:
    """Statistics of real images, with what every comparison with them needs: a factor of the covariance, and radii.

    Factor and radii are computed once, kept in memory, and cached on disk beside the statistics.

    Args:
        key: everything that the statistics depend on, and the version of their maths.
        stats: the statistics.
    """

    def __init__(self, key: Mapping[str, Any], stats: FeatureStats) -> None:
        self.key = key
        self.stats = stats
        self._radii: dict[int, NDArray[Any]] = {}

    @cached_property
    def factor(self) -> NDArray[Any]:
        """L [D, D] with L L^T the covariance of the features."""
        return self._derived("factor", lambda: fid.factor(self.stats.cov))

    def radii(self, k: int, device: str) -> NDArray[Any]:
        """Distance of each real feature to its k-th nearest neighbour among them, float64 [N]."""
        features = self.stats.features
        assert features is not None
        if k not in self._radii:
            self._radii[k] = self._derived(f"radii {k}", lambda: prdc.radii(features, k, device))
        return self._radii[k]

    def _derived(self, name: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        moments = hashlib.sha256(self.stats.mean.tobytes() + self.stats.cov.tobytes()).hexdigest()
        key = {**self.key, "derived": name, "of": moments}
        return cached(KIND, key, lambda: {"value": compute()})["value"]


def load_or_make(
    real: Real,
    backbone: Backbone,
    source: Mapping[str, Any],
    group: Group,
    batch_size: int,
    with_features: bool,
) -> Reference | None:
    """The statistics of real images, from the cache, or from a pass over the images that all processes share.

    Moments are those of all images; features those of ``real.default_count`` of them, always the same ones.

    Args:
        real: the images.
        backbone: the feature network.
        source: what else the statistics depend on.
        group: the processes; all of them must call this.
        batch_size: images a batch.
        with_features: whether features are needed, not the moments only.

    Returns:
        None in processes above rank 0.
    """
    count = min(real.default_count, len(real)) if with_features else 0
    make = partial(_make, real, backbone, group, batch_size, count)
    if group.rank:
        if group.agree(None):
            make()
        return None

    # The first process looks into the cache, and says whether there is work for all.
    key = {**real.cache_key, **backbone.protocol, **source, "features": count, "version": VERSION}
    path = cache_path(KIND, key)
    with locked(path):
        arrays = read_arrays(path)
        if group.agree(arrays is None or not np.isfinite(arrays["mean"]).all()):  # left by an earlier version
            arrays = _arrays(cast(FeatureStats, make()))
            write_arrays(path, arrays)
    return Reference(key, _stats(cast(Arrays, arrays)))


def _make(real: Real, backbone: Backbone, group: Group, batch_size: int, count: int) -> FeatureStats | None:
    """The moments of all images and the features of ``count`` of them; None above rank 0."""
    whole = _pass_over(real, backbone, group, batch_size, features=count == len(real))
    if count in (0, len(real)):
        return whole

    numbers = np.random.default_rng(PART_SEED).choice(len(real), count, replace=False).tolist()
    part = _pass_over(real, backbone, group, batch_size, features=True, only=numbers)
    if whole is None or part is None:
        return None
    return dataclasses.replace(whole, features=part.features, labels=part.labels)


def _pass_over(
    real: Real, backbone: Backbone, group: Group, batch_size: int, features: bool, only: Sequence[int] | None = None
) -> FeatureStats | None:
    """The statistics of real images, whose batches the processes take in turn; None above rank 0."""
    batches = real.batches(batch_size, group.rank, group.size, only)
    total = math.ceil(len(real if only is None else only) / batch_size / group.size)
    steps = progress(batches, "real images", total=total)

    def name(position: int) -> str:
        number = group.position(position, batch_size)
        return f"number {number if only is None else only[number]}"

    own = accumulate(steps, backbone, features=features, probabilities=False, what="real images", name=name)
    shares = group.gather(own)
    if len(shares) > 1:
        return merge(shares, batch_size)
    return shares[0] if shares else None


def _arrays(stats: FeatureStats) -> Arrays:
    arrays = {"count": np.asarray(stats.count), "mean": stats.mean, "cov": stats.cov, "labels": stats.labels}
    return arrays if stats.features is None else {**arrays, "features": stats.features}


def _stats(arrays: Arrays) -> FeatureStats:
    return FeatureStats(
        int(arrays["count"]), arrays["mean"], arrays["cov"], arrays.get("features"), None, arrays["labels"]
    )
