from __future__ import annotations

import numpy as np
import pytest

from studiogan_guidance.evaluation import prdc, reference
from studiogan_guidance.evaluation.reference import Reference
from studiogan_guidance.features.stats import FeatureStats


def stats(value: float, features: bool) -> FeatureStats:
    kept = np.full((3, 2), value, np.float32) if features else None
    return FeatureStats(3, np.full(2, value), np.eye(2), kept, None, np.arange(3))


@pytest.mark.parametrize("features", [True, False])
def test_a_key_is_computed_once_and_any_change_is_another_key(features: bool) -> None:
    key = {"data": "a", "split": "train", "features": features}
    assert reference.find(key) is None
    first = reference.save(key, lambda: stats(1.0, features))
    again = reference.find(key)
    assert again is not None
    np.testing.assert_array_equal(first.mean, again.mean)
    assert again.count == 3
    assert (again.features is None) == (not features)
    assert reference.find({**key, "split": "valid"}) is None
    reference.save({**key, "split": "valid"}, lambda: stats(2.0, features))
    assert reference.find(key).mean[0] == 1.0  # type: ignore[union-attr]


def test_a_damaged_file_is_none() -> None:
    key = {"data": "damaged"}
    reference.save(key, lambda: stats(1.0, True))
    reference.cache_path(key).write_bytes(b"junk")
    assert reference.find(key) is None
    reference.save(key, lambda: stats(3.0, True))
    assert reference.find(key).mean[0] == 3.0  # type: ignore[union-attr]


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


def test_a_failed_computation_leaves_no_file() -> None:
    key = {"data": "broken"}
    with pytest.raises(RuntimeError):
        reference.save(key, lambda: (_ for _ in ()).throw(RuntimeError("no images")))
    assert not reference.cache_path(key).exists()
