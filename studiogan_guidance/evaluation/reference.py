"""Statistics of the real images, computed once and cached under a key of everything that changes them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from studiogan_guidance.batches import progress
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import distributed, fid, prdc
from studiogan_guidance.features.images import Real
from studiogan_guidance.features.stats import Backbone, FeatureStats, accumulate, merge
from studiogan_guidance.files import cache_dir, replacing

FORMAT = 2  # raise it when the meaning of a cached file changes


class Reference:
    """Statistics of real images under a ``key``, with what every comparison with them needs worked out once.

    Factor and radii are kept in memory, and on disk beside the statistics.
    """

    def __init__(self, key: Mapping[str, Any], stats: FeatureStats) -> None:
        self.key, self.stats = key, stats
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
        digest = hashlib.sha256(self.stats.mean.tobytes() + self.stats.cov.tobytes()).hexdigest()
        path = cache_path({**self.key, "derived": name, "of": digest})
        with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(path) as file:
            return np.asarray(file["value"])
        value = compute()
        with suppress(UserError), replacing(path) as beside:  # a cache that cannot be written is none
            np.savez(beside, value=value)
        return value


def cache_path(key: Mapping[str, Any]) -> Path:
    """Where the statistics of a key live; any change of the key is another file."""
    text = json.dumps({**key, "format": FORMAT}, sort_keys=True)
    return cache_dir() / "reference" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


@contextmanager
def locked(key: Mapping[str, Any]) -> Iterator[None]:
    """Keep other processes from computing the statistics of ``key`` at the same time."""
    lock = FileLock(cache_path(key).with_suffix(".lock"))
    with suppress(OSError):  # a cache that may only be read
        cache_path(key).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def find(key: Mapping[str, Any]) -> FeatureStats | None:
    """The cached statistics of ``key``, or None if there are none, or none that can be read."""
    with (
        suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
        np.load(cache_path(key)) as file,
    ):
        count = int(file["count"])
        return FeatureStats(count, file["mean"], file["cov"], file.get("features"), None, file["labels"])
    return None


def save(key: Mapping[str, Any], compute: Callable[[], FeatureStats]) -> FeatureStats:
    """The statistics that ``compute`` returns, cached from now on."""
    with replacing(cache_path(key)) as beside:
        beside.touch()  # an unwritable cache is found before minutes are spent
        stats = compute()
        kept: dict[str, Any] = {"count": stats.count, "mean": stats.mean, "cov": stats.cov, "labels": stats.labels}
        if stats.features is not None:
            kept["features"] = stats.features
        np.savez(beside, **kept)
    return stats


def _neighbours(cfg: RunConfig) -> bool:
    return bool({"prdc", "kid", "fid_infinity", "per_class"} & set(cfg.metrics))  # they need the features themselves


def _real_stats(
    cfg: RunConfig, real: Real, backbone: Backbone, source: Mapping[str, Any], group: distributed.Group
) -> Reference | None:
    only = None
    if _neighbours(cfg) and len(real) > real.default_count:  # as many as the host takes, always the same ones
        only = np.random.default_rng(0).choice(len(real), real.default_count, replace=False).tolist()
    kept = (len(only) if only else len(real)) if _neighbours(cfg) else 0
    key = {**real.cache_key, **backbone.protocol, **source, "features": kept}

    def pass_over(features: bool, only: list[int] | None) -> FeatureStats | None:
        images = real.batches(cfg.batch_size, group.rank, group.size, only)
        total = math.ceil((len(only) if only else len(real)) / cfg.batch_size / group.size)
        steps = progress(images, "real images", total=total)
        parts = group.gather(accumulate(steps, backbone, features=features, probabilities=False))
        return merge(parts, cfg.batch_size) if len(parts) > 1 else parts[0] if parts else None

    def compute() -> FeatureStats | None:
        whole = pass_over(kept > 0 and not only, None)
        some = pass_over(True, only) if only else None
        return dataclasses.replace(whole, features=some.features, labels=some.labels) if whole and some else whole

    with locked(key) if group.rank == 0 else nullcontext():
        cached = find(key) if group.rank == 0 else None
        if group.agree(cached is not None):
            return Reference(key, cached) if cached else None
        if group.rank:
            compute()
            return None
        return Reference(key, save(key, lambda: cast(FeatureStats, compute())))
