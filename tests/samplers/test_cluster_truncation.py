from __future__ import annotations

import pytest
import torch
from conftest import ToyGAN, toy_networks

from studiogan_guidance import rng, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers.cluster_truncation import centres_of, nearest_centre


def images(view: LatentView, name: str, **options: object) -> torch.Tensor:
    return next(samplers.create(name, options).stream(view, range(64), 64, LabelPlan())).images.flatten(1)


def mean_of_draws(view: LatentView, draws: int, classes: tuple[int, ...] = ()) -> torch.Tensor:
    inputs = view.draw(range(rng.PILOTS, rng.PILOTS + draws), 0, LabelPlan(classes))
    return view.encode(inputs.z, inputs.labels)[:, -1].mean(0)


def test_the_nearest_centre_is_that_of_a_slow_search() -> None:
    g = torch.Generator().manual_seed(0)
    points, centres = torch.randn(50, 7, generator=g), torch.randn(9, 7, generator=g)
    for point, found in zip(points, nearest_centre(points, centres)):
        distances = [float(((point - centre) ** 2).sum()) for centre in centres]
        assert distances[int(found)] == min(distances)


def test_k_means_finds_well_separated_modes_in_any_order() -> None:
    modes = torch.tensor([[0.0, 0], [9, 0], [0, 9]])
    points = modes.repeat(100, 1) + 0.1 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    found = centres_of(points, 3)
    torch.testing.assert_close(found[nearest_centre(modes, found)], modes, atol=0.05, rtol=0)


def test_one_cluster_is_truncation_towards_the_mean_of_the_draws(toy_view: LatentView) -> None:
    plain, mean = images(toy_view, "plain"), mean_of_draws(toy_view, 900)
    found = images(toy_view, "cluster_truncation", clusters=1, draws=900, psi=0.3)
    torch.testing.assert_close(found, mean + 0.3 * (plain - mean), atol=1e-4, rtol=0)


def test_one_cluster_a_class_is_conditional_truncation(toy_view: LatentView) -> None:
    found = images(toy_view, "cluster_truncation", clusters=1, draws=25_000, per_class=True, psi=0.3)
    torch.testing.assert_close(found, images(toy_view, "conditional_truncation", psi=0.3), atol=0.15, rtol=0)
    means = torch.stack([mean_of_draws(toy_view, 5000, (label,)) for label in range(5)])
    plain, labels = images(toy_view, "plain"), toy_view.draw(range(64), 0, LabelPlan()).labels
    torch.testing.assert_close(found, means[labels] + 0.3 * (plain - means[labels]), atol=1e-4, rtol=0)


def test_classes_far_apart_are_clusters_by_themselves() -> None:
    """Five clusters of all draws find the five classes, so they do what one cluster a class does."""
    view = view_for(toy_networks(ToyGAN(between=60), "toy of far classes"))
    five = images(view, "cluster_truncation", clusters=5, draws=2000, psi=0)
    one = images(view, "cluster_truncation", clusters=1, draws=10_000, psi=0, per_class=True)
    assert torch.unique(five.round(decimals=3), dim=0).shape[0] == 5
    torch.testing.assert_close(five, one, atol=0.6, rtol=0)


def test_at_psi_zero_images_are_centres_and_each_goes_to_its_nearest(toy_view: LatentView) -> None:
    sampler = samplers.create("cluster_truncation", {"clusters": 6, "draws": 600, "psi": 0})
    batch = next(sampler.stream(toy_view, range(64), 64, LabelPlan()))
    centres = torch.unique(batch.images.flatten(1), dim=0)
    assert 2 <= len(centres) <= 6
    distances = torch.cdist(images(toy_view, "plain"), centres)
    torch.testing.assert_close(centres[distances.argmin(1)], batch.images.flatten(1))
    torch.testing.assert_close(batch.notes["distance"], distances.amin(1), atol=1e-4, rtol=1e-4)


def test_rows_that_a_base_guides_apart_have_centres_of_their_own(toy_view: LatentView) -> None:
    """Scale 3 in the last row alone: with one cluster, every row goes towards its own mean of the draws."""
    base = {"name": "gandance", "joint": "global_mean", "scale": 3, "layers": [2, 3]}
    sampler = samplers.create("cluster_truncation", {"clusters": 1, "draws": 900, "psi": 0, "base": base})
    view, inputs = sampler.under(toy_view), toy_view.draw(range(4), 0, LabelPlan())
    mean, centre = mean_of_draws(toy_view, 900), toy_view.global_mean()[0]
    found, _ = sampler.centres(view, inputs.labels, view.encode(inputs.z, inputs.labels))
    for row, expected in enumerate((mean, mean, centre + 3 * (mean - centre))):
        torch.testing.assert_close(found[:, row], expected.expand(4, -1), atol=1e-4, rtol=0)


def test_centres_are_made_once_for_all_runs_and_any_psi(toy: ToyGAN) -> None:
    options = {"clusters": 3, "draws": 700, "per_class": True}
    first, again = view_for(toy_networks(toy, "toy of centres")), view_for(toy_networks(toy, "toy of centres"))
    made = images(first, "cluster_truncation", psi=0.5, **options)
    assert first.ledger.setup["mapping"] == 1 + 700
    assert torch.equal(images(again, "cluster_truncation", psi=0.5, **options), made)
    images(again, "cluster_truncation", psi=0.2, **options)
    assert again.ledger.setup["mapping"] == 1


def test_fewer_draws_than_centres_are_refused(toy_view: LatentView) -> None:
    with pytest.raises(UserError, match="cluster_truncation.draws is 100, which is 20 for 64 centres: give more draws"):
        samplers.create("cluster_truncation", {"draws": 100, "per_class": True}).check(toy_view)
    with pytest.raises(UserError, match="cluster_truncation.clusters must be a number from 1 up"):
        samplers.create("cluster_truncation", {"clusters": 0})
