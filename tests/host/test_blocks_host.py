"""Guidance of single conditional blocks of the host's networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from host_models import networks
from torch import Tensor, nn

from studiogan_guidance import samplers
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.latents import Inputs, LabelPlan, LatentView, view_for

pytestmark = pytest.mark.studiogan

BLOCKS = {  # of the tiny networks; BigGAN-deep has two a resolution, and its first layer reads the code, too
    "big_resnet": 3,
    "big_resnet_deep_legacy": 7,
    "big_resnet_deep_studiogan": 7,
    "resnet": 3,
    "deep_conv": 3,
    "big_resnet+info": 3,
    "resnet+info": 3,
}


def readers(view: LatentView) -> list[nn.Module]:
    """The modules that read the code, in the order in which they run."""
    generator: Any = view.generator
    blocks = [block[0] for block in generator.blocks if "Attention" not in type(block[0]).__name__]
    return [generator.linear0, *blocks] if "deep_" in view.networks.backbone and len(blocks) == 6 else blocks


def outputs(view: LatentView, inputs: Inputs, **options: object) -> tuple[list[Tensor], Tensor]:
    """What each of them gives, and the images, of guidance by 3."""
    seen: list[Tensor] = []
    handles = [module.register_forward_hook(lambda _, args, out: seen.append(out)) for module in readers(view)]
    try:
        with view.frozen(), torch.no_grad():
            images = samplers.create("gandance", {"scale": 3, **options}).images(view, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen, images


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_guided_alone(name: str, checkout: Checkout) -> None:
    view = view_for(networks(name, checkout))
    inputs = view.draw(range(2), 0, LabelPlan())
    assert view.blocks == BLOCKS[name]
    plain, plain_images = outputs(view, inputs, scale=1)
    _, whole = outputs(view, inputs)

    # Equal shares are guidance of all, bit for bit.
    assert torch.equal(outputs(view, inputs, profile=[1] * view.blocks)[1], whole)
    assert torch.equal(outputs(view, inputs, profile=[0])[1], plain_images)

    # One block alone changes maps from there on.
    for block in {0, 1, view.blocks - 1}:
        shares = [float(place == block) for place in range(view.blocks)]
        alone, _ = outputs(view, inputs, profile=shares)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(alone[:block], plain[:block]))
        assert not torch.allclose(alone[block], plain[block], atol=1e-5)
        assert not torch.equal(alone[-1], plain[-1])


@pytest.mark.parametrize("name", ["big_resnet", "big_resnet+info"])
def test_the_chunks_of_noise_are_those_of_the_network(name: str, checkout: Checkout) -> None:
    view = view_for(networks(name, checkout))
    inputs = view.draw(range(2), 0, LabelPlan())
    generator: Any = view.generator
    assert view.noise_chunks * generator.chunk_size == generator.z_dim

    # The first chunk is that of the first layer, the last one that of the last block.
    plain, _ = outputs(view, inputs, scale=1)
    last, _ = outputs(view, inputs, scale=1, tau=1.5, tau_profile=[0, 0, 0, 1])
    assert torch.equal(last[1], plain[1])
    assert not torch.allclose(last[2], plain[2], atol=1e-5)
    first, _ = outputs(view, inputs, scale=1, tau=1.5, tau_profile=[1, 0, 0, 0])
    assert not torch.allclose(first[0], plain[0], atol=1e-5)


def test_noise_that_a_layer_mixes_is_in_one_chunk(checkout: Checkout) -> None:
    assert view_for(networks("deep_conv+info", checkout)).noise_chunks == 1
    assert view_for(networks("big_resnet_deep_legacy", checkout)).noise_chunks == 1


@pytest.mark.parametrize("name", ["stylegan2", "stylegan3"])
def test_the_mapping_of_w_normalises_noise(name: str, checkout: Checkout) -> None:
    view = view_for(networks(name, checkout))
    assert view.normalises_z
    assert view.blocks == view.rows
