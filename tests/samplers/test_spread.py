"""The two knobs of guidance: the scale between classes, and the spread within them (psi of w, tau of z)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import ToyGAN, toy_networks
from torch import Tensor
from toy_families import toy_of

from studiogan_guidance import builtin, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers.gandance import GANdance, spread_option

COUNT = 400


def codes(view: LatentView, **options: object) -> tuple[Tensor, Tensor]:
    """The first row of guided w of some images, float64, and their labels."""
    inputs = view.draw(range(COUNT), 0, LabelPlan(classes=tuple(range(view.num_classes))))
    sampler = samplers.create("gandance", {"joint": "class_shift", **options})
    assert isinstance(sampler, GANdance)
    return sampler.codes(view, inputs)[:, 0].double(), inputs.labels


def covariances(w: Tensor, labels: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance of the class means about their mean, and of w about the means of its classes."""
    within = (w - centres[labels]).T @ (w - centres[labels]) / len(w)
    between = centres - centres.mean(0)
    return between.T @ between / len(centres), within


def test_scale_multiplies_what_is_between_classes_and_psi_what_is_within(toy_view: LatentView) -> None:
    scale, psi = 1.4, 1.7
    means = toy_view.class_means()[:, 0].double()
    guided_means = means.mean(0) + scale * (means - means.mean(0))
    between, within = covariances(*codes(toy_view, scale=1), means)
    w, labels = codes(toy_view, scale=scale, psi=psi)

    guided_between, guided_within = covariances(w, labels, guided_means)
    torch.testing.assert_close(guided_between, scale**2 * between)
    torch.testing.assert_close(guided_within, psi**2 * within, rtol=1e-4, atol=1e-4)

    # The guided codes are centred where these means are: psi = 0 leaves nothing else.
    only_means, _ = codes(toy_view, scale=scale, psi=0)
    torch.testing.assert_close(only_means, guided_means[labels], rtol=1e-5, atol=1e-5)


def test_equal_knobs_are_the_global_mean_about_the_mean_of_all(toy: ToyGAN, toy_view: LatentView) -> None:
    toy.w_avg.copy_(toy_view.class_means()[:, 0].mean(0))
    both, _ = codes(toy_view, scale=1.6, psi=1.6)
    away, _ = codes(toy_view, scale=1.6, joint="global_mean")
    torch.testing.assert_close(both, away, rtol=1e-5, atol=1e-5)


def test_the_knobs_undo_classes_too_near_and_too_narrow() -> None:
    """Data m + R m_c + S eps, generator m + r m_c + q eps: s = R / r and psi = S / q make the same images."""
    far, near, wide, narrow = 1.6, 1.2, 0.9, 0.5
    data = view_for(toy_networks(ToyGAN(between=far, interaction=0, spread=wide), ""))
    view = view_for(toy_networks(ToyGAN(between=near, interaction=0, spread=narrow), ""))
    real, _ = codes(data, scale=1)

    # The means of the table hold the mean of its finite number of draws, which differs by the spread.
    lag = data.class_means()[:, 0].double().mean(0) - view.class_means()[:, 0].double().mean(0)
    best, _ = codes(view, scale=far / near, psi=wide / narrow)
    torch.testing.assert_close(best + lag, real, rtol=1e-4, atol=1e-4)
    for scale, psi in ((far / near, 1), (1, wide / narrow), (1.1 * far / near, wide / narrow)):
        other, _ = codes(view, scale=scale, psi=psi)
        assert (other + lag - real).square().mean() > 100 * (best + lag - real).square().mean() + 1e-3


@pytest.mark.parametrize("family", ["big_resnet", "resnet"])
def test_tau_multiplies_the_prior_noise_and_nothing_else(family: str) -> None:
    view = toy_of(family)
    inputs = view.draw(range(6), 0, LabelPlan())
    warm = samplers.create("gandance", {"scale": 1.5, "tau": 1.3})
    hand = dataclasses.replace(inputs, z=1.3 * inputs.z)
    guided = samplers.create("gandance", {"scale": 1.5})
    torch.testing.assert_close(warm.images(view, inputs), guided.images(view, hand))
    assert not torch.allclose(warm.images(view, inputs), guided.images(view, inputs), atol=1e-2)

    # As the base of another sampler, and at no noise at all.
    torch.testing.assert_close(warm.built_into(view).images(inputs), warm.images(view, inputs))
    cold = samplers.create("gandance", {"scale": 1.5, "tau": 0}).images(view, inputs)
    for label in inputs.labels.unique():
        same = cold[inputs.labels == label]
        torch.testing.assert_close(same, same[:1].expand_as(same))


def test_tau_leaves_the_numbers_of_infogan() -> None:
    view = toy_of("resnet")
    view.networks = dataclasses.replace(view.networks, z_dim=3, info_continuous=1)
    inputs = view.draw(range(6), 0, LabelPlan())
    factor = torch.tensor([1.3, 1.3, 1.3, 1])
    warm = samplers.create("gandance", {"scale": 1, "tau": 1.3}).images(view, inputs)
    torch.testing.assert_close(warm, view.images(dataclasses.replace(inputs, z=factor * inputs.z)))


def test_each_chunk_of_noise_has_its_share_of_tau() -> None:
    view = toy_of("big_resnet")
    inputs = view.draw(range(6), 0, LabelPlan())

    def images(**options: object) -> Tensor:
        return samplers.create("gandance", {"scale": 1, **options}).images(view, inputs)

    factor = torch.tensor([1.5, 1.5, 1.0, 1.0, 0.75, 0.75])
    by_hand = view.images(dataclasses.replace(inputs, z=factor * inputs.z))
    torch.testing.assert_close(images(tau=1.5, tau_profile="1:0:-0.5"), by_hand)
    assert torch.equal(images(tau=1.5, tau_profile="1:1"), images(tau=1.5))
    assert torch.equal(images(tau=1, tau_profile="1:0"), images())


def test_the_spread_of_a_view(toy_view: LatentView) -> None:
    assert [spread_option(view) for view in (toy_view, toy_of("big_resnet"), toy_of("resnet"))] == ["psi", "tau", "tau"]
    assert view_for(builtin.networks()).normalises_z
    assert not toy_view.normalises_z
    assert not toy_of("big_resnet").normalises_z


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("big_resnet", {"psi": 1.3}, "psi needs a generator with w, but big_resnet has none: use tau"),
        ("big_resnet", {"tau": -1}, "tau must be a number from 0 up, found -1"),
        ("big_resnet", {"tau_profile": [1, 2, 3, 4]}, "4 groups, but the noise of this big_resnet is in 3 chunk"),
        ("resnet", {"tau_profile": [1, 2]}, "2 groups, but the noise of this resnet is in 1 chunk.s.: use tau alone"),
        ("resnet", {"tau": "nan"}, "tau must be a finite number"),
    ],
)
def test_a_spread_that_a_generator_does_not_have_is_refused(
    family: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("gandance", options).check(toy_of(family))


def test_a_temperature_of_noise_that_is_normalised_is_refused() -> None:
    view = view_for(builtin.networks())
    with pytest.raises(UserError, match="tau changes nothing on builtin, whose mapping normalises z: use psi"):
        samplers.create("gandance", {"tau": 1.2}).check(view)
    samplers.create("gandance", {"tau": 1}).check(view)
