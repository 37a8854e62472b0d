from __future__ import annotations

import math

import pytest
import torch
from conftest import ToyCritic, ToyGAN, identity_view, toy_networks
from torch import Tensor

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers import Samples


def run(
    view: LatentView, count: int, plan: LabelPlan | None = None, name: str = "ex2mcmc", **options: object
) -> Samples:
    sampler = samplers.create(name, {"calibration": "none", **options})
    return next(sampler.stream(view, range(count), count, plan or LabelPlan()))


def two_modes(x: Tensor, c: Tensor) -> Tensor:
    """log of N(0, 1) tilted into 0.8 N(-2, 0.2^2) + 0.2 N(2, 0.2^2), far apart and narrow."""
    modes = torch.stack([math.log(weight) - (x[:, 0] - m).square() / 0.08 for weight, m in ((0.8, -2.0), (0.2, 2.0))])
    return modes.logsumexp(0) + x[:, 0].square() / 2


def test_moments_of_a_shifted_gaussian() -> None:
    view = identity_view(lambda x, c: x.sum(1), z_dim=2)
    found = run(view, 2000, steps=8, step=0.5, particles=5)
    x = found.images
    torch.testing.assert_close(x.mean(0), torch.ones(2), atol=0.08, rtol=0)
    torch.testing.assert_close(x.T.cov(), torch.eye(2), atol=0.1, rtol=0)
    torch.testing.assert_close(found.notes["score"], x.sum(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.notes["norm"], x.norm(dim=1) / math.sqrt(2))

    # Costs of 8 steps, each of 4 fresh particles and 3 Langevin moves.
    assert found.cost["backward"] == 2000 * 8 * 4
    assert found.cost["discriminator"] == 2000 * (1 + 8 * (4 + 4))
    assert found.cost["proposed"] == 2000 * 8 * (4 + 3)
    moved = 8 * float(found.notes["jumps"].sum() + 3 * found.notes["acceptance"].sum())
    assert found.cost["accepted"] == round(moved)


def test_mode_masses_come_out_where_langevin_steps_alone_stay_stuck() -> None:
    view = identity_view(two_modes)
    x = run(view, 800, steps=15, step=0.02).images
    assert (x < 0).float().mean() == pytest.approx(0.8, abs=0.045)
    for side, centre in ((x < 0, -2), (x > 0, 2)):
        assert x[side].mean() == pytest.approx(centre, abs=0.06)
        assert x[side].std() == pytest.approx(0.2, abs=0.03)
    stuck = run(view, 300, name="ddls", mala=True, steps=60, step=0.02).images
    assert (stuck < 0).float().mean() == pytest.approx(0.5, abs=0.09)  # each stays on the side where it began


def test_the_langevin_step_is_that_of_the_reference_or_meets_an_acceptance() -> None:
    view = identity_view(lambda x, c: x.sum(1) / 4, z_dim=20)
    plain = run(view, 50, steps=1)
    torch.testing.assert_close(plain.notes["step"], torch.full((50,), 0.02))  # theirs is 0.01, with a drift of step
    found = run(view, 300, steps=8, particles=2, target_acceptance=0.67)
    assert found.notes["acceptance"].mean() == pytest.approx(0.67, abs=0.04)
    assert found.notes["step"].unique().numel() == 1
    assert found.notes["step"][0] > 0.2


def test_images_of_the_toy_become_the_gaussian_posterior_in_both_spaces() -> None:
    """Without interaction w within a class is Gaussian, so z and w have the same target; see ``test_ddls``."""
    toy = ToyGAN(interaction=0)
    critic = ToyCritic(toy)
    view = view_for(toy_networks(toy, "", critic))
    covariance = torch.linalg.inv(torch.eye(4) + critic.curve * toy.A @ toy.A.T)
    mean = toy.mean + toy.b[1] + covariance @ toy.A @ (critic.slope - critic.curve * toy.b[1]) @ toy.A
    for space in ("z", "w"):
        x = run(view, 1000, LabelPlan((1,)), steps=10, step=0.3, particles=4, space=space).images.flatten(1)
        assert (mean - toy.mean - toy.b[1]).norm() > 7 * (x.mean(0) - mean).norm()
        posterior = toy.A.T @ covariance @ toy.A
        assert (toy.A.T @ toy.A - posterior).norm() > 5 * (x.T.cov() - posterior).norm()


def test_a_uniform_prior_keeps_to_its_cube() -> None:
    """d(x) = 2 x on [-1, 1]: the mean is coth(2) - 1 / 2."""
    x = run(identity_view(lambda x, c: 2 * x[:, 0], z_prior="uniform"), 2000, steps=8, step=0.1, particles=4).images
    assert x.abs().max() <= 1
    assert x.mean() == pytest.approx(0.5373, abs=0.04)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "ex2mcmc.steps must be a number from 0 up"),
        ({"particles": 1}, "ex2mcmc.particles must be a number from 2 up"),
        ({"mala_steps": 0}, "ex2mcmc.mala_steps must be a number from 1 up"),
        ({"step": 0}, "ex2mcmc.step must be positive"),
        ({"target_acceptance": 0}, "ex2mcmc.target_acceptance must be between 0 and 1, found 0"),
        ({"step": "nan"}, "ex2mcmc.step must be a finite number"),
        ({"space": "w"}, "space w needs a generator with w, identity has none"),
        ({"calibration": "isotonic"}, "calibration=isotonic has no gradient"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("ex2mcmc", options).check(identity_view(lambda x, c: x[:, 0]))
