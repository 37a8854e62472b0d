import numpy as np
import pytest

from studiogan_guidance.evaluation.kid import kid


def slow(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, one pair at a time."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((sum(p * q for p, q in zip(a, b)) / len(a) + 1) ** 3)

    def within(points: np.ndarray) -> float:
        return float(np.mean([kernel(p, q) for i, p in enumerate(points) for j, q in enumerate(points) if i != j]))

    return within(x) + within(y) - 2 * float(np.mean([kernel(p, q) for p in x for q in y]))


def test_agrees_with_the_definition_where_a_subset_is_the_whole() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 3)) + 0.5
    assert kid(x, y, subsets=1) == pytest.approx(slow(x, y), rel=1e-12)
    assert kid(x.astype(np.float32), y, subsets=3, size=99) == pytest.approx(slow(x, y), rel=1e-6)


def test_unbiased_for_equal_distributions_and_positive_for_others() -> None:
    rng = np.random.default_rng(1)
    values = [kid(rng.normal(size=(60, 4)), rng.normal(size=(60, 4)), subsets=1) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    assert kid(rng.normal(size=(500, 4)), rng.normal(size=(500, 4)) + 1, subsets=5, size=100) > 1


def test_one_image_is_too_few() -> None:
    with pytest.raises(ValueError, match="KID needs at least 2"):
        kid(np.zeros((1, 2)), np.zeros((5, 2)))
