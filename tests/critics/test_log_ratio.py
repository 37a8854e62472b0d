from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import ToyCritic, ToyGAN, toy_networks
from torch.nn import functional as F

from studiogan_guidance import samplers
from studiogan_guidance.critics.log_ratio import LogRatio
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LatentView, view_for


def log_ratio(view: LatentView, **options: object) -> LogRatio:
    sampler = samplers.create("ddls", options)
    return sampler.ratio(sampler.under(view))


def test_calibration_learns_from_held_out_images_and_fakes_of_the_very_base(toy: ToyGAN) -> None:
    """Images of the toy are Gaussian, real ones 0.7 as wide: any linear head has log-ratio 0 on average at best."""
    view = view_for(toy_networks(toy))
    plain, guided = log_ratio(view), log_ratio(view, base={"name": "gandance", "scale": 3})
    assert plain.facts["auc"] > 0.55  # the toy's critic prefers the mean, and so are the real images
    assert guided.facts["auc"] > plain.facts["auc"] + 0.1  # guided fakes are farther out
    assert abs(plain.facts["calibration_z"]) < 3 < abs(plain.facts["calibration_z_raw"])
    assert len(plain.real[0]) == 1000
    assert view.ledger.setup["discriminator"] == 4000
    assert view.ledger.cost.total() == 0
    assert log_ratio(view) is plain
    assert view.ledger.setup["discriminator"] == 4000


def test_a_head_is_fitted_where_the_logit_has_nothing_to_say(toy: ToyGAN) -> None:
    """Real images shifted along a feature that the logit does not see: the head finds the shift's log ratio."""

    class Blind(ToyCritic):
        def forward(self, x: torch.Tensor, labels: torch.Tensor, **more: bool) -> dict[str, torch.Tensor]:
            h = x.flatten(1)
            return {"h": h - self.mean, "adv_output": 0 * h[:, 0]}

    networks = toy_networks(toy, critic=Blind(toy))
    view = view_for(networks)
    direction = torch.randn(12, generator=torch.Generator().manual_seed(5))

    def shifted(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % toy.classes
        w = toy.mapping(torch.randn(count, toy.z_dim), F.one_hot(labels, toy.classes).float())
        return toy.synthesis(w + direction), labels

    networks = dataclasses.replace(networks, companions=dataclasses.replace(networks.companions, held_out=shifted))
    view = view_for(networks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blind, head = log_ratio(view, calibration="none"), log_ratio(view, calibration="head")
        images, labels = shifted(500)
    plain = images - direction.view(1, 3, 2, 2)
    assert torch.equal(blind(images, labels), blind(plain, labels))
    assert (head(images, labels) > head(plain, labels)).float().mean() > 0.95
    assert head.facts["auc"] > 0.8
    slope = torch.autograd.functional.jacobian(lambda x: head(x, labels[:1]).sum(), images[:1]).flatten()
    assert slope @ direction > 0


def test_a_discriminator_that_ranks_fakes_first_is_refused(toy: ToyGAN) -> None:
    view = view_for(toy_networks(toy, critic=ToyCritic(toy, slope=0, curve=-1)))
    with pytest.raises(UserError, match="ranks fakes above held-out real images"):
        log_ratio(view)


def test_too_few_held_out_images_are_an_error_of_one_line(toy: ToyGAN) -> None:
    networks = toy_networks(toy)
    few = dataclasses.replace(networks.companions, held_out=lambda count: networks.companions.held_out(min(count, 5)))
    with pytest.raises(UserError, match=r"there are 5 held-out images \(a toy\), and calibrating needs 10"):
        log_ratio(view_for(dataclasses.replace(networks, companions=few)))


@pytest.mark.parametrize("found", [1, 2, 12])
def test_held_out_images_of_other_classes_are_refused_by_a_conditional_critic(
    toy: ToyGAN, found: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A critic that sees no classes is set against fakes of all classes alike, whatever the labels say."""
    networks = toy_networks(toy)
    images = networks.companions.held_out
    shuffled = dataclasses.replace(
        networks.companions,
        held_out=lambda count: (images(count)[0], torch.full((count,), 11)),
        held_out_classes=lambda: found,
    )
    networks = dataclasses.replace(networks, companions=shuffled)
    fact = f"the held-out images have {found} class{'es' if found > 1 else ''}, this generator has {toy.classes}"
    with pytest.raises(UserError, match=f"{fact}, so labels do not mean the same: .* or say -o calibration=none"):
        log_ratio(view_for(networks))

    class Unconditional(ToyCritic):
        d_cond_mtd = "W/O"

    critic = dataclasses.replace(shuffled, discriminator=lambda: Unconditional(toy))
    ratio = log_ratio(view_for(dataclasses.replace(networks, companions=critic)))
    assert capsys.readouterr().err.startswith(f"Note: {fact}: are these the images that it was trained on?")
    assert ratio.real is not None
    assert ratio.real[1].bincount().tolist() == [len(ratio.real[1]) // toy.classes] * toy.classes


def test_what_does_nothing_needs_no_discriminator(toy: ToyGAN) -> None:
    view = view_for(dataclasses.replace(toy_networks(toy), companions=None))
    sampler = samplers.create("ddls", {"steps": 0})
    sampler.check(view)
    assert sampler.files(view) == {}


def test_ties_count_half_in_the_auc(toy: ToyGAN) -> None:
    """A logit that is the same for all images says nothing: 0.5, whatever the calibration."""
    view = view_for(toy_networks(toy, critic=ToyCritic(toy, slope=0, curve=0)))
    assert ratio_of("metropolis", view).facts["auc"] == pytest.approx(0.5)


def ratio_of(name: str, view: LatentView) -> LogRatio:
    return samplers.create(name).ratio(view)


@pytest.mark.parametrize("calibration", ["logistic", "head"])
def test_a_discriminator_without_an_answer_is_refused(toy: ToyGAN, calibration: str) -> None:
    class Silent(ToyCritic):
        def forward(self, x: torch.Tensor, labels: torch.Tensor, **more: bool) -> dict[str, torch.Tensor]:
            out = super().forward(x, labels)
            return {**out, "adv_output": out["adv_output"] / (labels != 3)}

    view = view_for(toy_networks(toy, critic=Silent(toy)))
    with pytest.raises(UserError, match=r"beside a toy says nan or inf about \d+ of 2000 images: give another"):
        log_ratio(view, calibration=calibration)
