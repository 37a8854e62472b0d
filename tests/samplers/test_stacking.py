"""Samplers on top of others: a base is built into the generator, and what lies above sees nothing but a view."""

from __future__ import annotations

import pytest
import torch
from conftest import ToyGAN, toy_networks

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for


def images(view: LatentView, name: str, **options: object) -> torch.Tensor:
    return next(samplers.create(name, options).stream(view, range(32), 32, LabelPlan())).images


BASES: list[dict[str, object]] = [
    {"name": "gandance", "scale": 1.7, "joint": "class_mean"},
    {"name": "gandance", "scale": 1.7, "joint": "global_mean", "psi": 0.5, "threshold": 0.8},
    {"name": "gandance", "scale": 1, "psi": 0.5},
    {"name": "truncation", "psi": 0.5, "cutoff": 3},
    {"name": "truncation", "psi": 0.5, "center": "class", "threshold": 0.7},
]


@pytest.mark.parametrize("base", BASES, ids=str)
def test_a_sampler_that_does_nothing_gives_the_images_of_its_base(
    toy_view: LatentView, base: dict[str, object]
) -> None:
    expected = images(toy_view, str(base["name"]), **{key: value for key, value in base.items() if key != "name"})
    found = images(toy_view, "ddls", steps=0, base=base)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(found, images(toy_view, "plain"), atol=1e-2)


def test_neutral_needs_a_neutral_base(toy_view: LatentView) -> None:
    assert samplers.create("ddls", {"steps": 0}).neutral
    assert samplers.create("ddls", {"steps": 0, "base": {"name": "gandance", "scale": 1}}).neutral
    assert not samplers.create("ddls", {"steps": 0, "base": "gandance"}).neutral
    assert not samplers.create("ddls", {"steps": 1}).neutral


def test_class_means_of_a_guided_view_are_guided(toy: ToyGAN, toy_view: LatentView) -> None:
    guided = samplers.create("gandance", {"scale": 2, "joint": "class_mean"}).built_into(toy_view)
    means = toy_view.class_means()
    torch.testing.assert_close(guided.class_means(), means.mean(0) + 2 * (means - means.mean(0)))
    torch.testing.assert_close(guided.class_means()[:, 0], toy.mean + 2 * toy.b, atol=0.2, rtol=0)


def test_a_base_is_resolved_so_that_results_say_all_of_it(toy_view: LatentView) -> None:
    from_words = samplers.create("ddls", {"base": "gandance", "base.scale": "1.3"})
    assert from_words == samplers.create("ddls", {"base": {"name": "gandance", "scale": 1.3}})
    assert samplers.options(from_words)["base"]["joint"] == "class_mean"  # the default is there, too
    assert samplers.create("ddls", {"base": {"name": "gandance", "scale": 1}, "base.scale": "1.3"}) == from_words


def test_a_base_is_a_sampler_built_once_and_samplers_with_one_are_hashable() -> None:
    sampler = samplers.create("ddls", {"base": "gandance", "base.scale": 1.3})
    assert sampler.base == samplers.create("gandance", {"scale": 1.3})  # type: ignore[attr-defined]
    again = samplers.create("ddls", {"base": sampler.base})  # type: ignore[attr-defined]
    assert (again, hash(again)) == (sampler, hash(sampler))
    assert len({sampler, again, samplers.create("ddls"), samplers.create("ddls", {"base": "plain"})}) == 2
    assert samplers.options(samplers.create("ddls"))["base"] == "plain"
    assert samplers.create("ddls", samplers.options(sampler)) == sampler


def test_what_is_computed_once_belongs_to_its_base(toy: ToyGAN) -> None:
    view = view_for(toy_networks(toy))
    for base in ("plain", "gandance", "gandance"):
        images(view, "ddls", steps=1, base=base)
    assert view.ledger.setup["discriminator"] == 2 * 2000  # calibrated once for plain fakes, once for guided ones


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "gandanc"}, "did you mean 'gandance'"),
        ({"base": {"name": "gandance", "scal": 1}}, "sampler 'gandance' has no option 'scal'"),
        ({"base": {"scale": 1}}, "ddls.base must be a name or a mapping with a name"),
        ({"base": {"name": "gandance", "joint": "class_subset"}}, "class_subset draws anew for each call"),
        ({"base": "drs"}, "cannot be the base of another sampler"),
    ],
)
def test_wrong_bases_are_refused(toy_view: LatentView, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("ddls", options).check(toy_view)
