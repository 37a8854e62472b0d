"""TorchScript files as feature networks."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import backbone_of, random_images
from torch import Tensor, nn

from studiogan_guidance.errors import UserError
from studiogan_guidance.features.stats import accumulate, to_uint8
from studiogan_guidance.features.torchscript import TorchScript
from studiogan_guidance.files import file_digest


class Means(nn.Module):
    """Features are means of channels of uint8 images; with ``return_features`` unset, something else comes out."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert x.dtype == torch.uint8
        means = x.float().mean((2, 3))
        return means if return_features else means[:, :1] * 0


class Scores(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.float().mean((2, 3)), x.float().amax((2, 3))


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class Cramped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return x.float().mean((2, 3))


class Picky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().view(-1, 3, 64, 64).mean((2, 3))


def script(module: nn.Module, path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, as it may be
        torch.jit.save(torch.jit.script(module), str(path))
    return f"torchscript:{path}"


def test_torchscript(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    spec = script(Means(), tmp_path / "net.pt")
    recwarn.clear()
    backbone = backbone_of(spec)
    assert len(recwarn) == 0
    means = to_uint8(random_images()).float().mean((2, 3))
    features, logits = backbone(backbone.prepare(random_images()))
    assert torch.equal(features, means)
    assert logits is None
    assert backbone.classifies
    assert backbone.protocol == {
        "backbone": "torchscript:net.pt",
        "backbone_sha256": file_digest(tmp_path / "net.pt")[:16],
        "resizer": "own",
    }
    for option in ({"resize_on": "device"}, {"channels_last": True}, {"compile": True}):
        with pytest.raises(UserError, match="runs as it was saved: leave out"):
            backbone_of(spec, **option)
    both = backbone_of(script(Scores(), tmp_path / "both.pt"))
    features, logits = both(both.prepare(random_images()))
    assert torch.equal(features, means)
    assert torch.equal(logits, to_uint8(random_images()).float().amax((2, 3)))
    stats = accumulate([(random_images(), torch.arange(5))], both)
    np.testing.assert_array_equal(stats.features, means.numpy())


def test_torchscript_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    def message(backbone: TorchScript, size: int = 32) -> str:
        with pytest.raises(UserError) as caught:
            backbone(backbone.prepare(random_images(size)))
        return str(caught.value)

    maps = backbone_of(script(Maps(), tmp_path / "maps.pt"))
    assert "maps.pt returned a tensor [5, 3, 32, 32] for 5 images: it must return features [B, D]" in message(maps)
    picky = backbone_of(script(Picky(), tmp_path / "picky.pt"))
    assert picky(picky.prepare(random_images(64)))[0].shape == (5, 3)
    assert "picky.pt failed on uint8 images [5, 3, 32, 32] (" in message(picky)
    assert "invalid for input of size" in message(picky)
    assert "\n" not in message(picky)
    cramped = backbone_of(script(Cramped(), tmp_path / "cramped.pt"))  # its interpreter hides what kind of error it was
    stats = accumulate([(random_images(), torch.arange(5))], cramped, probabilities=False)
    np.testing.assert_array_equal(stats.features, to_uint8(random_images()).float().mean((2, 3)).numpy())


def test_files_that_are_no_torchscript_are_refused_in_one_line(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            backbone_of(f"torchscript:{path}")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    missing = tmp_path / "missing.pt"
    assert f"cannot read --backbone {missing}: No such file" in message(missing)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no network")
    assert f"--backbone {broken} is not a TorchScript module" in message(broken)
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pt")
    assert "weights.pt is not a TorchScript module" in message(tmp_path / "weights.pt")


def test_other_files_are_said_to_be_what_they_are(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'marker'}",)

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "link")
    torch.save({"w": torch.ones(1)}, tmp_path / "weights.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    contents = {
        "empty": b"",
        "page": b"<!DOCTYPE html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\n",
        "half": (tmp_path / "weights.pt").read_bytes()[:200],
        "onnx": b"\x08\x07\x12\x07pytorch\x1a\x051.9",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/constants.pkl", bytes(1 << 26))

    for name, words in (
        ("pipe", "it is a pipe or a device"),
        ("link", "Too many levels of symbolic links"),
        (".", "it is a folder"),
        ("empty.pt", "it is an empty file"),
        ("page.pt", "it is a web page"),
        ("lfs.pt", "git lfs pull"),
        ("half.pt", "lacks its end"),
        ("onnx.pt", "it is an ONNX file"),
        ("weights.pt", "it is a file of torch.save: save one there by torch.jit.save"),
        ("pickle.pt", "it is no archive of one"),
        ("evil.pt", "it is a file of torch.save"),
        ("bomb.pt", "net/constants.pkl would grow from"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            TorchScript(tmp_path / name, torch.device("cpu"))
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "marker").exists()
