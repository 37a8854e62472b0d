import numpy as np
import pytest

from studiogan_guidance.evaluation import fid as module
from studiogan_guidance.evaluation.fid import (
    factor,
    frechet_distance,
    frechet_distance_of,
    frechet_infinity,
    moments,
)


def test_closed_form_for_diagonal_gaussians() -> None:
    rng = np.random.default_rng(0)
    mu1, mu2 = rng.normal(size=(2, 6))
    a, b = rng.uniform(0.1, 3, size=(2, 6))
    expected = ((mu1 - mu2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(mu1, np.diag(a), mu2, np.diag(b)) == pytest.approx(expected, rel=1e-12)


def test_rotating_both_sides_changes_nothing_and_the_order_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(300, 5)) + 1
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    distance = frechet_distance(*moments(x), *moments(y))
    assert frechet_distance(*moments(x @ turn), *moments(y @ turn)) == pytest.approx(distance, rel=1e-10)
    assert frechet_distance(*moments(y), *moments(x)) == pytest.approx(distance, rel=1e-10)


def test_equal_sets_are_at_zero_even_when_rank_deficient() -> None:
    few = np.random.default_rng(2).normal(size=(10, 40))  # covariance of rank 9 in 40 dimensions
    assert abs(frechet_distance(*moments(few), *moments(few))) < 1e-7 * np.trace(moments(few)[1])


def test_a_non_commuting_pair_against_a_general_matrix_root() -> None:
    rng = np.random.default_rng(3)
    a, b = (m @ m.T for m in rng.normal(size=(2, 8, 8)))
    eigenvalues = np.linalg.eigvals(a @ b)  # of the non-symmetric product, the slow and plain way
    expected = np.trace(a) + np.trace(b) - 2 * np.sqrt(eigenvalues.astype(complex)).real.sum()
    assert frechet_distance(np.zeros(8), a, np.zeros(8), b) == pytest.approx(expected, rel=1e-9)


def test_shapes_that_do_not_fit_and_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes do not fit"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="at least 2 images"):
        moments(np.zeros((1, 4)))


def test_a_factor_at_hand_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(90, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(80, 6))
    (mu1, sigma1), (mu2, sigma2) = moments(x), moments(y)
    root = factor(sigma1)
    np.testing.assert_allclose(root @ root.T, sigma1, rtol=1e-12, atol=1e-12)
    assert frechet_distance(mu1, sigma1, mu2, sigma2, root) == frechet_distance(mu1, sigma1, mu2, sigma2)


@pytest.mark.parametrize(("n", "m"), [(10, 12), (10, 200), (90, 80)])
def test_from_features_without_a_covariance(n: int, m: int) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(n, 40)) + 3, rng.normal(size=(m, 40)) @ rng.normal(size=(40, 40))
    assert frechet_distance_of(x, y) == pytest.approx(frechet_distance(*moments(x), *moments(y)), rel=1e-6)


@pytest.mark.parametrize("n", [192, 400, 1000])  # 3, 6 and 16 images a dimension
def test_infinity_has_less_bias(n: int) -> None:
    rng = np.random.default_rng(6)
    mu, spread = np.zeros(64), 1 / np.sqrt(1 + np.arange(64))
    sets = [rng.normal(size=(n, 64)) * spread for _ in range(12)]  # of the very distribution: the true distance is 0
    at_n = [frechet_distance(mu, np.diag(spread**2), *moments(x)) for x in sets]
    infinity = [frechet_infinity(x, mu, np.diag(spread**2)) for x in sets]
    assert abs(np.mean(infinity)) < 0.15 * np.mean(at_n)


def test_infinity_reads_off_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(7).normal(size=(300, 3))
    sizes: list[int] = []

    def on_a_line(mu1: object, sigma1: object, mu2: object, cov: np.ndarray, root: object) -> float:
        sizes.append(int(next(counts)))
        return 5 + 100 / sizes[-1]

    counts = iter([150, *np.cumsum([len(p) for p in np.array_split(np.arange(150), 14)]) + 150])
    monkeypatch.setattr(module, "frechet_distance", on_a_line)
    assert frechet_infinity(x, np.zeros(3), np.eye(3)) == pytest.approx(5)
    assert (sizes[0], sizes[-1], len(sizes)) == (150, 300, 15)


def test_infinity_needs_enough_images_for_the_dimension() -> None:
    with pytest.raises(ValueError, match="FID-infinity of 64 features needs at least 192 images, found 191"):
        frechet_infinity(np.zeros((191, 64)), np.zeros(64), np.eye(64))
