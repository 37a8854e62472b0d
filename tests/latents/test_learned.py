from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ToyGAN, toy_networks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import Inputs, LabelPlan, LatentView, LearnedJoint, learned, view_for
from studiogan_guidance.latents.joint import JOINTS, JointOptions


def batch(view: LatentView, n: int = 16) -> tuple[Inputs, torch.Tensor]:
    inputs = view.draw(range(n), 0, LabelPlan())
    return inputs, view.encode(inputs.z, inputs.labels)


def trained(view: LatentView, depth: int = 2) -> LearnedJoint:
    """A joint whose weights are no longer those of the start."""
    joint = learned.create(view, "class_mean", hidden=8, depth=depth)
    gen = torch.Generator().manual_seed(0)
    for value in joint.parameters():
        value.data += torch.randn(value.shape, generator=gen)
    return joint.requires_grad_(False)


def guided(view: LatentView, **options: object) -> torch.Tensor:
    inputs, code = batch(view)
    return samplers.create("gandance", {"joint": "learned", **options}).guided(view, inputs, code)


@pytest.mark.parametrize("base", ["class_mean", "class_shift", "mean_embedding", "global_mean"])
@pytest.mark.parametrize("depth", [0, 2])
def test_a_fresh_joint_is_its_base(toy_view: LatentView, base: str, depth: int) -> None:
    inputs, code = batch(toy_view)
    joint = learned.create(toy_view, base, depth=depth)
    assert torch.equal(joint(toy_view, inputs, code), JOINTS[base].target(toy_view, inputs, code, JointOptions()))


def test_the_residual_is_in_units_of_the_spread_of_classes(toy: ToyGAN, toy_view: LatentView) -> None:
    joint = learned.create(toy_view, "class_mean", depth=0)
    joint.residual.value.data[:] = torch.arange(toy.w_dim)
    inputs, code = batch(toy_view)
    shift = joint(toy_view, inputs, code) - learned.create(toy_view, "class_mean")(toy_view, inputs, code)
    spread = (toy.b - toy.b.mean(0)).square().mean().sqrt()
    expected = (spread * torch.arange(toy.w_dim)).expand(16, 3, -1)
    torch.testing.assert_close(shift, expected, atol=0.2, rtol=0.02)  # class means come from 10,000 draws


def test_guidance_away_from_a_file(tmp_path: Path, toy_view: LatentView) -> None:
    joint, path = trained(toy_view), tmp_path / "joint.safetensors"
    learned.save(path, joint, toy_view, {"step": 3})
    inputs, code = batch(toy_view)
    h = joint(toy_view, inputs, code)
    toy_view.ledger.cost.clear()
    torch.testing.assert_close(guided(toy_view, scale=1.5, joint_ckpt=str(path)), h + 1.5 * (code - h))
    assert guided(toy_view, scale=1, joint_ckpt=str(path)).equal(code)
    assert torch.equal(guided(toy_view, scale=0, joint_ckpt=str(path)), h)


@pytest.mark.parametrize(("base", "passes"), [("class_shift", 1), ("mean_embedding", 2), ("global_mean", 1)])
def test_at_most_one_mapping_pass_more_than_plain(tmp_path: Path, toy_view: LatentView, base: str, passes: int) -> None:
    learned.save(tmp_path / "j.safetensors", learned.create(toy_view, base), toy_view, {})
    options = {"scale": 1.5, "joint": "learned", "joint_ckpt": str(tmp_path / "j.safetensors")}
    (samples,) = samplers.create("gandance", options).stream(toy_view, range(4), 4, LabelPlan())
    assert samples.cost == {"mapping": 4 * passes, "joint": 4, "synthesis": 4}


def test_strengths_multiply_what_the_scale_adds(tmp_path: Path, toy_view: LatentView) -> None:
    joint, path = trained(toy_view), tmp_path / "joint.safetensors"
    learned.save(path, joint, toy_view, {})
    inputs, code = batch(toy_view)
    h, options = joint(toy_view, inputs, code), {"joint_ckpt": str(path), "strengths": True}
    by_hand = torch.zeros_like(h)
    for i, c in enumerate(inputs.labels):
        for r in range(3):
            scale = 1 + 0.5 * (joint.class_strength[c] + joint.row_strength[r] - 1)
            by_hand[i, r] = h[i, r] + scale * (code[i, r] - h[i, r])
    torch.testing.assert_close(guided(toy_view, scale=1.5, **options), by_hand)

    soft = dataclasses.replace(inputs, labels=torch.nn.functional.one_hot(inputs.labels, 5).float())  # interpolations
    sampler = samplers.create("gandance", {"joint": "learned", "scale": 1.5, **options})
    torch.testing.assert_close(sampler.guided(toy_view, soft, code), guided(toy_view, scale=1.5, **options))
    assert torch.equal(guided(toy_view, scale=1, **options), code)


def test_it_is_looked_for_beside_the_checkpoint(tmp_path: Path, toy: ToyGAN) -> None:
    (tmp_path / "model=G.pth").touch()
    for source in (tmp_path / "model=G.pth", tmp_path):
        view = view_for(dataclasses.replace(toy_networks(toy), source=str(source)))
        with pytest.raises(UserError, match=rf"no learned joint {tmp_path}/joint.safetensors: make it with"):
            samplers.create("gandance", {"joint": "learned"}).check(view)
        samplers.create("gandance", {"joint": "learned", "scale": 1}).check(view)  # plain sampling needs none
    joint = trained(view)
    learned.save(tmp_path / "joint.safetensors", joint, view, {})
    assert not torch.equal(guided(view, scale=2), batch(view)[1])


class OtherToy(ToyGAN):
    classes = 4


def test_a_joint_of_another_generator_is_refused_by_name(tmp_path: Path, toy: ToyGAN, toy_view: LatentView) -> None:
    path = tmp_path / "joint.safetensors"
    learned.save(path, trained(toy_view), toy_view, {})
    toy.scale.data += 1
    with pytest.raises(UserError, match=r"was learned on another generator: its generator_sha256 is \w{12}, here it"):
        learned.load(path, toy_view)
    with pytest.raises(UserError, match="its num_classes is 5, here it is 4"):
        learned.load(path, view_for(toy_networks(OtherToy(), "other")))


def test_what_is_no_joint_is_refused(tmp_path: Path, toy_view: LatentView) -> None:
    path = tmp_path / "joint.safetensors"
    learned.save(path, trained(toy_view), toy_view, {})
    cut = path.read_bytes()[:-10]
    save_file(load_file(path), tmp_path / "plain.safetensors")
    save_file(load_file(path), tmp_path / "new.safetensors", {learned.KEY: '{"format": 99, "generator_sha256": ""}'})
    (tmp_path / "cut.safetensors").write_bytes(cut)

    for name, message in (
        ("missing", "no learned joint"),
        ("plain", "is no learned joint: give the joint.safetensors"),
        ("new", "has format 99, this version reads 1"),
        ("cut", "cannot read the learned joint"),
    ):
        with pytest.raises(UserError, match=message):
            learned.load(tmp_path / f"{name}.safetensors", toy_view)


@pytest.mark.parametrize("options", [{"joint_ckpt": "x"}, {"strengths": True}])
def test_options_of_the_learned_joint_go_with_no_other(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="belongs to joint learned.*, but joint is class_mean: use learned"):
        samplers.create("gandance", options)


# ---------------------------------------------------------------------------- damaged files


def rewritten(path: Path, view: LatentView, change: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """The file of a joint with other metadata, and other tensors (None: without it)."""
    learned.save(path, trained(view), view, {})
    metadata, state = learned.KIND.read(path)
    state.update(tensors)
    kept = {key: value for key, value in state.items() if value is not None}
    save_file(kept, path, {learned.KEY: json.dumps({**metadata, **(change or {})})})
    return path


@pytest.mark.parametrize(
    ("change", "tensors", "words"),
    [
        ({}, {"more": torch.ones(1)}, "it has a tensor too many, 'more'"),
        ({}, {"residual.0.bias": None}, "it lacks the tensor residual.0.bias"),
        ({}, {"class_strength": None}, "it lacks the tensor class_strength"),
        ({}, {"residual.0.bias": torch.ones(3)}, r"its residual.0.bias is \[3\], by its metadata it should be \[8\]"),
        ({}, {"row_strength": torch.ones(3, 1)}, r"its row_strength is \[3, 1\], by its metadata it should be \[3\]"),
        ({}, {"unit": torch.ones(()).double()}, "its unit is float64, not float32"),
        ({}, {"row_strength": torch.ones(3).half()}, "its row_strength is float16, not float32"),
        ({}, {"residual.0.bias": torch.full((8,), math.nan)}, "its residual.0.bias has numbers that are not finite"),
        ({}, {"unit": torch.tensor(math.inf)}, "its unit has numbers that are not finite"),
        ({"base": ["class_mean"]}, {}, r"its base is \['class_mean'\], no estimator that is known"),
        ({"base": "learned"}, {}, "its base is 'learned', no estimator"),
        ({"base": None}, {}, "its base is None, no estimator"),
        ({"depth": -1}, {}, "its depth is -1, no whole number from 0 up"),
        ({"hidden": -5}, {}, "its hidden is -5, no whole number"),
        ({"hidden": math.nan}, {}, "its hidden is nan, no whole number"),
        ({"depth": 1.5}, {}, "its depth is 1.5, no whole number"),
        ({"depth": True}, {}, "its depth is True, no whole number"),
        ({"rows": "three"}, {}, "its rows is 'three', no whole number"),
        ({"rows": None}, {}, "its rows is None, no whole number"),
        ({"depth": 10**12}, {}, "its depth is 1,000,000,000,000, and it has 9 tensors"),
        (
            {"hidden": 10**12},
            {},
            r"its residual.0.weight is \[8, 4\], by its metadata it should be \[1000000000000, 4\]",
        ),
        ({"code_width": 10**12}, {}, r"its residual.4.weight is \[12, 8\], by its metadata"),
        ({"num_classes": 10**12}, {}, r"its class_strength is \[5\], by its metadata it should be \[1000000000000\]"),
        ({"depth": 1}, {}, "is .*, by its metadata it should be|too many"),
        ({"depth": 0}, {}, "it lacks the tensor residual.value"),
    ],
)
def test_a_damaged_joint_is_one_line(
    tmp_path: Path, toy_view: LatentView, change: dict[str, Any], tensors: dict[str, Any], words: str
) -> None:
    path = rewritten(tmp_path / "joint.safetensors", toy_view, change, **tensors)
    with pytest.raises(UserError, match=rf"the learned joint {path} is damaged: .*({words})") as caught:
        learned.load(path, toy_view)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_metadata_that_are_no_json_are_one_line(tmp_path: Path, toy_view: LatentView) -> None:
    path = tmp_path / "joint.safetensors"
    learned.save(path, trained(toy_view), toy_view, {})
    for text, words in (
        ("{", "its metadata are no JSON"),
        ("[" * 100_000, "its metadata are no JSON"),
        ("[1]", "is no learned joint"),
        ("3", "is no learned joint"),
    ):
        save_file(load_file(path), tmp_path / "a.safetensors", {learned.KEY: text})
        with pytest.raises(UserError, match=words):
            learned.load(tmp_path / "a.safetensors", toy_view)


def test_what_is_no_file_of_a_joint_is_refused(tmp_path: Path, toy_view: LatentView) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "link")
    (tmp_path / "empty").touch()
    (tmp_path / "page").write_text("<!DOCTYPE html>")
    torch.save({"state_dict": {}}, tmp_path / "model.pth")
    for name, words in (
        ("pipe", "it is a pipe or a device"),
        ("link", "Too many levels of symbolic links"),
        (".", "it is a folder"),
        ("empty", "it is an empty file"),
        ("page", "it is a web page"),
        ("model.pth", "it is a file of torch.save, none of safetensors"),
    ):
        with pytest.raises(UserError, match=f"cannot read the learned joint .*{words}"):
            learned.load(tmp_path / name, toy_view)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_changed_bytes_of_a_joint_are_read_or_refused_in_one_line(
    tmp_path: Path, toy_view: LatentView, data: st.DataObject
) -> None:
    path = tmp_path / "joint.safetensors"
    learned.save(path, learned.create(toy_view, hidden=2), toy_view, {})
    changed = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    del changed[data.draw(st.integers(0, 4 * len(changed))) :]
    path.write_bytes(changed)

    text = str(path)
    try:
        learned.load(path, toy_view)
    except UserError as error:
        text = str(error)
    assert str(path) in text
    assert "\n" not in text
