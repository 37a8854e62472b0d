"""A run that is told to end leaves whole files only."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from host_models import write_yaml

from studiogan_guidance.host import compat
from studiogan_guidance.host.compat import RUN_SHIMS

pytestmark = pytest.mark.studiogan


def test_sigterm_in_a_training_leaves_whole_checkpoints(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    path = write_yaml(tmp_path / "tiny.yaml", "big_resnet", total_steps=100_000)
    arguments = ["-t", "-metrics", "none", "--print_freq", 1, "--save_freq", 1, "--num_workers", 0, "--seed", 3]
    arguments += ["-cfg", path, "-data", data, "-save", tmp_path / "out"]
    command = [sys.executable, "-m", "studiogan_guidance", "run", "--device", "cpu", "--", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as started:
        try:
            while not list((tmp_path / "out").rglob("model=D-current*step=[1-9]*.pth")):
                assert started.poll() is None
                time.sleep(0.05)
            started.send_signal(signal.SIGTERM)
            errors = started.communicate(timeout=120)[1]
        finally:
            started.kill()
    assert started.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors

    # What is there is whole, and nothing was left behind.
    found = list((tmp_path / "out" / "checkpoints").rglob("*"))
    assert not [file for file in found if file.name.startswith(".")]
    files = [file for file in found if file.suffix == ".pth"]
    assert {file.name.partition("-")[0] for file in files} == {"model=G", "model=D"}
    with compat.active(RUN_SHIMS[:1]):
        assert all("state_dict" in torch.load(file) for file in files)
