from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import IdentityView, ToyCritic, ToyGAN, identity_view
from torch import Tensor, nn

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView
from studiogan_guidance.samplers import Samples
from studiogan_guidance.samplers.dot import DELTA, DOT, projected, transport_slope

SLOPE = torch.tensor([3.0, -4.0])  # of norm 5


def run(view: LatentView, count: int, plan: LabelPlan | None = None, **options: object) -> Samples:
    sampler = samplers.create("dot", {"calibration": "none", **options})
    return next(sampler.stream(view, range(count), count, plan or LabelPlan()))


def linear(**more: object) -> LatentView:
    return identity_view(lambda x, c: x @ SLOPE, z_dim=2, **more)


def test_the_slope_is_that_of_the_objective() -> None:
    g = torch.Generator().manual_seed(0)
    z, start, weights = torch.randn(3, 5, 4, generator=g, dtype=torch.float64)
    z = z.requires_grad_()
    objective = (z - start + DELTA).norm(dim=1) - (z * weights).sum(1).square() / 7
    (expected,) = torch.autograd.grad(objective.sum(), z)
    (slope,) = torch.autograd.grad((z * weights).sum(1).square().sum() / 7, z)
    torch.testing.assert_close(transport_slope(z.detach(), start, slope), expected)


def test_less_slope_than_the_constant_does_not_pay_and_more_does() -> None:
    """d linear with |grad d| = 5: at k_eff = 6 the start is best, at 4 each unit of distance gains 5/4 - 1."""
    for k_eff in (6, 50):
        still = run(linear(), 50, k_eff=k_eff, steps=200, projection="none").notes["moved"]
        assert still.max() < 0.02  # rate, and delta
    plain = run(linear(), 50, steps=0).images
    found = run(linear(), 50, k_eff=4, steps=200, projection="none")
    away = found.images - plain
    torch.testing.assert_close(away / away.norm(dim=1, keepdim=True), (SLOPE / 5).expand(50, -1), atol=0.02, rtol=0)
    assert away.norm(dim=1) == pytest.approx(torch.full((50,), 200 * 0.01 * (5 / 4 - 1)), abs=0.03)
    torch.testing.assert_close(found.notes["moved"], away.norm(dim=1))
    torch.testing.assert_close(found.notes["score"] - found.notes["score_start"], away @ SLOPE, atol=1e-4, rtol=0)


def test_tangent_steps_keep_the_norm_to_second_order() -> None:
    z, g = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = projected(g, z, "tangent")
    torch.testing.assert_close((flat * z).sum(1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(projected(flat, z, "tangent"), flat)
    for rate in (0.1, 0.01):
        grown = (z - rate * flat).square().sum(1) - z.square().sum(1)
        torch.testing.assert_close(grown, rate**2 * flat.square().sum(1))
    assert torch.equal(projected(g, z, "none"), g)


def test_the_projection_of_a_run_keeps_latents_in_their_shell() -> None:
    view = identity_view(lambda x, c: x.sum(1), z_dim=8)
    plain = run(view, 20, steps=0).images
    off = {}
    for name in ("tangent", "none"):
        moved = run(view, 20, steps=12, k_eff=0.5, projection=name).images
        off[name] = float((moved.norm(dim=1) / plain.norm(dim=1) - 1).abs().max())
    assert off["tangent"] < 0.01
    assert off["none"] > 0.1


def k_eff(sampler: DOT, view: LatentView, label: int = 0) -> float:
    return sampler.constant(view, label, sampler.ratio(view))


def test_the_constant_is_the_lipschitz_constant_of_a_line_and_below_it_elsewhere() -> None:
    line = identity_view(lambda x, c: -3 * (1 + c) * x[:, 0])
    sampler = DOT(calibration="none", pairs=70)
    assert [k_eff(sampler, line, label) for label in (0, 1)] == [
        pytest.approx(3, rel=1e-3),
        pytest.approx(6, rel=1e-3),
    ]
    plane = k_eff(DOT(calibration="none", pairs=200), linear())
    assert 4.8 < plane <= 5 + 1e-4
    bent = identity_view(lambda x, c: torch.sin(2 * x[:, 0]))
    assert 1.5 < k_eff(DOT(calibration="none", pairs=300), bent) <= 2


def test_the_constant_leaves_out_the_class_term_of_a_projection_discriminator() -> None:
    """l(h) = 2 x and h e_c = 5 c x: the descent follows (2 + 5 c) x, and k_eff is 2 for both classes."""

    class Projection(nn.Module):
        d_cond_mtd = "PD"
        num_classes = 2
        table = torch.tensor([[0.0], [5.0]])

        def embedding(self, labels: Tensor) -> Tensor:
            return self.table[labels]

        def forward(self, x: Tensor, labels: Tensor, eval: bool = False, adc_fake: bool = False) -> dict[str, Tensor]:
            return {"h": x, "adv_output": 2 * x[:, 0] + (x * self.embedding(labels)).sum(1)}

    view = identity_view(lambda x, c: x[:, 0])
    companions = dataclasses.replace(view.networks.companions, discriminator=Projection)
    view = IdentityView(dataclasses.replace(view.networks, companions=companions))
    sampler = DOT(calibration="none", pairs=20)
    assert [k_eff(sampler, view, label) for label in (0, 1)] == [pytest.approx(2, rel=1e-3)] * 2
    logit = sampler.ratio(view)(torch.ones(1, 1), torch.ones(1, dtype=torch.int64))
    assert logit.tolist() == [7]


def test_the_constant_is_made_once_for_the_classes_that_occur_and_booked_as_setup() -> None:
    view = linear(classes=7)
    for _ in range(2):
        found = run(view, 4, LabelPlan((2, 5)), steps=3, pairs=130)
        assert found.cost == {"synthesis": 16, "discriminator": 16, "backward": 12}
    assert view.ledger.setup == {"synthesis": 2 * 260, "discriminator": 2 * 260}
    assert run(view, 4, steps=3, k_eff=2.5).notes["k_eff"].tolist() == [2.5] * 4
    assert view.ledger.setup["synthesis"] == 2 * 260


def test_infogan_numbers_are_the_same_in_both_halves_of_a_pair() -> None:
    """A jump of d between codes is no slope in z."""
    view = identity_view(lambda x, c: 2 * x[:, 0] + 1000 * x[:, 1], info_discrete=1, info_discrete_dim=2)
    assert k_eff(DOT(calibration="none"), view) == pytest.approx(2, rel=0.01)


def test_a_uniform_prior_clips() -> None:
    view = linear(z_prior="uniform")
    found = run(view, 50, k_eff=1, steps=60, rate=0.05)
    torch.testing.assert_close(found.images, torch.tensor([1.0, -1.0]).expand(50, -1))
    short = run(view, 50, k_eff=1, steps=1, rate=0.05)
    plain = run(view, 50, steps=0).images
    step = 0.05 * (SLOPE - 2**-0.5)  # at the start, delta points along the diagonal
    torch.testing.assert_close(short.images, (plain + step).clamp(-1, 1), atol=1e-4, rtol=0)


def test_a_logistic_calibration_changes_nothing(toy_view: LatentView) -> None:
    sampler = samplers.create("dot", {"steps": 6, "pairs": 20, "rate": 0.05})
    calibrated = next(sampler.stream(toy_view, range(5), 5, LabelPlan())).images
    torch.testing.assert_close(calibrated, run(toy_view, 5, steps=6, pairs=20, rate=0.05).images, atol=1e-4, rtol=1e-4)


def test_on_the_toy_it_is_its_slow_twin(toy: ToyGAN, toy_view: LatentView) -> None:
    critic, k = ToyCritic(toy), 0.7
    m = toy.A + toy.Q * toy.d[1]
    start = toy_view.draw(range(3), 0, LabelPlan((1,))).z

    def gain(z: Tensor) -> Tensor:
        return critic(toy.mean + toy.b[1] + z @ m, torch.ones(()))["adv_output"]

    expected = []
    for z_y in start:
        z = z_y.clone()
        for _ in range(8):
            z = z.requires_grad_()
            cost = (z - z_y + DELTA).norm() - gain(z[None])[0] / k
            (g,) = torch.autograd.grad(cost, z)
            z = z.detach()
            z = z - 0.02 * (g - (z @ g) / (z @ z) * z)
        expected.append(toy.mean + toy.b[1] + z @ m)
    found = run(toy_view, 3, LabelPlan((1,)), steps=8, rate=0.02, k_eff=k)
    torch.testing.assert_close(found.images.flatten(1), torch.stack(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "dot.steps must be a number from 0 up"),
        ({"pairs": 0}, "dot.pairs must be a number from 1 up"),
        ({"rate": 0}, "dot.rate must be positive"),
        ({"k_eff": -2}, "dot.k_eff must be positive"),
        ({"k_eff": "inf"}, "dot.k_eff must be a finite number"),
        ({"projection": "radial"}, "dot.projection is 'radial'"),
        ({"calibration": "isotonic"}, "calibration=isotonic has no gradient"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("dot", options)


def test_a_constant_discriminator_is_refused() -> None:
    with pytest.raises(UserError, match="constant over class 0, so nothing can move"):
        run(identity_view(lambda x, c: 0 * x[:, 0]), 2, LabelPlan((0,)))
