"""Checkpoint files: which file is taken, what is read from it, and everything that must be refused."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studiogan_guidance.errors import UserError
from studiogan_guidance.host import checkpoints


def test_best_comes_before_current_and_the_latest_step_wins(tmp_path: Path) -> None:
    for name in ("G-current-weights-step=900", "G_ema-current-weights-step=900", "G-best-weights-step=50"):
        (tmp_path / f"model={name}.pth").touch()
    assert checkpoints.find(tmp_path, "G").name == "model=G-best-weights-step=50.pth"
    (tmp_path / "model=G_ema-best-weights-step=50.pth").touch()
    (tmp_path / "model=G_ema-best-weights-step=100.pth").touch()
    assert checkpoints.find(tmp_path, "G").name == "model=G_ema-best-weights-step=100.pth"
    assert checkpoints.find(tmp_path, "G", ("current",)).name == "model=G_ema-current-weights-step=900.pth"
    assert checkpoints.find(tmp_path, "G", ("current", "raw")).name == "model=G-current-weights-step=900.pth"
    with pytest.raises(UserError, match=r"no checkpoint model=D-best.*it holds model=G"):
        checkpoints.find(tmp_path, "D")


def test_real_host_checkpoints_with_numpy_scalars_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model=D-current-weights-step=1.pth"
    torch.save({"state_dict": {"w": torch.ones(2)}, "best_fid": np.float64(3.5), "run_name": "x"}, path)
    assert checkpoints.read(path)["best_fid"] == 3.5
    torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=False)
    renamed = path.with_name("old.pth")  # numpy 1 had the scalar under another module name
    renamed.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert checkpoints.read(renamed)["best_fid"] == 3.5
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # and the allow-list does not stay on


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    path, target = tmp_path / "model=G-best-weights-step=1.pth", tmp_path / "pwned"
    content = {"state_dict": {"w": Evil(target)}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"refused the checkpoint .*posix\.system"):
        checkpoints.read(path)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="the checkpoint"):
        checkpoints.read(path)
    assert not target.exists()


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path: Path) -> None:
    good = tmp_path / "good.pth"
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, good)
    bad = tmp_path / "bad.pth"
    for content in (
        good.read_bytes()[:-500],
        good.read_bytes()[:100],
        b"",
        b"<!DOCTYPE html><html>404</html>",
        b"\x80",
    ):
        bad.write_bytes(content)
        with pytest.raises(UserError, match="checkpoint") as error:
            checkpoints.read(bad)
        assert "\n" not in str(error.value)
    bad.write_bytes(b"\n<!DOCTYPE html><html>404</html>")
    with pytest.raises(UserError, match="is a web page"):
        checkpoints.read(bad)
    torch.save({"weights": 1}, bad)
    with pytest.raises(UserError, match="it has no state_dict"):
        checkpoints.read(bad)
    torch.save({"state_dict": {1: torch.zeros(1)}}, bad)
    with pytest.raises(UserError, match="it has no state_dict"):
        checkpoints.read(bad)
    generator = np.random.default_rng(0)
    for _ in range(300):  # flipped bytes anywhere: read or refused, never a traceback
        content = bytearray(good.read_bytes())
        for place in generator.integers(0, len(content), 8):
            content[place] = generator.integers(0, 256)
        bad.write_bytes(content)
        with contextlib.suppress(UserError):
            checkpoints.read(bad)
    torch.save([1], bad)
    with pytest.raises(UserError, match="it has no state_dict"):
        checkpoints.read(bad)
