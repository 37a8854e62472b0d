"""Samplers on generators without classes: the same contract, and a sentence from those that need classes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from conftest import TOLERANCES, Recorder
from contract import REAL, draw, keeps_the_contract
from unconditional import Z_DIM, unconditional

from studiogan_guidance import fast, rng, samplers
from studiogan_guidance.critics import critic
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, accelerated, view_for
from studiogan_guidance.latents.unconditional import UnconditionalView
from studiogan_guidance.samplers import SAMPLERS, restat

KINDS = ("deep_conv", "deep_conv+info", "style")
NEED_CLASSES = {entry.name for entry in SAMPLERS if "classes" in entry.needs}
NEED_W = {"cluster_truncation": "needs a generator with w", "autoguidance": "has none beside z"}


def test_what_needs_classes_is_guidance_away_from_them_or_towards_them() -> None:
    assert {"gandance", "conditional_truncation"} == NEED_CLASSES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(set(REAL) - NEED_CLASSES))
def test_every_sampler_that_needs_no_class_keeps_the_contract(kind: str, name: str) -> None:
    refused = keeps_the_contract(view_for(unconditional(kind)), name, TOLERANCES["cpu"].chain)
    if name in NEED_W and kind != "style":
        assert refused
        assert NEED_W[name] in refused
    else:
        assert refused is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simplicial", {"cells": 3, "draws": 100, "accept": 0.3}),
        ("drs", {"burn_in": 60, "calibration": "head"}),
        ("metropolis", {"proposals": 4}),
        ("metropolis", {"proposals": 4, "pool": 30, "calibration": "logistic"}),
        ("isir", {"steps": 1, "calibration": "isotonic"}),
        ("ddls", {"steps": 2, "step": 0.2, "base": "truncation", "base.threshold": 1}),
        ("ddls", {"steps": 2, "step": 0.2, "space": "w", "base": "truncation", "base.psi": 0.8}),
        ("ex2mcmc", {"steps": 1, "space": "w"}),
        ("dot", {"steps": 2, "pairs": 5}),
        ("hubness", {"pool": 100, "threshold": 6, "space": "w"}),
        ("cluster_truncation", {"clusters": 3, "draws": 100, "base": "autoguidance", "base.reference": "half"}),
    ],
)
def test_images_depend_on_seeds_alone(name: str, options: dict[str, Any]) -> None:
    """Not on the plan of labels, nor on the classes of held-out images; calibrated, which the contract is not."""
    kind = "style" if {"w", "autoguidance"} & set(options.values()) else "deep_conv"
    first = view_for(unconditional(kind, lambda count: torch.arange(count) % 7))
    other = view_for(unconditional(kind, lambda count: torch.full((count,), 99)))
    options = {"calibration_images": 40, **options} if "discriminator" in SAMPLERS[name].needs else options
    if name == "simplicial":
        del options["calibration_images"]

    images = draw(first, name, options, range(6), 6)
    assert torch.equal(images, draw(other, name, options, range(6), 6, LabelPlan(classes=(3, 4))))
    assert torch.equal(images, draw(other, name, options, range(6), 6, LabelPlan(weights=(0.5, 0.5))))
    assert not torch.equal(images, draw(first, "plain", {}, range(6), 6))


@pytest.mark.parametrize("name", sorted(NEED_CLASSES))
@pytest.mark.parametrize("options", [{}, {"base": True}])
def test_what_needs_classes_is_refused_by_name_as_a_base_too(name: str, options: dict[str, Any]) -> None:
    view = view_for(unconditional("style"))
    stacked = samplers.create("ddls", {"base": {"name": name}}) if options else samplers.create(name)
    message = (
        f"sampler '{name}' needs a conditional generator, but a tiny GAN is unconditional (MODEL.g_cond_mtd 'W/O'): "
        "use plain, truncation, simplicial, drs, metropolis, isir, ddls, repgan, ex2mcmc, dgflow, dot, collaborative, "
        "hubness, polarity"
    )
    with pytest.raises(UserError) as error:
        samplers.checked(stacked, view)
    assert str(error.value) == message
    with pytest.raises(UserError) as error:  # whoever forgets to ask before
        next(stacked.stream(view, range(2), 2, LabelPlan()))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "truncation",
            {"psi": 0.5, "center": "class"},
            "truncation.center=class needs a conditional .*: use center=gl",
        ),
        (
            "cluster_truncation",
            {"per_class": True},
            "cluster_truncation.per_class needs a conditional .*: leave it out",
        ),
    ],
)
def test_options_that_need_classes_are_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.checked(samplers.create(name, options), view_for(unconditional("style")))


def test_a_sampler_of_another_package_is_asked_for_its_needs() -> None:
    @dataclasses.dataclass(frozen=True)
    class Foreign(samplers.Plain):
        pass

    @dataclasses.dataclass(frozen=True)
    class Holder(samplers.Plain):
        inner: samplers.Sampler = dataclasses.field(default_factory=Foreign)

    register = SAMPLERS.register("foreign", "of another package", "nowhere", needs=("classes",))
    try:
        register(Foreign)
        view = view_for(unconditional("deep_conv"))
        for sampler in (Foreign(), Holder()):  # itself, or among the options of one that is not registered
            with pytest.raises(UserError, match="sampler 'foreign' needs a conditional generator"):
                samplers.checked(sampler, view)
    finally:
        SAMPLERS._entries.pop("foreign")


def test_the_generator_alone_makes_the_image() -> None:
    networks = unconditional("deep_conv+info")
    view = view_for(networks)
    assert isinstance(view, UnconditionalView)
    inputs = view.draw(range(3), 0, LabelPlan())
    assert inputs.z.shape == (3, Z_DIM + 5)
    assert inputs.labels.tolist() == [0, 0, 0]
    assert torch.equal(view.images(inputs), networks.generator(inputs.z, None))
    assert view.ledger.cost == {"synthesis": 3}

    # z, then InfoGAN's numbers, and no number for a label between them.
    gens = rng.generators(range(3))
    expected = torch.cat([view.prior(gens), view.info(gens)], 1)
    assert torch.equal(inputs.z, expected)


def test_means_of_one_class_are_those_of_w() -> None:
    view = view_for(unconditional("style"))
    table = view.class_means()
    assert table.shape == (1, 3, 6)
    gens = rng.generators(range(rng.TABLES, rng.TABLES + 10_000))
    w = view.generator.mapping(view.prior(gens), None)[:, 0]  # type: ignore[operator]
    torch.testing.assert_close(table[0, 0], w.mean(0))
    assert torch.equal(view.global_mean(), torch.full((3, 6), 0.1))


def test_truncation_at_0_is_the_one_mean_image() -> None:
    view = view_for(unconditional("style"))
    images = draw(view, "truncation", {"psi": 0}, range(3), 3)
    mean = view.generator.synthesis(view.global_mean()[None])  # type: ignore[operator]
    torch.testing.assert_close(images, mean.expand(3, -1, -1, -1))


def test_batch_norm_statistics_are_those_of_the_samplers_images() -> None:
    view = view_for(unconditional("deep_conv"))
    sampler = samplers.create("truncation", {"threshold": 0.5})
    plain = draw(view, "truncation", {"threshold": 0.5}, range(4), 4)
    with restat.applied(restat.accumulate(view, sampler, 2)):
        changed = draw(view, "truncation", {"threshold": 0.5}, range(4), 4)
    assert not torch.allclose(plain, changed, atol=1e-2)
    assert torch.equal(plain, draw(view, "truncation", {"threshold": 0.5}, range(4), 4))


def test_a_graph_of_the_generator_takes_a_code_of_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(fast, "capture_on", lambda device: recorder)
    exact = draw(view_for(unconditional("deep_conv")), "plain", {}, range(7), 4)
    view = accelerated.accelerated(view_for(unconditional("deep_conv")), "float32", 4)
    torch.testing.assert_close(draw(view, "plain", {}, range(7), 4), exact)
    assert (recorder.captures, recorder.replays) == (1, 2)


def test_a_discriminator_of_classes_beside_a_generator_without_is_refused() -> None:
    networks = unconditional("deep_conv")
    assert networks.companions
    discriminator = networks.companions.discriminator()
    discriminator.d_cond_mtd = "MD"  # type: ignore[assignment]
    with pytest.raises(UserError, match="judges images by their class, needs a conditional generator"):
        critic.of_view(view_for(networks))
