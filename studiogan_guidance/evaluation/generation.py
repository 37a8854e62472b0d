"""One pass over generated images: their labels, the statistics of their features, and what they cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.features.images import Real
from studiogan_guidance.features.stats import FeatureStats, merge
from studiogan_guidance.latents import LabelPlan, LatentView
from studiogan_guidance.samplers import Sampler, Samples, restat


@dataclass(frozen=True)
class Pass:
    """The result of a pass over generated images.

    Attributes:
        stats: statistics of their features.
        cost: passes through each network in all, and ``proposed`` and ``accepted`` of samplers that choose.
        notes: what the sampler said about each image, a number an image.
        seconds: time of sampling, without set-up and without the feature network.
    """

    stats: FeatureStats
    cost: Counter[str]
    notes: dict[str, list[float]]
    seconds: float

    @staticmethod
    def merge(parts: Sequence[Pass], batch_size: int) -> Pass:
        """The pass of all processes from those of each, in the order of their ranks; the slowest gives the time."""
        cost = sum((part.cost for part in parts), Counter[str]())
        notes: dict[str, list[float]] = {}
        for part in parts:
            for name, values in part.notes.items():
                notes.setdefault(name, []).extend(values)

        stats = [part.stats for part in parts]
        whole = merge(stats, batch_size) if len(parts) > 1 else stats[0]
        return Pass(whole, cost, notes, max(part.seconds for part in parts))

    def cost_per_image(self) -> dict[str, float]:
        """Passes through each network for an image, the share of accepted proposals, and the seconds in all."""
        cost = {name: count / self.stats.count for name, count in sorted(self.cost.items())}
        if self.cost["proposed"]:
            cost["acceptance"] = self.cost["accepted"] / self.cost["proposed"]
        cost["sampling_seconds"] = round(self.seconds, 3)
        return cost

    def mean_notes(self) -> dict[str, float]:
        """The mean of each note over the images."""
        return {name: float(np.mean(values)) for name, values in sorted(self.notes.items())}


class Meter:
    """Passes the images and labels of ``samples`` on, and keeps what they cost, their notes and the time they took.

    Args:
        samples: batches of one sampler.
        view: the view that they are sampled with, whose ledger knows the time of set-up.
    """

    def __init__(self, samples: Iterator[Samples], view: LatentView) -> None:
        self.samples = samples
        self.view = view
        self.cost: Counter[str] = Counter()
        self.notes: dict[str, list[float]] = {}
        self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while (batch := self._timed_next()) is not None:
            self.cost.update(batch.cost)
            for name, values in batch.notes.items():
                self.notes.setdefault(name, []).extend(values.double().tolist())
            yield batch.images, batch.labels

    def _timed_next(self) -> Samples | None:
        ledger = self.view.ledger
        setup_before = ledger.setup_seconds
        started = time.perf_counter()
        batch = next(self.samples, None)
        spent = time.perf_counter() - started  # on a GPU much of it waits for the kernels of the feature network
        self.seconds += spent - (ledger.setup_seconds - setup_before)
        return batch


def label_plan(cfg: RunConfig, num_classes: int, real: Real | None = None) -> LabelPlan:
    """Where labels come from: chosen classes, all classes alike, or the frequencies of the real images.

    Raises:
        UserError: a class out of range, or labels as in the data without data.
    """
    # Chosen classes, or all of them alike.
    for label in cfg.classes:
        if not 0 <= label < num_classes:
            raise UserError(f"class {label} is out of range: this generator has classes 0 to {num_classes - 1}")
    if cfg.classes or cfg.labels == "uniform":
        return LabelPlan(tuple(cfg.classes))

    # The frequencies of the real images.
    if real is None:
        raise UserError("labels: data needs real images: add --data DIR, or use labels: uniform")
    counts = Counter(real.labels())
    if max(counts) >= num_classes:
        raise UserError(f"the data has {len(counts)} classes, this generator {num_classes}: use labels: uniform")
    return LabelPlan(weights=tuple(counts[label] / counts.total() for label in range(num_classes)))


def norm_statistics(cfg: RunConfig, view: LatentView, sampler: Sampler) -> restat.Statistics:
    """The batch-norm statistics that a run asks for; empty for those of the checkpoint.

    They belong to the images of this sampler. So the view forgets what it computed under other statistics, and keeps
    nothing on disk.
    """
    if not cfg.restat:
        return {}
    view.on_disk = False
    view.forget()
    return restat.accumulate(view, sampler, cfg.restat)
