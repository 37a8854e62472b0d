"""The files that the host keeps: whole or made anew, and of the data at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from studiogan_guidance.errors import UserError
from studiogan_guidance.host import compat
from studiogan_guidance.host.compat import RUN_SHIMS
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout

pytestmark = pytest.mark.studiogan
NAMES = ("whole_hdf5", "own_statistics", "whole_checkpoints", "one_step")
LABELS = [0, 0, 1, 1, 1]


@pytest.fixture
def host(checkout: Checkout) -> Iterator[None]:
    """The host with these shims on, and nothing else."""
    with inside(checkout), compat.active([one for one in RUN_SHIMS if one.name in NAMES]):
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of 8 pixels; image i is i everywhere."""
    for i, label in enumerate(LABELS):
        path = tmp_path / "data" / "train" / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(path)
    return tmp_path / "data"


# ---------------------------------------------------------------------------- HDF5 files


def make(folder: Path, size: int = 8) -> Path:
    run = SimpleNamespace(data_dir=str(folder), num_workers=0)
    data = SimpleNamespace(name="Tiny")
    path, *_ = module("utils.hdf5").make_hdf5("Tiny", size, False, None, str(folder), "wo_resize", data, run)
    return Path(path)


def content(path: Path) -> tuple[list[int], list[int], tuple[int, ...]]:
    """The first pixel of each image, the labels, and the shape of a chunk."""
    with module("h5py").File(path, "r") as file:
        return file["imgs"][:, 0, 0, 0].tolist(), file["labels"][:].tolist(), file["imgs"].chunks


def test_few_images_go_into_one_chunk(host: None, folder: Path) -> None:
    path = make(folder)
    assert content(path) == ([0, 1, 2, 3, 4], LABELS, (5, 8, 8, 3))
    assert [one.name for one in folder.iterdir() if one.is_file()] == [path.name]
    before = path.stat()
    assert make(folder).stat().st_ino == before.st_ino  # a whole one is used again


def test_without_the_shim_few_images_fail_and_leave_a_broken_file(checkout: Checkout, folder: Path) -> None:
    with inside(checkout):
        with pytest.raises(ValueError, match="Chunk shape must not be greater"):
            make(folder)
        path = make(folder)  # "exists", it says
        with pytest.raises(KeyError):
            content(path)


def empty(path: Path) -> None:
    with module("h5py").File(path, "w"):
        pass


def half(path: Path) -> None:
    with module("h5py").File(path, "w") as file:
        file.create_dataset("imgs", (3, 8, 8, 3), "uint8", maxshape=(5, 8, 8, 3), chunks=(3, 8, 8, 3))
        file.create_dataset("labels", (3,), "int64", maxshape=(5,), chunks=(3,))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (empty, "lacks images or labels"),
        (half, "holds 3 of 5 images"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)), "is damaged (OSError: "),
        (lambda path: path.write_bytes(b""), "is damaged (OSError: "),
    ],
)
def test_a_file_that_is_not_whole_is_made_anew(
    host: None, folder: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], Any], words: str
) -> None:
    path = make(folder)
    whole = content(path)
    capsys.readouterr()
    damage(path)
    assert content(make(folder)) == whole
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Note: ")]
    assert line.startswith(f"Note: the HDF5 file {path} {words}")
    assert line.endswith("it is made anew")


def test_images_of_another_size_are_refused_and_nothing_stays(host: None, folder: Path) -> None:
    with pytest.raises(UserError, match="training images are 8x8, the configuration wants 16x16: set --pre_resizer"):
        make(folder, size=16)
    assert [one.name for one in folder.iterdir()] == ["train"]


# ---------------------------------------------------------------------------- statistics


class Network:
    """Features of an image are its two first pixels."""

    def eval(self) -> None:
        pass

    def get_outputs(self, images: torch.Tensor, quantize: bool) -> tuple[torch.Tensor, torch.Tensor]:
        features = images.flatten(1)[:, :2]
        return features, features


@pytest.mark.parametrize("key", ["mu", "real_feats"])
def test_statistics_are_of_the_images_at_hand(
    host: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: Path, key: str
) -> None:
    preparation = module("metrics.preparation")
    images = module("data_util").Dataset_("Tiny", str(folder), True)
    data = SimpleNamespace(name="Tiny", img_size=8)
    run = SimpleNamespace(save_dir=str(tmp_path / "save"), pre_resizer="wo_resize", ref_dataset="train")
    run.post_resizer, run.eval_backbone, run.distributed_data_parallel = "legacy", "tiny", False
    cfgs = SimpleNamespace(RUN=run, DATA=data, OPTIMIZATION=SimpleNamespace(batch_size=2, world_size=1))
    logger = SimpleNamespace(info=lambda line: None)

    def prepared() -> Any:
        loader = torch.utils.data.DataLoader(images, 2)
        options = {"quantize": True, "cfgs": cfgs, "logger": logger, "device": 0}
        with compat.active([one for one in RUN_SHIMS if one.name in ("cuda_means_cpu",)]):
            torch_zero = {"device": compat.CpuRank(0)} if not torch.cuda.is_available() else {}
            if key == "mu":
                return preparation.prepare_moments(loader, Network(), **{**options, **torch_zero})[0]
            return preparation.prepare_real_feats(loader, Network(), num_feats=5, **{**options, **torch_zero})

    def notes() -> list[str]:
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("Note: ")]

    # The same images: the file is used again.
    first = prepared()
    (path,) = (tmp_path / "save").rglob("*.npz")
    written = path.stat().st_ino
    np.testing.assert_array_equal(prepared(), first)
    assert (path.stat().st_ino, notes()) == (written, [])

    # A file without a word about its images counts, as ever.
    with np.load(path) as file:
        np.savez(path, **{name: file[name] for name in file.files if name != "images"})
    written = path.stat().st_ino
    np.testing.assert_array_equal(prepared(), first)
    assert (path.stat().st_ino, notes()) == (written, [])

    # Half a file, then other images.
    path.write_bytes(path.read_bytes()[:30])
    np.testing.assert_array_equal(prepared(), first)
    (line,) = notes()
    assert line.startswith(f"Note: {path} is damaged (")
    images.data.samples = images.data.samples[:3]
    other = prepared()
    assert not np.array_equal(other, first)
    assert notes() == [f"Note: {path} is of other images: it is made anew"]
    np.testing.assert_array_equal(prepared(), other)


# ---------------------------------------------------------------------------- checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_replaces_the_one_before_when_it_is_whole(
    host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misc = module("utils.misc")

    class Stopped(Exception):
        pass

    class Worker(module("worker").WORKER):  # type: ignore[misc, name-defined]
        """As much of the host's worker as its ``save`` needs."""

        def __init__(self) -> None:
            net = torch.nn.Linear(1, 1)
            self.Gen, self.Dis, self.Gen_ema = net, net, None
            optimizer = torch.optim.SGD(net.parameters())
            self.OPTIMIZATION = SimpleNamespace(g_optimizer=optimizer, d_optimizer=optimizer)
            self.RUN = SimpleNamespace(seed=1, ckpt_dir=str(tmp_path))
            self.lecam_ema = SimpleNamespace()
            self.run_name, self.epoch_counter, self.topk, self.aa_p = "r", 0, 1, 0
            self.best_step, self.best_fid, self.global_rank, self.logger = 0, None, 1, None

    worker = Worker()
    worker.save(step=2, is_best=False)
    old = ["model=D-current-weights-step=2.pth", "model=G-current-weights-step=2.pth"]
    assert names(tmp_path) == old

    # Stopped in the middle of D: what was there is still there.
    save = misc.save_model

    def stops(model: str, **kwargs: Any) -> None:
        if model == "D":
            kwargs["states"] = {"state_dict": Unsaveable(Stopped)}
        save(model=model, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(misc, "save_model", stops)
        with pytest.raises(Stopped):
            worker.save(step=4, is_best=False)
    assert names(tmp_path) == [old[0], old[1], "model=G-current-weights-step=4.pth"]

    # The host takes the step of which both are there.
    found = module("utils.ckpt").glob.glob(str(tmp_path / "model=G-current-weights-step=*.pth"))
    assert [Path(path).name for path in found] == [old[1], "model=G-current-weights-step=4.pth"]
    worker.save(step=6, is_best=False)
    assert names(tmp_path) == ["model=D-current-weights-step=6.pth", "model=G-current-weights-step=6.pth"]


class Unsaveable:
    """Raises an error while it is saved."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def test_a_disk_that_takes_no_more_is_one_line(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(states: Any, path: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with inside(checkout):
        found = next(one for one in RUN_SHIMS if one.name == "whole_checkpoints")
        with found.apply(), pytest.raises(UserError, match=r"cannot write .*step=2.pth: \[enforce fail"):
            module("utils.misc").save_model("G", "best", 2, str(tmp_path), {"state_dict": {}})
    assert names(tmp_path) == []
