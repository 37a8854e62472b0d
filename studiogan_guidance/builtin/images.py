"""The real digits of the built-in as real images of an evaluation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from studiogan_guidance import builtin
from studiogan_guidance.features.images import positions_of


class BuiltinImages:
    """The real digits of one split, by default of all classes.

    Raises:
        UserError: a class that is no digit.
    """

    class_names = tuple(map(str, range(10)))

    def __init__(self, split: str, classes: Collection[int] = ()) -> None:
        self._images, self._labels = builtin.data.digits(split)
        self.fingerprint: dict[str, Any] = {"data": "MNIST-5k", "image_size": 32, "reference": split}

        # Keep the classes that were asked for.
        if classes:
            chosen = positions_of(classes, self._labels.tolist(), self.class_names)
            self._images = self._images[chosen]
            self._labels = self._labels[chosen]
            self.fingerprint["classes"] = sorted(set(classes))
        self.cache_key = self.fingerprint

    @property
    def default_count(self) -> int:
        """All of them."""
        return len(self)

    def __len__(self) -> int:
        return len(self._images)

    def labels(self) -> list[int]:
        """Label of every image."""
        return [int(label) for label in self._labels]

    def batches(
        self, batch_size: int, first: int = 0, step: int = 1, only: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, 3, 32, 32] in [-1, 1] and labels [B]: batch ``first``, then every ``step``-th.

        ``only`` chooses images by number; by default all of them.
        """
        numbers = slice(None) if only is None else list(only)
        images = self._images[numbers].split(batch_size)
        labels = self._labels[numbers].split(batch_size)
        yield from islice(zip(images, labels), first, None, step)
