"""Joints of generators whose labels are drawn as in the data."""

from __future__ import annotations

import pytest
import torch
from toy_families import CLASSES, toy_of

from studiogan_guidance import samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.evaluation import labels
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.latents import LabelPlan, LatentView, learned
from studiogan_guidance.latents.joint import JOINTS, JointOptions
from studiogan_guidance.samplers.gandance import GANdance

SHARES = (0.4, 0.3, 0.2, 0.1, 0.0)
FREE = ("class_mean", "class_subset", "class_shift", "mean_embedding")
FAMILIES = pytest.mark.parametrize("family", ["builtin", "big_resnet", "resnet"])


def weighted(family: str, shares: tuple[float, ...] = SHARES) -> LatentView:
    view = toy_of(family)
    view.weigh_classes(LabelPlan(weights=shares))
    return view


@FAMILIES
@pytest.mark.parametrize("joint", [*FREE, "global_mean"])
def test_the_joint_is_the_mean_of_the_labels_that_are_drawn(family: str, joint: str) -> None:
    view = weighted(family)
    inputs = view.draw(range(6), 0, LabelPlan())
    sampler = samplers.create("gandance", {"scale": 0, "joint": joint, "subset": CLASSES})
    assert isinstance(sampler, GANdance)
    found = sampler.codes(view, inputs)

    # Codes of all classes for the same noise, and their means.
    every = torch.stack([view.encode(inputs.z, torch.full((6,), label)) for label in range(CLASSES)], -1)
    expected = every @ torch.tensor(SHARES)
    if family == "builtin" and joint == "class_shift":
        means = view.class_means()
        expected = (
            view.encode(inputs.z, inputs.labels) - means[inputs.labels] + means.movedim(0, -1) @ torch.tensor(SHARES)
        )
    if family == "builtin" and joint == "global_mean":
        expected = view.global_mean().expand_as(found)  # the average that training kept
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert joint == "global_mean" or not torch.allclose(found, sampler.codes(toy_of(family), inputs), atol=1e-2)


@FAMILIES
@pytest.mark.parametrize("joint", ["class_mean", "class_shift", "mean_embedding"])
def test_tables_and_shared_passes_weigh_as_the_definition_does(family: str, joint: str) -> None:
    view = weighted(family)
    hard = view.draw(range(6), 0, LabelPlan())
    options: dict[str, object] = {"scale": 1.7, "joint": joint, **({"psi": 1.5} if family == "builtin" else {})}
    sampler = samplers.create("gandance", options)
    assert isinstance(sampler, GANdance)
    by_definition = sampler.guided(view, hard, view.encode(hard.z, hard.labels))
    torch.testing.assert_close(sampler.codes(view, hard), by_definition, rtol=1e-4, atol=1e-4)


def test_psi_is_about_the_class_means_guided_from_the_weighted_one() -> None:
    view = weighted("builtin")
    inputs = view.draw(range(6), 0, LabelPlan())
    sampler = samplers.create("gandance", {"scale": 3, "joint": "class_shift", "psi": 0})
    assert isinstance(sampler, GANdance)
    means = view.class_means()
    mean = means.movedim(0, -1) @ torch.tensor(SHARES)
    torch.testing.assert_close(sampler.codes(view, inputs), (3 * means - 2 * mean)[inputs.labels], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "plan", [LabelPlan(), LabelPlan(weights=(0.2,) * CLASSES), LabelPlan(classes=(1, 2), weights=SHARES)], ids=str
)
def test_labels_that_are_all_alike_or_chosen_leave_the_mean_as_it_is(plan: LabelPlan) -> None:
    view = toy_of("builtin")
    inputs = view.draw(range(4), 0, LabelPlan())
    sampler = samplers.create("gandance", {"scale": 2})
    before = sampler.images(view, inputs)
    view.weigh_classes(plan)
    assert view.class_weights is None
    assert torch.equal(sampler.images(view, inputs), before)

    # And they come back after others.
    view.weigh_classes(LabelPlan(weights=SHARES))
    assert not torch.allclose(sampler.images(view, inputs), before, atol=1e-2)
    view.weigh_classes(plan)
    assert torch.equal(sampler.images(view, inputs), before)


def test_a_joint_that_was_learned_stays_what_it_was() -> None:
    view = weighted("builtin")
    inputs = view.draw(range(4), 0, LabelPlan())
    network = learned.create(view, "class_mean", hidden=4, depth=1)
    sampler = GANdance(scale=2, joint="learned").away_from(network)
    expected = samplers.create("gandance", {"scale": 2})
    torch.testing.assert_close(sampler.images(view, inputs), expected.images(toy_of("builtin"), inputs))


def test_a_subset_weighs_its_classes() -> None:
    view = weighted("resnet")
    inputs = view.draw(range(20), 0, LabelPlan())
    code = view.encode(inputs.z, inputs.labels)
    shares = torch.tensor(SHARES)
    for subset in (1, 2):  # among them the class that is never drawn
        options = JointOptions(subset=subset, weights=view.class_weights)
        for row in JOINTS["class_subset"].target(view, inputs, code, options):
            chosen = row > 1e-6
            expected = shares[chosen] / shares[chosen].sum() if chosen.sum() > 1 else torch.ones(1)
            assert chosen.sum() <= subset
            torch.testing.assert_close(row[chosen], expected, rtol=1e-5, atol=1e-5)


def test_an_evaluation_weighs_classes_as_its_labels_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = tuple(label / 45 for label in range(10))  # those of the built-in data are all alike
    monkeypatch.setattr(labels, "label_plan", lambda cfg, num_classes, real: LabelPlan(weights=shares))
    evaluation = Evaluation(RunConfig(labels="data", num=64, metrics=("fid",)), Group(0, 1), [])
    torch.testing.assert_close(evaluation.view.class_weights, torch.tensor(shares))
