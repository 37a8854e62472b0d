import numpy as np
import pytest

from studiogan_guidance.evaluation.fid import frechet_distance, moments


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
