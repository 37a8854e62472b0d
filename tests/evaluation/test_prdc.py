from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from studiogan_guidance.evaluation import prdc as module
from studiogan_guidance.evaluation.prdc import prdc, radii


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


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """By float64 differences, a row at a time."""
    return np.stack([np.sqrt(((row - y.astype(np.float64)) ** 2).sum(1)) for row in x.astype(np.float64)])


def twin(real: np.ndarray, fake: np.ndarray, k: int, distances: Any = distances) -> dict[str, float]:
    """Whole matrices of distances."""
    real_radii, fake_radii = (np.sort(distances(x, x), 1)[:, k] for x in (real, fake))
    between = distances(real, fake)
    inside = between < real_radii[:, None]
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float((between < fake_radii).any(1).mean()),
        "density": float(1 / k * inside.sum(0).mean()),
        "coverage": float((between.min(1) < real_radii).mean()),
    }


def in_float32(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.astype(np.float32), y.astype(np.float32)
    return np.sqrt(((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T).clip(min=0))


def features(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=(330, 24)), rng.normal(size=(270, 24)) * 0.9 + 0.1
    if kind == "clustered":
        real, fake = (x * 0.01 + rng.normal(size=(5, 24))[rng.integers(5, size=len(x))] for x in (real, fake))
    elif kind == "heavy tails":
        real, fake = real * rng.pareto(1, size=(330, 1)), fake * rng.pareto(1, size=(270, 1))
    elif kind == "float32":
        real, fake = real.astype(np.float32), fake.astype(np.float32)
    elif kind == "outlier":
        real[7] *= 1e6
        fake[3] *= -1e9
    elif kind == "beyond float32":
        real[7] *= 1e30
        real[8:] *= 1e-6
        fake *= 1e-6
    elif kind == "offset":
        real, fake = real + 1e4, fake + 1e4
    elif kind == "far apart":
        fake = fake + 1e4
    elif kind == "duplicates":
        real, fake = real[rng.integers(40, size=330)], np.concatenate([real[:50], fake[rng.integers(9, size=220)]])
    elif kind == "one fake":
        fake = np.repeat(real[:1] * 0.5, 270, axis=0)
    elif kind == "near duplicates":
        fake[40:240] = fake[40] + 1e-9 * fake[40:240]
        real[:60] = real[0] + 1e-9 * real[:60]
    elif kind == "grid":  # ties by the thousand
        real, fake = real[:, :3].round(), fake[:, :3].round()
    elif kind == "copy":
        fake = real.copy()
    elif kind == "one column":
        real, fake = real[:, :1], fake[:, :1]
    elif kind == "wide":
        real, fake = rng.normal(size=(130, 2048)).astype(np.float32), rng.normal(size=(97, 2048)).astype(np.float32)
    return real, fake


KINDS = ["normal", "clustered", "heavy tails", "float32", "outlier", "beyond float32", "offset", "far apart"]
KINDS += ["duplicates", "one fake", "near duplicates", "grid", "copy", "one column", "wide"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("small", [False, True])
def test_equals_float64_on(kind: str, small: bool, monkeypatch) -> None:
    if small:
        for name, value in {"BLOCK": 48, "PAIRS": 3, "GROUP": 2, "SPARE": 2}.items():
            monkeypatch.setattr(module, name, value)
    real, fake = features(kind)
    before = real.copy(), fake.copy()
    for k in (1, 5):
        assert prdc(real, fake, k) == twin(real, fake, k)
        np.testing.assert_allclose(radii(real, k), np.sort(distances(real, real), 1)[:, k], rtol=1e-13, atol=0)
        np.testing.assert_allclose(radii(fake, k), np.sort(distances(fake, fake), 1)[:, k], rtol=1e-13, atol=0)
        assert prdc(real, fake, k, radii(real, k)) == prdc(real, fake, k)
    assert (real == before[0]).all()
    assert (fake == before[1]).all()


def test_equals_float64_over_several_whole_blocks() -> None:
    rng = np.random.default_rng(5)
    real, fake = rng.normal(size=(2100, 6)), rng.normal(size=(1300, 6))
    assert prdc(real, fake, 5) == twin(real, fake, 5)
    np.testing.assert_allclose(radii(real, 5), np.sort(distances(real, real), 1)[:, 5], rtol=1e-13)


def test_what_float32_cannot_tell() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 16))
    direction = rng.normal(size=real.shape)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    sign = np.where(rng.random((200, 1)) < 0.5, -1, 1)
    for kind in (0, 1):  # on the brink of the ball of each real image; of each fake one
        fake = real + direction * radii(real, 5)[:, None] * (1 + 1e-10 * sign)
        pair = (real, fake) if kind == 0 else (fake, real)
        expected = twin(*pair, 5)
        assert prdc(*pair, 5) == expected
        assert twin(*pair, 5, in_float32) != expected


@pytest.mark.parametrize("spokes", [7, 12, 60])  # in the list of candidates, and more than it holds
def test_radius_among_neighbours_that_float32_cannot_tell_apart(spokes: int) -> None:
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(spokes, 64))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    length = 1 + 1e-10 * rng.permutation(spokes)[:, None]
    points = 3 + np.concatenate([np.zeros((1, 64)), direction * length, 100 + rng.normal(size=(300, 64))])
    assert radii(points, 5)[0] == pytest.approx(1 + 4e-10, abs=1e-13)


def test_a_copy_of_the_real_images_touches_the_radii_only() -> None:
    square = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]) / 3
    assert prdc(square, square.copy(), 1) == {"precision": 1.0, "recall": 1.0, "density": 1.0, "coverage": 1.0}
    assert prdc(square, square + 1 / 3, 1)["density"] == 0.25  # one fake is a real image, the others are on the brink


def test_thousands_of_identical_images_are_quick_and_right() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(3000, 16)), np.repeat(rng.normal(size=(2, 16)) * 0.3, 10_000, axis=0)
    fake[:3] = real[:3]
    expected = twin(real, np.concatenate([fake[:20], fake[-20:]]), 5)
    values = prdc(real, fake, 5)
    assert {values[name] == expected[name] for name in ("recall", "coverage")} == {True}
    assert (radii(fake, 5)[3:] == 0).all()
    assert (radii(np.ones((4000, 16)), 5) == 0).all()
    assert set(prdc(np.ones((4000, 16)), np.ones((4000, 16)), 5).values()) == {0.0}


@pytest.mark.parametrize("kind", ["normal", "float32", "offset", "outlier", "wide"])
def test_the_bound_of_the_error_holds(kind: str) -> None:
    real, fake = features(kind)
    x, y = torch.from_numpy(real), torch.from_numpy(fake)
    a, b = module._centred(x, y)
    h = a.half[:, None] + b.half - module._products(a.points, b.points).double()
    exact = (torch.from_numpy(distances(real, fake)) * module._scale(x, y)).square() / 2
    bound = a.error[:, None] + b.error
    assert (abs(h - exact) < bound).all()
    assert (bound < 2e-4 * (a.half[:, None] + b.half)).all()


def test_settings_of_the_user_change_nothing_and_are_left_alone() -> None:
    real, fake = features("normal")
    expected = twin(real, fake, 5)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("medium", "high", "highest"):
            torch.set_float32_matmul_precision(precision)
            tf32 = torch.backends.cuda.matmul.allow_tf32
            assert prdc(real, fake, 5) == expected
            assert torch.get_float32_matmul_precision() == precision
            assert torch.backends.cuda.matmul.allow_tf32 == tf32
            if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
                with module.true_float32():
                    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
                    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)
    with torch.autocast("cpu", torch.bfloat16):
        assert prdc(real, fake, 5) == expected


def test_other_kinds_of_arrays() -> None:
    real, fake = features("normal")
    real, fake = (real * 10).astype(np.float16), (fake * 10).round()
    fake.flags.writeable = False
    expected = prdc(real.astype(np.float64), fake.copy(), 5)
    assert prdc(real, fake, 5) == expected
    assert prdc(np.asfortranarray(real), fake.astype(np.int64), 5) == expected
    assert prdc(np.zeros((9, 0)), np.zeros((9, 0)), 5) == prdc(np.zeros((9, 3)), np.zeros((9, 3)), 5)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_equals_float64_on_a_gpu(kind: str) -> None:
    real, fake = features(kind)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert prdc(real, fake, 5, device="cuda") == twin(real, fake, 5)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    real, fake = features("normal")
    fake[5, 5] = bad
    for pair in ((real, fake), (fake, real)):
        with pytest.raises(ValueError, match="must be finite"):
            prdc(*pair, 5)


def test_radii_of_another_number_are_refused() -> None:
    real, fake = features("normal")
    with pytest.raises(ValueError, match="real_radii must be"):
        prdc(real, fake, 5, radii(fake, 5))
    with pytest.raises(ValueError, match="k = 5 needs more than 5"):
        radii(real[:5], 5)


def test_too_few_images_and_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="k = 5 needs more than 5"):
        prdc(np.zeros((5, 2)), np.zeros((9, 2)), k=5)
    with pytest.raises(ValueError, match="features must be"):
        prdc(np.zeros((9, 2)), np.zeros((9, 3)))
