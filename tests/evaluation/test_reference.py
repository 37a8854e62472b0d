from __future__ import annotations

import numpy as np
import pytest

from studiogan_guidance.evaluation import reference
from studiogan_guidance.evaluation.features import FeatureStats


def stats(value: float, features: bool) -> FeatureStats:
    kept = np.full((3, 2), value, np.float32) if features else None
    return FeatureStats(3, np.full(2, value), np.eye(2), kept, None, np.arange(3))


@pytest.mark.parametrize("features", [True, False])
def test_a_key_is_computed_once_and_any_change_is_another_key(features: bool) -> None:
    key = {"data": "a", "split": "train", "features": features}
    first = reference.load(key, lambda: stats(1.0, features))
    again = reference.load(key, lambda: pytest.fail("computed twice"))
    np.testing.assert_array_equal(first.mean, again.mean)
    assert again.count == 3
    assert (again.features is None) == (not features)
    other = reference.load({**key, "split": "valid"}, lambda: stats(2.0, features))
    assert other.mean[0] == 2.0


def test_a_damaged_file_is_computed_again() -> None:
    key = {"data": "damaged"}
    reference.load(key, lambda: stats(1.0, True))
    reference.cache_path(key).write_bytes(b"junk")
    assert reference.load(key, lambda: stats(3.0, True)).mean[0] == 3.0
    assert reference.load(key, lambda: pytest.fail("computed again")).mean[0] == 3.0


def test_a_failed_computation_leaves_no_file() -> None:
    key = {"data": "broken"}
    with pytest.raises(RuntimeError):
        reference.load(key, lambda: (_ for _ in ()).throw(RuntimeError("no images")))
    assert not reference.cache_path(key).exists()
