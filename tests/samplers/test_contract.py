"""Every registered sampler, one contract; a name without an entry here fails."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import IdentityView, Tolerance, ToyGAN, identity_view
from contract import REAL, VARIANTS, draw, keeps_the_contract

from studiogan_guidance import builtin, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers import SAMPLERS
from studiogan_guidance.samplers.ratio import GradientSampler, RatioSampler

EVERY = [(name, options) for name, variants in VARIANTS.items() for options in variants]


def test_every_sampler_is_covered_here() -> None:
    names = {entry.name for entry in SAMPLERS}
    assert names == set(VARIANTS) == set(REAL)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_shape_seed_and_batch_size(toy_view: LatentView, name: str, options: dict[str, object]) -> None:
    whole = draw(toy_view, name, options, range(10, 19), 9)
    assert whole.shape == (9, 3, 2, 2)
    assert torch.isfinite(whole).all()
    assert torch.equal(whole, draw(toy_view, name, options, range(10, 19), 9))
    torch.testing.assert_close(draw(toy_view, name, options, range(10, 19), 4), whole, atol=1e-5, rtol=0)
    part = draw(toy_view, name, options, range(13, 16), 2, first=3)  # what another process would make
    torch.testing.assert_close(part, whole[3:6], atol=1e-5, rtol=0)
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("name", VARIANTS)
def test_neutral_options_are_plain_sampling_bit_for_bit(toy_view: LatentView, name: str) -> None:
    variants = VARIANTS[name]
    entry = SAMPLERS[name]
    assert entry.neutral is not None
    neutral = dict(entry.neutral)
    plain = draw(toy_view, "plain", {}, range(6), 6)
    assert torch.equal(draw(toy_view, name, neutral, range(6), 6), plain)
    assert samplers.create(name, neutral).neutral == (name != "plain")  # plain is asked for to be measured by itself
    assert not any(samplers.create(name, options).neutral for options in variants)
    for options in variants if name != "plain" else []:
        assert not torch.allclose(draw(toy_view, name, options, range(6), 6), plain, atol=1e-3)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", VARIANTS)
def test_every_sampler_on_the_built_in_gan(name: str, device: str, tolerance: Tolerance) -> None:
    """With its own discriminator; a snapshot needs a file."""
    refused = keeps_the_contract(view_for(builtin.networks(device)), name, tolerance.chain)
    assert refused is None or (name == "autoguidance" and "cannot read the built-in's weights in another" in refused)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_sampler_needs_is_what_it_is_refused_without(name: str) -> None:
    """A generator of a Gaussian prior that has no w, no discriminator, no other checkpoints and no weights."""
    networks = identity_view(lambda x, labels: x[:, 0], z_dim=4).networks
    view = IdentityView(dataclasses.replace(networks, companions=None))
    options = {**REAL[name], "centers": "clusters"} if name == "simplicial" else REAL[name]
    entry = SAMPLERS[name]

    # It is refused for what it needs, and else runs.
    refusal = "needs a generator with w|needs a discriminator|without a way to open other checkpoints|no file of latent"
    if set(entry.needs) & {"w", "discriminator", "snapshot", "weights"}:
        with pytest.raises(UserError, match=refusal):
            next(samplers.create(name, options).stream(view, range(2), 2, LabelPlan()))
    else:
        assert draw(view, name, options, range(2), 2).shape == (2, 4)

    # Base classes say some of it.
    if issubclass(entry.target, RatioSampler):
        assert "discriminator" in entry.needs
    if issubclass(entry.target, GradientSampler):
        assert "gradient" in entry.needs


def test_samplers_come_by_family_plain_first_and_each_has_one() -> None:
    entries = list(SAMPLERS)
    assert [entry.name for entry in entries][:3] == ["plain", "gandance", "truncation"]
    assert all(entry.family for entry in entries)


def test_networks_are_left_as_they_were_found(toy_view: LatentView) -> None:
    modules = list(toy_view.generator.modules())
    modules[0].training, modules[1].training = True, False
    before = [module.training for module in modules]
    stream = samplers.create("plain").stream(toy_view, range(4), 2, LabelPlan())
    next(stream)
    assert not any(module.training for module in modules)
    stream.close()
    assert [module.training for module in modules] == before


def test_images_that_are_not_finite_are_refused(toy: ToyGAN, toy_view: LatentView) -> None:
    toy.mean[0] = torch.nan
    with pytest.raises(UserError, match=r"images are not finite with Plain\(\)"):
        draw(toy_view, "plain", {}, range(2), 2)


def test_strings_become_the_type_of_the_option() -> None:
    made = samplers.create("gandance", {"scale": "1.5", "subset": "3", "layers": "1-4", "keep_norm": "true"})
    assert samplers.options(made) == {
        "scale": 1.5,
        "joint": "class_mean",
        "joint_ckpt": None,
        "strengths": False,
        "subset": 3,
        "layers": (1, 4),
        "profile": None,
        "keep_norm": True,
        "psi": None,
        "tau": 1.0,
        "tau_profile": None,
        "threshold": None,
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gandanc", {}, "did you mean 'gandance'"),
        ("gandance", {"scal": 1}, "did you mean 'scale'"),
        ("gandance", {"scale": "nan"}, "gandance.scale must be a finite number"),
        ("gandance", {"scale": "much"}, "gandance.scale must be a number, found 'much'"),
        ("gandance", {"scale": True}, "gandance.scale must be a number"),
        ("gandance", {"subset": 0}, "gandance.subset must be a number from 1 up"),
        ("gandance", {"subset": "2.5"}, "gandance.subset must be a whole number"),
        ("gandance", {"joint": "class_maen"}, "did you mean 'class_mean'"),
        ("gandance", {"layers": "2"}, "gandance.layers must be two whole numbers"),
        ("truncation", {"threshold": 0}, "truncation.threshold must be positive"),
        ("truncation", {"center": "clas"}, "truncation.center is 'clas': did you mean 'class'"),
        ("plain", {"scale": 1}, "has no option 'scale': it takes none"),
    ],
)
def test_wrong_options_are_refused_by_name(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create(name, options)
