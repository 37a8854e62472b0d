from __future__ import annotations

import numpy as np
import pytest

from studiogan_guidance.evaluation import prdc as module
from studiogan_guidance.evaluation.prdc import prdc


def slow(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    """The definitions, one pair at a time."""

    def radius(points: np.ndarray, i: int) -> float:
        return sorted(float(np.linalg.norm(points[i] - q)) for j, q in enumerate(points) if j != i)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    fake_radii = [radius(fake, j) for j in range(len(fake))]
    pairs = [[float(np.linalg.norm(x - y)) for y in fake] for x in real]
    inside = [[d < r for d in row] for row, r in zip(pairs, real_radii)]
    return {
        "precision": float(np.mean([any(row[j] for row in inside) for j in range(len(fake))])),
        "recall": float(np.mean([any(d < r for d, r in zip(row, fake_radii)) for row in pairs])),
        "density": float(np.mean([sum(row[j] for row in inside) for j in range(len(fake))]) / k),
        "coverage": float(np.mean([min(row) < r for row, r in zip(pairs, real_radii)])),
    }


@pytest.mark.parametrize(("n", "m", "k", "shift"), [(40, 40, 5, 0.0), (30, 50, 3, 0.5), (55, 20, 1, 1.0)])
def test_agrees_with_the_definitions_at_any_block_size(monkeypatch, n: int, m: int, k: int, shift: float) -> None:
    rng = np.random.default_rng(n)
    real, fake = rng.normal(size=(n, 3)), rng.normal(size=(m, 3)) + shift
    expected = slow(real, fake, k)
    assert prdc(real, fake, k) == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr(module, "BLOCK", 7)
    assert prdc(real, fake, k) == pytest.approx(expected, abs=1e-12)


def test_which_way_round_real_and_fake_go() -> None:
    rng = np.random.default_rng(0)
    two_modes = np.concatenate([rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 50])
    one_mode = rng.normal(size=(400, 2)) * 0.8
    collapsed = prdc(real=two_modes, fake=one_mode)
    assert collapsed["precision"] > 0.9  # all fakes look real
    assert collapsed["recall"] < 0.6  # half of the reals are missed
    assert collapsed["coverage"] < 0.6
    swapped = prdc(real=one_mode, fake=two_modes)
    assert swapped["precision"] < 0.6 < 0.9 < swapped["recall"]


def test_expectations_for_equal_distributions() -> None:
    rng = np.random.default_rng(1)
    values = prdc(rng.normal(size=(2000, 64)), rng.normal(size=(2000, 64)), k=5)
    assert values["density"] == pytest.approx(1, abs=0.1)
    assert values["coverage"] == pytest.approx(1 - 2**-5, abs=0.02)


def test_too_few_images_and_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="k = 5 needs more than 5"):
        prdc(np.zeros((5, 2)), np.zeros((9, 2)), k=5)
    with pytest.raises(ValueError, match="features must be"):
        prdc(np.zeros((9, 2)), np.zeros((9, 3)))
