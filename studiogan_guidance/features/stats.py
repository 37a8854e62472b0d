"""From images to features to statistics: one pass that keeps nothing that no metric needs."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studiogan_guidance.batches import Halving
from studiogan_guidance.errors import UserError

Array = NDArray[Any]
T = TypeVar("T")


class Backbone(Protocol):
    """A feature network in two steps, so that the first can run ahead of the second in another thread.

    ``protocol`` names everything about it that changes a metric; ``classifies`` says that its classes are the
    generator's labels, so that class accuracy means something.
    """

    protocol: dict[str, Any]
    classifies: bool
    device: torch.device

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> the network's input [B, ...]: of 8 bits, resized, normalised."""

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor | None]:
        """What ``prepare`` returned -> (features [B, D], class logits [B, K] or None)."""


@dataclass(frozen=True)
class FeatureStats:
    """What metrics need of a set of images.

    Attributes:
        count: number of images N.
        mean: float64 [D].
        cov: unbiased, float64 [D, D].
        features: float32 [N, D], or None if only moments were asked for.
        probabilities: class probabilities float32 [N, K], or None.
        labels: int64 [N].
    """

    count: int
    mean: Array
    cov: Array
    features: Array | None
    probabilities: Array | None
    labels: Array


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8 of the same shape, rounded to nearest, as the host quantises before its metrics."""
    return (255 * ((images + 1) / 2) + 0.5).clamp(0, 255).to(torch.uint8)


def accumulate(
    batches: Iterable[tuple[Tensor, Tensor]],
    backbone: Backbone,
    features: bool = True,
    probabilities: bool = True,
    ahead: int | None = None,
) -> FeatureStats:
    """Push (images, labels) batches through ``backbone``; the moments are summed in float64 on its device.

    Sums of squares are taken about the first batch's mean, so large means cost no precision. Batches that do not fit
    into the memory of the GPU are halved.

    Args:
        batches: images [B, 3, H, W] in [-1, 1] and labels [B]; a generator is closed at the end, come what may.
        backbone: the feature network.
        features: keep the features of every image.
        probabilities: keep its class probabilities.
        ahead: batches that a thread takes from ``batches`` and prepares while the network works. By default 2 on a
            GPU; 0, no thread, on a CPU, where both would want the same cores. It changes no value.

    Raises:
        UserError: probabilities of a network without classes; one image is too much for the memory.
    """
    device, halving = backbone.device, Halving()
    if ahead is None:
        ahead = 2 if device.type == "cuda" else 0
    count, kept_features, kept_probabilities, kept_labels = 0, [], [], []
    origin = total = scatter = torch.zeros(0)
    with torch.no_grad(), closing(_ahead(_prepared(batches, backbone), ahead, device)) as items:
        for prepared, labels in items:
            kept_labels.append(labels)
            for feats, logits in halving(backbone, prepared):
                block = feats.double()
                if count == 0:
                    origin = block.mean(0)
                    total, scatter = torch.zeros_like(origin), origin.new_zeros(len(origin), len(origin))
                shifted = block - origin
                total += shifted.sum(0)
                scatter.addmm_(shifted.T, shifted)
                count += len(block)
                if features:
                    kept_features.append(_to_host(feats))
                if probabilities:
                    if logits is None:
                        raise UserError(
                            f"{backbone.protocol.get('backbone')} has no class logits: leave 'is' out of --metrics"
                        )
                    kept_probabilities.append(_to_host(logits.float().softmax(1)))
    if count < 2:
        raise ValueError(f"metrics need at least 2 images, found {count}")
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the copies of _to_host
    mean = total / count
    return FeatureStats(
        count=count,
        mean=(origin + mean).cpu().numpy(),
        cov=scatter.addr_(mean, mean, alpha=-count).div_(count - 1).cpu().numpy(),
        features=torch.cat(kept_features).numpy() if features else None,
        probabilities=torch.cat(kept_probabilities).numpy() if probabilities else None,
        labels=torch.cat(kept_labels).cpu().numpy(),
    )


def _to_host(values: Tensor) -> Tensor:
    """A float32 copy on the CPU, which a GPU fills in later; a copy, since views would keep whole activations alive."""
    return values.to("cpu", torch.float32, non_blocking=True, copy=True)


def _prepared(
    batches: Iterable[tuple[Tensor, Tensor]], backbone: Backbone
) -> Generator[tuple[Tensor, Tensor], None, None]:
    halving, iterator = Halving(), iter(batches)
    try:
        for images, labels in iterator:
            start = 0
            for part in halving(backbone.prepare, images):
                yield part, labels[start : start + len(part)]
                start += len(part)
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


def _ahead(items: Generator[T, None, None], count: int, device: torch.device) -> Generator[T, None, None]:
    """``items``, the next ``count`` of them under way in a thread, which has ended when this iterator is closed."""
    with closing(items):  # after the thread, if there is one
        if count == 0:
            yield from items
            return
        end = object()

        def step() -> Any:
            with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                return next(items, end)  # both settings are each thread's own

        with ThreadPoolExecutor(1, "ahead") as thread:
            waiting = deque(thread.submit(step) for _ in range(count))
            try:
                while (item := waiting.popleft().result()) is not end:
                    waiting.append(thread.submit(step))
                    yield item
            finally:
                for future in waiting:
                    future.cancel()


def merge(parts: Sequence[FeatureStats], batch_size: int) -> FeatureStats:
    """The statistics of all images from those of processes that took every ``len(parts)``-th batch, in turn.

    Moments agree with those of one process to rounding; arrays are put back into the order of the images.
    """
    count = sum(part.count for part in parts)
    mean = sum(part.count * part.mean for part in parts) / count
    scatter = sum(
        (part.count - 1) * part.cov + part.count * np.outer(part.mean - mean, part.mean - mean) for part in parts
    )

    def together(arrays: Sequence[Array | None]) -> Array | None:
        whole = [array for array in arrays if array is not None]
        if not whole:
            return None
        batches = [[array[i : i + batch_size] for i in range(0, len(array), batch_size)] for array in whole]
        return np.concatenate([batch for turn in zip_longest(*batches) for batch in turn if batch is not None])

    return FeatureStats(
        count=count,
        mean=np.asarray(mean),
        cov=np.asarray(scatter / (count - 1)),
        features=together([part.features for part in parts]),
        probabilities=together([part.probabilities for part in parts]),
        labels=np.asarray(together([part.labels for part in parts])),
    )
