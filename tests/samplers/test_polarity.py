from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from conftest import IdentityView, ToyGAN, identity_view
from torch import Tensor

from studiogan_guidance import builtin, rng, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers.polarity import log_volume, polarity_weights, projection


class Kinked(IdentityView):
    """G(z, c) = z below 0 and 3 z above, with layer noise that is added to it; ``passes`` may run out."""

    passes = 10**9

    def noise_sizes(self) -> list[int]:
        return [1]

    def decode(self, code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        self.passes -= 1
        if self.passes < 0:
            raise KeyboardInterrupt
        self.ledger.cost["synthesis"] += len(z)
        return torch.where(z > 0, 3 * z, z) + (1000 * noise[0].flatten(1).sign() if noise else 0)


def kinked(classes: int = 1, digest: str = "") -> Kinked:
    return Kinked(identity_view(lambda x, c: x[:, 0], classes=classes, digest=digest).networks)


def test_log_volumes_do_not_overflow_and_a_flat_direction_counts_as_the_least() -> None:
    found = log_volume(torch.diag_embed(torch.tensor([[1e30] * 20, [1e-10] * 20, [1.0] * 19 + [0]])), 20)
    expected = torch.tensor([600.0, -200, -12], dtype=torch.float64) * torch.tensor(10.0, dtype=torch.float64).log()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert polarity_weights(found, 5).tolist() == [1, 0, 0]
    assert polarity_weights(found, 0).tolist() == pytest.approx([1 / 3] * 3)


def test_weights_are_products_of_singular_values_to_the_power_rho() -> None:
    jacobians = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    product = torch.linalg.svdvals(jacobians.double())[:, :3].prod(1) ** -1.7
    torch.testing.assert_close(polarity_weights(log_volume(jacobians, 3), -1.7), product / product.sum())


def test_directions_are_orthonormal_and_all_of_them_where_there_are_few_pixels() -> None:
    torch.testing.assert_close(projection(300, 20).T @ projection(300, 20), torch.eye(20), atol=1e-5, rtol=0)
    assert projection(12, 128).shape == (12, 12)
    assert torch.equal(projection(300, 20), projection(300, 20))


@pytest.mark.parametrize("scale", [1, 1.5])
def test_volumes_of_linear_generators_are_their_singular_values(
    toy: ToyGAN, toy_view: LatentView, scale: float
) -> None:
    """dG/dz = A + Q d_c for the toy, and scale times that on a base that guides around the mean of all."""
    base = {"name": "gandance", "joint": "global_mean", "scale": scale}
    for k, count in ((4, 128), (2, 128), (2, 5)):
        sampler = samplers.create("polarity", {"k": k, "pool": 50, "projections": count, "base": base})
        for label in (0, 3):
            slope = scale * (toy.A + toy.Q * toy.d[label])
            sigma = torch.linalg.svdvals(slope @ projection(12, count))
            found = sampler.volumes(sampler.under(toy_view), label, "random")
            torch.testing.assert_close(found, sigma[:k].log().sum().double().expand(10), atol=1e-5, rtol=0)
    assert toy_view.ledger.cost["backward"] == 2 * 10 * (12 + 12 + 5)


def test_jacobians_are_those_of_a_slow_twin_in_a_batch_of_any_size() -> None:
    view = view_for(builtin.networks())
    sampler = samplers.create("polarity", {"k": 3, "projections": 6})
    inputs = view.draw(range(3), 0, LabelPlan())
    with view.frozen():
        found = sampler.jacobian(view, inputs)

        def image(z: Tensor, label: Tensor) -> Tensor:
            return view.decode(view.encode(z[None], label[None]), z[None], None).flatten() @ projection(3072, 6)

        slow = [
            torch.autograd.functional.jacobian(lambda z, c=c: image(z, c), z) for z, c in zip(inputs.z, inputs.labels)
        ]
        torch.testing.assert_close(found, torch.stack(slow), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(
            sampler.jacobian(view, view.draw([1], 1, LabelPlan())), found[1:2], atol=1e-4, rtol=1e-3
        )


def test_volumes_do_not_depend_on_a_norm_that_the_generator_does_not_read() -> None:
    """sigma ~ 1 / |z| where z is normalised, so the official volumes fall by k log 1.1 as z grows by a tenth."""
    view = view_for(builtin.networks())
    inputs = view.draw(range(3), 0, LabelPlan(), "const")
    longer = dataclasses.replace(inputs, z=1.1 * inputs.z)
    with view.frozen():
        torch.testing.assert_close(view.images(longer), view.images(inputs), atol=1e-4, rtol=0)
        free, official = (samplers.create("polarity", {"k": 3, "projections": 6, "official": o}) for o in (False, True))
        volumes = free.volume(view, inputs)
        torch.testing.assert_close(free.volume(view, longer), volumes, atol=1e-4, rtol=0)
        change = official.volume(view, longer) - official.volume(view, inputs)
        torch.testing.assert_close(change, torch.full_like(change, -3 * math.log(1.1)), atol=1e-4, rtol=0)

        # They are the volumes by z on the sphere of radius sqrt(D), where both agree.
        on_sphere = dataclasses.replace(inputs, z=builtin.network.unit_rms(inputs.z))
        torch.testing.assert_close(official.volume(view, on_sphere), volumes, atol=1e-4, rtol=0)


def test_a_generator_that_normalises_z_has_one_direction_less() -> None:
    view = view_for(builtin.networks())
    with pytest.raises(UserError, match="polarity.k is 32, but these Jacobians have rank 31 at most"):
        samplers.create("polarity", {"k": 32}).check(view)
    sampler = samplers.create("polarity", {"k": 31})
    sampler.check(view)
    with view.frozen():
        jacobian = sampler.jacobian(view, view.draw([0], 0, LabelPlan(), "const"))
    sigma = torch.linalg.svdvals(jacobian[0])
    assert sigma[31] < 1e-5 * sigma[0] < 0.1 * sigma[30]


def test_the_pools_of_both_weights_are_kept_apart() -> None:
    view = view_for(builtin.networks())
    found = [
        samplers.create("polarity", {"k": 2, "projections": 2, "pool": 20, "official": official}).volumes(
            view, 3, "const"
        )
        for official in (False, True, False)
    ]
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[1], atol=1e-2)


@pytest.mark.parametrize("rho", [-1.5, -0.5, 1.0])
def test_the_density_is_slope_to_the_power_rho_times_the_prior(rho: float) -> None:
    view = kinked()
    sampler = samplers.create("polarity", {"rho": rho, "k": 1, "pool": 4000})
    batch = next(sampler.stream(view, range(4000), 4000, LabelPlan(), noise_mode="const"))
    x = batch.images.flatten()
    z = torch.where(x > 0, x / 3, x)
    above = 3**rho / (1 + 3**rho)
    assert (z > 0).float().mean() == pytest.approx(above, abs=0.03)
    for half in (z[z > 0], -z[z < 0]):  # within the halves it is the prior, a half-normal
        assert half.mean() == pytest.approx((2 / torch.pi) ** 0.5, abs=0.07)
    effective = (1 + 3**rho) ** 2 / 2 / (1 + 9**rho)
    torch.testing.assert_close(batch.notes["effective"], torch.full((4000,), effective), atol=0.02, rtol=0)


def test_members_come_back_from_their_seeds_with_their_own_layer_noise() -> None:
    """The pool of class 1 of 3, of ten members, is seeds POOLS + 10 to 19."""
    view = kinked(classes=3)
    pool = view.draw(range(rng.POOLS + 10, rng.POOLS + 20), 0, LabelPlan((1,)))
    images = view.decode(pool.z, pool.z, pool.noise)
    sampler = samplers.create("polarity", {"rho": 0.5, "k": 1, "pool": 30})
    batch = next(sampler.stream(view, range(40), 40, LabelPlan((1,))))
    assert (batch.labels == 1).all()
    distances = (batch.images - images.T).abs()
    assert (distances.amin(1) == 0).all()
    assert len(distances.argmin(1).unique()) > 5
    assert view.ledger.setup["backward"] == 10  # of the other classes there are no pools


def test_a_pool_that_was_stopped_goes_on_where_it_was() -> None:
    options = {"k": 1, "pool": 700}
    sampler, whole = samplers.create("polarity", options), kinked(digest="whole")
    expected = sampler.volumes(whole, 0, "random")

    # It stops after 576 of 700 draws, of which two chunks of 256 are on disk.
    stopped, again = kinked(digest="stopped"), kinked(digest="stopped")
    stopped.passes = 9
    with pytest.raises(KeyboardInterrupt):
        sampler.volumes(stopped, 0, "random")
    assert torch.equal(sampler.volumes(again, 0, "random"), expected)
    assert whole.ledger.cost["backward"] == 700
    assert again.ledger.cost["backward"] == 700 - 512

    # Other layer noise is another pool.
    sampler.volumes(again, 0, "const")
    assert again.ledger.cost["backward"] == 700 - 512 + 700


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": "nan"}, "polarity.rho must be a finite number"),
        ({"k": 0}, "polarity.k must be a number from 1 up"),
        ({"k": 5}, "polarity.k is 5, but these Jacobians have rank 4 at most: lower k"),
        ({"k": 4, "projections": 3}, "polarity.k is 4, but these Jacobians have rank 3 at most"),
        ({"pool": 0}, "polarity.pool must be a number from 1 up"),
    ],
)
def test_wrong_options_are_refused(toy_view: LatentView, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("polarity", options).check(toy_view)
    samplers.create("polarity", {"rho": 0}).check(toy_view)
