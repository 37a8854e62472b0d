"""The distances against closed forms, slow twins and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from studiogan_guidance.evaluation.fid import factor, frechet_distance, moments
from studiogan_guidance.training.objectives import energy_descent, energy_distance, frechet, sliced_wasserstein


def test_energy_distance_is_its_double_sum() -> None:
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, generator=gen), torch.randn(7, 3, generator=gen) + 1

    def mean(a: Tensor, b: Tensor) -> float:
        pairs = [(u - v).norm().item() for i, u in enumerate(a) for j, v in enumerate(b) if a is not b or i != j]
        return sum(pairs) / len(pairs)

    assert energy_distance(x, y).item() == pytest.approx(2 * mean(x, y) - mean(x, x) - mean(y, y), rel=1e-5)


def test_energy_descent_has_the_gradient_of_the_energy_distance() -> None:
    """Alone; with earlier rows, it is that of the distance of all rows, as far as they are those of x."""
    gen = torch.Generator().manual_seed(0)
    x, y, earlier = (torch.randn(n, 3, generator=gen, dtype=torch.float64) for n in (5, 7, 4))
    x.requires_grad_()

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, x)[0]

    alone = gradient(energy_descent(x, earlier[:0], y))
    torch.testing.assert_close(alone, gradient(energy_distance(x, y)))
    among = gradient(energy_descent(x, earlier, y))
    torch.testing.assert_close(among, 9 / 5 * gradient(energy_distance(torch.cat([x, earlier]), y)))


def test_energy_distance_of_two_gaussians() -> None:
    """In one dimension with unit variances: 2 E|N(t, 2)| - 2 E|N(0, 2)|, and E|N(t, 2)| is known."""
    gen, t = torch.Generator().manual_seed(0), 1.5
    x, y = torch.randn(2, 4000, 1, generator=gen)
    apart = 2 / math.sqrt(math.pi) * math.exp(-(t**2) / 4) + t * math.erf(t / 2)
    assert energy_distance(x, y + t).item() == pytest.approx(2 * apart - 4 / math.sqrt(math.pi), abs=0.05)
    small = torch.stack([energy_distance(*torch.randn(2, 20, 1, generator=gen)) for _ in range(2000)])
    assert abs(small.mean().item()) < 3 * small.std().item() / math.sqrt(2000)  # unbiased: 0 on average, for any N


def test_sliced_wasserstein_sees_a_shift_along_each_direction() -> None:
    gen = torch.Generator().manual_seed(0)
    x, directions = torch.randn(50, 3, generator=gen), torch.nn.functional.normalize(torch.randn(20, 3, generator=gen))
    shift = torch.tensor([1.0, -2.0, 0.5])
    expected = (directions @ shift).square().mean()
    mixed = (x + shift)[torch.randperm(50, generator=gen)]
    torch.testing.assert_close(sliced_wasserstein(x, mixed, directions), expected)
    assert sliced_wasserstein(x, x.flip(0), directions) == 0


@pytest.mark.parametrize("n", [4, 50])
def test_frechet_is_that_of_the_metric_and_has_its_gradient(n: int) -> None:
    gen = torch.Generator().manual_seed(0)
    real = torch.randn(100, 6, generator=gen, dtype=torch.float64).numpy() @ np.diag([3, 2, 1, 1, 0.5, 0.1])
    fake = torch.randn(n, 6, generator=gen, dtype=torch.float64) + 1
    mean, cov = moments(real)
    given = torch.from_numpy(mean), torch.from_numpy(factor(cov))
    expected = frechet_distance(mean, cov, *moments(fake.numpy()))
    assert frechet(fake, *given).item() == pytest.approx(expected, rel=1e-7)
    assert torch.autograd.gradcheck(lambda x: frechet(x, *given), fake.requires_grad_())
