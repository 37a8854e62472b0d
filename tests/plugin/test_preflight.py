"""What ``run`` refuses before the host has written or built anything, and what it says about W&B."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import run
from host_models import write_yaml
from PIL import Image

from studiogan_guidance.errors import UserError
from studiogan_guidance.host import image_folders
from studiogan_guidance.plugin import hooks, preflight, process

TRAIN = ("-t", "-metrics", "none", "--print_freq", 1, "--save_freq", 4, "--num_workers", 0, "--seed", 3)
LOOK = ("-metrics", "none", "-sf")
COUNTS = (3, 3, 3, 3)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def images(folder: Path, counts: tuple[int, ...] = COUNTS, splits: tuple[str, ...] = ("train", "valid")) -> Path:
    """A folder of images of 32 pixels, ``counts`` of each class."""
    noise = np.random.default_rng(0)
    for split in splits:
        for label, count in enumerate(counts):
            (folder / split / str(label)).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / str(label) / f"{i}.png")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return images(tmp_path / "data")


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    """Files that begin as checkpoints do."""
    (tmp_path / "ckpt").mkdir()
    for name in ("G", "D"):
        torch.save({"state_dict": {}}, tmp_path / "ckpt" / f"model={name}-current-weights-step=4.pth")
    return tmp_path / "ckpt"


def config(folder: Path, extra: str = "", data: Any = None, model: Any = None, **optimization: Any) -> Path:
    path = write_yaml(folder / "tiny.yaml", "big_resnet", "", **optimization)
    content = yaml.safe_load(path.read_text())
    content["DATA"].update(data or {})
    content["MODEL"].update(model or {})
    path.write_text(yaml.safe_dump(content) + extra)
    return path


def refused(tmp_path: Path, *arguments: object, before: tuple[object, ...] = (), cfg: Path | None = None) -> str:
    """The line that a run ends with; nothing is left in its folder."""
    given = ["-cfg", cfg or config(tmp_path), *arguments]
    if "-save" not in given:
        given += ["-save", tmp_path / "out"]
    result = run("run", "--device", "cpu", *before, "--", *given)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("Error: ")


# ---------------------------------------------------------------------------- counts


@pytest.mark.studiogan
@pytest.mark.parametrize(
    ("optimization", "arguments", "words"),
    [
        ({"d_updates_per_step": 5}, (), "has 12 images, and a step takes 40 (a batch of 8 x d_updates_per_step 5 x"),
        ({"acml_steps": 2}, (), "has 12 images, and a step takes 16 (a batch of 8 x d_updates_per_step 1 x acml_st"),
        ({"batch_size": 16}, (), "has 12 images, and a step takes 16"),
        ({"batch_size": 12}, (), "gives 12 images to a process, and the canvases of 4 classes need a multiple of 8"),
    ],
)
def test_fewer_images_than_a_step_takes(
    tmp_path: Path, data: Path, optimization: dict[str, int], arguments: tuple[object, ...], words: str
) -> None:
    cfg = config(tmp_path, **optimization)
    assert words in refused(tmp_path, *TRAIN, *arguments, "-data", data, cfg=cfg)


@pytest.mark.studiogan
def test_fewer_images_than_the_processes_take(tmp_path: Path, data: Path) -> None:
    cfg = config(tmp_path, batch_size=16)
    line = refused(tmp_path, *TRAIN, "-DDP", "--backend", "gloo", "-data", data, before=("--processes", 2), cfg=cfg)
    assert line.startswith(f"{data / 'train'} has 12 images, and a step takes 8 (a batch of 8 x ")
    assert ", in each of 2 processes: " in line


@pytest.mark.studiogan
def test_style_gans_need_their_moving_average(tmp_path: Path, data: Path) -> None:
    cfg = write_yaml(tmp_path / "style.yaml", "stylegan2")
    line = refused(tmp_path, *TRAIN, "-data", data, cfg=cfg)
    assert line.startswith("MODEL.apply_g_ema is False: the host makes images of stylegan2 by its moving average")


@pytest.mark.studiogan
def test_processes_without_a_gpu_meet_by_gloo(tmp_path: Path, data: Path) -> None:
    line = refused(tmp_path, *TRAIN, "-DDP", "-data", data, before=("--processes", 2))
    assert line == "-DDP without a GPU needs --backend gloo, found nccl"
    line = refused(tmp_path, *TRAIN, "-DDP", "--backend", "glo", "-data", data, before=("--processes", 2))
    assert line.startswith("--backend is 'glo': did you mean 'gloo'?")


@pytest.mark.studiogan
@pytest.mark.parametrize(
    ("counts", "arguments", "words"),
    [
        ((2, 2, 1, 1), ("-metrics", "prdc"), "train has 6 images, and -metrics prdc needs 7"),
        ((1, 0, 0, 0), ("-metrics", "fid"), "train has 1 images, and -metrics fid needs 2"),
        ((0, 0, 0, 0), ("-metrics", "is"), "train has no images"),
        (COUNTS, ("-metrics", "none", "-fa"), "train has 12 images, and -fa needs 57"),
        (COUNTS, ("-metrics", "none", "-tsne"), "train has 12 images, and -tsne needs 48"),
        ((3, 3, 3, 1), ("-metrics", "none", "-ifid"), "3 has 1 images, and -ifid needs 2 of each class"),
        ((3, 3, 3, 0), ("-metrics", "none", "-knn"), "3 has 0 images, and -knn needs 1 of each class"),
    ],
)
def test_fewer_images_than_metrics_and_analyses_need(
    tmp_path: Path, ckpt: Path, counts: tuple[int, ...], arguments: tuple[object, ...], words: str
) -> None:
    folder = images(tmp_path / "few", counts)
    assert words in refused(tmp_path, *arguments, "-ckpt", ckpt, "-data", folder)


# ---------------------------------------------------------------------------- folders


@pytest.mark.studiogan
@pytest.mark.parametrize(
    ("counts", "splits", "arguments", "words"),
    [
        ((3,) * 5, ("train",), TRAIN, "train has 5 classes (0, 1, 2, 3 and 1 more), and DATA.num_classes is 4"),
        ((12, 12), ("train",), TRAIN, "train has 2 classes (0, 1), and DATA.num_classes is 4: make them equal"),
        (COUNTS, ("valid",), TRAIN, "; images belong in train/<class>/*"),
        (COUNTS, ("train", "val"), ("-metrics", "is", "-ref", "valid"), "found train, val; rename val to valid"),
        (COUNTS, ("train",), ("-metrics", "is", "-ref", "vaild"), "-ref vaild: the host would read "),
        (COUNTS, ("test", "valid"), ("-metrics", "is", "-ref", "test"), "eval --reference test"),
        ((), ("train",), TRAIN, "it is empty; images belong in train/<class>/*"),
    ],
)
def test_folders_that_the_host_would_misread(
    tmp_path: Path,
    ckpt: Path,
    counts: tuple[int, ...],
    splits: tuple[str, ...],
    arguments: tuple[object, ...],
    words: str,
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    more = () if "-t" in arguments else ("-ckpt", ckpt)
    assert words in refused(tmp_path, *arguments, *more, "-data", images(folder, counts, splits))


@pytest.mark.studiogan
def test_a_data_folder_that_is_none(tmp_path: Path, ckpt: Path, data: Path) -> None:
    assert "nowhere is not a folder" in refused(tmp_path, *TRAIN, "-data", tmp_path / "nowhere")
    assert "Please specify data_dir" in refused(tmp_path, *TRAIN)
    assert "add -data DIR" in refused(tmp_path, "-metrics", "fid", "-sf", "-ckpt", ckpt)
    flat = tmp_path / "flat"
    shutil.copytree(data / "train" / "0", flat / "train")
    assert "holds 3 images in no class folder" in refused(tmp_path, *TRAIN, "-data", flat)
    inner = tmp_path / "cifar-10-batches-py"
    inner.mkdir()
    cfg = config(tmp_path, data={"name": "CIFAR10", "num_classes": 10})
    assert f"is the folder of CIFAR10 itself: give its parent, {tmp_path}" in refused(
        tmp_path, *TRAIN, "-data", inner, cfg=cfg
    )


@pytest.mark.studiogan
def test_a_save_folder_that_cannot_be_made(tmp_path: Path, data: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"{tmp_path / 'file'} is no folder" in refused(tmp_path, *TRAIN, "-data", data, "-save", place)
    line = refused(tmp_path, *TRAIN, "-data", data, "-save", "/proc/below")
    assert line.startswith("-save /proc/below: cannot write into /proc: ")


def test_folders_are_listed_only_as_far_as_the_answer_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = images(tmp_path / "data", (3, 1))
    hidden = folder / "train" / ".ipynb_checkpoints"
    hidden.mkdir()
    (hidden / "a.png").touch()
    (folder / "train" / "0" / "notes.txt").touch()
    assert image_folders.class_names(str(folder / "train"), []) == ["0", "1"]
    assert image_folders.count(str(folder / "train"), 10) == 4
    assert image_folders.count(str(folder / "train"), 3) == 3
    walked: list[str] = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: (walked.append(one[0]) or one for one in walk(*a, **k)))
    assert image_folders.count(str(folder / "train"), 1) == 1
    assert len(walked) == 2  # the split and one class


# ---------------------------------------------------------------------------- checkpoints


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


@pytest.mark.studiogan
def test_checkpoints_that_the_host_cannot_open(tmp_path: Path, ckpt: Path) -> None:
    generator, discriminator = sorted(ckpt.iterdir(), reverse=True)
    assert "model=G-best" in refused(tmp_path, *LOOK, "-best", "-ckpt", ckpt)
    average = config(tmp_path, model={"apply_g_ema": True, "g_ema_decay": 0.9, "g_ema_start": 1})
    assert "model=G_ema-current" in refused(tmp_path, *LOOK, "-ckpt", ckpt, cfg=average)
    assert f"is not a folder: give its folder, {ckpt}" in refused(tmp_path, *LOOK, "-ckpt", generator)
    whole = discriminator.read_bytes()
    for content in (whole[:100], b"<html>", b"", POINTER.encode()):
        discriminator.write_bytes(content)
        assert str(discriminator) in refused(tmp_path, *LOOK, "-ckpt", ckpt)
    discriminator.unlink()
    assert "model=D-current" in refused(tmp_path, *LOOK, "-ckpt", ckpt)
    assert "Specify -ckpt" in refused(tmp_path, *LOOK)


@pytest.mark.studiogan
def test_a_checkpoint_of_other_networks_is_named_though_it_is_found_late(tmp_path: Path, ckpt: Path) -> None:
    """Networks are built by then; this is the one mistake here that leaves the folders of a run."""
    result = run("run", "--device", "cpu", "--", "-cfg", config(tmp_path), *LOOK, "-ckpt", ckpt,
                 "-save", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 2, result.exception
    assert "does not fit" in result.stderr or "run_name" in result.stderr
    assert not list((tmp_path / "out").rglob("*.pth"))


# ---------------------------------------------------------------------------- options


@pytest.mark.studiogan
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-metrics", "fidd"), "the host refuses this run: -metrics option can only contain"),
        ((*LOOK, "--seed", -5), "--seed is -5: give a whole number from 0 to 4294967295, or -1 (drawn)"),
        ((*LOOK, "--seed", 2**32), "--seed is 4294967296"),
        ((*LOOK, "-std_stat"), "-std_stat needs -std_max and -std_step, found -1 and -1"),
        ((*LOOK, "-std_stat", "-std_max", 0, "-std_step", 2), "found 0 and 2"),
        (("-metrics", "none", "-v", "-lgv"), "-lgv needs -lgv_rate, -lgv_std and -lgv_steps"),
        ((*LOOK, "--truncation_factor", -0.5), "--truncation_factor is -0.5"),
        ((*LOOK, "--truncation_factor", 0), "--truncation_factor is 0.0: give a number above 0"),
        ((*LOOK, "-sf_num", 0), "-sf_num is 0"),
        ((*LOOK, "--print_freq", 0), "--print_freq is 0"),
        (("-metrics", "is", "--num_eval", 0), "--num_eval is 0"),
        ((*LOOK, "--num_workers", -1), "--num_workers is -1"),
        ((*LOOK, "--calc_is_ref_dataset"), "--calc_is_ref_dataset needs a feature network"),
        (("-metrics", "none", "--GAN_train"), "--GAN_train has settings for CIFAR10, Tiny_ImageNet, ImageNet only"),
        (("-metrics", "none"), "the host has nothing to do: add -t, -metrics"),
    ],
)
def test_options_that_the_host_takes_and_then_fails_with(
    tmp_path: Path, ckpt: Path, data: Path, arguments: tuple[object, ...], words: str
) -> None:
    assert words in refused(tmp_path, *arguments, "-ckpt", ckpt, "-data", data)


@pytest.mark.studiogan
def test_seeds_of_guided_images_stay_below_the_reserved_ones(tmp_path: Path, ckpt: Path) -> None:
    cfg = config(tmp_path, "\nsampler: {name: gandance, scale: 1.5}")
    line = refused(tmp_path, *LOOK, "-sf_num", 10, "--seed", 2**31 - 9, "-ckpt", ckpt, cfg=cfg)
    assert "2147483" in line


@pytest.mark.studiogan
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-metrics", "is"), "evaluate needs --dset1 DIR"),
        (("--dset1", "DATA", "-metrics", "is"), "evaluate needs --dset2 DIR"),
        (("--dset1", "nowhere", "--dset2", "DATA"), "--dset1 nowhere is not a folder"),
        (("--dset1", "DATA", "--dset2", "DATA/0"), "DATA/0 holds 3 images in no class folder"),
        (("--dset1", "DATA", "--dset2", "DATA", "-metrics", "fidd"), "-metrics has 'fidd': did you mean 'fid'?"),
        (("--dset1", "DATA", "--dset2", "DATA", "--batch_size", 0), "--batch_size is 0"),
        (("--dset1", "FEW", "--dset2", "DATA", "-metrics", "prdc"), "has 6 images, and -metrics prdc needs 7"),
        (("--dset1_moments", "BAD", "--dset2", "DATA"), "is no .npz file"),
        (("--dset1_moments", "OTHER", "--dset2", "DATA"), "has no mu and sigma"),
        (("--dset1_feats", "OTHER", "--dset2", "DATA", "-metrics", "prdc"), "has no real_feats"),
    ],
)
def test_options_of_evaluate(tmp_path: Path, data: Path, arguments: tuple[object, ...], words: str) -> None:
    images(tmp_path / "few", (2, 2, 1, 1))
    (tmp_path / "bad.npz").write_bytes(b"x")
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    places = {"DATA": data / "train", "FEW": tmp_path / "few" / "train"}
    places |= {"BAD": tmp_path / "bad.npz", "OTHER": tmp_path / "other.npz"}

    def filled(text: object) -> str:
        for word, place in places.items():
            text = str(text).replace(word, str(place))
        return str(text)

    result = run("run", "--device", "cpu", "--script", "evaluate", "--", *map(filled, arguments))
    assert result.exit_code == 2, (result.output, result.exception)
    assert filled(words) in result.stderr
    assert "Traceback" not in result.output


# ---------------------------------------------------------------------------- errors of other processes


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("two\n lines"), "two lines"),
        (
            UserError("Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                      '  File "a.py", line 1\nstudiogan_guidance.errors.UserError: the image a.png is broken'),
            "the image a.png is broken",
        ),
        (
            torch.multiprocessing.ProcessRaisedException("\n\n-- Process\na.UserError: Caught UserError in DataLoader "
                                                        "worker process 0.\nb.UserError: no image", 1, 7),
            "no image",
        ),
        (RuntimeError("stack expects each tensor to be equal size, but got [3, 8, 8] at entry 0 and [3, 9, 9]"),
         "images have several sizes (got [3, 8, 8] at entry 0 and [3, 9, 9]): set --pre_resizer (such as lanczos)"),
        (RuntimeError("DataLoader worker (pid(s) 3) exited unexpectedly"),
         "a process that loads images was ended from outside (DataLoader worker (pid(s) 3) exited unexpectedly): "
         "lower --num_workers"),
        (RuntimeError("anything else"), None),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_in_whatever_process_it_was_found(error: Exception, words: str | None) -> None:
    assert hooks.mistake(error) == words


# ---------------------------------------------------------------------------- W&B


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a key."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "")  # put back afterwards
    return tmp_path


def mode() -> str:
    process.offline_without_key()
    return os.environ.get("WANDB_MODE", "")


def test_without_a_key_wandb_is_offline_and_that_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mode() == "offline"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Note: W&B has no key, so WANDB_MODE is offline")
    assert mode() == "offline"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("file", "content", "variable"),
    [
        ("", "", ("WANDB_API_KEY", "a" * 40)),
        ("", "", ("WANDB_IDENTITY_TOKEN_FILE", "token")),
        (".netrc", "machine api.wandb.ai login user password k", None),
        ("_netrc", "machine api.wandb.ai login user password k", None),
        ("other", "machine api.wandb.ai login user password k", ("NETRC", "other")),
        (".netrc", "machine own.server login user password k", ("WANDB_BASE_URL", "https://own.server/")),
        ("config/settings", "[default]\nmode = disabled\n", None),
        ("wandb/settings", "[default]\napi_key = k\n", None),
    ],
)
def test_with_a_key_or_a_mode_wandb_is_left_alone(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: str,
    variable: tuple[str, str] | None,
) -> None:
    if file:
        (home / file).parent.mkdir(exist_ok=True)
        (home / file).write_text(content)
    if variable:
        monkeypatch.setenv(*variable)
    assert mode() == ""
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", ["machine github.com login a password b", "machine", "\x00"])
def test_a_netrc_without_its_key_is_none(home: Path, content: str) -> None:
    (home / ".netrc").write_text(content)
    (home / "config").mkdir()
    (home / "config" / "settings").write_text("no section = 1")
    assert mode() == "offline"


def test_the_batch_of_a_process() -> None:
    def cfgs(size: Any, processes: int, distributed: bool) -> Any:
        optimization = SimpleNamespace(batch_size=size, world_size=processes)
        return SimpleNamespace(OPTIMIZATION=optimization, RUN=SimpleNamespace(distributed_data_parallel=distributed))

    assert preflight.batch_size(cfgs(8, 2, False)) == 8
    assert preflight.batch_size(cfgs(8, 2, True)) == 4
    with pytest.raises(UserError, match="batch_size must be a whole number, found '8'"):
        preflight.batch_size(cfgs("8", 2, True))
    with pytest.raises(UserError, match="batch_size is 1, for 2 processes"):
        preflight.batch_size(cfgs(1, 2, True))
