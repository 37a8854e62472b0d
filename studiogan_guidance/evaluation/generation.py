"""One pass over generated images: size of a batch, the statistics of their features, and what they cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from studiogan_guidance.batches import Halving
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.features.stats import Backbone, FeatureStats, merge
from studiogan_guidance.latents import LabelPlan, LatentView
from studiogan_guidance.samplers import Sampler, Samples, restat

CPU_BATCH = 64  # images of a batch where the run does not say
GPU_BATCH = 256  # the most on a GPU, where larger ones gain no time
PILOT = 16  # images that tell what an image takes of a GPU's memory
SHARE = 0.5  # of the free memory that a batch may take by this measure


@dataclass(frozen=True)
class Pass:
    """The result of a pass over generated images.

    Attributes:
        stats: statistics of their features.
        cost: passes through each network in all, and ``proposed`` and ``accepted`` of samplers that choose.
        notes: what the sampler said about each image, a number an image.
        seconds: time of sampling, without set-up and without the feature network.
        judged: statistics by other networks, by metric.
    """

    stats: FeatureStats
    cost: Counter[str]
    notes: dict[str, list[float]]
    seconds: float
    judged: Mapping[str, FeatureStats] = field(default_factory=dict)

    @staticmethod
    def merge(parts: Sequence[Pass], batch_size: int) -> Pass:
        """The pass of all processes from those of each, in the order of their ranks; the slowest gives the time."""
        cost = sum((part.cost for part in parts), Counter[str]())
        notes: dict[str, list[float]] = {}
        for part in parts:
            for name, values in part.notes.items():
                notes.setdefault(name, []).extend(values)

        def merged(stats: Sequence[FeatureStats]) -> FeatureStats:
            return merge(stats, batch_size) if len(parts) > 1 else stats[0]

        whole = merged([part.stats for part in parts])
        judged = {name: merged([part.judged[name] for part in parts]) for name in parts[0].judged}
        return Pass(whole, cost, notes, max(part.seconds for part in parts), judged)

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
        self._notes: dict[str, list[Tensor]] = {}
        self._clock = Stopwatch(view.device)
        self._setup_seconds = 0.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while (batch := self._timed_next()) is not None:
            self.cost.update(batch.cost)
            for name, values in batch.notes.items():
                self._notes.setdefault(name, []).append(values)
            yield batch.images, batch.labels

    def _timed_next(self) -> Samples | None:
        ledger = self.view.ledger
        setup_before = ledger.setup_seconds
        with self._clock.running():
            batch = next(self.samples, None)
        self._setup_seconds += ledger.setup_seconds - setup_before
        return batch

    def notes(self) -> dict[str, list[float]]:
        """What the sampler said about each image, a number an image."""
        return {name: torch.cat(values).double().tolist() for name, values in self._notes.items()}

    def seconds(self) -> float:
        """Time of sampling, without set-up."""
        return self._clock.seconds() - self._setup_seconds


class Stopwatch:
    """Total seconds inside its with-blocks; on a GPU they are read from its own clock, so that nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu_seconds = 0.0
        self._laps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """A block that counts."""
        if self._device.type != "cuda":
            started = time.perf_counter()
            yield
            self._cpu_seconds += time.perf_counter() - started
            return

        stream = torch.cuda.current_stream(self._device)
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record(stream)
        yield
        end.record(stream)
        self._laps.append((begin, end))

    def seconds(self) -> float:
        """The time so far; it waits for what the GPU has still to do."""
        total = self._cpu_seconds
        for begin, end in self._laps:
            end.synchronize()
            total += begin.elapsed_time(end) / 1000
        return total


def batch_size(cfg: RunConfig, view: LatentView, backbones: Sequence[Backbone]) -> int:
    """Images of a batch: ``cfg.batch_size``, or 64 on a CPU and up to 256 on a GPU, as many as its memory takes.

    A few images go through generator and feature networks to see what an image takes; this warms a GPU up, too.
    """
    device = view.device
    if device.type != "cuda":
        return cfg.batch_size or CPU_BATCH
    images = _pilot(cfg, view, backbones)
    if cfg.batch_size:
        return cfg.batch_size

    # Once more, as the first pass also loads libraries.
    torch.cuda.reset_peak_memory_stats(device)
    level = torch.cuda.memory_allocated(device)
    images = _pilot(cfg, view, backbones)
    taken = (torch.cuda.max_memory_allocated(device) - level) / max(1, images)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return fitting(free, taken)


def fitting(free: float, taken: float) -> int:
    """The largest of 256, 128, ..., 1 images of ``taken`` bytes each that fit into half of ``free`` bytes."""
    size = GPU_BATCH
    while size > 1 and size * taken > SHARE * free:
        size //= 2
    return size


def _pilot(cfg: RunConfig, view: LatentView, backbones: Sequence[Backbone]) -> int:
    """Pass ``PILOT`` plain images through all networks, fewer where memory runs out; returns their number."""

    def run(seeds: range) -> int:
        images = view.images(view.draw(seeds, 0, LabelPlan(), cfg.noise_mode))
        if not cfg.compile:  # a compiled network is started with its first batch
            for backbone in backbones:
                backbone(backbone.prepare(images))
        return len(images)

    with view.frozen(), view.ledger.pausing(), torch.no_grad():
        counts = list(Halving()(run, range(PILOT)))
    return max(counts)


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


def check_counts(cfg: RunConfig, num: int, num_real: int | None, batch_size: int, processes: int) -> None:
    """Refuse too few images for the metrics (FID-infinity asks for more by itself) or for the processes."""
    # For the metrics.
    fewest = max(2, cfg.splits)
    if "prdc" in cfg.metrics:
        fewest = max(fewest, cfg.k + 2)
    if min(num, num if num_real is None else num_real) < fewest:
        raise UserError(
            f"{', '.join(cfg.metrics)} with k = {cfg.k} need at least {fewest} images, found {num} generated and "
            f"{'unknown' if num_real is None else num_real} real: raise --num, or give more data"
        )

    # For the processes: each needs a batch of its own.
    for count in (num, num if cfg.reference_stats or num_real is None else num_real):
        whole, rest = divmod(count, batch_size)
        if processes > 1 and whole + (rest > 1) < processes:
            raise UserError(
                f"{count} images in batches of {batch_size} are too few for {processes} processes: start fewer, or "
                "lower --batch-size"
            )
