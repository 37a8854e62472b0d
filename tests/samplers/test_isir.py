from __future__ import annotations

import pytest
import torch
from conftest import identity_view
from torch import Tensor

from studiogan_guidance import rng, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView
from studiogan_guidance.samplers import Samples
from studiogan_guidance.samplers.isir import isir_choice


def run(view: LatentView, count: int, plan: LabelPlan | None = None, **options: object) -> Samples:
    sampler = samplers.create("isir", {"calibration": "none", **options})
    return next(sampler.stream(view, range(count), count, plan or LabelPlan()))


def tilted() -> LatentView:
    return identity_view(lambda x, c: x[:, 0])


def test_the_choice_is_by_softmax_and_by_hand() -> None:
    log_weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).log() - 5
    chance = torch.tensor([0.0, 0.09, 0.11, 0.29, 0.31, 0.59, 0.61, 0.999999])
    assert isir_choice(log_weights.expand(8, 4), chance).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    grid = (torch.arange(10_000) + 0.5) / 10_000
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 3
    for row in rows:
        shares = torch.bincount(isir_choice(row.expand(10_000, 5), grid), minlength=5) / 10_000
        torch.testing.assert_close(shares, row.softmax(0), atol=1e-4, rtol=0)


def test_the_choice_never_takes_a_weight_of_zero_nor_overflows() -> None:
    last = torch.tensor([1 - 2.0**-24])
    assert isir_choice(torch.tensor([[0.0, 1000.0, -torch.inf, -1000.0]]), last).tolist() == [1]
    assert isir_choice(torch.tensor([[-torch.inf, 3.0, -torch.inf]]), torch.zeros(1)).tolist() == [1]


def test_it_is_its_slow_twin_particle_by_particle() -> None:
    """One image alone: plain Python, the weights of all particles of a step drawn from one after the other."""
    (gen,) = rng.generators([5])
    x = float(torch.randn(1, generator=gen))
    label = int(torch.randint(2, (), generator=gen))
    for _ in range(6):
        total = torch.tensor(x, dtype=torch.float64).exp()
        for _ in range(3):
            new, chance = float(torch.randn(1, generator=gen)), float(torch.rand((), generator=gen))
            weight = torch.tensor(new, dtype=torch.float64).exp()
            total += weight
            x = new if chance >= 1 - weight / total else x

    stream = samplers.create("isir", {"calibration": "none", "steps": 6, "particles": 4})
    found = next(stream.stream(tilted(), [5], 1, LabelPlan()))
    assert found.labels.tolist() == [label]
    assert float(found.images) == pytest.approx(x)


def test_taking_one_after_the_other_is_taking_one_of_all() -> None:
    log_weights = torch.tensor([0.3, -1.0, 1.2, 0.0]).expand(100_000, 4)
    chances = torch.rand(3, 100_000, generator=torch.Generator().manual_seed(0))
    taken, total = torch.zeros(100_000, dtype=torch.int64), log_weights[:, 0]
    for k, chance in enumerate(chances, 1):
        taken[isir_choice(torch.stack([total, log_weights[:, k]], 1), chance) == 1] = k
        total = torch.logaddexp(total, log_weights[:, k])
    shares = torch.bincount(taken) / 100_000
    torch.testing.assert_close(shares, log_weights[0].softmax(0), atol=0.006, rtol=0)


def test_moments_of_a_shifted_gaussian() -> None:
    """p_g = N(0, 1), log ratio x (its constant does not matter): the target is N(1, 1)."""
    found = run(tilted(), 2000, steps=6)
    x = found.images.flatten()
    assert x.mean() == pytest.approx(1, abs=0.08)
    assert x.var() == pytest.approx(1, abs=0.1)
    assert found.cost["discriminator"] == 2000 * (1 + 6 * 9)
    assert found.cost["proposed"] == 2000 * 6 * 9
    assert found.cost["accepted"] == round(float(found.notes["acceptance"].sum()) * 6)
    torch.testing.assert_close(found.notes["score"], x)
    torch.testing.assert_close(found.notes["score_start"], run(tilted(), 2000, steps=0).images.flatten())


def test_at_the_target_it_stays() -> None:
    """Stationarity of one step from exact draws of the target; it would show any bias of the choice."""

    class Started(type(tilted())):  # type: ignore[misc]
        """Draws start at N(1, 1); fresh proposals are N(0, 1) as ever."""

        def draw(self, *args: object, **kwargs: object):  # type: ignore[no-untyped-def]
            inputs = super().draw(*args, **kwargs)
            inputs.z.add_(1)
            return inputs

    for particles in (2, 4):
        x = run(Started(tilted().networks), 10_000, steps=1, particles=particles).images
        assert x.mean() == pytest.approx(1, abs=0.03)
        assert x.var() == pytest.approx(1, abs=0.045)
        assert (x > 2).float().mean() == pytest.approx(0.1587, abs=0.011)


def test_one_step_with_many_particles_is_importance_resampling() -> None:
    x = run(tilted(), 1000, steps=1, particles=60).images
    assert x.mean() == pytest.approx(1, abs=0.1)
    assert x.var() == pytest.approx(1, abs=0.15)


def test_infogan_numbers_are_drawn_anew_and_tilted_too() -> None:
    """d = 2 for the first code of three: its share becomes e^2 / (e^2 + 2)."""
    view = identity_view(lambda x, c: 2 * x[:, 1], info_discrete=1, info_discrete_dim=3)
    x = run(view, 1500, steps=6).images
    share = torch.tensor([2.0, 0, 0]).softmax(0)
    torch.testing.assert_close(x[:, 1:].mean(0), share, atol=0.04, rtol=0)


def test_labels_stay_and_classes_have_targets_of_their_own() -> None:
    view = identity_view(lambda x, c: torch.where(c == 0, -1.0, 1.0) * x[:, 0] + 30 * c)
    found = run(view, 2000, LabelPlan((0, 1)), steps=6, particles=6)
    means: list[Tensor] = [found.images[found.labels == label].mean() for label in (0, 1)]
    assert means[0] == pytest.approx(-1, abs=0.1)
    assert means[1] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "isir.steps must be a number from 0 up"),
        ({"particles": 1}, "isir.particles must be a number from 2 up"),
        ({"calibration": "no"}, "isir.calibration is 'no'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("isir", options)
