"""Gaussian guidance against densities on a grid, its limits, and its invariance."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import ToyGAN, identity_view, toy_networks
from torch import Tensor
from torch.distributions import MultivariateNormal

from studiogan_guidance import builtin, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, gaussian, view_for
from studiogan_guidance.latents.gaussian import directions, shrunk


def toy(classes: int, width: int, between: float = 1.0) -> tuple[Tensor, Tensor]:
    """Class means [C, D] and a covariance within classes [D, D]."""
    gen = torch.Generator().manual_seed(5)
    means = between * torch.randn(classes, width, generator=gen, dtype=torch.float64)
    root = torch.randn(width, width, generator=gen, dtype=torch.float64)
    return means, root @ root.T / width + 0.3 * torch.eye(width, dtype=torch.float64)


def guided(means: Tensor, within: Tensor, code: Tensor, label: int, scale: float, spread: bool = True) -> Tensor:
    """Codes [B, D] of one class under Gaussian guidance."""
    joint = directions(means, within).joint(code, means[label], means.mean(0), scale, spread)
    return joint + scale * (code - joint)


@pytest.mark.parametrize("scale", [0.5, 1.5, 3])
def test_moments_are_those_of_the_tilted_density(scale: float) -> None:
    """In two dimensions the density p(w|c)^s p(w)^(1-s) can be summed on a grid."""
    means, within = toy(4, 2)
    center = means.mean(0)
    between = (means - center).T @ (means - center) / 4
    axis = torch.linspace(-12, 12, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    of_class = MultivariateNormal(means[1], within).log_prob(grid)
    of_all = MultivariateNormal(center, within + between).log_prob(grid)
    weights = (scale * of_class + (1 - scale) * of_all).softmax(0)
    mean = weights @ grid
    cov = (grid - mean).T @ (weights[:, None] * (grid - mean))

    # Guidance is affine: what it does to the mean and to a factor of the covariance of the class is all.
    root = torch.linalg.cholesky(within)
    moved = guided(means, within, means[1] + torch.cat([torch.zeros(1, 2, dtype=torch.float64), root.T]), 1, scale)
    steps = moved[1:] - moved[0]
    torch.testing.assert_close(moved[0], mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(steps.T @ steps, cov, atol=1e-6, rtol=0)


def test_scale_one_is_the_identity_and_its_joint_is_the_limit() -> None:
    means, within = toy(4, 6)
    code = means[2] + torch.randn(5, 6, dtype=torch.float64)
    found = directions(means, within)
    joints = [found.joint(code, means[2], means.mean(0), scale) for scale in (1 - 1e-6, 1.0, 1 + 1e-6)]
    torch.testing.assert_close(joints[1] + 1.0 * (code - joints[1]), code)
    torch.testing.assert_close(joints[1], (joints[0] + joints[2]) / 2)


def test_where_classes_overlap_it_is_class_shift() -> None:
    means, within = toy(4, 6)
    within = 1e9 * within
    code = means[0] + 3e4 * torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(
        guided(means, within, code, 0, 3), code + 2 * (means[0] - means.mean(0)), rtol=1e-6, atol=1e-3
    )


def test_far_classes_stay_where_they_are_and_are_narrowed() -> None:
    means, within = toy(8, 6, between=1e4)  # they differ in all directions
    code = means[3] + torch.randn(5, 6, dtype=torch.float64)
    for scale in (1.5, 4):
        expected = means[3] + (code - means[3]) / math.sqrt(scale)
        torch.testing.assert_close(guided(means, within, code, 3, scale), expected, atol=1e-3, rtol=0)
        torch.testing.assert_close(guided(means, within, code, 3, scale, spread=False), code, atol=1e-3, rtol=0)


def test_no_scale_moves_a_class_farther_than_its_bound() -> None:
    """k = s (1 + b) / (1 + s b) stays below (1 + b) / b in each direction, however large the scale is."""
    means, within = toy(5, 3)
    found = directions(means, within)
    offset = (means[1] - means.mean(0)) @ found.to
    moved = (guided(means, within, means[1], 1, 1e6) - means.mean(0)) @ found.to
    torch.testing.assert_close(moved, offset * (1 + found.ratio) / found.ratio, rtol=1e-4, atol=0)


def test_a_class_that_counts_twice_is_as_two_of_it() -> None:
    means, within = toy(3, 4)
    found = directions(means, within, torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))
    twice = directions(means[[0, 0, 1, 2]], within)
    torch.testing.assert_close(found.ratio, twice.ratio)
    torch.testing.assert_close(found.to @ found.back, twice.to @ twice.back)


@pytest.mark.parametrize("classes", [3, 20])
def test_it_does_not_depend_on_the_basis(classes: int) -> None:
    means, within = toy(classes, 6)
    basis = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    code = means[0] + torch.randn(7, 6, dtype=torch.float64)
    other = guided(means @ basis, basis.T @ within @ basis, code @ basis, 0, 2.5)
    torch.testing.assert_close(other, guided(means, within, code, 0, 2.5) @ basis)


def test_few_classes_guide_few_directions() -> None:
    """The directions of the others are orthogonal, in the metric of the classes, and no code moves along them."""
    means, within = toy(3, 6)
    found = directions(means, within)
    assert found.to.shape == (6, 2)
    torch.testing.assert_close(found.to.T @ within @ found.to, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(found.back @ found.to, torch.eye(2, dtype=torch.float64))

    # The rest of a code in the full basis.
    code = means[1] + torch.randn(50, 6, dtype=torch.float64)
    rest = torch.eye(6, dtype=torch.float64) - found.to @ found.back
    torch.testing.assert_close(guided(means, within, code, 1, 4) @ rest, code @ rest)


def test_a_covariance_of_few_codes_is_mixed_with_the_identity() -> None:
    """Shrinkage is nearer to the truth than the sample is, and leaves a large sample alone."""
    _, within = toy(1, 12)
    root = torch.linalg.cholesky(within)
    shares = []
    for count in (20, 200_000):
        x = torch.randn(count, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) @ root.T
        found = shrunk(x.T @ x, float(x.square().sum(1).square().sum()), count)
        plain = x.T @ x / count
        assert (found - within).norm() < 1.001 * (plain - within).norm()
        shares.append(float((found - plain).norm() / plain.norm()))
    assert shares[0] > 0.1
    assert shares[1] < 1e-3


# ---------------------------------------------------------------------------- views


def test_directions_of_a_view_are_those_of_its_codes(toy_view: LatentView) -> None:
    """T' S_W T = 1 and T' S_B T = b for moments of codes of other seeds."""
    found = gaussian.of_view(toy_view)
    inputs = toy_view.draw(range(40_000), 0, LabelPlan())
    code = toy_view.encode(inputs.z, inputs.labels)[:, 0]
    means = toy_view.class_means()[:, 0]
    deviations = (code - means[inputs.labels]) @ found.to
    torch.testing.assert_close(deviations.T @ deviations / len(code), torch.eye(4), atol=0.06, rtol=0)
    offsets = (means - means.mean(0)) @ found.to
    torch.testing.assert_close(offsets.T @ offsets / 5, found.ratio.diag(), atol=1e-3, rtol=1e-3)


def test_psi_is_about_the_guided_mean_of_the_class(toy_view: LatentView) -> None:
    inputs = toy_view.draw(range(8), 0, LabelPlan())
    code = toy_view.encode(inputs.z, inputs.labels)
    options = {"scale": 2.0, "joint": "gaussian"}
    guided = samplers.create("gandance", options).guided(toy_view, inputs, code)
    narrow = samplers.create("gandance", {**options, "psi": 0.5}).guided(toy_view, inputs, code)
    means = toy_view.class_means()[inputs.labels]
    center = samplers.create("gandance", options).guided(toy_view, inputs, means)
    torch.testing.assert_close(narrow, center + 0.5 * (guided - center))


def test_gaussian_shift_is_gaussian_for_the_means_alone(toy_view: LatentView) -> None:
    inputs = toy_view.draw(range(8), 0, LabelPlan())
    code = toy_view.encode(inputs.z, inputs.labels)
    means = toy_view.class_means()[inputs.labels]
    both, shift = (samplers.create("gandance", {"joint": name, "scale": 3}) for name in ("gaussian", "gaussian_shift"))
    center = both.guided(toy_view, inputs, means)
    torch.testing.assert_close(shift.guided(toy_view, inputs, code), center + code - means)
    assert not torch.allclose(both.guided(toy_view, inputs, code), center + code - means, atol=0.1)


def test_class_accuracy_costs_less_variety_than_by_class_shift() -> None:
    """On the built-in, a scale under which class_shift throws the classes apart moves them by their bound at most."""
    view = view_for(builtin.networks())
    found = gaussian.of_view(view)
    means = view.class_means()[:, 0]
    distance = ((means - means.mean(0)) @ found.to).norm(dim=1)
    for name, least, most in (("class_shift", 4.9, 5.1), ("gaussian", 1.0, 1.6)):
        inputs = view.draw(range(10), 0, LabelPlan(classes=tuple(range(10))))
        moved = samplers.create("gandance", {"joint": name, "scale": 5}).guided(view, inputs, view.class_means())
        factor = ((moved[:, 0] - means.mean(0)) @ found.to).norm(dim=1) / distance
        assert least < factor.min() <= factor.max() < most


def test_what_cannot_be_guided_so_is_refused() -> None:
    guidance = samplers.create("gandance", {"joint": "gaussian"})
    with pytest.raises(UserError, match="but those of identity ignore z: use class_shift"):
        guidance.check(identity_view(lambda x, labels: x[:, 0]))
    view = view_for(toy_networks(ToyGAN(spread=0, interaction=0), "flat"))
    with pytest.raises(UserError, match="Gaussian guidance needs codes that vary within a class"):
        gaussian.of_view(view)
    with pytest.raises(
        UserError, match="gandance.scale is -9, but Gaussian guidance of this generator needs more than -"
    ):
        inputs = view_for(toy_networks(ToyGAN())).draw(range(2), 0, LabelPlan())
        samplers.create("gandance", {"joint": "gaussian", "scale": -9}).images(view_for(toy_networks(ToyGAN())), inputs)
