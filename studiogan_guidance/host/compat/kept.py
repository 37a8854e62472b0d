"""Fixes for the files that the host keeps: they are whole, or they are made anew, and they are of the data at hand."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from studiogan_guidance.errors import UserError, notice, one_line, typed
from studiogan_guidance.files import remove_stale, replacing
from studiogan_guidance.host.compat.table import shim
from studiogan_guidance.host.modules import module, swapped


class _With:
    """A module with some names replaced, for the time that another module calls it by this name."""

    def __init__(self, original: Any, **replaced: Any) -> None:
        vars(self).update(replaced)
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _isfile(answer: Callable[[str], bool]) -> Any:
    """The module ``os`` whose ``path.isfile`` is ``answer``."""
    return _With(os, path=_With(os.path, isfile=answer))


# ---------------------------------------------------------------------------- HDF5 files


@shim(
    "whole_hdf5",
    symptom="ValueError: Chunk shape must not be greater than data shape (-hdf5, under 500 images); then KeyError: "
    "'imgs', or a part of the images without a word, because the file that was not finished stays",
    since="upstream",
    until="the host writes chunks of at most all images, and renames the file when it is whole",
)
def whole_hdf5() -> Iterator[None]:
    hdf5 = module("utils.hdf5")
    original = hdf5.make_hdf5

    def write(args: Any, kwargs: Any, isfile: Callable[[str], bool]) -> Any:
        with ExitStack() as stack:
            h5 = _With(hdf5.h5, File=_whole_files(stack))
            with swapped(hdf5, "h5", h5), swapped(hdf5, "os", _isfile(isfile)):
                return original(*args, **kwargs)

    def make_hdf5(*args: Any, **kwargs: Any) -> Any:
        answer = write(args, kwargs, os.path.isfile)
        fault = _fault(answer[0])
        if not fault:
            return answer
        notice(f"the HDF5 file {answer[0]} {fault}: it is made anew")
        return write(args, kwargs, lambda path: False)

    with swapped(hdf5, "make_hdf5", make_hdf5):
        yield


def _whole_files(stack: ExitStack) -> type:
    """h5py.File for the host's writing of one file, which stands under its name when ``stack`` ends without an error.

    Chunks are at most as large as the data.
    """
    h5py = module("h5py")
    temporary: dict[str, Path] = {}

    class File(h5py.File):  # type: ignore[misc, name-defined]
        def __init__(self, name: str, mode: str) -> None:
            if name not in temporary:
                temporary[name] = stack.enter_context(replacing(Path(name)))
            super().__init__(temporary[name], mode)

        def create_dataset(self, name: str, shape: Any, maxshape: Any, chunks: Any, **more: Any) -> Any:
            if shape[1:] != maxshape[1:]:
                height, width = shape[1:3]
                size = maxshape[1]
                raise UserError(
                    f"the training images are {width}x{height}, the configuration wants {size}x{size}: set "
                    "--pre_resizer (such as lanczos)"
                )
            chunks = tuple(map(min, chunks, maxshape))
            return super().create_dataset(name, shape, maxshape=maxshape, chunks=chunks, **more)

    return File


def _fault(path: str) -> str:
    """What is wrong with an HDF5 file of the host, "" if nothing is."""
    h5py = module("h5py")
    try:
        with h5py.File(path, "r") as file:
            images = file["imgs"]
            labels = file["labels"]
            most = images.maxshape[0] or len(images)
            if len(images) == len(labels) == most and most:
                return ""
            return f"holds {min(len(images), len(labels))} of {most} images"

    # It cannot be read.
    except KeyError:
        return "lacks images or labels"
    except (OSError, RuntimeError) as error:
        return f"is damaged ({typed(error, 80)})"


# ---------------------------------------------------------------------------- statistics of real images


@shim(
    "own_statistics",
    symptom="moments and features of real images in -save are taken for those of any other data of the same name; "
    "BadZipFile or KeyError at every start after one that was stopped while it wrote them",
    since="upstream",
    until="the host's files say what they are of",
)
def own_statistics() -> Iterator[None]:
    preparation = module("metrics.preparation")

    def of_this_data(original: Any, key: str) -> Any:
        def prepare(data_loader: Any, *args: Any, **kwargs: Any) -> Any:
            images = _images(data_loader.dataset)
            speaks = kwargs.get("device") == 0

            def isfile(path: str) -> bool:
                reason = _foreign(path, key, images) if os.path.isfile(path) else ""
                if reason and speaks:
                    notice(f"{path} {reason}: it is made anew")
                return os.path.isfile(path) and not reason

            def savez(path: str, **arrays: Any) -> None:
                with replacing(Path(path)) as temporary:
                    np.savez(temporary, **arrays, images=np.array(images))

            with (
                swapped(preparation, "os", _isfile(isfile)),
                swapped(preparation, "np", _With(np, savez=savez)),
            ):
                return original(data_loader, *args, **kwargs)

        return prepare

    with (
        swapped(preparation, "prepare_moments", of_this_data(preparation.prepare_moments, "mu")),
        swapped(preparation, "prepare_real_feats", of_this_data(preparation.prepare_real_feats, "real_feats")),
    ):
        yield


def _images(dataset: Any) -> str:
    """A hash of the names of the images of a host's data set, or of their number where they have none."""
    root = str(getattr(dataset.data, "root", ""))
    samples = getattr(dataset.data, "samples", None)
    if samples is None:
        return f"{dataset.data_name} {len(dataset)}"
    names = "\n".join(f"{os.path.relpath(path, root)} {label}" for path, label in samples)
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:32]


def _foreign(path: str, key: str, images: str) -> str:
    """Why a file of statistics cannot be used for these images, "" if it can; a file may say nothing about them."""
    try:
        with np.load(path) as file:
            file[key]
            own = str(file["images"]) if "images" in file else images
    except KeyError:
        return f"lacks {key}"
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        return f"is damaged ({typed(error, 80)})"
    return "" if own == images else "is of other images"


# ---------------------------------------------------------------------------- checkpoints


@shim(
    "whole_checkpoints",
    symptom="no checkpoint, half of one, or G and D of two steps, after a run that was stopped while it saved",
    since="upstream",
    until="the host removes an old checkpoint when the new one is whole",
)
def whole_checkpoints() -> Iterator[None]:
    misc = module("utils.misc")
    worker = module("worker").WORKER
    save_file = torch.save
    save_networks = worker.save
    saved: list[Path] = []

    def save(states: Any, path: str) -> None:
        with replacing(Path(path)) as temporary:
            try:
                save_file(states, temporary)
            except RuntimeError as error:  # torch's, for a full disk
                raise UserError(f"cannot write {path}: {one_line(error)}") from error
        saved.append(Path(path))

    def whole(original: Any) -> Any:
        def save_model(*args: Any, **kwargs: Any) -> Any:
            with (
                swapped(misc, "torch", _With(torch, save=save)),
                swapped(misc, "find_and_remove", lambda path: None),
            ):
                return original(*args, **kwargs)

        return save_model

    def save_all(self: Any, *args: Any, **kwargs: Any) -> None:
        """Files of earlier steps go when all new ones are there."""
        saved.clear()
        save_networks(self, *args, **kwargs)
        for path in saved:
            _remove_earlier(path)
        remove_stale(Path(self.RUN.ckpt_dir))

    with (
        swapped(misc, "save_model", whole(misc.save_model)),
        swapped(misc, "save_model_c", whole(misc.save_model_c)),
        swapped(worker, "save", save_all),
    ):
        yield


def _remove_earlier(path: Path) -> None:
    """Remove the checkpoints of a network and a kind, best or current, except the one at ``path``."""
    kind = path.name.rpartition("=")[0]
    for other in path.parent.iterdir():
        if other != path and other.name.rpartition("=")[0] == kind:
            other.unlink(missing_ok=True)


@shim(
    "one_step",
    symptom="of several checkpoints in a folder, the host takes any: G of one step with D of another",
    since="upstream",
    until="the host takes the last step that is whole",
)
def one_step() -> Iterator[None]:
    ckpt = module("utils.ckpt")
    glob = ckpt.glob

    def last_first(pattern: str) -> list[str]:
        return sorted(glob.glob(pattern), key=rank, reverse=True)

    with swapped(ckpt, "glob", SimpleNamespace(glob=last_first, escape=glob.escape)):
        yield


def rank(path: str | Path) -> tuple[bool, int]:
    """Whether G and D of the step of a checkpoint are both there, and the step; the host takes the largest."""
    file = Path(path)
    rest = file.name.partition("-")[2]
    digits = file.stem.rpartition("=")[2]
    whole = all(file.with_name(f"model={name}-{rest}").exists() for name in ("G", "D"))
    return whole, int(digits) if digits.isdigit() else -1
