"""Random inputs and the built-in's view of w."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
import torch
from conftest import ToyGAN, toy_networks

from studiogan_guidance import rng
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, stylegan, view_for
from studiogan_guidance.latents.ledger import Ledger


def test_info_numbers_come_after_the_label_and_before_anything_else(toy: ToyGAN) -> None:
    nets = dataclasses.replace(toy_networks(toy), info_discrete=2, info_discrete_dim=3, info_continuous=2)
    inputs = view_for(nets).draw([5], 0, LabelPlan())
    g = torch.Generator().manual_seed(5)
    z, label = torch.randn(4, generator=g), torch.randint(5, (), generator=g)
    picks, numbers = torch.randint(3, (2,), generator=g), torch.rand(2, generator=g) * 2 - 1
    one_hot = torch.eye(3)[picks].flatten()
    assert torch.equal(inputs.z[0], torch.cat([z, one_hot, numbers]))
    assert inputs.labels.tolist() == [label]
    assert torch.equal(torch.rand(3, generator=g), torch.rand(3, generator=inputs.generators[0]))  # what is left


def test_a_uniform_prior_is_mapped_to_minus_one_to_one(toy: ToyGAN) -> None:
    nets = dataclasses.replace(toy_networks(toy), z_prior="uniform")
    inputs = view_for(nets).draw([9], 0, LabelPlan(classes=(1,)))
    assert torch.equal(inputs.z[0], torch.rand(4, generator=torch.Generator().manual_seed(9)) * 2 - 1)


def test_the_mean_over_classes_is_the_same_in_any_chunks(
    toy: ToyGAN, toy_view: LatentView, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = torch.randn(11, 4)
    labels = torch.arange(5).expand(11, -1)
    whole = toy_view.mean_over_classes(z, labels)
    assert torch.allclose(whole[:, 0], toy.mean + z @ toy.A, atol=1e-5)

    seen = []
    original = toy.mapping
    monkeypatch.setattr(toy_view, "mapping", lambda z, c: (seen.append(len(z)), original(z, c))[1])
    for rows in (5, 12, 1):
        monkeypatch.setattr(stylegan, "MAX_ROWS", rows)
        seen.clear()
        assert torch.allclose(toy_view.mean_over_classes(z, labels), whole, atol=1e-6)
        assert max(seen) <= max(rows, 5)


def test_class_means_are_kept_by_the_hash_of_the_weights(
    toy: ToyGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path))
    first = view_for(toy_networks(toy, "a" * 64)).class_means()
    (file,) = tmp_path.rglob("*.npz")
    calls = []
    zeros = {"means": torch.zeros(5, 12).numpy()}
    monkeypatch.setattr(stylegan.WView, "_class_table", lambda self: calls.append(1) or zeros)
    assert torch.equal(view_for(toy_networks(toy, "a" * 64)).class_means(), first)
    assert calls == []

    assert not view_for(toy_networks(toy, "b" * 64)).class_means().any()
    assert calls == [1]

    # A damaged file is computed again.
    file.write_bytes(b"junk")
    assert not view_for(toy_networks(toy, "a" * 64)).class_means().any()
    assert calls == [1, 1]
    assert len(list(tmp_path.rglob("*.npz"))) == 2
    assert not list(tmp_path.rglob(".*"))


def test_an_error_while_class_means_are_computed_is_not_one_of_writing(
    toy: ToyGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object) -> None:
        raise OSError("the network drive is gone")

    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path))
    monkeypatch.setattr(stylegan.WView, "_class_table", fails)
    with pytest.raises(OSError, match="the network drive is gone"):
        view_for(toy_networks(toy, "c" * 64)).class_means()


def test_class_means_of_another_version_are_computed_again(
    toy: ToyGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path))
    view_for(toy_networks(toy, "a" * 64)).class_means()
    monkeypatch.setattr(stylegan, "TABLE_VERSION", stylegan.TABLE_VERSION + 1)
    view_for(toy_networks(toy, "a" * 64)).class_means()
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_no_class_mean_comes_from_the_seed_of_an_image(toy: ToyGAN, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    generators = rng.generators
    monkeypatch.setattr(rng, "generators", lambda asked: seeds.extend(asked) or generators(asked))
    view_for(toy_networks(toy, "")).class_means()
    assert len(set(seeds)) == stylegan.TABLE_DRAWS
    assert min(seed % 2**32 for seed in seeds) >= rng.IMAGES  # a generator of the CPU takes the low 32 bits
    assert all(seed in rng.RESERVED["tables"] for seed in seeds)


def test_plain_images_and_the_parts_of_the_noise(toy: ToyGAN) -> None:
    view = view_for(dataclasses.replace(toy_networks(toy), z_dim=3, info_continuous=1))
    inputs = view.draw(range(5), 0, LabelPlan())
    prior, info = view.split(inputs.z)
    assert (prior.shape, info.shape) == ((5, 3), (5, 1))
    assert torch.equal(torch.cat([prior, info], 1), inputs.z)
    expected = toy.synthesis(toy.mapping(inputs.z, torch.nn.functional.one_hot(inputs.labels, 5).float()))
    assert torch.equal(view.images(inputs), expected)


def test_an_altered_view_has_other_methods_a_memo_of_its_own_and_the_same_ledger(toy_view: LatentView) -> None:
    inputs = toy_view.draw(range(4), 0, LabelPlan())
    plain = toy_view.images(inputs)
    altered = toy_view.altered(
        encode=lambda z, labels: 2 * toy_view.encode(z, labels),
        decode=lambda code, z, noise: toy_view.decode(code, z, noise) + 1,
        prior=lambda gens: torch.full((len(gens), 4), 3.0),
    )
    torch.testing.assert_close(altered.images(inputs), 2 * plain + 1)
    assert torch.equal(altered.draw(range(2), 0, LabelPlan()).z, torch.full((2, 4), 3.0))
    assert torch.equal(altered.class_means(), toy_view.class_means())  # not replaced: those of the bare view
    assert torch.equal(toy_view.images(inputs), plain)
    assert altered.bare is toy_view

    assert altered.ledger is toy_view.ledger
    assert toy_view.ledger.cost == {"mapping": 12, "synthesis": 12}
    assert (toy_view.once("key", lambda: 1), altered.once("key", lambda: 2), altered.once("key", lambda: 3)) == (
        1,
        2,
        2,
    )
    altered.forget()
    assert (toy_view.once("key", lambda: 4), altered.once("key", lambda: 5)) == (4, 5)


def test_what_is_set_up_once_is_no_cost_of_an_image_even_within_each_other() -> None:
    ledger = Ledger()
    ledger.cost["mapping"] += 1
    started = time.perf_counter()
    with ledger.setting_up():
        ledger.cost["mapping"] += 10
        time.sleep(0.02)
        with ledger.setting_up():
            ledger.cost["synthesis"] += 5
            time.sleep(0.02)
    elapsed = time.perf_counter() - started

    assert ledger.cost == {"mapping": 1}
    assert ledger.setup == {"mapping": 10, "synthesis": 5}
    assert 0.04 <= ledger.setup_seconds <= elapsed  # the inner block counts once


def test_views_refuse_what_they_do_not_know(toy: ToyGAN) -> None:
    with pytest.raises(UserError, match="no view of backbone 'stylegan4': did you mean 'stylegan"):
        view_for(dataclasses.replace(toy_networks(toy), backbone="stylegan4"))
