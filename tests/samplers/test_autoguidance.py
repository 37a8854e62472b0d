from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import ToyGAN, identity_view, toy_networks

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.latents.base import weights_digest


def images(view: LatentView, name: str, **options: object) -> torch.Tensor:
    return next(samplers.create(name, options).stream(view, range(16), 16, LabelPlan())).images.flatten(1)


@pytest.mark.parametrize("scale", [0, 0.5, 2, 3])
def test_what_the_reference_lacks_is_what_grows(toy: ToyGAN, toy_view: LatentView, scale: float) -> None:
    """The reference's classes are half as far apart: guided ones are 1/2 + scale/2 times as far, the rest stays."""
    inputs = toy_view.draw(range(16), 0, LabelPlan())
    a, b, i = toy.parts(inputs.z, inputs.labels)
    found = images(toy_view, "autoguidance", reference="0.5", scale=scale)
    torch.testing.assert_close(found, toy.mean + a + (0.5 + scale / 2) * b + i)


def test_on_a_base_both_networks_carry_it(toy: ToyGAN, toy_view: LatentView) -> None:
    """Gandance around the mean of all multiplies every part by 1.5, in the network and in its reference."""
    base = {"name": "gandance", "joint": "global_mean", "scale": 1.5}
    found = images(toy_view, "autoguidance", reference="0.5", scale=2, base=base)
    alone = images(toy_view, "autoguidance", reference="0.5", scale=2)
    torch.testing.assert_close(found, toy.mean + 1.5 * (alone - toy.mean))


def test_as_a_base_its_codes_and_class_means_are_guided(toy: ToyGAN, toy_view: LatentView) -> None:
    base = {"name": "autoguidance", "reference": "0.5", "scale": 3}
    labels = toy_view.draw(range(16), 0, LabelPlan()).labels
    collapsed = images(toy_view, "conditional_truncation", psi=0, base=base)
    torch.testing.assert_close(collapsed, toy.mean + 2 * toy.b[labels], atol=0.15, rtol=0)
    whole = images(toy_view, "conditional_truncation", psi=1, base=base)
    torch.testing.assert_close(whole, images(toy_view, "autoguidance", reference="0.5", scale=3))


def test_passes_of_both_networks_are_counted_and_the_reference_is_named(toy_view: LatentView) -> None:
    sampler = samplers.create("autoguidance", {"reference": "0.5"})
    assert next(sampler.stream(toy_view, range(3), 3, LabelPlan())).cost == {"mapping": 6, "synthesis": 3}
    assert sampler.files(toy_view) == {"reference_sha256": weights_digest(ToyGAN(between=0.5))}
    above = samplers.create(
        "conditional_truncation", {"base": {"name": "autoguidance", "reference": "0.5", "scale": 0}}
    )
    assert above.files(above.under(toy_view)) == sampler.files(toy_view)  # as others ask for keys of their caches
    assert samplers.create("autoguidance", {"scale": 1}).files(toy_view) == {}


def test_references_without_a_meaning_are_refused(toy: ToyGAN, toy_view: LatentView) -> None:
    with pytest.raises(UserError, match="autoguidance needs a reference: give -o reference=PATH"):
        samplers.create("autoguidance").check(toy_view)
    samplers.create("autoguidance", {"scale": 1}).check(toy_view)
    with pytest.raises(UserError, match="autoguidance.reference 1.0 gives the same codes as a toy"):
        samplers.create("autoguidance", {"reference": "1.0"}).check(toy_view)
    with pytest.raises(UserError, match="codes are label vectors"):
        samplers.create("autoguidance", {"reference": "x"}).check(identity_view(lambda x, c: x[:, 0]))
    alone = view_for(dataclasses.replace(toy_networks(toy), companions=None))
    with pytest.raises(UserError, match="a toy comes without a way to open other checkpoints"):
        samplers.create("autoguidance", {"reference": "0.5"}).check(alone)

    def wider(path: str) -> ToyGAN:
        other = ToyGAN()
        other.synthesis.num_ws, other.rows = 4, 4
        return other

    companions = dataclasses.replace(toy_networks(toy).companions, snapshot=wider)  # type: ignore[type-var]
    with pytest.raises(UserError, match="has codes of another size than a toy"):
        samplers.create("autoguidance", {"reference": "x"}).check(
            view_for(dataclasses.replace(toy_networks(toy), companions=companions))
        )
    with pytest.raises(UserError, match="autoguidance.scale must be a finite number"):
        samplers.create("autoguidance", {"scale": "inf"})
