"""What a move adds to code and noise, its file, and guidance towards it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ToyGAN, toy_networks
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import Inputs, LabelPlan, LatentView, Networks, moves, view_for
from studiogan_guidance.latents.joint import JOINTS, JointOptions, with_code
from studiogan_guidance.latents.moves import Move


class Embedding(nn.Module):
    """As much of a BigGAN as its view needs: embeddings of 5 classes in 6 numbers, and 4 numbers of noise."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.shared = nn.Embedding(5, 6)


def views() -> dict[str, LatentView]:
    embedding = Networks(Embedding(), "big_resnet", 5, 4, 2, torch.device("cpu"), "", "toy")
    return {"w": view_for(toy_networks(ToyGAN(), "")), "embedding": view_for(embedding)}


@pytest.fixture(params=["w", "embedding"])
def view(request: pytest.FixtureRequest) -> LatentView:
    return views()[request.param]


def batch(view: LatentView, n: int = 16) -> tuple[Inputs, Tensor]:
    inputs = view.draw(range(n), 0, LabelPlan())
    return inputs, view.encode(inputs.z, inputs.labels)


def learned_move(view: LatentView, kind: str = "amortised", depth: int = 1, **options: Any) -> Move:
    """A move whose weights are no longer those of the start."""
    move = moves.create(view, kind, hidden=8, depth=depth, **options)
    gen = torch.Generator().manual_seed(0)
    for value in move.parameters():
        value.data += 0.3 * torch.randn(value.shape, generator=gen)
    return move.requires_grad_(False)


def weights_of(labels: Tensor) -> Tensor:
    return torch.eye(5)[labels]


@pytest.mark.parametrize("depth", [0, 1])
def test_a_fresh_move_changes_nothing(view: LatentView, depth: int) -> None:
    inputs, code = batch(view)
    move = moves.create(view, "amortised", hidden=8, depth=depth, per_block=True)
    assert torch.equal(move.target(view, inputs, code), code)
    assert torch.equal(move.noise(view, inputs), inputs.z)


def test_the_start_is_scale_and_spread(view: LatentView) -> None:
    """m + s (m_c - m) + psi (w - m_c), or e + s (e_c - e) with z' = psi z."""
    inputs, code = batch(view)
    move = moves.create(view, "frechet", start_scale=1.5, start_spread=0.7)
    means = view.class_means()
    own, mean = means[inputs.labels], means.mean(0)
    torch.testing.assert_close(move.target(view, inputs, code), mean + 1.5 * (own - mean) + 0.7 * (code - own))
    torch.testing.assert_close(move.noise(view, inputs), inputs.z if view.rows else 0.7 * inputs.z)


def test_what_is_learned_is_added(view: LatentView) -> None:
    inputs, code = batch(view)
    move = learned_move(view, depth=0, start_spread=0.7)
    own = view.class_means()[inputs.labels]
    offsets = move.get_buffer("unit") * move.offsets[inputs.labels]
    if view.rows:
        expected = own + offsets + (code - own) @ (0.7 * torch.eye(12) + move.affine)
        torch.testing.assert_close(move.target(view, inputs, code), expected)
    else:
        torch.testing.assert_close(move.target(view, inputs, code), code + offsets[:, 0])
        expected = inputs.z @ (move.temperature.diag() + move.affine) + move.shift[inputs.labels]
        torch.testing.assert_close(move.noise(view, inputs), expected)


def test_each_row_or_block_has_its_own_offset(view: LatentView) -> None:
    view.blocks = 3  # type: ignore[attr-defined]  of w: its rows are 3
    inputs, code = batch(view)
    move = moves.create(view, "frechet", per_block=True)
    move.offsets.data[:, 1] = 1
    moved = move.target(view, inputs, code) - (code if code.dim() == 3 else code[:, None])
    unit = float(move.get_buffer("unit"))
    torch.testing.assert_close(moved, torch.tensor([0, unit, 0])[:, None].expand(16, 3, moved.shape[2]))


def test_weights_of_classes_are_labels_too(view: LatentView) -> None:
    inputs, code = batch(view)
    move = learned_move(view)
    soft = dataclasses.replace(inputs, labels=weights_of(inputs.labels))
    torch.testing.assert_close(move.target(view, soft, code), move.target(view, inputs, code))
    torch.testing.assert_close(move.noise(view, soft), move.noise(view, inputs))


@pytest.mark.parametrize("scale", [1.0, 1.6, 3.0])
def test_guidance_reaches_the_target_at_its_own_scale(view: LatentView, scale: float) -> None:
    """code + (s - 1) / (s0 - 1) (target - code), and the same of z."""
    inputs, _ = batch(view)
    move = learned_move(view, scale=3.0)
    options = JointOptions(network=move)
    z = moves.moved_noise("amortised", view, inputs, options, scale)
    share = (scale - 1) / 2
    torch.testing.assert_close(z, inputs.z + share * (move.noise(view, inputs) - inputs.z))
    moved = dataclasses.replace(inputs, z=z)
    code, joint = with_code("amortised", view, moved, options)
    torch.testing.assert_close(joint, JOINTS["amortised"].target(view, moved, code, options))
    target = move.target(view, moved, code)
    torch.testing.assert_close(joint + scale * (code - joint), code + share * (target - code))


def test_only_networks_count_in_the_ledger(view: LatentView) -> None:
    inputs, code = batch(view)
    move = learned_move(view, depth=0)
    view.ledger.cost.clear()
    move.target(view, inputs, code), move.noise(view, inputs)
    assert not view.ledger.cost
    move = learned_move(view)
    move.target(view, inputs, code), move.noise(view, inputs)
    assert view.ledger.cost == {"joint": 16 if view.rows else 32}


@pytest.mark.parametrize("depth", [0, 2])
def test_a_file_holds_all_of_a_move(tmp_path: Path, view: LatentView, depth: int) -> None:
    inputs, code = batch(view)
    move = learned_move(view, depth=depth, scale=1.5, start_scale=1.1, start_spread=1.3, per_block=True)
    path = tmp_path / "amortised.safetensors"
    moves.save(path, move, view, {"step": 3})
    read = moves.load(path, view, "amortised")
    assert torch.equal(read.target(view, inputs, code), move.target(view, inputs, code))
    assert torch.equal(read.noise(view, inputs), move.noise(view, inputs))
    assert (read.scale, read.digest()) == (1.5, move.digest())
    assert not any(value.requires_grad for value in read.parameters())


def test_the_file_of_another_kind_or_generator_is_refused(tmp_path: Path) -> None:
    view = views()["w"]
    path = tmp_path / "frechet.safetensors"
    moves.save(path, learned_move(view, "frechet", depth=0), view, {})
    with pytest.raises(UserError, match="is no amortised move: give the amortised.safetensors"):
        moves.load(path, view, "amortised")
    other = view_for(toy_networks(ToyGAN(), ""))
    other.generator.scale.data += 1
    with pytest.raises(UserError, match="was learned on another generator: its generator_sha256"):
        moves.load(path, other, "frechet")
    with pytest.raises(UserError, match="no frechet move .*: make it with 'studiogan-guidance train --stage frechet'"):
        moves.load(tmp_path / "none", view, "frechet")


@pytest.mark.parametrize(
    ("changes", "tensors", "message"),
    [
        ({"format": 0}, {}, "has format 0, this version reads 1"),
        ({"scale": 1}, {}, "its scale is 1, at which nothing is moved"),
        ({"start_spread": float("nan")}, {}, "its start_spread is nan, no finite number"),
        ({"blocks": 0}, {}, "its blocks is 0, no whole number from 1 up"),
        ({"hidden": "8"}, {}, "its hidden is '8', no whole number"),
        ({"depth": 10**9}, {}, "its depth is 1,000,000,000, and it has"),
        ({}, {"offsets": torch.zeros(5, 1, 13)}, r"its offsets is \[5, 1, 13\], by its metadata it should be"),
        ({}, {"affine": torch.full((12, 12), float("inf"))}, "its affine has numbers that are not finite"),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, changes: dict[str, Any], tensors: dict[str, Tensor], message: str
) -> None:
    view = views()["w"]
    path = tmp_path / "amortised.safetensors"
    move = learned_move(view)
    moves.save(path, move, view, {})
    kind = moves.FILES["amortised"]
    metadata = {**kind.read(path)[0], **changes}
    save_file({**load_file(path), **tensors}, path, {kind.key: json.dumps(metadata)})
    with pytest.raises(UserError, match=message):
        moves.load(path, view, "amortised")
