from __future__ import annotations

import math

import pytest
import torch
from conftest import ToyCritic, ToyGAN, identity_view
from torch import Tensor

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView
from studiogan_guidance.samplers import Samples
from studiogan_guidance.samplers.dgflow import drift, flow

SLOPE = torch.tensor([0.5, -2.0])


def run(view: LatentView, count: int, plan: LabelPlan | None = None, **options: object) -> Samples:
    sampler = samplers.create("dgflow", {"calibration": "none", **options})
    return next(sampler.stream(view, range(count), count, plan or LabelPlan()))


def linear(**more: object) -> LatentView:
    return identity_view(lambda x, c: x @ SLOPE, z_dim=2, **more)


def test_drifts_are_the_derivatives_of_their_divergences() -> None:
    """s_f is the derivative by d, the logit of D, of d (kl), log D (logd) and -log(1 - D) (js)."""
    d = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    big = torch.sigmoid(d)  # D, the probability that an image is real
    for divergence, gained in {"kl": d, "logd": big.log(), "js": -(1 - big).log()}.items():
        (slope,) = torch.autograd.grad(gained.sum(), d, retain_graph=True)
        torch.testing.assert_close(drift(d.detach(), divergence), slope)
    assert drift(torch.tensor([0.0, 200.0, -200.0]), "logd").tolist() == pytest.approx([0.5, 0, 1])
    assert drift(torch.tensor([0.0, 200.0, -200.0]), "js").tolist() == pytest.approx([0.5, 1, 0])


def test_a_step_is_drift_and_noise_of_variance_two_eta_gamma() -> None:
    noise = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0))
    z = torch.full((100_000, 2), 3.0)
    moved = flow(z, torch.ones_like(z), torch.full((100_000,), 0.5), 0.1, 0.01, noise)
    assert moved.mean() == pytest.approx(3 + 0.1 * 0.5, abs=5e-4)
    assert moved.var() == pytest.approx(2 * 0.1 * 0.01, rel=0.02)


def test_kl_drifts_by_eta_a_step_where_the_ratio_is_linear() -> None:
    plain = run(linear(), 2000, steps=0).images
    still = run(linear(), 5, steps=7, eta=0.2, gamma=0).images
    torch.testing.assert_close(still, plain[:5] + 7 * 0.2 * SLOPE)
    moved = run(linear(), 2000, steps=7, eta=0.2, gamma=0.3).images - plain
    torch.testing.assert_close(moved.mean(0), 7 * 0.2 * SLOPE, atol=0.06, rtol=0)
    torch.testing.assert_close(moved.T.cov(), 7 * 2 * 0.2 * 0.3 * torch.eye(2), atol=0.06, rtol=0)


@pytest.mark.parametrize("divergence", ["logd", "js"])
def test_other_divergences_follow_their_own_differential_equation(divergence: str) -> None:
    """For d = a . z, dd/dt = |a|^2 s_f(d): d + e^d grows by |a|^2 t for logd, d - e^-d for js."""

    def clock(d: Tensor) -> Tensor:
        return d + d.exp() if divergence == "logd" else d - (-d).exp()

    found = run(linear(), 50, steps=400, eta=0.001, gamma=0, divergence=divergence)
    before, after = found.notes["score_start"].double(), found.notes["score"].double()
    near = before.abs() < 3  # where Euler's steps are good
    passed = clock(after[near]) - clock(before[near])
    torch.testing.assert_close(passed, torch.full_like(passed, 0.4 * float(SLOPE @ SLOPE)), rtol=0.01, atol=0)


def test_a_uniform_prior_reflects() -> None:
    found = run(linear(z_prior="uniform"), 200, steps=1, eta=0.4, gamma=0)
    plain = run(linear(z_prior="uniform"), 200, steps=0).images
    away = plain + 0.4 * SLOPE
    assert (away.abs() > 1).any()
    bounced = torch.where(away.abs() > 1, away.sign() * 2 - away, away)
    torch.testing.assert_close(found.images, bounced)


def test_on_the_toy_it_is_gradient_ascent_on_the_quadratic_logit(toy: ToyGAN, toy_view: LatentView) -> None:
    """Without noise z_k - z* = (1 - eta curve M M^T)^k (z_0 - z*), with z* the maximum of the logit over z."""
    critic = ToyCritic(toy)
    m = (toy.A + toy.Q * toy.d[2]).double()
    inputs = toy_view.draw(range(6), 0, LabelPlan((2,)))
    found = run(toy_view, 6, LabelPlan((2,)), steps=9, eta=0.2, gamma=0)

    # The closed form in z.
    curvature = critic.curve * m @ m.T
    best = torch.linalg.solve(curvature, m @ (critic.slope - critic.curve * toy.b[2]).double())
    shrink = torch.linalg.matrix_power(torch.eye(4, dtype=torch.float64) - 0.2 * curvature, 9)
    z = best + (inputs.z.double() - best) @ shrink

    torch.testing.assert_close(found.images.flatten(1), (toy.mean + toy.b[2] + z @ m).float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.notes["norm"], (z.norm(dim=1) / 2).float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.notes["score"], critic(found.images, found.labels)["adv_output"])
    assert (found.notes["score"] > found.notes["score_start"]).all()
    assert found.cost == {"mapping": 60, "synthesis": 60, "discriminator": 60, "backward": 54}


def test_in_w_the_toy_climbs_too(toy_view: LatentView) -> None:
    found = run(toy_view, 6, steps=5, gamma=0, space="w")
    assert (found.notes["score"] > found.notes["score_start"] + 0.1).all()


def test_calibration_scales_the_drift(toy: ToyGAN, toy_view: LatentView) -> None:
    """A logistic map multiplies the gradient by its slope, so eta times that, uncalibrated, is the same."""
    sampler = samplers.create("dgflow", {"steps": 3, "gamma": 0})
    calibrated = next(sampler.stream(toy_view, range(6), 6, LabelPlan())).images
    slope = float(sampler.ratio(toy_view).weights[0])  # type: ignore[attr-defined]
    assert not math.isclose(slope, 1, abs_tol=0.05)
    torch.testing.assert_close(run(toy_view, 6, steps=3, gamma=0, eta=0.1 * slope).images, calibrated)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "dgflow.steps must be a number from 0 up"),
        ({"eta": -1}, "dgflow.eta must be a number from 0 up"),
        ({"eta": 0}, "dgflow.eta is 0, so 25 steps would not move"),
        ({"gamma": "inf"}, "dgflow.gamma must be a finite number"),
        ({"divergence": "klx"}, "dgflow.divergence is 'klx': did you mean 'kl'"),
        ({"calibration": "isotonic"}, "calibration=isotonic has no gradient"),
        ({"space": "w"}, "space w needs a generator with w, identity has none"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("dgflow", options).check(linear())
