from __future__ import annotations

import pytest
import torch
from conftest import ToyGAN, identity_view, table_noise, toy_networks

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for


def images(view: LatentView, name: str, **options: object) -> torch.Tensor:
    return next(samplers.create(name, options).stream(view, range(64), 64, LabelPlan())).images.flatten(1)


def test_it_is_truncation_towards_the_class_mean(toy: ToyGAN, toy_view: LatentView) -> None:
    for options in ({"psi": 0.4}, {"psi": 0.4, "cutoff": 2}, {"psi": 1.3, "cutoff": 3}):
        theirs = images(toy_view, "truncation", center="class", **options)
        assert torch.equal(images(toy_view, "conditional_truncation", **options), theirs)
    labels = toy_view.draw(range(64), 0, LabelPlan()).labels
    collapsed = images(toy_view, "conditional_truncation", psi=0)
    expected = toy.mean + sum(toy.parts(table_noise(toy), labels))
    torch.testing.assert_close(collapsed, expected, atol=1e-4, rtol=0)
    assert (collapsed - toy.mean - toy.b[labels]).abs().max() < 0.2  # means of 10,000 draws


def test_guide_then_truncate_is_the_closed_form_and_what_gandance_does_by_itself() -> None:
    """s around the mean of all, then psi around the guided class mean: mean + s (b_c + psi a(z))."""
    toy = ToyGAN(interaction=0)
    view = view_for(toy_networks(toy, "toy without interaction"))
    base = {"name": "gandance", "joint": "global_mean", "scale": 1.5}
    found = images(view, "conditional_truncation", psi=0.5, base=base)
    inputs = view.draw(range(64), 0, LabelPlan())
    a, b, _ = toy.parts(inputs.z, inputs.labels)
    torch.testing.assert_close(found, toy.mean + 1.5 * (b + 0.5 * a), atol=0.1, rtol=0)
    torch.testing.assert_close(found, images(view, "gandance", joint="global_mean", scale=1.5, psi=0.5))


def test_as_a_base_it_passes_its_codes_on(toy_view: LatentView) -> None:
    base = {"name": "conditional_truncation", "psi": 0.5}
    twice = images(toy_view, "conditional_truncation", psi=0.5, base=base)
    torch.testing.assert_close(twice, images(toy_view, "conditional_truncation", psi=0.25))
    guided = {"name": "gandance", "joint": "global_mean", "scale": 1.5}
    twice = images(toy_view, "conditional_truncation", psi=0.5, base={**base, "base": guided})
    torch.testing.assert_close(twice, images(toy_view, "conditional_truncation", psi=0.25, base=guided))


def test_a_generator_without_w_and_a_foreign_cutoff_are_refused(toy_view: LatentView) -> None:
    view = identity_view(lambda x, c: x[:, 0])
    with pytest.raises(UserError, match="needs a generator with w, identity has none: use truncation with threshold"):
        samplers.create("conditional_truncation").check(view)
    samplers.create("conditional_truncation", {"psi": 1}).check(view)
    with pytest.raises(UserError, match="conditional_truncation.cutoff is 9, but this generator has w rows 0-3"):
        samplers.create("conditional_truncation", {"cutoff": 9}).check(toy_view)
    with pytest.raises(UserError, match="conditional_truncation.psi must be a finite number"):
        samplers.create("conditional_truncation", {"psi": "nan"})
