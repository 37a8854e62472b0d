from __future__ import annotations

import pytest
import torch
from conftest import ToyGAN, identity_view, toy_networks
from torch import Tensor

from studiogan_guidance import builtin, rng, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.latents.base import Inputs
from studiogan_guidance.samplers import spaces
from studiogan_guidance.samplers.chain import value_and_gradient
from studiogan_guidance.samplers.spaces import Latent


def cube(width: int = 1) -> Latent:
    return Latent(torch.zeros(1, width), lambda u: u, lambda gens: rng.uniform(gens, width), gaussian=False)


def plain(view: LatentView, inputs: Inputs) -> Tensor:
    return view.images(inputs)


def test_energies_are_minus_the_log_priors() -> None:
    u = torch.tensor([[0.5, -0.25], [1.5, 0.0]])
    inside, outside = cube(2).energy(u).tolist()
    assert (inside, outside) == (0, float("inf"))
    gauss = Latent(u, lambda u: u, lambda gens: rng.randn(gens, 2))
    law = torch.distributions.Normal(0.0, 1.0)
    differences = gauss.energy(u)[0] - gauss.energy(u)[1]
    torch.testing.assert_close(differences, (law.log_prob(u[1]) - law.log_prob(u[0])).sum())


def test_the_cube_reflects_as_a_billiard_does() -> None:
    def bounced(x: float) -> float:
        while not -1 <= x <= 1:
            x = 2 - x if x > 1 else -2 - x
        return x

    u = torch.linspace(-9.7, 9.7, 389)[:, None]
    twin = torch.tensor([[bounced(float(x))] for x in u])
    torch.testing.assert_close(cube().inside(u), twin, atol=2e-6, rtol=0)
    assert cube().inside(u).abs().max() <= 1
    gauss = Latent(u, lambda u: u, lambda gens: rng.randn(gens, 1))
    assert torch.equal(gauss.inside(u), u)


def test_z_is_the_prior_part_of_the_noise_and_leads_to_the_plain_images() -> None:
    view = identity_view(lambda x, c: x[:, 0], z_dim=3, info_discrete=2, info_discrete_dim=2, z_prior="uniform")
    inputs = view.draw(range(5), 0, LabelPlan())
    place = spaces.of_inputs(view, inputs)
    assert place.start.shape == (5, 3)
    assert not place.gaussian
    assert torch.equal(place.images(place.start), inputs.z)
    fresh = place.draw(rng.generators(range(1000)))
    assert fresh.shape == (1000, 3)
    assert fresh.var() == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize("interaction", [0.0, 1.0])
def test_w_is_whitened_within_classes_and_starts_at_the_plain_images(interaction: float) -> None:
    toy = ToyGAN(interaction=interaction)
    view = view_for(toy_networks(toy, digest=""))
    inputs = view.draw(range(4000), 0, LabelPlan())
    place = spaces.of_inputs(view, inputs, "w")
    width = toy.w_dim if interaction else toy.z_dim  # without, w moves in four directions only
    assert place.start.shape == (4000, width)
    assert place.gaussian

    # It starts at the plain images, about standard normal.
    torch.testing.assert_close(place.images(place.start), plain(view, inputs), atol=1e-4, rtol=1e-4)
    assert place.start.mean(0).abs().max() < 0.1
    assert (place.start.T.cov() - torch.eye(width)).abs().max() < 0.12

    # A step is the same for all, as w is linear in u.
    step = place.images(place.start + 1) - place.images(place.start)
    torch.testing.assert_close(step, step[:1].expand_as(step), atol=1e-4, rtol=0)


def test_what_the_spread_of_w_costs_is_set_up_and_done_once(toy_view: LatentView) -> None:
    inputs = toy_view.draw(range(3), 0, LabelPlan())
    toy_view.class_means()
    toy_view.ledger.cost.clear()
    for _ in range(2):
        spaces.of_inputs(toy_view, inputs, "w")
    assert toy_view.ledger.setup["mapping"] == spaces.PRIOR_DRAWS
    assert toy_view.ledger.cost == {"mapping": 6}


def test_w_needs_a_generator_with_w() -> None:
    view = identity_view(lambda x, c: x[:, 0])
    with pytest.raises(UserError, match="space w needs a generator with w, identity has none: use space=z"):
        spaces.of_inputs(view, view.draw(range(2), 0, LabelPlan()), "w")


@pytest.mark.parametrize("space", spaces.SPACES)
def test_gradients_through_the_builtin_are_those_of_finite_differences(space: str) -> None:
    view = view_for(builtin.networks())
    inputs = view.draw(range(2), 0, LabelPlan())
    with view.frozen(), torch.no_grad():
        place = spaces.of_inputs(view, inputs, space)
        torch.testing.assert_close(place.images(place.start), plain(view, inputs), atol=1e-4, rtol=0)
        weights = torch.randn(place.images(place.start).shape, generator=torch.Generator().manual_seed(0))

        def function(u: Tensor) -> Tensor:
            return (place.images(u) * weights).flatten(1).sum(1)

        values, slope = value_and_gradient(function, place.start)
        towards = slope / slope.norm(dim=1, keepdim=True)
        ahead, behind = function(place.start + 0.001 * towards), function(place.start - 0.001 * towards)
    torch.testing.assert_close(values, function(place.start).detach())
    torch.testing.assert_close((ahead - behind) / 0.002, slope.norm(dim=1), rtol=0.05, atol=0)  # kinks
    assert not slope.requires_grad
    assert all(parameter.grad is None for parameter in view.generator.parameters())


def test_rows_that_differ_stay_apart_in_w(toy_view: LatentView) -> None:
    """Guided in its first two rows only, the last one, which the toy shows, is the plain one."""
    guided = samplers.create("gandance", {"scale": 2, "layers": [0, 2]}).built_into(toy_view)
    inputs = toy_view.draw(range(8), 0, LabelPlan())
    place = spaces.of_inputs(guided, inputs, "w")
    plain = toy_view.decode(toy_view.encode(inputs.z, inputs.labels), inputs.z, None)
    torch.testing.assert_close(place.images(place.start), plain, atol=1e-4, rtol=1e-4)
