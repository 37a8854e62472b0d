from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from conftest import ToyCritic, ToyGAN, identity_view, toy_networks
from torch import Tensor

from studiogan_guidance import builtin, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers import Samples
from studiogan_guidance.samplers.chain import value_and_gradient
from studiogan_guidance.samplers.ddls import PILOT_MOVES, PILOTS, mala, ula

SHIFT = 1.5


def shifted(z: Tensor) -> Tensor:
    """Energy of p0 = N(0, 1) with d(z) = SHIFT z: the target is N(SHIFT, 1)."""
    return z.square().sum(1) / 2 - SHIFT * z.sum(1)


def normals(chains: int) -> Callable[[], Tensor]:
    g = torch.Generator().manual_seed(0)
    return lambda: torch.randn(chains, 1, generator=g)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize(("step", "variance"), [(0.1, 1.026), (0.5, 1.143), (1.0, 1.333), (2.0, 2.0)])
def test_the_unadjusted_chain_is_wider_by_its_closed_form(step: float, variance: float, temperature: float) -> None:
    normal = normals(100_000)
    z = normal()
    for _ in range(round(12 / step)):
        z, energies = ula(z, shifted, step, normal(), temperature)
    assert energies.shape == (100_000,)
    assert z.mean() == pytest.approx(SHIFT, abs=0.02)
    assert z.var() / temperature**2 == pytest.approx(1 / (1 - step / 4), rel=0.013)
    assert 1 / (1 - step / 4) == pytest.approx(variance, abs=1e-3)


@pytest.mark.parametrize(("step", "acceptance"), [(0.1, 0.997), (0.5, 0.972), (1.0, 0.921), (2.0, 0.784)])
def test_the_adjusted_chain_is_exact_at_any_step(step: float, acceptance: float) -> None:
    normal, g = normals(100_000), torch.Generator().manual_seed(1)
    z = normal()
    state = (z, *value_and_gradient(shifted, z))
    for _ in range(round(12 / step) + 8):
        state, moved = mala(state, shifted, step, normal(), torch.rand(100_000, generator=g))
    assert state[0].mean() == pytest.approx(SHIFT, abs=0.02)
    assert state[0].var() == pytest.approx(1, rel=0.013)
    assert moved.float().mean() == pytest.approx(acceptance, abs=0.004)
    for kept, anew in zip(
        state[1:], value_and_gradient(shifted, state[0])
    ):  # energies and slopes are those of where it is
        torch.testing.assert_close(kept, anew)


def run(view: LatentView, count: int, plan: LabelPlan | None = None, **options: object) -> Samples:
    sampler = samplers.create("ddls", {"calibration": "none", **options})
    return next(sampler.stream(view, range(count), count, plan or LabelPlan()))


@pytest.mark.parametrize("options", [{"steps": 12, "step": 0.5}, {"steps": 20, "step": 0.3, "mala": True}])
def test_a_uniform_prior_stays_uniform_where_the_discriminator_has_nothing_to_say(options: dict[str, object]) -> None:
    view = identity_view(lambda x, c: 0 * x[:, 0], z_dim=2, z_prior="uniform")
    x = run(view, 2000, **options).images
    plain = run(view, 2000, steps=0).images
    assert x.abs().max() <= 1
    assert torch.corrcoef(torch.stack([x[:, 0], plain[:, 0]]))[0, 1] < 0.3  # it has moved
    shares = torch.histc(x, 10, -1, 1) / x.numel()
    assert (shares - 0.1).abs().max() < 0.02


def test_a_uniform_prior_is_tilted() -> None:
    """d(x) = a x on [-1, 1]: the mean is coth(a) - 1 / a."""
    view = identity_view(lambda x, c: 2 * x[:, 0], z_prior="uniform")
    for options in ({"steps": 100, "step": 0.03}, {"steps": 30, "step": 0.3, "mala": True}):
        x = run(view, 2000, **options).images
        assert x.mean() == pytest.approx(0.5373, abs=0.04)


def posterior(toy: ToyGAN, critic: ToyCritic, label: int) -> tuple[Tensor, Tensor]:
    """Mean [12] and covariance [12, 12] of images under N(z; 0, I) exp(logit), for w = mean + b + z M."""
    m, b = toy.A + toy.Q * toy.d[label], toy.b[label]
    covariance = torch.linalg.inv(torch.eye(toy.z_dim) + critic.curve * m @ m.T)
    mean = covariance @ m @ (critic.slope - critic.curve * b)
    return toy.mean + b + mean @ m, m.T @ covariance @ m


@pytest.mark.parametrize("options", [{"steps": 60, "step": 0.3, "mala": True}, {"steps": 100, "step": 0.05}])
def test_images_of_the_toy_become_the_gaussian_posterior(toy: ToyGAN, options: dict[str, object]) -> None:
    critic = ToyCritic(toy)
    view = view_for(toy_networks(toy, critic=critic))
    found = run(view, 2000, LabelPlan((3,)), **options)
    x = found.images.flatten(1)
    mean, covariance = posterior(toy, critic, 3)
    prior = toy.A + toy.Q * toy.d[3]
    assert (mean - toy.mean - toy.b[3]).norm() > 10 * (x.mean(0) - mean).norm()
    assert (prior.T @ prior - covariance).norm() > 6 * (x.T.cov() - covariance).norm()
    assert found.cost["backward"] == 2000 * (int(options["steps"]) + ("mala" in options))  # type: ignore[call-overload]
    assert found.notes["score"].mean() > found.notes["score_start"].mean()
    plain = run(view, 2000, LabelPlan((3,)), steps=0).images
    torch.testing.assert_close(found.notes["score_start"], critic(plain, found.labels)["adv_output"])


def test_in_w_the_prior_is_the_gaussian_of_w_within_classes() -> None:
    """Without interaction the toy's w of a class is exactly Gaussian, so both spaces have the same target."""
    toy = ToyGAN(interaction=0)
    critic = ToyCritic(toy)
    view = view_for(toy_networks(toy, "toy without interaction", critic))
    x = run(view, 2000, LabelPlan((1,)), steps=60, step=0.3, mala=True, space="w").images.flatten(1)
    mean, covariance = posterior(toy, critic, 1)
    assert (mean - toy.mean - toy.b[1]).norm() > 8 * (x.mean(0) - mean).norm()
    assert (toy.A.T @ toy.A - covariance).norm() > 5 * (x.T.cov() - covariance).norm()


def test_on_a_guided_base_the_discriminator_judges_guided_images(toy: ToyGAN, toy_view: LatentView) -> None:
    """Cold, for many steps: every chain ends where the energy of the guided generator is least."""
    base = {"name": "gandance", "joint": "global_mean", "scale": 1.5}
    x = run(toy_view, 4, LabelPlan((2,)), steps=200, step=0.1, temperature=0, base=base).images.flatten(1)
    guided = ToyGAN()
    for part in ("A", "Q", "b"):
        setattr(guided, part, 1.5 * getattr(toy, part))
    guided.mean, guided.d = toy.mean, toy.d
    torch.testing.assert_close(x, posterior(guided, ToyCritic(toy), 2)[0].expand(4, -1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("step", "goal"), [(0.01, 0.67), (5.0, 0.67), (0.2, 0.9)])
def test_a_step_that_is_adapted_meets_the_acceptance_that_was_asked_for(step: float, goal: float) -> None:
    """A Gaussian target in 20 dimensions, d linear; the note tells the frozen step, the same for every batch."""
    view = identity_view(lambda x, c: x.sum(1) / 4, z_dim=20)
    options = {"steps": 20, "step": step, "mala": True, "target_acceptance": goal}
    found = run(view, 300, **options)
    assert found.notes["acceptance"].mean() == pytest.approx(goal, abs=0.04)
    assert found.notes["step"].unique().numel() == 1
    assert view.ledger.setup["backward"] == PILOTS * (PILOT_MOVES + 1)

    # Other images, first in their process, have the same step, and images are those of that step.
    fresh = identity_view(lambda x, c: x.sum(1) / 4, z_dim=20)
    alone = run(fresh, 3, **options)
    assert torch.equal(alone.notes["step"], found.notes["step"][:3])
    torch.testing.assert_close(alone.images, found.images[:3])
    fixed = run(fresh, 3, steps=20, step=float(alone.notes["step"][0]), mala=True)
    torch.testing.assert_close(fixed.images, alone.images, atol=1e-4, rtol=1e-4)


def test_infogan_numbers_and_layer_noise_stay() -> None:
    view = identity_view(lambda x, c: 3 * x.sum(1), z_dim=2, info_discrete=1, info_discrete_dim=3, info_continuous=1)
    moved, plain = run(view, 5, steps=5, step=0.3).images, run(view, 5, steps=0).images
    assert torch.equal(moved[:, 2:], plain[:, 2:])
    assert (moved[:, :2] - plain[:, :2]).abs().min() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "ddls.steps must be a number from 0 up"),
        ({"step": 0}, "ddls.step must be positive"),
        ({"step": "inf"}, "ddls.step must be a finite number"),
        ({"temperature": -0.1}, "ddls.temperature must be a number from 0 up"),
        ({"mala": True, "temperature": 0.5}, "ddls.mala is exact at temperature 1 only"),
        ({"calibration": "isotonic"}, "calibration=isotonic has no gradient"),
        ({"target_acceptance": 0.67}, "ddls.target_acceptance adapts Metropolis-corrected steps only: add mala=true"),
        ({"target_acceptance": 1, "mala": True}, "ddls.target_acceptance must be between 0 and 1, found 1"),
        ({"space": "x"}, "ddls.space is 'x'"),
        ({"space": "w"}, "space w needs a generator with w, identity has none"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("ddls", options).check(identity_view(lambda x, c: x[:, 0]))


def test_no_discriminator_is_refused_unless_there_are_no_steps() -> None:
    view = view_for(dataclasses.replace(builtin.networks(), companions=None))
    with pytest.raises(UserError, match="needs a discriminator, and there is none beside"):
        samplers.create("ddls").check(view)
    samplers.create("ddls", {"steps": 0}).check(view)
