"""torchrun: the processes share the batches of one run."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ok, run

from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import distributed
from studiogan_guidance.features.stats import FeatureStats, accumulate, merge


def test_merged_shares_are_the_whole() -> None:
    images = torch.rand(53, 3, 2, 2)
    labels = torch.arange(53)

    class Flat:
        protocol: dict[str, Any] = {}  # noqa: RUF012
        classifies = False
        device = torch.device("cpu")

        def prepare(self, images: torch.Tensor) -> torch.Tensor:
            return images

        def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.flatten(1) + 100, x.flatten(1)

    def share(rank: int, size: int) -> FeatureStats:
        batches = list(zip(images.split(8), labels.split(8)))
        return accumulate(batches[rank::size], Flat())

    whole = share(0, 1)
    for size in (2, 3):
        merged = merge([share(rank, size) for rank in range(size)], 8)
        assert merged.count == 53
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
        np.testing.assert_allclose(merged.cov, whole.cov, rtol=1e-9, atol=1e-12)
        assert np.array_equal(merged.labels, np.arange(53))
        for name in ("features", "probabilities"):
            assert np.array_equal(getattr(merged, name), getattr(whole, name))


def test_two_processes_agree_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = [
        "eval",
        "--num-images",
        300,
        "--batch-size",
        32,
        "-o",
        "scale=1.3",
        "-o",
        "joint=class_subset",
        "--restat",
        2,
        "--judge",
        "discriminator",
    ]
    one = ok(*common, "--out", tmp_path / "one")["rows"]
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / "cache"))  # so that real images are shared out, too
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "studiogan_guidance",
               *common, "--out", tmp_path / "two", "--json"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads(done.stdout)["rows"]  # one process speaks
    assert len((tmp_path / "two" / "results.jsonl").read_text().splitlines()) == 2
    for first, second in zip(one, two):
        assert "fid@discriminator" in first["metrics"]
        assert second["metrics"] == pytest.approx(first["metrics"], rel=1e-6)
        assert second["protocol"] == first["protocol"]
        assert {**second["cost"], "sampling_seconds": 0} == {**first["cost"], "sampling_seconds": 0}
        assert second["environment"]["device"] == "cpu, 2 processes"


def test_two_processes_are_fast_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ["eval", "--fast", "--sampler", "plain", "--num-images", 128, "--batch-size", 32, "--metrics", "fid"]
    (one,) = ok(*common, "--out", tmp_path / "one")["rows"]
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / "cache"))  # so that the precision is measured again
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "studiogan_guidance",
               *common, "--out", tmp_path / "two", "--json"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (two,) = json.loads(done.stdout)["rows"]
    assert done.stderr.count("fast: ") == 1  # one process speaks
    assert two["protocol"] == one["protocol"]
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    fast = one["environment"]["fast"]
    assert two["environment"]["fast"] == pytest.approx(fast, rel=1e-2, abs=1e-4)


def test_two_processes_tune_as_one(tmp_path: Path) -> None:
    common = ["tune", "--num-images", 128, "--metrics", "fid", "--budget", 10, "--repeats", 2]
    one = ok(*common, "--out", tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "studiogan_guidance",
               *common, "--out", tmp_path / "two", "--json"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads(done.stdout)
    assert two["found"]["options"] == one["found"]["options"]
    for first, second in zip(one["searched"], two["searched"], strict=True):
        assert second["options"] == first["options"]
        assert second["metrics"] == pytest.approx(first["metrics"], rel=1e-6)
    assert len((tmp_path / "two" / "results.jsonl").read_text().splitlines()) == two["evaluations"]


def test_two_launchers_agree_with_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on two nodes: each launcher starts processes of its own, which meet at an address."""
    common = ["sweep", "--device", "cpu", "--num-images", 200, "--batch-size", 32, "--metrics", "fid,prdc",
              "--grid", "scale=1.3,1.5", "-o", "joint=class_subset"]  # fmt: skip
    one = ok(*common, "--out", tmp_path / "one")["rows"]

    # A cold cache, so that real images are shared out, too.
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launchers = []
    for node in range(2):
        meeting = ["--nnodes", 2, "--node-rank", node, "--master-addr", "127.0.0.1", "--master-port", port]
        command = [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc-per-node", 1, "-m",
                   "studiogan_guidance", *common, "--out", tmp_path / "two", "--json"]  # fmt: skip
        launcher = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        launchers.append(launcher)
    outputs = [launcher.communicate(timeout=300) for launcher in launchers]
    for launcher, (_, errors) in zip(launchers, outputs):
        assert launcher.returncode == 0, errors[-3000:]

    # One process speaks, and writes.
    (printed,) = [text for text, _ in outputs if text]
    two = json.loads(printed)["rows"]
    assert len((tmp_path / "two" / "results.jsonl").read_text().splitlines()) == len(two) == 3
    assert (tmp_path / "two" / "strip.png").exists()
    for first, second in zip(one, two, strict=True):
        assert second["metrics"] == pytest.approx(first["metrics"], rel=1e-6)
        assert second["protocol"] == first["protocol"]
        assert second["environment"]["device"] == "cpu, 2 processes"


def test_a_mistake_of_all_processes_is_told_by_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "studiogan_guidance",
               "eval", "-o", "scale=abc", "--out", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr.count("Error: gandance.scale must be a number, found 'abc'") == 1
    assert "exitcode  : 2" in done.stderr  # as torchrun reports it
    assert "Traceback (most recent call last):\n  File" not in done.stderr.partition("Error: ")[0]


def test_a_node_whose_name_means_itself_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    distributed._check_address()
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"localhost, means (127\..*|::1), where other nodes .* set GLOO_SOCKET_IFNAME"):
        distributed._check_address()
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    distributed._check_address()


def test_too_many_processes_and_sample_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from studiogan_guidance.config import RunConfig
    from studiogan_guidance.evaluation.generation import check_counts

    check_counts(RunConfig(), 66, 1000, 64, 2)
    with pytest.raises(UserError, match="65 images in batches of 64 are too few for 2 processes"):
        check_counts(RunConfig(), 65, 1000, 64, 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run("sample", "--out", tmp_path / "o")
    assert result.exit_code == 2
    assert "start it without torchrun" in result.stderr
    assert not (tmp_path / "o").exists()
