"""Statistics of the real images, computed once and cached under a key of everything that changes them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from studiogan_guidance.common import cache_dir, replacing
from studiogan_guidance.evaluation.features import FeatureStats

FORMAT = 1  # raise it when the meaning of a cached file changes


def cache_path(key: Mapping[str, Any]) -> Path:
    """Where the statistics of a key live; any change of the key is another file."""
    text = json.dumps({**key, "format": FORMAT}, sort_keys=True)
    return cache_dir() / "reference" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def find(key: Mapping[str, Any]) -> FeatureStats | None:
    """The cached statistics of ``key``, or None if there are none, or none that can be read."""
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return _read(cache_path(key))
    return None


def load(key: Mapping[str, Any], compute: Callable[[], FeatureStats]) -> FeatureStats:
    """The cached statistics of ``key``, or those that ``compute`` returns, cached from now on."""
    if found := find(key):
        return found
    with replacing(cache_path(key)) as beside:
        beside.touch()  # an unwritable cache is found before minutes are spent
        stats = compute()
        kept: dict[str, Any] = {"mean": stats.mean, "cov": stats.cov, "labels": stats.labels}
        if stats.features is not None:
            kept["features"] = stats.features
        np.savez(beside, **kept)
    return stats


def _read(path: Path) -> FeatureStats:
    with np.load(path) as file:
        return FeatureStats(len(file["labels"]), file["mean"], file["cov"], file.get("features"), None, file["labels"])
