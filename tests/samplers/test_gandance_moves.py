"""Guidance away from moves of codes and noise that were learned."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from toy_families import toy_of

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, moves
from studiogan_guidance.latents.moves import Move
from studiogan_guidance.samplers.gandance import GANdance

FAMILIES = pytest.mark.parametrize("family", ["builtin", "big_resnet", "resnet"])
KINDS = pytest.mark.parametrize(("kind", "depth"), [("frechet", 0), ("amortised", 1)])


def learned(view: LatentView, kind: str, depth: int, per_block: bool = False) -> Move:
    move = moves.create(view, kind, hidden=8, depth=depth, scale=2.0, per_block=per_block)
    gen = torch.Generator().manual_seed(0)
    for value in move.parameters():
        value.data += 0.3 * torch.randn(value.shape, generator=gen)
    return move.requires_grad_(False)


@FAMILIES
@KINDS
@pytest.mark.parametrize("per_block", [False, True])
def test_scales_lead_from_plain_to_the_target(family: str, kind: str, depth: int, per_block: bool) -> None:
    view = toy_of(family)
    move = learned(view, kind, depth, per_block)
    inputs = view.draw(range(5), 0, LabelPlan())
    plain = view.encode(inputs.z, inputs.labels)
    for scale in (1.0, 1.5, 2.0, 3.0):
        sampler = GANdance(scale=scale, joint=kind).away_from(move)
        z = inputs.z + (scale - 1) * (move.noise(view, inputs) - inputs.z)
        moved = dataclasses.replace(inputs, z=z)
        target = move.target(view, moved, plain)
        code = plain if target.dim() == plain.dim() else plain[:, None]
        expected = view.decode(code + (scale - 1) * (target - code), z, None)
        error = (sampler.images(view, inputs) - expected).abs().max()
        assert error < 0.01 * expected.abs().max()  # two sines magnify rounding
        if scale == 1:
            assert torch.equal(sampler.images(view, inputs), view.images(inputs))

    # Shares of blocks mean what they mean elsewhere.
    none = GANdance(scale=2, joint=kind, profile=(0.0,)).away_from(move)
    torch.testing.assert_close(none.images(view, inputs), view.decode(plain, move.noise(view, inputs), None))


def test_psi_of_a_move_is_about_the_moved_class_means() -> None:
    view = toy_of("builtin")
    inputs = view.draw(range(5), 0, LabelPlan())
    move = learned(view, "frechet", 0)
    code = GANdance(scale=2, joint="frechet", psi=0).away_from(move).codes(view, inputs)
    torch.testing.assert_close(code, move.target(view, inputs, view.class_means()[inputs.labels]))

    sampler = GANdance(scale=2, joint="amortised", psi=1.2).away_from(learned(view, "amortised", 1))
    with pytest.raises(UserError, match="psi needs guided means of classes, and the network of this amortised move"):
        sampler.check(view)


def test_a_move_in_a_file_is_named_in_results_and_is_a_base_where_noise_stays(tmp_path: Path) -> None:
    view = toy_of("builtin")
    move = learned(view, "frechet", 0)
    path = tmp_path / "frechet.safetensors"
    moves.save(path, move, view, {})
    sampler = samplers.create("gandance", {"scale": 2, "joint": "frechet", "joint_ckpt": str(path)})
    sampler.check(view)
    assert sampler.files(view) == {"joint_sha256": move.digest()}
    inputs = view.draw(range(5), 0, LabelPlan())
    assert torch.equal(sampler.built_into(view).images(inputs), sampler.images(view, inputs))

    # A base decodes noise without its label.
    other = toy_of("big_resnet")
    moving = GANdance(scale=2, joint="frechet").away_from(learned(other, "frechet", 0))
    with pytest.raises(UserError, match="moves the noise of each class and cannot be a base here"):
        moving.built_into(other)
