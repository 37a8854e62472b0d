"""From images to features to statistics: one pass that keeps nothing that no metric needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studiogan_guidance import builtin

Array = NDArray[Any]


class Backbone(Protocol):
    """A feature network: images [B, 3, H, W] in [-1, 1] -> (features [B, D], class logits [B, K]).

    It quantises to 8 bits and resizes by itself. ``protocol`` names everything about it that changes a metric;
    ``classifies`` says that its classes are the generator's labels, so that class accuracy means something.
    """

    protocol: dict[str, Any]
    classifies: bool

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]: ...


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
    batches: Iterable[tuple[Tensor, Tensor]], backbone: Backbone, features: bool = True, probabilities: bool = True
) -> FeatureStats:
    """Push (images, labels) batches through ``backbone``; the moments are summed in float64 batch by batch.

    Sums of squares are taken about the first batch's mean, so large means cost no precision.
    """
    count, kept_features, kept_probabilities, kept_labels = 0, [], [], []
    origin = total = scatter = np.zeros(0)
    with torch.no_grad():
        for images, labels in batches:
            feats, logits = backbone(images)
            block = feats.double().cpu().numpy()
            if count == 0:
                origin = block.mean(0)
                total, scatter = np.zeros_like(origin), np.zeros((origin.size, origin.size))
            shifted = block - origin
            total, scatter, count = total + shifted.sum(0), scatter + shifted.T @ shifted, count + len(block)
            kept_labels.append(labels.cpu().numpy())
            if features:
                kept_features.append(feats.float().cpu().numpy())
            if probabilities:
                kept_probabilities.append(logits.float().softmax(1).cpu().numpy())
    if count < 2:
        raise ValueError(f"metrics need at least 2 images, found {count}")
    mean = total / count
    return FeatureStats(
        count=count,
        mean=origin + mean,
        cov=(scatter - count * np.outer(mean, mean)) / (count - 1),
        features=np.concatenate(kept_features) if features else None,
        probabilities=np.concatenate(kept_probabilities) if probabilities else None,
        labels=np.concatenate(kept_labels),
    )


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


class BuiltinBackbone:
    """The built-in feature net, a digit classifier, as a Backbone."""

    classifies = True

    def __init__(self, device: torch.device) -> None:
        self._net, digest = builtin.load(builtin.network.FeatureNet, "features", device)
        self._device = device
        self.protocol = {"backbone": "builtin", "backbone_sha256": digest[:16], "resizer": "none"}

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self._net(to_uint8(images.to(self._device)).float() / 127.5 - 1)
        return features, logits


class BuiltinImages:
    """The real digits of one split."""

    def __init__(self, split: str) -> None:
        self._images, self._labels = builtin.data.digits(split)
        self.fingerprint = {"data": "MNIST-5k", "image_size": 32, "reference": split}

    def __len__(self) -> int:
        return len(self._images)

    def labels(self) -> list[int]:
        """Label of every image."""
        return [int(label) for label in self._labels]

    def batches(self, batch_size: int, first: int = 0, step: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, 3, 32, 32] in [-1, 1] and labels [B]: batch ``first``, then every ``step``-th."""
        batches = zip(self._images.split(batch_size), self._labels.split(batch_size))
        yield from islice(batches, first, None, step)
