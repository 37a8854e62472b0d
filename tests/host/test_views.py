"""Our views against the host's own generate_images, for every backbone."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from host_models import BACKBONES, CONFIGS, UNCONDITIONAL, assert_same_images, networks, sections
from torch import Tensor

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.networks import build, configurations
from studiogan_guidance.latents import Inputs, LabelPlan, LatentView, Networks, view_for

pytestmark = pytest.mark.studiogan
STYLE = ("stylegan2", "stylegan3")


@pytest.fixture(scope="module", params=list(CONFIGS))
def made(request: pytest.FixtureRequest, checkout: Checkout) -> Iterator[tuple[str, Networks]]:
    return request.param, networks(request.param, checkout)


def batch(view: LatentView, noise_mode: str = "random") -> Inputs:
    return view.draw(range(2), 0, LabelPlan(), noise_mode)


def ours(view: LatentView, name: str, options: dict[str, Any], inputs: Inputs) -> Tensor:
    with view.frozen(), torch.no_grad():
        return samplers.create(name, options).images(view, inputs)


def hosts(
    made: Networks,
    name: str,
    checkout: Checkout,
    inputs: Inputs,
    monkeypatch: pytest.MonkeyPatch,
    truncation: float = -1,
    cutoff: int | None = None,
) -> Tensor:
    """The host's generate_images on our noise and labels (its random draws are replaced by ours)."""
    generator: Any = made.generator
    generator.eval()
    with inside(checkout), torch.no_grad(), monkeypatch.context() as patch:
        sample, misc = module("utils.sample"), module("utils.misc")
        cfgs = configurations(sections(name))
        generator.apply(misc.set_deterministic_op_trainable)  # as the host does before it evaluates
        prior, one_hot, continuous = inputs.z.split(
            [made.z_dim, made.info_discrete * made.info_discrete_dim, made.info_continuous], 1
        )
        patch.setattr(sample, "sample_zy", lambda **_: (prior, inputs.labels, None))
        picks = one_hot.view(len(prior), made.info_discrete, -1).argmax(2) if made.info_discrete else None
        patch.setattr(torch, "randint", lambda *_, **__: picks)
        patch.setattr(torch, "rand", lambda *_, **__: (continuous + 1) / 2)
        layer_noise = iter(inputs.noise or [])
        patch.setattr(torch, "randn", lambda *_, **__: next(layer_noise))
        images: Tensor = sample.generate_images(
            z_prior=made.z_prior,
            truncation_factor=truncation,
            batch_size=len(prior),
            z_dim=made.z_dim,
            num_classes=made.num_classes,
            y_sampler="totally_random",
            radius="N/A",
            generator=generator,
            discriminator=None,
            is_train=False,
            LOSS=cfgs.LOSS,
            RUN=SimpleNamespace(langevin_sampling=False, truncation_cutoff=cutoff),
            MODEL=cfgs.MODEL,
            device="cpu",
            is_stylegan=made.backbone in STYLE,
            generator_mapping=generator.mapping if made.backbone in STYLE else None,
            generator_synthesis=generator.synthesis if made.backbone in STYLE else None,
            style_mixing_p=0.0,
            stylegan_update_emas=False,
            cal_trsp_cost=False,
        )[0]
    return images


def test_scale_1_is_the_hosts_image_bit_for_bit(
    made: tuple[str, Networks], checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, nets = made
    view = view_for(nets)
    inputs = batch(view)
    host_images = hosts(nets, name, checkout, inputs, monkeypatch)  # moves spectral norms, so it goes first
    assert torch.equal(ours(view, "gandance", {"scale": 1}, inputs), host_images)
    assert torch.equal(ours(view, "plain", {}, inputs), host_images)
    assert host_images.shape == (2, 3, nets.image_size, nets.image_size)
    assert not torch.allclose(host_images[0], host_images[1], atol=1e-3)


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_without_labels_too(name: str, checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = networks(name, checkout)
    assert (nets.is_conditional, nets.num_classes) == (False, 1)
    view = view_for(nets)
    inputs = view.draw(range(2), 0, LabelPlan(classes=(3,)))
    assert inputs.labels.tolist() == [0, 0]
    host_images = hosts(nets, name, checkout, inputs, monkeypatch)
    assert torch.equal(ours(view, "plain", {}, inputs), host_images)
    assert not torch.allclose(host_images[0], host_images[1], atol=1e-3)
    if nets.backbone in STYLE:
        truncated = hosts(nets, name, checkout, inputs, monkeypatch, truncation=0.6, cutoff=3)
        assert torch.equal(ours(view, "truncation", {"psi": 0.6, "cutoff": 3}, inputs), truncated)


def test_guidance_moves_images_and_a_frozen_network_stays(made: tuple[str, Networks]) -> None:
    _name, nets = made
    view = view_for(nets)
    state = {key: value.clone() for key, value in nets.generator.state_dict().items()}
    inputs = batch(view)
    plain = ours(view, "plain", {}, inputs)
    for joint in ("class_mean", "class_subset", "mean_embedding"):
        guided = ours(view, "gandance", {"scale": 3, "joint": joint, "subset": 2}, inputs)
        assert torch.isfinite(guided).all()
        assert not torch.allclose(guided, plain, atol=1e-5), joint
    assert all(torch.equal(value, state[key]) for key, value in nets.generator.state_dict().items())
    assert torch.equal(ours(view, "plain", {}, inputs), plain)


@pytest.mark.parametrize("name", [n for n in BACKBONES if n not in STYLE])
def test_scale_0_gives_one_image_for_all_labels(name: str, checkout: Checkout) -> None:
    view = view_for(networks(name, checkout))
    inputs = view.draw(range(1), 0, LabelPlan(classes=(0,)))
    images = [
        ours(view, "gandance", {"scale": 0}, view.draw(range(1), 0, LabelPlan(classes=(label,)))) for label in (0, 3)
    ]
    torch.testing.assert_close(images[0], images[1], atol=1e-6, rtol=0)
    assert not torch.allclose(ours(view, "plain", {}, inputs), images[0], atol=1e-4)


@pytest.mark.parametrize("name", STYLE)
@pytest.mark.parametrize(("psi", "cutoff"), [(0.6, None), (0.6, 3), (0.0, None)])
def test_truncation_is_the_hosts_bit_for_bit(
    name: str, psi: float, cutoff: int | None, checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = networks(name, checkout)
    view = view_for(nets)
    inputs = batch(view)
    expected = hosts(nets, name, checkout, inputs, monkeypatch, truncation=psi, cutoff=cutoff)
    assert torch.equal(ours(view, "truncation", {"psi": psi, "cutoff": cutoff}, inputs), expected)


def test_stylegan2_noise_comes_from_each_images_seed(checkout: Checkout) -> None:
    view = view_for(networks("stylegan2", checkout))
    constants = {k: v.clone() for k, v in view.generator.named_buffers() if k.endswith("noise_const")}
    both = ours(view, "plain", {}, batch(view))
    second = ours(view, "plain", {}, view.draw([1], 1, LabelPlan()))
    assert_same_images(second[0], both[1])
    silent = ours(view, "plain", {}, batch(view, "const"))
    assert not torch.allclose(both, silent, atol=1e-3)
    after = dict(view.generator.named_buffers())
    assert all(torch.equal(value, after[key]) for key, value in constants.items())


def test_batches_of_other_sizes_differ_by_rounding_only(made: tuple[str, Networks]) -> None:
    _name, nets = made
    if nets.backbone == "stylegan3":
        pytest.skip("slow on a CPU; the same view as stylegan2")
    view = view_for(nets)
    whole, single = (
        torch.cat(
            [s.images for s in samplers.create("gandance", {"scale": 1.5}).stream(view, range(3), size, LabelPlan())]
        )
        for size in (3, 1)
    )
    assert_same_images(whole, single)


def test_impossible_generators_are_refused(checkout: Checkout) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="no view of backbone 'resnet18': did you mean 'resnet'"):
        build(sections("resnet", backbone="resnet18"), checkout, cpu)
    for name in ("big_resnet_deep_legacy", "big_resnet_deep_studiogan"):
        with pytest.raises(UserError, match=f"an unconditional {name} gives a condition .*: the host cannot run such"):
            view_for(build(sections(name, g_cond_mtd="W/O", d_cond_mtd="W/O"), checkout, cpu))
    info = {**sections("stylegan3"), "MODEL": {**sections("stylegan2+info")["MODEL"], "backbone": "stylegan3"}}
    with pytest.raises(UserError, match="InfoGAN numbers on top"):
        view_for(build(info, checkout, cpu))
