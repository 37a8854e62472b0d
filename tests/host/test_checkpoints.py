"""Checkpoint files: which file is taken, what is read from it, and everything that must be refused."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.host import checkpoints
from studiogan_guidance.latents.base import weights_digest


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


# ---------------------------------------------------------------------------- which file


def names(folder: Path, *files: str) -> None:
    """Empty files with the host's names, such as G-best-1."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        model, when, step = file.split("-")
        (folder / f"model={model}-{when}-weights-step={step}.pth").touch()


def test_folders_below_are_named(tmp_path: Path) -> None:
    names(tmp_path / "checkpoints" / "run-a", "G-best-1")
    names(tmp_path / "checkpoints" / "run-b", "G_ema-current-1", "D-current-1")
    names(tmp_path / "checkpoints" / "run-c", "D-current-1")
    names(tmp_path / "a" / "b" / "c" / "too-deep", "G-best-1")
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(UserError, match="folders below that hold some: .*: give one of them") as caught:
        checkpoints.find(tmp_path, "G")
    assert str(tmp_path / "checkpoints" / "run-a") in str(caught.value)
    assert str(tmp_path / "checkpoints" / "run-b") in str(caught.value)
    assert "run-c" not in str(caught.value)
    assert "too-deep" not in str(caught.value)
    for number in range(600):  # the walk is bounded
        (tmp_path / "0" / str(number)).mkdir(parents=True)
    with pytest.raises(UserError, match="it holds no .pth file"):
        checkpoints.find(tmp_path, "G")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("other.pth", "it holds other.pth: give --which, or one file"),
        (
            "model=D-best-weights-step=1.pth",
            "it holds model=D-best-weights-step=1.pth and no generator: give the folder",
        ),
        ("model=G-best-weights-step=1.pth.part", "it holds model=G-best-weights-step=1.pth.part"),
        ("readme.md", "it holds no .pth file: give the one with"),
    ],
)
def test_what_a_folder_holds_instead_is_said(tmp_path: Path, file: str, words: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(UserError, match=re.escape(words)):
        checkpoints.find(tmp_path, "G")


def test_one_file_is_taken_as_it_is(tmp_path: Path) -> None:
    names(tmp_path, "G-best-2", "G_ema-best-2", "D-best-2")
    raw = tmp_path / "model=G-best-weights-step=2.pth"
    assert checkpoints.find(raw, "G") == raw
    assert checkpoints.find(raw, "G", ("best", "raw")) == raw
    for which in (("ema",), ("current",)):
        with pytest.raises(UserError, match="is one file, and not .* by its name: leave out --which"):
            checkpoints.find(raw, "G", which)
    with pytest.raises(UserError, match="is not a folder and no file"):
        checkpoints.find(tmp_path / "none", "G")
    assert checkpoints.beside(raw).name == "model=D-best-weights-step=2.pth"


def test_the_discriminator_is_of_the_same_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names(tmp_path, "G-best-2", "G-current-3", "D-best-2", "D-current-2", "D-current-3")
    assert checkpoints.beside(tmp_path / "model=G-best-weights-step=2.pth").name == "model=D-best-weights-step=2.pth"
    assert capsys.readouterr().err == ""
    (tmp_path / "model=D-best-weights-step=2.pth").unlink()
    assert checkpoints.beside(tmp_path / "model=G-best-weights-step=2.pth").name == "model=D-current-weights-step=2.pth"
    assert "Note: the discriminator model=D-current-weights-step=2.pth is taken" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no discriminator of step 9 beside .*, only model=D-current-weights-step=2"):
        checkpoints.beside(tmp_path / "model=G-best-weights-step=9.pth")
    with pytest.raises(UserError, match=r"give the files these names"):
        checkpoints.beside(tmp_path / "mine.pth")
    names(tmp_path / "alone", "G-best-1")
    with pytest.raises(UserError, match=r"no checkpoint model=D-\*-weights-step=1.pth beside .*the sampler needs one"):
        checkpoints.beside(tmp_path / "alone" / "model=G-best-weights-step=1.pth")


@pytest.mark.parametrize(
    ("files", "which", "averaged", "words"),
    [
        (("G_ema-best-1", "G-best-1"), (), True, ()),
        (("G-best-1",), (), False, ()),
        (("G_ema-best-1", "G-best-1"), ("raw",), True, ()),
        (("G_ema-best-1", "G-best-1"), ("ema",), False, ()),
        (("G-current-1",), ("current",), False, ()),
        (("G-best-1",), (), True, ("the configuration has apply_g_ema, and .* no moving average for model=G-best",)),
        (("G_ema-best-1",), (), False, ("has no apply_g_ema, the moving average model=G_ema-best-weights-step=1.pth",)),
        (("G-current-1",), (), False, ("holds no best checkpoint, model=G-current-weights-step=1.pth is taken",)),
        (("G-best-1", "G-best-20"), (), False, ("holds 2 files of this name, model=G-best-weights-step=20.pth",)),
        (("G-current-1", "G-current-2"), (), True, ("holds 2 files", "holds no best", "no moving average")),
    ],
)
def test_what_one_may_not_expect_is_said(
    tmp_path: Path,
    files: tuple[str, ...],
    which: tuple[str, ...],
    averaged: bool,
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    names(tmp_path, *files)
    checkpoints.announce(checkpoints.find(tmp_path, "G", which), tmp_path, which, averaged)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(words)
    for line, word in zip(lines, words):
        assert re.search(f"^Note: .*{word}", line)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model=G-best-weights-step=1.pth")
    (tmp_path / "link.pth").symlink_to(tmp_path / "link.pth")
    (tmp_path / "broken.pth").symlink_to(tmp_path / "nothing")
    for name, words in (
        ("model=G-best-weights-step=1.pth", "it is a pipe or a device"),
        ("link.pth", "Too many levels of symbolic links"),
        ("broken.pth", "No such file"),
    ):
        path = checkpoints.find(tmp_path / name, "G")
        with pytest.raises(UserError, match=f"cannot read the checkpoint .*{words}"):
            checkpoints.read(path)
    with pytest.raises(UserError, match="it is a pipe or a device"):
        checkpoints.read(Path("/dev/zero"))


# ---------------------------------------------------------------------------- what is in it


def save(path: Path, **weights: Any) -> Path:
    torch.save({"state_dict": weights}, path)
    return path


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.tensor([1j]), "its weight w has complex numbers: save real ones"),
        (torch.tensor([1.0, math.nan, math.inf]), "its weight w has 2 numbers that are NaN or infinite"),
        (torch.tensor([math.inf], dtype=torch.bfloat16), "its weight w has 1 numbers that are NaN"),
        (torch.tensor([math.nan]).to(torch.float8_e5m2), "its weight w has 1 numbers that are NaN"),
        (torch.eye(2).to_sparse(), "its weight w is a sparse tensor: save it as a plain tensor"),
        (torch.zeros(2, device="meta"), "its weight w is a tensor without numbers"),
        (3, "its weight w is no tensor but of type int"),
        (np.array(["a"]), "its weight w is no tensor but of type ndarray"),
    ],
)
def test_weights_that_cannot_be_used_are_named(tmp_path: Path, value: Any, words: str) -> None:
    path = save(tmp_path / "a.pth", good=torch.ones(1), w=value)
    with pytest.raises(UserError, match=f"{re.escape(str(path))} cannot be used: {words}"):
        checkpoints.read(path)


def test_other_forms_of_the_same_weights_are_read(tmp_path: Path) -> None:
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(2, dtype=torch.int64)}
    for name, content in (
        ("usual", {"state_dict": state, "optimizer": {"x": torch.ones(3)}}),
        ("bare", state),
        ("ordered", collections.OrderedDict(state)),
        ("numpy", {"state_dict": {key: value.numpy() for key, value in state.items()}}),
        ("parameters", {"state_dict": {"a.weight": torch.nn.Parameter(state["a.weight"]), "b": state["b"]}}),
    ):
        torch.save(content, tmp_path / f"{name}.pth")
    save_file(state, tmp_path / "safetensors.pth")
    for path in tmp_path.iterdir():
        found = checkpoints.read(path)["state_dict"]
        assert found.keys() == state.keys()
        assert all(found[key].equal(value) and found[key].dtype == value.dtype for key, value in state.items()), path


def test_other_contents_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"G": {"w": torch.ones(1)}, "D": {}, 3: 4}, path)
    with pytest.raises(UserError, match="it has no state_dict, only G, D, 3: save the weights of the generator as"):
        checkpoints.read(path)
    torch.save({}, path)
    with pytest.raises(UserError, match="it has no state_dict$"):
        checkpoints.read(path)


# ---------------------------------------------------------------------------- into a network


def network() -> torch.nn.Module:
    """A small network with what generators of the host have: spectral norms, batch norms."""
    torch.manual_seed(3)
    norm = torch.nn.utils.spectral_norm
    return torch.nn.Sequential(norm(torch.nn.Linear(3, 4)), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)).eval()


def filled(path: Path, state: Any) -> torch.nn.Module:
    """A fresh network with the weights of a file that is written first."""
    torch.save({"state_dict": state}, path)
    net = network()
    for value in net.state_dict().values():
        value.zero_()
    checkpoints.fill(net, checkpoints.read(path), path, RunConfig(host_config="CIFAR10/BigGAN.yaml"))
    return net


def renamed(state: Any, before: str) -> dict[str, Any]:
    return {f"{before}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state,
        lambda state: renamed(state, "module."),
        lambda state: renamed(state, "_orig_mod."),
        lambda state: renamed(state, "module._orig_mod."),
        lambda state: renamed(state, "generator."),
        lambda state: renamed(state, "a.b.c."),
        lambda state: {**renamed(state, "module."), "n_averaged": torch.tensor(5)},
        lambda state: {key.replace("0.", "0._orig_mod."): value for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
        lambda state: torch.nn.DataParallel(network()).state_dict(),
        lambda state: {
            key.replace("0.weight_orig", "0.parametrizations.weight.original")
            .replace("0.weight_u", "0.parametrizations.weight.0._u")
            .replace("0.weight_v", "0.parametrizations.weight.0._v"): value
            for key, value in state.items()
        },
    ],
)
def test_names_of_wrappers_are_taken_out(tmp_path: Path, change: Any) -> None:
    expected = network()
    net = filled(tmp_path / "a.pth", change(expected.state_dict()))
    x = torch.randn(5, 3)
    assert net(x).equal(expected(x))
    assert weights_digest(net) == weights_digest(expected)  # rows of eval and run have it


def test_spectral_norms_of_the_other_parametrisation_give_the_same_values(tmp_path: Path) -> None:
    expected = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 4))
    torch.save(torch.nn.Sequential(expected).state_dict(), tmp_path / "a.pth")
    net = torch.nn.Sequential(torch.nn.utils.spectral_norm(torch.nn.Linear(3, 4))).eval()
    checkpoints.fill(net, checkpoints.read(tmp_path / "a.pth"), tmp_path / "a.pth", RunConfig())
    x = torch.randn(5, 3)
    torch.testing.assert_close(net(x), expected.eval()(x))


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = {
            key: value.to(dtype) if value.is_floating_point() else value
            for key, value in network().state_dict().items()
        }
        net = filled(tmp_path / "a.pth", state)
        assert net[2].weight.equal(state["2.weight"].float())  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"2.weight": None}, "1 of its 11 weights are missing, such as 2.weight: give the configuration"),
        ({"2.weight": None, "2.bias": None}, "2 of its 11 weights are missing, such as 2.weight"),
        ({"x": torch.ones(1)}, "1 of the file's 12 are not its own, such as x"),
        (
            {"2.bias": None, "x": torch.ones(1)},
            "1 of its 11 weights are missing, such as 2.bias, 1 of the file's 11 are",
        ),
        ({"2.weight": torch.ones(2, 5)}, r"2.weight is [2, 5] in the file and [2, 4] there: give"),
        (
            {"2.weight": torch.ones(2, 5), "2.bias": torch.ones(3)},
            r"2.weight is [2, 5] in the file and [2, 4] there (and 1",
        ),
        ({"0.weight_u": None, "0.weight_v": None}, "2 of its 11 weights are missing, such as 0.weight_u"),
        ({"x" * 500: torch.ones(1)}, "such as 'xxxxx"),
        ({"x\ny": torch.ones(1)}, "such as 'x\\ny'"),
    ],
)
def test_a_misfit_names_one_of_each_kind(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    state = {**network().state_dict(), **change}
    with pytest.raises(UserError) as caught:
        filled(tmp_path / "a.pth", {key: value for key, value in state.items() if value is not None})
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'a.pth'} does not fit CIFAR10/BigGAN.yaml: ")
    assert words in text
    assert "\n" not in text
    assert len(text) < 600


def test_whole_numbers_in_place_of_real_ones_are_refused(tmp_path: Path) -> None:
    state = {**network().state_dict(), "2.weight": torch.ones(2, 4, dtype=torch.int8)}
    with pytest.raises(UserError, match=r"its weight 2.weight has whole numbers, not real ones"):
        filled(tmp_path / "a.pth", state)


def test_wild_versions_are_one_line(tmp_path: Path) -> None:
    state = collections.OrderedDict(network().state_dict())
    state._metadata = {"": 3, "0": {"version": "x"}, "1": [], 5: None}  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="does not fit"):
        filled(tmp_path / "a.pth", state)


# ---------------------------------------------------------------------------- any bytes


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"{", b"<"]))
def test_random_bytes_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.pth"
    path.write_bytes(start + data)
    assert_read_or_refused(path)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([True, False]))
def test_changed_bytes_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, zipped: bool
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.pth"
    content = {"state_dict": {"w": torch.arange(8.0), "n": torch.tensor(1)}, "best_fid": np.float64(3)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    changed = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    del changed[data.draw(st.integers(0, 4 * len(changed))) :]
    path.write_bytes(changed)
    assert_read_or_refused(path)


def assert_read_or_refused(path: Path) -> None:
    state: dict[str, Any] = {}
    text = str(path)
    try:
        state = checkpoints.read(path)["state_dict"]
    except UserError as error:
        text = str(error)
    assert str(path) in text
    assert "\n" not in text
    assert all(isinstance(value, torch.Tensor) for value in state.values())
