from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ToyGAN, identity_view, toy_networks
from safetensors.torch import save_file
from torch import Tensor

from studiogan_guidance import rng, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, importance, view_for
from studiogan_guidance.latents.importance import KIND, ImportanceWeights
from studiogan_guidance.samplers.latent_reweighting import LatentReweighting


class Halves(ImportanceWeights):
    """w = sqrt(2) exp(-(z - 2 c)^2 / 2 + c^2), which takes N(0, 1) to N(c, 1/2) and averages 1 within each class."""

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return math.sqrt(2) * torch.exp(-(z[:, 0] - 2 * labels).square() / 2 + labels.square())


BOUND = math.sqrt(2) * math.e  # of the weights of class 1; that of class 0 is sqrt(2)


def line(count: int = 2000, **options: Any) -> tuple[Tensor, Tensor, dict[str, int], dict[str, Tensor]]:
    """Images of G(z) = z, their labels, the cost and the notes."""
    view = identity_view(lambda x, c: x[:, 0])
    sampler = LatentReweighting(**options).with_weights(Halves(1, 2, 4, 1))
    found = list(sampler.stream(view, range(count), 500, LabelPlan()))
    cost = {key: sum(batch.cost[key] for batch in found) for key in found[0].cost}
    notes = {key: torch.cat([batch.notes[key] for batch in found]) for key in found[0].notes}
    return torch.cat([b.images for b in found]).flatten(), torch.cat([b.labels for b in found]), cost, notes


@pytest.mark.parametrize("options", [{"bound": BOUND}, {"percentile": 100}, {"mode": "resampling", "proposals": 40}])
def test_images_have_the_density_of_the_prior_times_the_weights(options: dict[str, Any]) -> None:
    x, labels, cost, notes = line(**options)
    for label in (0, 1):
        of_class = x[labels == label]
        assert of_class.mean() == pytest.approx(label, abs=0.08)
        assert of_class.var() == pytest.approx(0.5, abs=0.07)

    # Rejected latents cost a pass of the small network, none of the generator.
    assert cost["synthesis"] == cost["accepted"] == 2000
    assert cost["weights"] == cost["proposed"] == notes["tries"].sum()


def test_the_share_of_accepted_latents_is_one_over_the_bound() -> None:
    """The weights average 1, so a latent is accepted with probability 1 / bound on average."""
    _, _, cost, notes = line(bound=BOUND)
    assert cost["accepted"] / cost["proposed"] == pytest.approx(1 / BOUND, rel=0.08)
    assert notes["accepted"].all()

    # With the maximum of each class as its bound, it is that of the class: 1 / sqrt(2) and 1 / (sqrt(2) e).
    _, labels, _, notes = line(percentile=100)
    for label in (0, 1):
        tries = notes["tries"][labels == label].mean()
        assert tries == pytest.approx(math.sqrt(2) * math.e**label, rel=0.1)


def test_where_nothing_is_accepted_proposals_are_resampled() -> None:
    """A bound that accepts nothing leaves the choice among the proposals, the same as in resampling."""
    x, labels, cost, notes = line(bound=1e12, proposals=20)
    assert not notes["accepted"].any()
    assert cost["proposed"] == 20 * 2000
    assert x[labels == 1].mean() == pytest.approx(1, abs=0.1)
    assert x.var() == pytest.approx(0.75, abs=0.08)  # 1/2 within classes, 1/4 between them


def slow(view: LatentView, seeds: range, bound: float, proposals: int) -> list[float]:
    """Rejection image by image, with the numbers of the image's own generator."""
    weights = Halves(1, 2, 4, 1)
    images = []
    for seed in seeds:
        inputs = view.draw([seed], seed, LabelPlan())
        z, kept, total = inputs.z, inputs.z, 0.0
        for number in range(proposals):
            z = rng.randn(inputs.generators, 1) if number else z
            w = weights(z, inputs.labels)
            total += float(w)
            if float(rng.unit(inputs.generators, dtype=torch.float64)) * total < w:
                kept = z
            if rng.unit(inputs.generators) < w / bound:
                kept = z
                break
        images.append(float(kept))
    return images


@pytest.mark.parametrize(("bound", "proposals"), [(BOUND, 100), (BOUND, 3), (0.5, 100)])
def test_batches_are_what_images_are_one_by_one(bound: float, proposals: int) -> None:
    view = identity_view(lambda x, c: x[:, 0])
    sampler = LatentReweighting(bound=bound, proposals=proposals).with_weights(Halves(1, 2, 4, 1))
    (batch,) = sampler.stream(view, range(60), 60, LabelPlan())
    assert batch.images.flatten().tolist() == slow(view, range(60), bound, proposals)


def test_weights_that_are_all_alike_leave_every_image(tmp_path: Path, toy_view: LatentView) -> None:
    path = tmp_path / "weights.safetensors"
    importance.save(path, importance.create(toy_view), toy_view, {})
    (plain,) = samplers.create("plain").stream(toy_view, range(8), 8, LabelPlan())
    (same,) = samplers.create("latent_reweighting", {"weights_ckpt": str(path)}).stream(
        toy_view, range(8), 8, LabelPlan()
    )
    assert torch.equal(same.images, plain.images)
    assert same.cost["weights"] == 8


def test_ascent_follows_the_weights_uphill() -> None:
    """A step on w of a Gaussian shape, by hand."""
    x, labels, _, _ = line(50, proposals=1, ascent=1, rate=0.1)
    start, _, _, _ = line(50, proposals=1)
    w = Halves(1, 2, 4, 1)(start[:, None], labels)
    torch.testing.assert_close(x, start - 0.1 * w * (start - 2 * labels))


def test_the_ledger_counts_bounds_as_set_up(tmp_path: Path, toy_view: LatentView) -> None:
    path = tmp_path / "weights.safetensors"
    importance.save(path, importance.create(toy_view), toy_view, {})
    sampler = samplers.create("latent_reweighting", {"weights_ckpt": str(path)})
    list(sampler.stream(toy_view, range(4), 4, LabelPlan(classes=(1, 3))))
    assert toy_view.ledger.setup["weights"] == 2 * 2048


# ---------------------------------------------------------------------------- the file


def test_a_file_keeps_the_weights_and_is_looked_for_beside_the_checkpoint(tmp_path: Path, toy: ToyGAN) -> None:
    view = view_for(toy_networks(toy))
    weights = importance.create(view, 8, 2)
    for value in weights.parameters():
        value.data.normal_(generator=torch.Generator().manual_seed(0))
    z, labels = torch.randn(5, 4), torch.arange(5)
    assert weights(z, labels).min() > 0
    assert torch.equal(importance.create(view)(z, labels), torch.ones(5))

    view.networks.__dict__["source"] = str(tmp_path)
    with pytest.raises(
        UserError, match="no file of latent weights .*: make it with 'studiogan-guidance train --stage latent"
    ):
        importance.of_view(view, None)
    importance.save(tmp_path / KIND.file, weights, view, {})
    found = importance.of_view(view, None)
    assert torch.equal(found(z, labels), weights(z, labels))
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    torch.testing.assert_close(found(z, one_hot), weights(z, labels))


def test_weights_of_another_generator_or_base_are_refused(tmp_path: Path, toy: ToyGAN, toy_view: LatentView) -> None:
    path = tmp_path / "weights.safetensors"
    importance.save(path, importance.create(toy_view), toy_view, {})
    sampler = samplers.create("latent_reweighting", {"weights_ckpt": str(path), "base": "gandance"})
    with pytest.raises(UserError, match="but the weights were learned on plain: give that as base"):
        sampler.check(toy_view)
    samplers.create("latent_reweighting", {"proposals": 1, "weights_ckpt": "/nowhere"}).check(toy_view)

    toy.scale.data += 1
    with pytest.raises(UserError, match=r"learned on another generator: their generator_sha256 is \w{12}, here it is"):
        importance.load(path, toy_view)


@pytest.mark.parametrize(
    ("change", "tensors", "words"),
    [
        ({"depth": 10**12}, {}, "its depth is 1,000,000,000,000, and it has 9 tensors"),
        ({"hidden": 10**12}, {}, r"its first.weight is \[8, 4\], by its metadata it should be \[1000000000000, 4\]"),
        ({"num_classes": True}, {}, "its num_classes is True, no whole number"),
        ({}, {"last.bias": torch.full((1,), math.nan)}, "its last.bias has numbers that are not finite"),
        ({}, {"more": torch.ones(1)}, "it has a tensor too many, 'more'"),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, toy_view: LatentView, change: dict[str, Any], tensors: dict[str, Tensor], words: str
) -> None:
    path = tmp_path / "weights.safetensors"
    importance.save(path, importance.create(toy_view, 8, 3), toy_view, {})
    metadata, state = KIND.read(path)
    save_file({**state, **tensors}, path, {KIND.key: json.dumps({**metadata, **change})})
    with pytest.raises(UserError, match=f"the file of latent weights {path} is damaged: {words}"):
        importance.load(path, toy_view)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proposals": 0}, "latent_reweighting.proposals must be a number from 1 up"),
        ({"mode": "rejecton"}, "latent_reweighting.mode is 'rejecton': did you mean 'rejection'"),
        ({"percentile": 101}, "latent_reweighting.percentile must be at most 100"),
        ({"bound": 0}, "latent_reweighting.bound must be positive"),
        ({"rate": -1}, "latent_reweighting.rate must be positive"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("latent_reweighting", options)
