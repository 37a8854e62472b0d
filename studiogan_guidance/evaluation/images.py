"""Images of a sampler with their labels and seeds, which show and save themselves."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studiogan_guidance.errors import UserError, listed, notice
from studiogan_guidance.evaluation import pictures
from studiogan_guidance.evaluation import sample as sampling
from studiogan_guidance.files import Arrays
from studiogan_guidance.options import expanded

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Images with their labels and seeds; a notebook shows their grid.

    A slice, a number, a list of numbers or a mask of truth values gives Images of a part; a loop goes through Images of
    one image each.

    Attributes:
        tensor: float32 [N, 3, H, W], in [-1, 1] up to the last layer of the generator, on the CPU.
        labels: int64 [N]; 0 of a generator without classes.
        seeds: int64 [N].
        sampler: what made them, in words.
        scales: float64 [N], the guidance scale of each image where there are several; else None.

    Example:
        >>> import studiogan_guidance
        >>> images = studiogan_guidance.load().sample("plain", num=6, classes=[3, 5])
        >>> len(images), images.pixels.shape, images.pixels.dtype
        (6, (6, 3, 32, 32), dtype('uint8'))
        >>> images[1:4].labels.tolist(), images[images.labels == 5].seeds.tolist()
        ([5, 3, 5], [1, 3, 5])
    """

    tensor: Tensor
    labels: NDArray[np.int64]
    seeds: NDArray[np.int64]
    sampler: str
    scales: NDArray[np.float64] | None = None

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """The images in 256 steps, uint8 [N, 3, H, W], rounded to nearest; what is saved and measured."""
        return np.ascontiguousarray(self._pictures().transpose(0, 3, 1, 2))

    def grid(self, columns: int | None = None, scale: int | None = None) -> Image:
        """All images in one picture, row by row.

        Args:
            columns: by default one for each guidance scale, with a row a seed; else one for each class where classes
                were used in turn; else 8.
            scale: each pixel becomes a square of so many pixels a side; by default sides of images become 128 or more.

        Example:
            >>> import studiogan_guidance
            >>> images = studiogan_guidance.load().sample("plain", num=20, classes="0-4")
            >>> images.grid().size, images.grid(columns=10, scale=3).size
            ((640, 512), (960, 192))
        """
        from PIL import Image

        for name, value in (("columns", columns), ("scale", scale)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be a whole number from 1 up, found {value}")

        # With scales, a row is a seed, unless other columns are asked for.
        scales = self._whole_scales() if columns is None else []
        sheet = sampling.sheet(self._pictures(), scales, columns or self._columns(), scale)
        return Image.fromarray(sheet)

    def show(self) -> None:
        """Show the grid: in a notebook below the cell, elsewhere in the program that shows pictures."""
        if _is_notebook():
            importlib.import_module("IPython.display").display(self)
            return

        from PIL import ImageShow

        if not ImageShow.show(self.grid()):
            notice("no program here shows pictures: write them into a file with images.save('grid.png')")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file, whole or not at all, and return its path.

        Args:
            path: ends in .png for the grid, or in .npz for the arrays that the command ``sample`` writes: ``images``
                uint8 [N, H, W, 3], ``labels``, ``seeds`` and, if there are several, ``scales``.

        Raises:
            UserError: another ending, or a folder that cannot be written.
        """
        file = Path(expanded(os.fspath(path)))
        kind = file.suffix.lower()
        if kind == ".png":
            pictures.save_png(file, np.asarray(self.grid()))
        elif kind == ".npz":
            arrays: Arrays = {"images": self._pictures(), "labels": self.labels, "seeds": self.seeds}
            if self.scales is not None:
                arrays["scales"] = self.scales
            sampling.save_arrays(file, arrays)
        else:
            raise UserError(f"cannot save {file}: its name must end in .png (the grid) or .npz (the arrays)")
        return file

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | slice | Sequence[int] | NDArray[Any]) -> Images:
        rows = np.atleast_1d(np.arange(len(self))[key])
        scales = None if self.scales is None else self.scales[rows]
        return Images(self.tensor[torch.from_numpy(rows)], self.labels[rows], self.seeds[rows], self.sampler, scales)

    def __iter__(self) -> Iterator[Images]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        height, width = self.tensor.shape[2:]
        what = f"{len(self)} image{'' if len(self) == 1 else 's'} of {height}x{width} pixels"
        return f"{what}, {_numbers('class', 'es', self.labels)}, {_numbers('seed', 's', self.seeds)}: {self.sampler}"

    def _repr_png_(self) -> bytes | None:
        if not len(self):
            return None
        file = io.BytesIO()
        self.grid().save(file, "png")
        return file.getvalue()

    def _pictures(self) -> NDArray[np.uint8]:
        """The images as uint8 [N, H, W, 3]."""
        return sampling.as_pictures(self.tensor)

    def _whole_scales(self) -> list[float]:
        """Several scales, if the images are one block of equal size for each, in the same order of seeds."""
        if self.scales is None:
            return []
        scales = list(dict.fromkeys(self.scales.tolist()))
        count = len(self) // len(scales) if scales else 0
        is_whole = np.array_equal(self.scales, np.repeat(scales, count)) and np.array_equal(
            self.seeds, np.tile(self.seeds[:count], len(scales))
        )
        return scales if is_whole and len(scales) > 1 else []

    def _columns(self) -> int:
        """The number of classes that are used in turn, at least twice; else that of a grid without classes."""
        labels = self.labels
        for period in range(2, len(self) // 2 + 1):
            is_first_row = len(set(labels[:period].tolist())) == period
            if is_first_row and np.array_equal(labels[period:], labels[:-period]):
                return period
        return max(1, min(len(self), sampling.COLUMNS))


def _numbers(what: str, plural: str, numbers: NDArray[np.int64]) -> str:
    """Different numbers in a few words, such as "class 3", "classes 3, 5" or "seeds 0 to 7".

    Example:
        >>> _numbers("class", "es", np.array([3, 5, 3])), _numbers("seed", "s", np.arange(8))
        ('classes 3, 5', 'seeds 0 to 7')
    """
    found = list(dict.fromkeys(numbers.tolist()))
    if len(found) < 2:
        return f"{what} {found[0]}" if found else f"no {what}{plural}"
    is_range = len(found) > 2 and found == list(range(found[0], found[0] + len(found)))
    text = f"{found[0]} to {found[-1]}" if is_range else listed([str(number) for number in found])
    return f"{what}{plural} {text}"


def _is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
