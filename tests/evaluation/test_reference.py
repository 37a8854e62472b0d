"""Statistics of real images: computed once, for everything that they depend on, and never from half a computation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import prdc, reference
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.reference import Reference, load_or_make
from studiogan_guidance.features.stats import FeatureStats
from studiogan_guidance.files import cache_path, read_arrays, write_arrays


class Points:
    """Random points as real images of one pixel and as their own features; it counts the passes over them."""

    def __init__(self, name: str, count: int = 30, default_count: int = 30) -> None:
        self.fingerprint: dict[str, Any] = {"data": name, "reference": "train"}
        self.cache_key = {**self.fingerprint, "times": 0}
        self.default_count = default_count
        self.images = torch.randn(count, 4, generator=torch.Generator().manual_seed(len(name)))
        self.passes = 0
        self.protocol = {"backbone": "points"}
        self.classifies, self.device = False, torch.device("cpu")

    def __len__(self) -> int:
        return len(self.images)

    def labels(self) -> list[int]:
        return list(range(len(self)))

    def batches(
        self, size: int, first: int = 0, step: int = 1, only: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        numbers = torch.arange(len(self)) if only is None else torch.tensor(only)
        yield from list(zip(self.images[numbers].split(size), numbers.split(size)))[first::step]

    def prepare(self, images: Tensor) -> Tensor:
        return images

    def __call__(self, prepared: Tensor) -> tuple[Tensor, None]:
        return prepared, None


def made(points: Points, features: bool = True, source: dict[str, Any] | None = None) -> Reference:
    real = load_or_make(points, points, source or {}, Group(), 8, features)
    assert real is not None
    return real


@pytest.mark.parametrize("features", [True, False])
def test_a_key_is_computed_once_and_any_change_is_another_key(features: bool) -> None:
    points = Points(f"once {features}")
    first, again = made(points, features), made(points, features)
    assert points.passes == 1
    np.testing.assert_array_equal(first.stats.mean, again.stats.mean)
    np.testing.assert_array_equal(first.stats.cov, again.stats.cov)
    np.testing.assert_array_equal(first.stats.labels, again.stats.labels)
    assert again.stats.count == 30
    assert (again.stats.features is None) == (not features)
    made(points, not features)
    assert points.passes == 2
    made(points, features, {"host_commit": "another"})
    assert points.passes == 3
    points.cache_key = {**points.cache_key, "times": 1}  # the same names and sizes, written at another time
    points.images += 1
    assert made(points, features).stats.mean[0] != first.stats.mean[0]
    assert points.passes == 4


def test_features_are_those_of_a_fixed_part_and_moments_those_of_all() -> None:
    points = Points("a part", default_count=10)
    stats = made(points).stats
    chosen = np.random.default_rng(0).choice(30, 10, replace=False)
    assert stats.features is not None
    np.testing.assert_array_equal(stats.features, points.images[chosen].numpy())
    np.testing.assert_array_equal(stats.labels, chosen)
    np.testing.assert_allclose(stats.mean, points.images.double().mean(0).numpy(), rtol=1e-12)
    assert (stats.count, points.passes) == (30, 2)


def test_a_damaged_file_is_none() -> None:
    points = Points("damaged")
    first = made(points)
    cache_path(reference.KIND, first.key).write_bytes(b"junk")
    np.testing.assert_array_equal(made(points).stats.cov, first.stats.cov)
    assert points.passes == 2
    made(points)
    assert points.passes == 2


def test_factor_and_radii_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).normal(size=(30, 4))
    whole = FeatureStats(30, points.mean(0), np.cov(points, rowvar=False), points, None, np.arange(30))
    first = Reference({"data": "derived"}, whole)
    np.testing.assert_allclose(first.factor @ first.factor.T, whole.cov, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(first.radii(3, "cpu"), prdc.radii(points, 3))
    monkeypatch.setattr(reference.fid, "factor", lambda sigma: pytest.fail("computed twice"))
    monkeypatch.setattr(reference.prdc, "radii", lambda *args: pytest.fail("computed twice"))
    again = Reference({"data": "derived"}, whole)
    np.testing.assert_array_equal(again.factor, first.factor)
    np.testing.assert_array_equal(again.radii(3, "cpu"), first.radii(3, "cpu"))
    monkeypatch.undo()
    assert not np.array_equal(again.radii(4, "cpu"), first.radii(3, "cpu"))


def test_features_that_are_not_finite_are_refused_and_never_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    points = Points("nan")
    message = r"gives features that are not finite .* for 2 of 30 real images \(number 11 to number 29\)"

    def broken(self: Points, prepared: Tensor) -> tuple[Tensor, None]:
        return torch.where(
            (prepared == points.images[[11, 29], None]).all(2).any(0)[:, None], torch.nan, prepared
        ), None

    with monkeypatch.context() as patch:
        patch.setattr(Points, "__call__", broken)
        with pytest.raises(UserError, match=message):
            made(points)
        points.default_count = 3  # the moments of all, and the features of a part
        with pytest.raises(UserError, match=message):
            made(points)
    points.default_count = 30
    first = made(points)
    assert np.isfinite(first.stats.cov).all()
    assert points.passes == 3

    # Those that an earlier version has left are computed anew.
    path = cache_path(reference.KIND, first.key)
    write_arrays(path, {**(read_arrays(path) or {}), "mean": first.stats.mean * np.nan})
    np.testing.assert_array_equal(made(points).stats.mean, first.stats.mean)
    assert points.passes == 4


def test_images_are_named_by_their_positions_whoever_saw_them(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = [Group(rank, 3).position(own, 4) for rank in range(3) for own in range(8)]
    dealt = torch.arange(24).split(4)
    assert positions == torch.cat([batch for rank in range(3) for batch in dealt[rank::3]]).tolist()
    assert [Group().position(own, 4) for own in range(9)] == list(range(9))


def test_a_failed_computation_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    points = Points("broken")

    def broken(prepared: Tensor) -> tuple[Tensor, None]:
        raise OSError(5, "no images")  # of the data, so it is not the cache that cannot be written

    with monkeypatch.context() as patch:
        patch.setattr(Points, "__call__", lambda self, prepared: broken(prepared))
        with pytest.raises(OSError, match="no images"):
            made(points)
    folder = cache_path(reference.KIND, {}).parent
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    made(points)
    assert points.passes == 2
