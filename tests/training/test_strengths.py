"""The stage ``strengths`` on a toy of known answer, and its command."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ToyGAN, ok, run, toy_networks
from safetensors.torch import load_file
from toy_families import toy_of

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.fid import factor, moments
from studiogan_guidance.latents import LabelPlan, learned, view_for
from studiogan_guidance.samplers.gandance import GANdance
from studiogan_guidance.training import STAGES
from studiogan_guidance.training.strengths import StrengthStage, learn_strengths


@pytest.mark.parametrize("kind", ["class", "row"])
def test_strengths_find_how_far_each_class_is_contracted(kind: str) -> None:
    """Classes of the data lie R_c times as far from the joint; (scale - 1) * strength must become R_c - 1."""
    gan = ToyGAN(interaction=0, spread=0.3)
    far = torch.tensor([1.2, 1.4, 1.6, 1.8, 2.0]) if kind == "class" else torch.full((5,), 1.6)
    view = view_for(toy_networks(gan, ""))
    inputs = view.draw(range(10**6, 10**6 + 8000), 0, LabelPlan())
    spread, offset, _ = gan.parts(inputs.z, inputs.labels)
    mean, cov = moments((gan.mean + spread + far[inputs.labels, None] * offset).numpy())
    joint = learned.create(view, "class_mean")
    stage = StrengthStage(scale=1.5, steps=150, batch=128)
    chosen = joint.class_strength if kind == "class" else joint.row_strength
    given = (torch.from_numpy(value).float() for value in (mean, factor(cov)))
    learn_strengths(view, joint, [chosen], lambda images: images.flatten(1), *given, stage, 0)
    found = 1 + 0.5 * chosen.detach()
    expected = far if kind == "class" else torch.tensor([1.5, 1.5, 1.6])  # the toy's image shows its last row only
    torch.testing.assert_close(found, expected, atol=0.06, rtol=0)


def test_strengths_of_blocks_are_found() -> None:
    """The data are guided by 1.5 in the first block and not in the second, from the same noise; that is learned."""
    view = toy_of("resnet")
    joint = learned.create(view, "class_mean", depth=0)
    assert joint.row_strength.shape == (2,)
    inputs = view.draw(range(10**6, 10**6 + 4000), 0, LabelPlan())
    target = samplers.create("gandance", {"scale": 1.5, "profile": "1:0"}).images(view, inputs)
    mean, cov = moments(target.flatten(1).numpy())
    given = (torch.from_numpy(value).float() for value in (mean, factor(cov)))
    stage = StrengthStage(scale=1.5, steps=60, batch=256)
    learn_strengths(view, joint, [joint.row_strength], lambda images: images.flatten(1), *given, stage, 0)
    torch.testing.assert_close(joint.row_strength.detach(), torch.tensor([1.0, 0.0]), atol=0.25, rtol=0)


@pytest.mark.parametrize("family", ["big_resnet", "resnet"])
def test_strengths_of_blocks_are_a_profile(family: str) -> None:
    view = toy_of(family)
    inputs = view.draw(range(6), 0, LabelPlan())
    joint = learned.create(view, "class_mean", depth=0).requires_grad_(False)
    joint.row_strength.copy_(torch.tensor([1.0, 0.0]))
    with_strengths = GANdance(scale=1.5, joint="learned", strengths=True).away_from(joint)
    profiled = samplers.create("gandance", {"scale": 1.5, "profile": "1:0"})
    torch.testing.assert_close(with_strengths.images(view, inputs), profiled.images(view, inputs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per": "layer"}, "strengths.per is 'layer': known: both, class, row"),
        ({"scale": math.nan}, "strengths.scale must be a finite number"),
        ({"steps": -1}, "strengths.steps must be 0 or more, found -1"),
        ({"batch": 1}, "strengths.batch must be 2 or more, found 1"),
    ],
)
def test_wrong_options_of_strengths_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        STAGES.create("strengths", options)


def test_features_that_are_not_finite_end_the_learning() -> None:
    gan = ToyGAN()
    view = view_for(toy_networks(gan, ""))
    joint = learned.create(view, "class_mean")
    mean, root = torch.zeros(12), torch.eye(12)
    stage = StrengthStage(scale=1.5, steps=2, batch=8)
    with pytest.raises(UserError, match=r"not finite \(nan or inf\) for 8 of 8 images of step 0: choose another"):
        learn_strengths(view, joint, [joint.row_strength], lambda x: x.flatten(1) / 0, mean, root, stage, 0)


def test_strengths_are_kept_where_they_help(tmp_path: Path) -> None:
    ok("train", "--out", tmp_path, "-o", "steps=0", "-o", "eval_every=0")
    found = ok("train", "--stage", "strengths", "--out", tmp_path, "--num", 300, "-o", "steps=15", "-o", "batch=64",
               "-o", "scale=1.5")  # fmt: skip
    assert found["fid_strengths"] < found["fid_plain_scale"]  # from 1.5 to less, which is better here
    state = load_file(tmp_path / "joint.safetensors")
    assert all(state[name].std() > 0 for name in ("class_strength", "row_strength"))
    options = ["-o", "joint=learned", "-o", f"joint_ckpt={found['joint']}", "-o", "scale=1.5", "-o", "strengths=true"]
    (row,) = ok("eval", *options, "--reference", "valid", "--num", 300, "--no-compare-plain", "--metrics", "fid",
                "--out", tmp_path)["rows"]  # fmt: skip
    assert row["metrics"]["fid"] == pytest.approx(found["fid_strengths"])
    facts: Any = learned.training_facts(tmp_path / "joint.safetensors")
    assert (facts["steps"], facts["strengths"]["steps"], facts["strengths"]["scale"]) == (0, 15, 1.5)


def test_strengths_of_a_joint_elsewhere_leave_it_as_it_is(tmp_path: Path) -> None:
    path = Path(ok("train", "--out", tmp_path / "joint", "-o", "steps=0", "-o", "eval_every=0")["joint"])
    before = path.read_bytes()
    options = ["-o", "steps=5", "-o", "batch=16", "-o", "scale=1.5", "-o", "per=class", "-o", f"joint_ckpt={path}"]
    found = ok("train", "--stage", "strengths", "--out", tmp_path / "o", "--num", 100, *options)
    assert path.read_bytes() == before
    assert found["joint"] == str(tmp_path / "o" / "joint.safetensors")
    assert not torch.equal(load_file(found["joint"])["class_strength"], torch.ones(10))
    assert torch.equal(load_file(found["joint"])["row_strength"], load_file(path)["row_strength"])


def test_strengths_that_do_not_help_are_not_written(tmp_path: Path) -> None:
    """Without steps they change nothing, so the FID does not fall."""
    path = ok("train", "--out", tmp_path / "joint", "-o", "steps=0", "-o", "eval_every=0")["joint"]
    options = ["-o", "steps=0", "-o", "scale=1.5", "-o", f"joint_ckpt={path}"]
    result = ok("train", "--stage", "strengths", "--out", tmp_path / "o", "--num", 50, *options)
    assert result["fid_strengths"] == result["fid_plain_scale"]
    assert result["joint"] == path
    assert not (tmp_path / "o" / "joint.safetensors").exists()


def test_strengths_need_a_learned_joint(tmp_path: Path) -> None:
    result = run("train", "--stage", "strengths", "--out", tmp_path)
    assert result.exit_code == 2, result.output
    assert f"no learned joint {tmp_path / 'joint.safetensors'}: make it with" in result.stderr
