"""Guidance of single blocks of generators without w: layers and profile."""

from __future__ import annotations

import pytest
import torch
from conftest import Recorder
from torch import Tensor, nn
from toy_families import toy_of

from studiogan_guidance import fast, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import Inputs, LabelPlan, LatentView
from studiogan_guidance.latents.accelerated import accelerated

FAMILIES = pytest.mark.parametrize("family", ["big_resnet", "resnet"])


def images(view: LatentView, inputs: Inputs, **options: object) -> Tensor:
    return samplers.create("gandance", {"scale": 1.7, **options}).images(view, inputs)


def maps(view: LatentView, inputs: Inputs, **options: object) -> list[Tensor]:
    """The feature maps after each block."""
    seen: list[Tensor] = []
    blocks: list[nn.Module] = list(view.generator.blocks)  # type: ignore[arg-type]
    handles = [block.register_forward_hook(lambda module, args, out: seen.append(out)) for block in blocks]
    try:
        images(view, inputs, **options)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@FAMILIES
def test_equal_shares_are_guidance_without_a_profile_bit_for_bit(family: str) -> None:
    view = toy_of(family)
    inputs = view.draw(range(6), 0, LabelPlan())
    whole = images(view, inputs)
    for options in ({"profile": "1"}, {"profile": "1:1"}, {"layers": "0-2"}):
        assert torch.equal(images(view, inputs, **options), whole)
    assert torch.equal(images(view, inputs, profile="0:0"), view.images(inputs))
    assert torch.equal(images(view, inputs, profile="0.5"), images(view, inputs, scale=1.35))


@FAMILIES
def test_the_share_of_a_block_changes_the_maps_from_there_on(family: str) -> None:
    view = toy_of(family)
    inputs = view.draw(range(6), 0, LabelPlan())
    plain = maps(view, inputs, scale=1)
    first = maps(view, inputs, profile="1:0")
    second = maps(view, inputs, profile="0:1")
    assert not torch.allclose(first[0], plain[0], atol=1e-2)
    assert torch.equal(second[0], plain[0])
    assert not torch.allclose(second[1], plain[1], atol=1e-2)

    # Layers are the same choice of blocks, and blocks are guided as they are together.
    assert torch.equal(maps(view, inputs, layers="1-2")[1], second[1])
    assert torch.equal(first[0], maps(view, inputs)[0])


@FAMILIES
def test_blocks_cost_no_pass_and_leave_no_hooks(family: str) -> None:
    view = toy_of(family)
    inputs = view.draw(range(6), 0, LabelPlan())
    images(view, inputs, profile="1:0")
    assert view.ledger.cost == {"synthesis": 6}
    assert not any(module._forward_pre_hooks for module in view.generator.modules())


@FAMILIES
def test_codes_of_blocks_are_codes_to_other_samplers(family: str) -> None:
    view = toy_of(family)
    inputs = view.draw(range(6), 0, LabelPlan())
    sampler = samplers.create("gandance", {"scale": 1.7, "profile": "1:0"})
    base = sampler.built_into(view)
    assert torch.equal(base.images(inputs), sampler.images(view, inputs))

    # Their means over classes.
    code, mean = base.encode_with_class_mean(inputs.z, inputs.labels)
    assert code.shape == mean.shape == (6, 2, code.shape[2])
    every = [base.encode(inputs.z, torch.full((6,), label)) for label in range(5)]
    torch.testing.assert_close(mean, torch.stack(every).mean(0))
    torch.testing.assert_close(base.class_means(), torch.stack(every, 1)[0])

    # A gradient of images by z passes through.
    z = inputs.z.clone().requires_grad_()
    base.decode(base.encode(z, inputs.labels), z, None).square().sum().backward()
    assert z.grad is not None
    assert z.grad.any()


@FAMILIES
def test_graphs_are_made_for_codes_of_blocks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(fast, "capture_on", lambda device: recorder)
    view = toy_of(family)
    inputs = view.draw(range(6), 0, LabelPlan())
    exact = images(view, inputs, profile="1:0"), images(view, inputs)
    quick = accelerated(view, "float32", 6)
    with torch.no_grad(), view.frozen():
        for _ in range(2):
            torch.testing.assert_close(images(quick, inputs, profile="1:0"), exact[0])
            torch.testing.assert_close(images(quick, inputs), exact[1])
    assert (recorder.captures, recorder.replays) == (2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [1, 9]}, "layers is 1-9, but this generator has 2 blocks: give a part of 0-2"),
        ({"profile": [1, 2, 3]}, "profile has 3 groups, but this generator has 2 blocks: give fewer"),
    ],
)
def test_blocks_that_are_not_there_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("gandance", options).check(toy_of("resnet"))
