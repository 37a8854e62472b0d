"""The host's real images."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import urllib.error
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout

UNPROCESSED = ("CIFAR10", "CIFAR100", "Tiny_ImageNet")  # data that the host neither crops nor resizes


class RealImages:
    """The host's data set of one split, with a fingerprint of everything in it that a metric depends on."""

    def __init__(self, cfg: RunConfig, checkout: Checkout, name: str, image_size: int) -> None:
        if not cfg.data:
            raise UserError(
                "metrics need real images: add --data DIR, a folder with train/<class>/* or valid/<class>/*"
            )
        self.root, self.size, self.split = Path(cfg.data), image_size, cfg.reference or "train"
        splits = ("train", "test") if name.startswith("CIFAR") else ("train", "valid")
        if self.split not in splits:
            raise UserError(f"{name} has no {self.split} split in the host: use --reference {' or '.join(splits)}")
        processed = name not in UNPROCESSED
        if not self.root.is_dir():
            raise UserError(
                f"--data {self.root} is not a folder: give the one with train/<class>/* and valid/<class>/*"
            )
        with inside(checkout):
            try:
                self._dataset = module("data_util").Dataset_(
                    data_name=name,
                    data_dir=str(self.root),
                    train=self.split == "train",
                    crop_long_edge=processed,
                    resize_size=image_size if processed else None,
                    resizer=cfg.pre_resizer,
                    random_flip=False,
                    normalize=True,
                )
            except (OSError, RuntimeError, urllib.error.URLError) as error:
                reason = " ".join(str(error).split())[:160]
                raise UserError(f"cannot read the {self.split} images of {name} in {self.root}: {reason}") from error
        self.fingerprint = fingerprint(self.root, name, image_size, cfg.pre_resizer, self.split)

    def __len__(self) -> int:
        return len(self._dataset)

    def labels(self) -> list[int]:
        """Label of every image."""
        return [int(label) for label in self._dataset.data.targets]

    def batches(
        self, batch_size: int, first: int = 0, step: int = 1, only: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, 3, H, W] in [-1, 1] and labels [B]; UserError names an unreadable or wrongly sized image.

        ``only`` chooses among the images; ``first`` and ``step`` among the batches: batch ``first``, then every
        ``step``-th.
        """
        workers = min(4, len(os.sched_getaffinity(0))) if sys.platform == "linux" else 0
        batches = list(torch.utils.data.BatchSampler(only or range(len(self)), batch_size, drop_last=False))[
            first::step
        ]
        loader: Any = torch.utils.data.DataLoader(
            self._dataset,
            batch_sampler=batches,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        try:
            for images, labels in loader:
                if tuple(images.shape[1:]) != (3, self.size, self.size):
                    raise UserError(
                        f"images in {self.root} are {images.shape[3]}x{images.shape[2]}, the configuration wants "
                        f"{self.size}x{self.size}: set --pre-resizer (such as lanczos)"
                    )
                yield images, labels
        except UserError:
            raise
        except Exception as error:  # PIL raises SyntaxError and worse on broken files
            last = str(error).strip().splitlines()[-1][:200]
            raise UserError(f"cannot read the images in {self.root}: {last}") from error


def fingerprint(root: Path, name: str, image_size: int, pre_resizer: str, split: str) -> dict[str, Any]:
    """Everything about real images that changes a metric; file names, sizes and times stand for their content."""
    folder = root if name.startswith("CIFAR") else root / ("train" if split == "train" else "valid")
    return {
        "data": name,
        "files": _listing(folder),
        "image_size": image_size,
        "pre_resizer": pre_resizer,
        "reference": split,
    }


def _listing(root: Path) -> str:
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            with contextlib.suppress(OSError):
                stat = os.stat(os.path.join(folder, name))
                relative = os.path.relpath(os.path.join(folder, name), root)
                digest.update(f"{relative}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
