"""The command ``train``: it stops anywhere and goes on exactly, in one process and in two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tolerance, ok, run
from safetensors.torch import load_file

from studiogan_guidance import config
from studiogan_guidance.builtin.images import BuiltinImages
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.training.run import shuffled, train

BOTH = ["-o", "adversarial=1", "-o", "distill=1", "-o", "batch=8", "-o", "steps=40", "-o", "save_every=7",
        "-o", "note_every=1", "-o", "eval_every=20", "-o", "hidden=16", "-o", "latent=1", "-o", "scales=0.9",
        "--num", "30"]  # fmt: skip
NAMES = ("joint.safetensors", "joint-last.safetensors", "joint.jsonl")


def assert_same_training(folder: Path, whole: Path, tolerance: float) -> None:
    """The same files, byte for byte; with a tolerance: the same losses and weights up to it."""
    if not tolerance:
        assert all((folder / name).read_bytes() == (whole / name).read_bytes() for name in NAMES)
        return

    found, expected = (
        [json.loads(line) for line in (path / "joint.jsonl").read_text().splitlines()] for path in (folder, whole)
    )
    assert len(found) == len(expected)
    for line, other in zip(found, expected):
        assert line == pytest.approx(other, rel=tolerance, abs=1e-3)
    weights, others = (load_file(path / "joint-last.safetensors") for path in (folder, whole))
    for key, value in others.items():
        assert (weights[key] - value).norm() <= tolerance * value.norm() + 1e-6, key


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, device: str) -> Path:
    """An uninterrupted run on the built-in, with all objectives."""
    folder = tmp_path_factory.mktemp("whole")
    assert ok("train", "--device", device, "--out", folder, *BOTH)["fid"] > 0
    return folder


def started(folder: Path, device: str) -> subprocess.Popen[str]:
    """The same run in a process of its own, once it has saved a state (at step 7)."""
    command = [sys.executable, "-m", "studiogan_guidance", "train", "--device", device, "--out", str(folder), *BOTH]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (folder / "joint.state").exists() or '"step": 7' not in (folder / "joint.jsonl").read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def test_a_killed_run_goes_on_and_ends_with_the_same_files(
    tmp_path: Path, whole: Path, device: str, tolerance: Tolerance
) -> None:
    process = started(tmp_path, device)
    time.sleep(0.4)
    process.kill()
    process.wait()
    assert not (tmp_path / "joint-last.safetensors").exists()
    ok("train", "--device", device, "--out", tmp_path, *BOTH)
    assert_same_training(tmp_path, whole, tolerance.training)


@pytest.mark.parametrize("objective", ["latent", "distill", "adversarial"])
def test_a_run_that_goes_on_in_the_middle_of_a_block_ends_with_the_same_bytes(
    tmp_path: Path, device: str, objective: str
) -> None:
    """On a GPU, too, where the algorithms are deterministic (those of validation data need not be)."""
    options = ["--device", device, "-o", f"{objective}=1", "-o", "batch=4", "-o", "eval_every=0", "-o", "note_every=1"]
    for folder, steps in (("whole", 24), ("stopped", 19), ("stopped", 24)):
        ok("train", "--out", tmp_path / folder, *options, "-o", f"steps={steps}")
    for name in NAMES:
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_sigterm_saves_the_step_that_it_came_in(tmp_path: Path, whole: Path, device: str, tolerance: Tolerance) -> None:
    process = started(tmp_path, device)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    step = torch.load(tmp_path / "joint.state", weights_only=True)["step"]
    assert said.splitlines()[-1] == f"stopped at step {step} of 40: the same command resumes from here"
    assert said.count("stopped") == 1
    ok("train", "--device", device, "--out", tmp_path, *BOTH)
    assert_same_training(tmp_path, whole, tolerance.training)
    before = (tmp_path / "joint.state").stat().st_mtime_ns
    ok("train", "--device", device, "--out", tmp_path, *BOTH)  # and once more: there is nothing to do
    assert (tmp_path / "joint.state").stat().st_mtime_ns == before


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Without minibatch statistics a batch is the sum of its parts, or distances are those of all of its rows."""
    options = ["-o", "latent=1", "-o", "adversarial=1", "-o", "distill=1", "-o", "batch=8", "-o", "steps=4",
               "-o", "eval_every=2", "-o", "note_every=1", "--num", "40"]  # fmt: skip
    ok("train", "--out", tmp_path / "one", *options, "--batch-size", 20)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--",
               "studiogan_guidance", "train", "--out", tmp_path / "two", *options, "--batch-size", 20]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "joint.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [set(line) for line in one] == [set(line) for line in two]
    assert sum("fid" in line for line in one) == 3
    for first, second in zip(one, two):  # (rounding grows by the step: Adam makes much of the smallest gradients)
        assert second == pytest.approx(first, rel=1e-5 if first["step"] < 3 else 1e-3, abs=1e-5)


def test_the_best_step_is_kept_and_measures_as_it_did(tmp_path: Path) -> None:
    found = ok("train", "--out", tmp_path, "-o", "steps=30", "-o", "eval_every=10", "--num", 200, "-o", "lr=0.05")
    lines = [json.loads(line) for line in (tmp_path / "joint.jsonl").read_text().splitlines()]
    fids = {line["step"]: (line["fid"], line["scale"]) for line in lines if "fid" in line}
    assert sorted(fids) == [0, 10, 20, 30]
    assert (found["fid"], found["scale"]) == fids[found["step"]] == min(fids.values())
    options = ["-o", "joint=learned", "-o", f"joint_ckpt={found['joint']}", "-o", f"scale={found['scale']}"]
    (row,) = ok("eval", *options, "--reference", "valid", "--num", 200, "--no-compare-plain", "--metrics", "fid",
                "--out", tmp_path)["rows"]  # fmt: skip
    assert row["metrics"]["fid"] == found["fid"]
    assert len(row["generator"]["joint_sha256"]) == 64
    shift = ok("eval", "-o", "joint=class_shift", "-o", f"scale={fids[0][1]}", "--reference", "valid", "--num", 200,
               "--no-compare-plain", "--metrics", "fid", "--out", tmp_path)["rows"]  # fmt: skip
    assert shift[0]["metrics"]["fid"] == fids[0][0]  # step 0 is the training-free estimator


def test_batch_norm_statistics_of_guided_images_are_those_of_the_joint_in_training(tmp_path: Path) -> None:
    """The view forgets what it computed before new statistics; the joint that is measured is no such thing."""
    path = tmp_path / "mine.yaml"
    path.write_text("sampler: gandance\nrestat: 1\n")
    ok("train", "-c", path, "--out", tmp_path, "-o", "steps=2", "-o", "eval_every=1", "-o", "lr=0.05", "-o", "ema=0",
       "-o", "scales=0.9", "--num", 30)  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "joint.jsonl").read_text().splitlines()]
    fids = [line["fid"] for line in lines if "fid" in line]
    assert len(set(fids)) == 3  # each step's own


def test_every_image_comes_once_an_epoch_in_the_same_order_from_anywhere() -> None:
    real = BuiltinImages("valid")

    def sums(rank: int, size: int, first: int, count: int) -> list[Any]:
        batches = shuffled(real, 5, Group(rank, size))(300, first)
        return [next(batches)[0].sum((1, 2, 3)).tolist() for _ in range(count)]

    one = sums(0, 1, 0, 7)
    assert sums(0, 1, 4, 3) == one[4:]
    assert [list(pair) for pair in zip(*[sums(rank, 2, 0, 7) for rank in (0, 1)])] == [
        [batch[::2], batch[1::2]] for batch in one
    ]
    rest = Counter(real._images.sum((1, 2, 3)).tolist()) - Counter(value for batch in one[:3] for value in batch)
    assert rest.total() == 100  # three batches, and what fills no fourth one
    assert one[3] != one[0]
    with pytest.raises(UserError, match="1000 real images fill no batch of 2000"):
        next(shuffled(real, 5, Group())(2000))


def test_mistakes_are_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(*arguments: object) -> str:
        result = run("train", "--out", tmp_path, *arguments)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        return result.stderr

    assert "did you mean 'joint'" in message("--stage", "joit")
    assert "did you mean 'steps'" in message("-o", "step=3")
    assert "--log takes tensorboard and wandb, found 'tensorbord'" in message("--log", "tensorbord")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "--log tensorboard needs a package" in message("--log", "tensorboard", "-o", "steps=0")
    assert "fill no batch" in message("-o", "adversarial=1", "-o", "batch=5000", "-o", "steps=1")
    few = ("-o", "steps=0", "-o", "eval_every=0")
    assert run("train", "--out", tmp_path, *few).exit_code == 0
    assert "belongs to a run with lr 0.001, asked for was 0.1" in message(*few, "-o", "lr=0.1")
    assert "belongs to a run with seed 0, asked for was 1" in message(*few, "--seed", 1)


def test_options_in_the_yaml_are_those_of_the_stage(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("stages: [{name: joint, steps: 2, hidden: 4, eval_every: 0}]\nsampler: gandance\n")
    cfg = config.load(str(path), {"out": str(tmp_path)})
    assert train(cfg, "joint", {"depth": 1})["step"] == 2
    assert load_file(tmp_path / "joint.safetensors")["residual.0.weight"].shape == (4, 32)
    assert "residual.2.weight" in load_file(tmp_path / "joint.safetensors")  # one hidden layer, and the last
