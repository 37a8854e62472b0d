"""Statistics of the real images: from a file, or computed once and cached under a key of all that changes them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from studiogan_guidance import __version__
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, detail
from studiogan_guidance.evaluation import distributed, fid, prdc, results, stats_file
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.labels import resolved_classes
from studiogan_guidance.evaluation.source import current_device, open_backbone, open_source
from studiogan_guidance.evaluation.stats_file import StatsFile
from studiogan_guidance.features.images import Real
from studiogan_guidance.features.stats import Backbone, FeatureStats, accumulate, merge
from studiogan_guidance.files import Arrays, cache_path, cached, locked, read_arrays, write_arrays
from studiogan_guidance.progress import bar, track

KIND = "reference"  # the folder of the cache
VERSION = 3  # of the cached statistics and what is derived from them: raise it when their maths change
BATCH_SIZE = 64  # images of a batch of ``write`` where the run does not say
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
            follow = partial(track, what="neighbours")
            self._radii[k] = self._derived(f"radii {k}", lambda: prdc.radii(features, k, device, follow))
        return self._radii[k]

    def _derived(self, name: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        moments = hashlib.sha256(self.stats.mean.tobytes() + self.stats.cov.tobytes()).hexdigest()
        key = {**self.key, "derived": name, "of": moments}

        def value() -> Arrays:
            with bar(f"{name} of the real images"):
                return {"value": compute()}

        return cached(KIND, key, value)["value"]


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
        detail(f"statistics of real images: {'not in the cache' if arrays is None else f'from the cache, {path}'}")
        if group.agree(arrays is None or not np.isfinite(arrays["mean"]).all()):  # left by an earlier version
            arrays = _arrays(cast(FeatureStats, make()))
            write_arrays(path, arrays)
    return Reference(key, _stats(cast(Arrays, arrays)))


def of_file(file: StatsFile, width: int, with_features: bool) -> Reference:
    """The statistics in a file, for a feature network that gives ``width`` features an image."""
    key = {"reference_stats": file.digest, "features": with_features, "version": VERSION}
    return Reference(key, file.stats(width, with_features))


def provenance(real: Mapping[str, Any], backbone: Backbone, source: Mapping[str, Any]) -> dict[str, Any]:
    """How statistics are made, as the protocol of a file says it.

    Args:
        real: everything about the real images that changes a metric, or a part of it.
        backbone: the feature network.
        source: what else they depend on.
    """
    return {"real": real, "backbone": backbone.protocol, "source": source, "version": VERSION}


def write(cfg: RunConfig, path: Path, with_features: bool = True) -> dict[str, Any]:
    """Write the statistics of the real images of ``cfg`` into a file that ``reference_stats`` takes.

    Args:
        cfg: the run, for the real images and the feature network; it needs no checkpoint.
        path: of the file.
        with_features: write features and labels, too, which metrics of neighbours and of classes need.

    Returns:
        The file and what it holds; in processes above rank 0, nothing.

    Raises:
        UserError: what the configuration lacks, or a file that cannot be written, before any work is done.
    """
    if path.is_dir():
        raise UserError(f"--out {path} is a folder: give a file such as {path / 'stats.npz'}")
    results.writable(path.parent)
    with distributed.group() as group:
        # Open the real images and the feature network.
        source = open_source(cfg)
        split = cfg.reference or source.default_split
        real: Real = source.real(split, source.image_size)
        classes = resolved_classes(cfg, len(real.class_names), real.class_names)
        if classes:
            real = source.real(split, source.image_size, classes)
        backbone = open_backbone(cfg, source, current_device(cfg.device))
        if len(real) < 2:
            raise UserError(f"statistics need at least 2 real images, found {len(real)}: give more data")

        # Measure and write.
        size = cfg.batch_size or BATCH_SIZE
        measured = load_or_make(real, backbone, source.protocol, group, size, with_features)
        if measured is None:
            return {}
        protocol = {
            **provenance(real.fingerprint, backbone, source.protocol),
            "num_real": len(real),
            "default_count": min(real.default_count, len(real)),
            "class_names": list(real.class_names),
            "written_by": f"{results.PACKAGE} {__version__}",
        }
        stats_file.write(path, measured.stats, protocol)

    features = measured.stats.features
    return {
        "stats": str(path),
        "num_real": len(real),
        "num_features": 0 if features is None else len(features),
        "width": len(measured.stats.mean),
        "protocol": {**protocol["real"], **protocol["backbone"], **protocol["source"]},
    }


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
    total = len(real if only is None else only)
    steps = track(batches, "real images", total, batch_size * group.size)

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
