"""From images to features to statistics: one pass that keeps nothing that no metric needs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
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

    ``protocol`` names everything about it that changes a metric; ``classifies`` says that its classes, where they are
    as many as the generator's, are its labels, so that class accuracy means something. Training through the features
    (``training.strengths``) needs one more method, ``soft``: images [B, 3, H, W] in [-1, 1] to features [B, D], with
    gradients. One whose ``prepare`` works on the CPU, for a network on a GPU, says so in an attribute
    ``prepares_on_cpu``.
    """

    protocol: dict[str, Any]
    classifies: bool
    device: torch.device

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> the network's input [B, ...]: in 8 bits, then resized, then normalised."""

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


def checked(output: tuple[Any, Any], count: int, name: str) -> tuple[Tensor, Tensor | None]:
    """The features and class logits of a batch, if metrics can be made of them.

    Args:
        output: features [B, D], and class logits [B, K] or None; D and K are 1 or more, numbers have a fraction.
        count: B, the images of the batch.
        name: of the feature network.

    Raises:
        UserError: they are anything else; what was found is named.
    """
    features, logits = output
    for value, ending in ((features, ""), (features if logits is None else logits, " as class logits")):
        if problem := _problem(value, count):
            raise UserError(
                f"{name} returned {problem}{ending} for {count} images: it must return features [B, D], or features "
                "and class logits [B, K], of type float"
            )
    return features, logits


def _problem(value: Any, count: int) -> str:
    """What is wrong with the features or logits of a batch of ``count`` images; empty if nothing is."""
    if not isinstance(value, Tensor):
        return f"{len(value)} values" if isinstance(value, tuple) else type(value).__name__
    if value.dim() != 2 or len(value) != count or value.shape[1] == 0:
        return f"a tensor {list(value.shape)}"
    return "" if value.is_floating_point() else f"numbers of type {str(value.dtype).removeprefix('torch.')}"


class Inspection:
    """Runs a feature network, and finds what metrics cannot be made of.

    What is not finite is seen batch by batch, but said at the end, so that nothing waits for a GPU.

    Args:
        backbone: the feature network.
        what: the images are.
        name: of the image at a position of the pass.
    """

    def __init__(self, backbone: Backbone, what: str, name: Callable[[int], str]) -> None:
        self._backbone = backbone
        self._network = str(backbone.protocol.get("backbone"))
        self._what = what
        self._name = name
        self._widths: dict[str, int] = {}
        self._flags: dict[str, list[Tensor]] = {"features": [], "class probabilities": []}

    def run(self, prepared: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [B, D] and class logits [B, K] or None of prepared images; D and K are those of the first batch."""
        features, logits = checked(self._backbone(prepared), len(prepared), self._network)
        for kind, values in (("features", features), ("class logits", logits)):
            width = 0 if values is None else values.shape[1]
            before = self._widths.setdefault(kind, width)
            if width != before:
                raise UserError(
                    f"{self._network} returned {width} {kind} an image after {before} for earlier ones: their number "
                    "must not change"
                )
        return features, logits

    def see(self, kind: str, values: Tensor) -> None:
        """Look at the next features or class probabilities, [B, D]; as float32, as they are kept."""
        self._flags[kind].append(values.float().isfinite().all(1))

    def check(self) -> None:
        """Raise UserError if anything seen so far is not finite: how many images, and the first and last of them."""
        for kind, flags in self._flags.items():
            finite = torch.cat([flag.cpu() for flag in flags]) if flags else torch.ones(0)
            positions = (~finite.bool()).nonzero().flatten().tolist()
            if not positions:
                continue

            names = [self._name(position) for position in dict.fromkeys((positions[0], positions[-1]))]
            which = f"{len(positions)} of {len(finite)} {self._what} ({' to '.join(names)})"
            raise UserError(
                f"feature network {self._network} gives {kind} that are not finite (nan or inf) for {which}: "
                "repair it, or choose another"
            )


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8 of the same shape, rounded to nearest, as the host quantises before its metrics."""
    return (255 * ((images + 1) / 2) + 0.5).clamp(0, 255).to(torch.uint8)


class Moments:
    """Mean and covariance of features that come in batches, summed in float64 on their device.

    The sums are taken about the first batch's mean, so large means cost no precision.
    """

    def __init__(self) -> None:
        self.count = 0
        self._origin = self._total = self._scatter = torch.zeros(0)

    def add(self, features: Tensor) -> None:
        """Take in the features [B, D] of a batch."""
        block = features.double()
        if self.count == 0:
            self._origin = block.mean(0)
            self._total = torch.zeros_like(self._origin)
            self._scatter = self._origin.new_zeros(len(self._origin), len(self._origin))

        shifted = block - self._origin
        self._total += shifted.sum(0)
        self._scatter.addmm_(shifted.T, shifted)
        self.count += len(block)

    def mean(self) -> Array:
        """The mean so far, float64 [D]."""
        mean: Array = (self._origin + self._total / self.count).cpu().numpy()
        return mean

    def cov(self) -> Array:
        """The unbiased covariance so far, float64 [D, D]; of 2 images or more."""
        shift = self._total / self.count
        cov: Array = self._scatter.addr(shift, shift, alpha=-self.count).div_(self.count - 1).cpu().numpy()
        return cov


class Accumulator:
    """The statistics of images that come in batches, by one feature network.

    Batches that do not fit into a GPU's memory are halved.

    Args:
        backbone: the feature network.
        features: keep the features of every image.
        probabilities: keep its class probabilities.
        classes: keep them also where the network tells this many classes.
        what: the images are, for errors.
        name: of the image at a position of the pass, for errors.
    """

    def __init__(
        self,
        backbone: Backbone,
        features: bool = True,
        probabilities: bool = True,
        classes: int = 0,
        what: str = "images",
        name: Callable[[int], str] = "number {}".format,
    ) -> None:
        self._backbone = backbone
        self._with_features = features
        self._with_probabilities = probabilities
        self._classes = classes
        self._inspection = Inspection(backbone, what, name)
        self._preparing = Halving()
        self._running = Halving()
        self._moments = Moments()
        self._features: list[Tensor] = []
        self._probabilities: list[Tensor] = []
        self._labels: list[Tensor] = []

    def prepared(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, 3, H, W] in [-1, 1] as input of the network, with their labels; in parts where memory ran out."""
        start = 0
        for part in self._preparing(self._backbone.prepare, images):
            yield part, labels[start : start + len(part)]
            start += len(part)

    def add(self, prepared: Tensor, labels: Tensor) -> None:
        """Run the network on a prepared batch; what is to be kept goes to the CPU."""
        self._labels.append(labels)
        for feats, logits in self._running(self._inspection.run, prepared):
            self._moments.add(feats)
            self._inspection.see("features", feats)
            if self._with_features:
                self._features.append(_to_cpu(feats))
            if self._with_probabilities or (logits is not None and logits.shape[1] == self._classes):
                of_classes = _softmax(logits, self._backbone)
                self._inspection.see("class probabilities", of_classes)
                self._probabilities.append(_to_cpu(of_classes))

    def see(self, images: Tensor, labels: Tensor) -> None:
        """Prepare a batch of images [B, 3, H, W] in [-1, 1], and run the network on it."""
        with torch.no_grad():
            for part in self.prepared(images, labels):
                self.add(*part)

    def stats(self) -> FeatureStats:
        """The statistics of all batches; UserError for features or class probabilities that are not finite."""
        moments = self._moments
        if moments.count < 2:
            raise ValueError(f"metrics need at least 2 images, found {moments.count}")
        self._inspection.check()

        # Join the parts.
        if self._backbone.device.type == "cuda":
            torch.cuda.synchronize(self._backbone.device)  # the copies of _to_cpu
        return FeatureStats(
            count=moments.count,
            mean=moments.mean(),
            cov=moments.cov(),
            features=torch.cat(self._features).numpy() if self._with_features else None,
            probabilities=torch.cat(self._probabilities).numpy() if self._probabilities else None,
            labels=torch.cat(self._labels).cpu().numpy(),
        )


def accumulate(
    batches: Iterable[tuple[Tensor, Tensor]],
    backbone: Backbone,
    features: bool = True,
    probabilities: bool = True,
    classes: int = 0,
    ahead: int | None = None,
    what: str = "images",
    name: Callable[[int], str] = "number {}".format,
) -> FeatureStats:
    """Push (images, labels) batches through ``backbone``: see ``Accumulator``.

    Args:
        batches: images [B, 3, H, W] in [-1, 1] and labels [B]; a generator is closed at the end, whatever happens.
        backbone: the feature network.
        features: as of the accumulator, like ``probabilities``, ``classes``, ``what`` and ``name``.
        ahead: batches that a thread takes from ``batches`` and prepares while the network works. By default 2 where the
            CPU prepares them for a GPU, else 0, no thread: two threads would compete for the same cores, and one keeps
            a GPU busy. It changes no value.

    Raises:
        UserError: features or class probabilities that are not finite; features of other shapes or types than a
            Backbone's; probabilities of a network without classes; one image is too much for the memory.
    """
    device = backbone.device
    if ahead is None:
        ahead = 2 if device.type == "cuda" and getattr(backbone, "prepares_on_cpu", False) else 0
    accumulator = Accumulator(backbone, features, probabilities, classes, what, name)

    with torch.no_grad(), closing(_ahead(_prepared(batches, accumulator), ahead, device)) as items:
        for item in items:
            accumulator.add(*item)
    return accumulator.stats()


def shown_to(
    accumulators: Sequence[Accumulator], batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The (images, labels) of ``batches``, each of which all ``accumulators`` have seen before it is passed on."""
    for images, labels in batches:
        for accumulator in accumulators:
            accumulator.see(images, labels)
        yield images, labels


def _softmax(logits: Tensor | None, backbone: Backbone) -> Tensor:
    if logits is None:
        raise UserError(f"{backbone.protocol.get('backbone')} has no class logits: leave 'is' out of --metrics")
    return logits.float().softmax(1)


def _to_cpu(values: Tensor) -> Tensor:
    """A float32 copy on the CPU, which a GPU fills in later; a copy, since a view would keep a whole activation."""
    return values.to("cpu", torch.float32, non_blocking=True, copy=True)


def _prepared(
    batches: Iterable[tuple[Tensor, Tensor]], accumulator: Accumulator
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Batches prepared by ``accumulator``; those of a generator are closed at the end."""
    iterator = iter(batches)
    try:
        for images, labels in iterator:
            yield from accumulator.prepared(images, labels)
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


def _ahead(items: Generator[T, None, None], count: int, device: torch.device) -> Generator[T, None, None]:
    """Prefetch: a thread computes the next ``count`` of ``items``; it is joined when this iterator is closed."""
    with closing(items):  # after the thread, if there is one
        if count == 0:
            yield from items
            return

        end = object()

        def step() -> Any:
            with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                return next(items, end)  # gradient mode and device belong to a thread

        # Compute the next items in a thread, in order.
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

    Args:
        parts: of each process, by rank.
        batch_size: images of a batch.
    """
    # Pool means, and scatters about the mean of all.
    count = sum(part.count for part in parts)
    mean = np.asarray(sum(part.count * part.mean for part in parts) / count)
    scatter: Any = 0
    for part in parts:
        shift = part.mean - mean
        scatter = scatter + ((part.count - 1) * part.cov + part.count * np.outer(shift, shift))

    # Put features, probabilities and labels back into order.
    return FeatureStats(
        count=count,
        mean=mean,
        cov=np.asarray(scatter / (count - 1)),
        features=_in_turn([part.features for part in parts], batch_size),
        probabilities=_in_turn([part.probabilities for part in parts], batch_size),
        labels=np.asarray(_in_turn([part.labels for part in parts], batch_size)),
    )


def _in_turn(arrays: Sequence[Array | None], batch_size: int) -> Array | None:
    """Arrays of batches that were dealt out to processes, as one array; None if they were not kept."""
    dealt = []
    for array in arrays:
        if array is not None:
            dealt.append([array[start : start + batch_size] for start in range(0, len(array), batch_size)])
    if not dealt:
        return None

    batches: list[Array] = []
    for turn in zip_longest(*dealt):
        batches += [batch for batch in turn if batch is not None]
    return np.concatenate(batches)
