"""The host's real images."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import urllib.error
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.features.images import positions_of
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout

UNPROCESSED = ("CIFAR10", "CIFAR100", "Tiny_ImageNet")  # data that the host neither crops nor resizes


def held_out_split(name: str) -> str:
    """The split of a data set that the host does not train on: valid, or test for CIFAR."""
    return "test" if _is_cifar(name) else "valid"


def validation_split(name: str) -> str:
    """The split to choose options on: valid, or train for CIFAR, which has train and test only."""
    return "train" if _is_cifar(name) else "valid"


def _is_cifar(name: str) -> bool:
    return name.startswith("CIFAR")


class RealImages:
    """The host's data set of one split, by default of all classes.

    Attributes:
        fingerprint: everything about the images that changes a metric, for a protocol; see ``fingerprint``.
        cache_key: the fingerprint and the times of the files, for caches; see ``cache_key``.
        class_names: the name of each class, by label: of its folder, or as CIFAR calls it.

    Raises:
        UserError: no folder, a split that the host does not know for this data, or images that it cannot find.
    """

    def __init__(
        self, cfg: RunConfig, checkout: Checkout, name: str, image_size: int, classes: Collection[int] = ()
    ) -> None:
        if not cfg.data:
            raise UserError(
                "metrics need real images: add --data DIR, a folder with train/<class>/* or valid/<class>/*"
            )

        # Check folder and split.
        self.root = Path(cfg.data)
        self.size = image_size
        self.split = cfg.reference or "train"
        splits = ("train", held_out_split(name))
        if self.split not in splits:
            raise UserError(f"{name} has no {self.split} split in the host: use --reference {' or '.join(splits)}")
        if not self.root.is_dir():
            raise UserError(
                f"--data {self.root} is not a folder: give the one with train/<class>/* and valid/<class>/*"
            )

        # Open the images.
        self._dataset = self._open(checkout, name, cfg.pre_resizer)
        self.class_names: tuple[str, ...] = tuple(map(str, self._dataset.data.classes))
        self.cache_key = cache_key(self.root, name, image_size, cfg.pre_resizer, self.split)

        # Keep the classes that were asked for.
        self._labels = [int(label) for label in self._dataset.data.targets]
        self._chosen: Sequence[int] = range(len(self._labels))
        if classes:
            self._chosen = positions_of(classes, self._labels, self.class_names)
            self.cache_key["classes"] = sorted(set(classes))
        self.fingerprint = _without_times(self.cache_key)

    def _open(self, checkout: Checkout, name: str, pre_resizer: str) -> Any:
        processed = name not in UNPROCESSED

        with inside(checkout):
            try:
                return module("data_util").Dataset_(
                    data_name=name,
                    data_dir=str(self.root),
                    train=self.split == "train",
                    crop_long_edge=processed,
                    resize_size=self.size if processed else None,
                    resizer=pre_resizer,
                    random_flip=False,
                    normalize=True,
                )
            except (OSError, RuntimeError, urllib.error.URLError) as error:
                raise UserError(
                    f"cannot read the {self.split} images of {name} in {self.root}: {one_line(error)}"
                ) from error

    @property
    def default_count(self) -> int:
        """How many of them the host's evaluation takes: 50,000 of ImageNet's train split, else all."""
        name = str(self.fingerprint["data"])
        is_big = name.endswith("ImageNet") and not name.startswith("Tiny")
        if not (is_big and self.split == "train"):
            return len(self)
        return min(50_000, len(self)) if "classes" in self.fingerprint else 50_000

    def __len__(self) -> int:
        return len(self._chosen)

    def labels(self) -> list[int]:
        """Label of every image."""
        return [self._labels[position] for position in self._chosen]

    def batches(
        self, batch_size: int, first: int = 0, step: int = 1, only: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, 3, H, W] in [-1, 1] and labels [B].

        Args:
            batch_size: images of a batch; the last one may have fewer.
            first: the first batch to read.
            step: read every ``step``-th batch from there.
            only: the images to read, by their positions; by default all.

        Raises:
            UserError: an unreadable image, one of another size than the configuration's, a loading process that died.
        """
        # Load batches in processes of their own.
        chosen = self._chosen if only is None else [self._chosen[position] for position in only]
        batches = list(torch.utils.data.BatchSampler(chosen, batch_size, drop_last=False))
        workers = min(4, len(os.sched_getaffinity(0))) if sys.platform == "linux" else 0
        loader: Any = torch.utils.data.DataLoader(
            self._dataset,
            batch_sampler=batches[first::step],
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )

        # Check the size of the images.
        loaded = iter(loader)
        while (batch := self._next(loaded)) is not None:
            images, labels = batch
            if tuple(images.shape[1:]) != (3, self.size, self.size):
                raise UserError(
                    f"images in {self.root} are {images.shape[3]}x{images.shape[2]}, the configuration wants "
                    f"{self.size}x{self.size}: set --pre-resizer (such as lanczos)"
                )
            yield images, labels

    def _next(self, loaded: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
        """The next batch, None after the last."""
        try:
            return next(loaded, None)
        except Exception as error:  # PIL raises SyntaxError and worse on broken files
            raise UserError(f"loading the images in {self.root} failed: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The type of an exception and the last line of its text, which may be the traceback of a loading process."""
    kind = type(error).__name__
    last = str(error).strip().rpartition("\n")[2].strip()[:200]
    if kind in last:
        return last
    return f"{kind}: {last}" if last else kind


def cache_key(root: Path, name: str, image_size: int, pre_resizer: str, split: str) -> dict[str, Any]:
    """``fingerprint``, and ``times``: a hash of when the files were written.

    A cache that has this key is computed anew after any change of a file; a copy of the folder has caches of its own.
    """
    folder = root if _is_cifar(name) else root / ("train" if split == "train" else "valid")
    files, times = _listing(folder)
    return {
        "data": name,
        "files": files,
        "image_size": image_size,
        "pre_resizer": pre_resizer,
        "reference": split,
        "times": times,
    }


def fingerprint(root: Path, name: str, image_size: int, pre_resizer: str, split: str) -> dict[str, Any]:
    """Everything about real images that changes a metric; names and sizes of the files stand for their content.

    Two copies of a data set have the same fingerprint, wherever and whenever they were unpacked.
    """
    return _without_times(cache_key(root, name, image_size, pre_resizer, split))


def _without_times(key: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name != "times"}


def _listing(root: Path) -> tuple[str, str]:
    """A hash of the names and sizes of the files below a folder, and one of their times."""
    files = hashlib.sha256()
    times = hashlib.sha256()
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                stat = os.stat(path)
                files.update(f"{os.path.relpath(path, root)}\0{stat.st_size}\n".encode())
                times.update(f"{stat.st_mtime_ns}\n".encode())
    return files.hexdigest()[:32], times.hexdigest()[:32]
