"""The host's real images."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.features.images import positions_of
from studiogan_guidance.host import image_folders
from studiogan_guidance.host.image_files import check_size
from studiogan_guidance.host.image_folders import ImageFolder
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.modules import swapped

READER = 2  # of caches: 1 read transparent and 16-bit pixels by a guess
UNPROCESSED = ("CIFAR10", "CIFAR100", "Tiny_ImageNet")  # data that the host neither crops nor resizes


def held_out_split(name: str) -> str:
    """The split of a data set that the host does not train on: valid, or test for CIFAR."""
    return "test" if _is_cifar(name) else "valid"


def validation_split(name: str) -> str:
    """The split to choose options on: valid, or train for CIFAR, which has train and test only."""
    return "train" if _is_cifar(name) else "valid"


def splits(root: Path, name: str) -> tuple[str, ...]:
    """The splits of a data set that are in a folder."""
    if _is_cifar(name):
        return ("train", "test")
    return tuple(split for split in ("train", "valid", "test") if (root / split).is_dir())


def _is_cifar(name: str) -> bool:
    return name in ("CIFAR10", "CIFAR100")


class RealImages:
    """The host's data set of one split.

    Attributes:
        fingerprint: everything about the images that changes a metric, for a protocol; see ``fingerprint``.
        cache_key: the fingerprint and the times of the files, for caches; see ``cache_key``.
        class_names: the name of each class, by label: of its folder, or as CIFAR calls it.

    Raises:
        UserError: no folder, a split that the host does not know for this data, or images that it cannot find.
    """

    def __init__(self, cfg: RunConfig, checkout: Checkout, name: str, image_size: int) -> None:
        if not cfg.data:
            raise UserError(
                "metrics need real images: add --data DIR, a folder with train/<class>/* or valid/<class>/*"
            )

        # Check the split.
        self.root = Path(cfg.data)
        self.size = image_size
        self.split = cfg.reference or "train"
        splits = ("train", "test") if _is_cifar(name) else ("train", "valid", "test")
        if self.split not in splits:
            raise UserError(f"{name} has no {self.split} split in the host: use --reference {' or '.join(splits)}")

        # Open the images.
        self._dataset = self._open(checkout, name, cfg.pre_resizer)
        self.class_names: tuple[str, ...] = tuple(map(str, self._dataset.classes))
        self._labels = [int(label) for label in self._dataset.targets]
        self._chosen: Sequence[int] = range(len(self._labels))
        self.cache_key = cache_key(self.root, name, image_size, cfg.pre_resizer, self.split)
        self.fingerprint = _without_times(self.cache_key)

    def of(self, classes: Collection[int]) -> RealImages:
        """The images of some classes; no file is looked at again.

        Raises:
            UserError: a class without images.
        """
        some = copy.copy(self)
        some._chosen = positions_of(classes, self._labels, self.class_names)
        some.cache_key = {**self.cache_key, "classes": sorted(set(classes))}
        some.fingerprint = _without_times(some.cache_key)
        return some

    def _open(self, checkout: Checkout, name: str, pre_resizer: str) -> Any:
        """The images of the split, with the transforms of the host and the checks of ours."""
        is_processed = name not in UNPROCESSED
        is_cifar = _is_cifar(name)
        if is_cifar:
            kind = getattr(module("torchvision.datasets"), name)
            data = image_folders.cifar(kind, self.root, self.split == "train")
        else:
            data = ImageFolder(self.root / self.split)

        # Let the host compose what it does to an image.
        with inside(checkout):
            data_util = module("data_util")
            with swapped(data_util, name if is_cifar else "ImageFolder", lambda **_: data):
                dataset = data_util.Dataset_(
                    data_name=name,
                    data_dir=str(self.root),
                    train=self.split == "train",
                    crop_long_edge=is_processed,
                    resize_size=self.size if is_processed else None,
                    resizer=pre_resizer,
                    random_flip=False,
                    normalize=True,
                )
        advice = "set --pre-resizer (such as lanczos)" if is_processed else f"the host does not resize images of {name}"
        return SizedImages(dataset, self.size, self.root, advice)

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

        loaded = iter(loader)
        while (batch := self._next(loaded)) is not None:
            if isinstance(batch, UserError):
                del loaded  # ends the loading processes
                raise batch
            yield batch

    def _next(self, loaded: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | UserError | None:
        """The next batch, the reason why it cannot be read, or None after the last."""
        try:
            return next(loaded, None)
        except Exception as error:  # also of a loading process that died, or of memory that ran out
            error.__traceback__ = None  # it would keep the loading processes
            if isinstance(error, UserError):
                return error
            return UserError(f"loading the images in {self.root} failed: {_reason(error)}")


class SizedImages:
    """A data set of the host whose images must have one size.

    Attributes:
        classes: names of the classes.
        targets: label of every image.
    """

    def __init__(self, dataset: Any, size: int, root: Path, advice: str) -> None:
        self.classes = dataset.data.classes
        self.targets = dataset.data.targets
        self._dataset = dataset
        self._samples = getattr(dataset.data, "samples", None)  # CIFAR has no files of single images
        self._size = (size, size)
        self._root = root
        self._advice = advice

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._dataset[index]
        path = self._samples[index][0] if self._samples else self._root
        check_size(image, self._size, path, self._advice)
        return image, label


def _reason(error: Exception) -> str:
    """The type of an exception and the last line of its text, which may be the traceback of a loading process."""
    kind = type(error).__name__
    last = str(error).strip().rpartition("\n")[2].strip()[:200]
    if kind in last:
        return last
    return f"{kind}: {last}" if last else kind


def cache_key(root: Path, name: str, image_size: int, pre_resizer: str, split: str) -> dict[str, Any]:
    """``fingerprint``, ``reader``, raised where files are read otherwise, and ``times``: when they were written.

    A cache that has this key is computed anew after any change of a file; a copy of the folder has caches of its own.
    """
    files, times = _listing(root) if _is_cifar(name) else _listing(root / split, visible=True)
    return {
        "data": name,
        "files": files,
        "image_size": image_size,
        "pre_resizer": pre_resizer,
        "reader": READER,
        "reference": split,
        "times": times,
    }


def fingerprint(root: Path, name: str, image_size: int, pre_resizer: str, split: str) -> dict[str, Any]:
    """Everything about real images that changes a metric; names and sizes of the files stand for their content.

    Two copies of a data set have the same fingerprint, wherever and whenever they were unpacked.
    """
    return _without_times(cache_key(root, name, image_size, pre_resizer, split))


def _without_times(key: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name not in ("reader", "times")}


def _listing(root: Path, visible: bool = False) -> tuple[str, str]:
    """A hash of the names and sizes of the files below a folder, and one of their times.

    Args:
        root: the folder; one that is not there has no files.
        visible: as images are listed: through links, without hidden names.
    """
    files = hashlib.sha256()
    times = hashlib.sha256()
    for folder, names in _folders(str(root), visible):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                stat = os.stat(path)
                line = f"{os.path.relpath(path, root)}\0{stat.st_size}\n"
                files.update(line.encode("utf-8", "surrogateescape"))
                times.update(f"{stat.st_mtime_ns}\n".encode())
    return files.hexdigest()[:32], times.hexdigest()[:32]


def _folders(root: str, visible: bool) -> Iterator[tuple[str, list[str]]]:
    """Every folder below ``root`` with the sorted names of its files."""
    if visible and os.path.isdir(root):
        yield from image_folders.walk(root, [])
        return
    for folder, folders, names in os.walk(root):
        folders.sort()
        yield folder, sorted(names)
