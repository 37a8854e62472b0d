"""One evaluation: sample, measure, write down. ``sample`` stops after the stream; ``eval`` goes all the way."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studiogan_guidance import samplers
from studiogan_guidance.batches import Halving, progress
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import distributed, results
from studiogan_guidance.evaluation.fid import frechet_distance, frechet_distance_of, frechet_infinity
from studiogan_guidance.evaluation.inception_score import inception_score
from studiogan_guidance.evaluation.kid import kid
from studiogan_guidance.evaluation.prdc import prdc
from studiogan_guidance.evaluation.reference import Reference, _neighbours, _real_stats
from studiogan_guidance.evaluation.source import Source, device_of, open_backbone, open_source
from studiogan_guidance.features.images import Real
from studiogan_guidance.features.stats import FeatureStats, accumulate, merge
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers import SAMPLERS, Sampler, Samples, restat

Array = NDArray[Any]
T = TypeVar("T")


def label_plan(cfg: RunConfig, num_classes: int, real: Real | None = None) -> LabelPlan:
    """Where labels come from; UserError for a class out of range, or data labels without data."""
    for label in cfg.classes:
        if not 0 <= label < num_classes:
            raise UserError(f"class {label} is out of range: this generator has classes 0 to {num_classes - 1}")
    if cfg.classes or cfg.labels == "uniform":
        return LabelPlan(tuple(cfg.classes))
    if real is None:
        raise UserError("labels: data needs real images: add --data DIR, or use labels: uniform")
    counts = Counter(real.labels())
    if max(counts) >= num_classes:
        raise UserError(f"the data has {len(counts)} classes, this generator {num_classes}: use labels: uniform")
    return LabelPlan(weights=tuple(counts[c] / counts.total() for c in range(num_classes)))


def evaluate(cfg: RunConfig) -> list[dict[str, Any]]:
    """Measure the configured sampler and, unless told otherwise, plain sampling on the same seeds and labels.

    Under torchrun the processes take the batches in turn, so that values agree with those of one process to rounding.

    Returns one row a sampler: sampler, options, metrics, protocol, cost (per image), set-up (in all), notes (means over
    the images), seconds, and where they came from; in processes above rank 0, nothing.
    """
    with distributed.group() as group:
        wanted = [(cfg.sampler, dict(cfg.options))]
        if cfg.compare_plain and cfg.sampler != "plain":
            wanted.insert(0, ("plain", {}))
        evaluation = Evaluation(cfg, group, wanted)
        rows = [evaluation.measure(name, sampler) for name, sampler in evaluation.chosen]
        return [row for row in rows if row]


class Evaluation:
    """A generator and what it is measured with, opened once for any number of samplers.

    Args:
        cfg: the run.
        group: the processes that share it.
        wanted: names and options of samplers to make and check before anything slow is opened; they are in ``chosen``.
        source: what ``cfg`` points at, if it is open already.
    """

    def __init__(
        self,
        cfg: RunConfig,
        group: distributed.Group,
        wanted: Sequence[tuple[str, Mapping[str, Any]]],
        source: Source | None = None,
    ) -> None:
        self.cfg, self.group = cfg, group
        created = [(SAMPLERS[name].name, samplers.create(name, options)) for name, options in wanted]
        self.source = source or open_source(cfg)
        self.networks = self.source.networks(device_of(cfg.device))
        self.view = view_for(self.networks)
        self.chosen = [(name, self.checked(sampler)) for name, sampler in created]
        self.real_images = self.source.real(cfg.reference or self.source.default_split, self.networks.image_size)
        self.backbone = open_backbone(cfg, self.source, self.networks.device)
        self.plan = label_plan(cfg, self.networks.num_classes, self.real_images)
        self.num = cfg.num or self.real_images.default_count
        _enough(cfg, self.num, len(self.real_images), group.size)
        if "is" in cfg.metrics and not cfg.compile:  # what cannot work fails before the pass over the real images
            image = torch.zeros(1, 3, self.networks.image_size, self.networks.image_size)
            with torch.no_grad():
                if self.backbone(self.backbone.prepare(image))[1] is None:
                    name = self.backbone.protocol["backbone"]
                    raise UserError(f"{name} has no class logits: leave 'is' out of --metrics")

    def checked(self, sampler: Sampler) -> Sampler:
        """``sampler``, if its options have a meaning on this generator; UserError otherwise."""
        sampler.check(self.view)
        return sampler

    @cached_property
    def real(self) -> Reference | None:
        """The statistics of the real images; None in processes above rank 0."""
        return _real_stats(self.cfg, self.real_images, self.backbone, self.source.protocol, self.group)

    def protocol(self, seed: int) -> dict[str, Any]:
        """Everything that changes the values of a row, but for the generator and the sampler."""
        cfg, real = self.cfg, self.real_images
        kept = real.default_count
        whole = kept >= len(real) or not _neighbours(cfg)
        return {
            "num": self.num,
            "num_real": len(real),
            **({} if whole else {"num_real_features": kept}),
            "seed": seed,
            "labels": list(cfg.classes) or cfg.labels,
            "noise_mode": cfg.noise_mode,
            "statistics": f"restat {cfg.restat}x{restat.BATCH_SIZE}" if cfg.restat else "checkpoint",
            "k": cfg.k,
            "splits": cfg.splits,
            **real.fingerprint,
            **self.backbone.protocol,
            **self.source.protocol,
        }

    def facts(self, name: str, sampler: Sampler, seed: int) -> dict[str, Any]:
        """The part of a row that is known before anything is measured."""
        net = self.networks
        return {
            "sampler": SAMPLERS[name].name,
            "options": samplers.options(sampler),
            "protocol": self.protocol(seed),
            "generator": {
                "backbone": net.backbone,
                "source": net.source,
                "sha256": net.digest,
                "model_sha256": self.source.model_digest,
                **sampler.files(self.view),
            },
            "config": self.cfg.to_dict(),
        }

    def measure(self, name: str, sampler: Sampler, seed: int | None = None) -> dict[str, Any] | None:
        """The row of one sampler, from ``seed`` on (by default the configuration's); None above rank 0.

        A sampler that is refused while it samples is refused, by the same UserError, in all processes.
        """
        seed = self.cfg.seed if seed is None else seed
        self._warm  # noqa: B018  what a device does at its first pass is not plain sampling's time
        real, before = self.real, self.view.ledger.setup.copy()
        started = time.perf_counter()
        fake, cost, notes = self._features(name, sampler, seed)
        if fake is None or real is None:
            return None  # rank 0 has them all
        values, per_class = self._values(real, fake)
        processes = f", {self.group.size} processes" if self.group.size > 1 else ""
        return results.row(
            **self.facts(name, sampler, seed),
            metrics=values,
            cost=cost,
            setup=dict(self.view.ledger.setup - before),
            notes=notes,
            seconds=time.perf_counter() - started,
            device=f"{self.networks.device}{processes}",
        ) | ({"per_class": per_class} if per_class else {})

    @cached_property
    def _warm(self) -> None:
        view, cost = self.view, self.view.ledger.cost.copy()
        if view.device.type == "cuda":
            with view.frozen(), torch.no_grad():
                inputs = view.draw(range(min(self.cfg.batch_size, self.num)), 0, LabelPlan(), self.cfg.noise_mode)
                view.images(inputs)
        view.ledger.cost.clear()
        view.ledger.cost.update(cost)

    def _features(
        self, name: str, sampler: Sampler, seed: int
    ) -> tuple[FeatureStats | None, dict[str, float], dict[str, float]]:
        cfg, view, group, size = self.cfg, self.view, self.group, self.cfg.batch_size
        cost: Counter[str] = Counter()
        notes: dict[str, list[float]] = {}
        sampling = 0.0

        def batch_of(seeds: range) -> Samples:
            (batch,) = sampler.stream(view, seeds, len(seeds), self.plan, cfg.noise_mode, seeds[0] - seed)
            return batch

        def stream() -> Iterator[Samples]:
            halving = Halving()
            for first in range(group.rank * size, self.num, group.size * size):
                yield from halving(batch_of, range(seed + first, seed + min(first + size, self.num)))

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal sampling
            samples = stream()
            while True:
                started, clock = time.perf_counter(), view.ledger.setup_seconds
                batch: Samples | None = next(samples, None)
                spent = time.perf_counter() - started  # (on a GPU much of it waits for the network's kernels)
                sampling += spent - (view.ledger.setup_seconds - clock)
                if batch is None:
                    return
                cost.update(batch.cost)
                for key, note in batch.notes.items():
                    notes.setdefault(key, []).extend(note.double().tolist())
                yield batch.images, batch.labels

        fake, refused = None, None
        try:
            with restat.applied(statistics(cfg, view, sampler)):
                steps = progress(batches(), name, total=math.ceil(self.num / size / group.size))
                fake = accumulate(steps, self.backbone, features=_neighbours(cfg), probabilities=_classified(self))
        except UserError as error:
            refused = error
        parts = group.gather((fake, cost, notes, sampling, refused))
        refused = group.agree(next((part[4] for part in parts if part[4]), None))
        if refused:
            raise refused
        if not parts:
            return None, {}, {}
        total = sum((part[1] for part in parts), Counter[str]())
        per_image = {key: count / self.num for key, count in sorted(total.items())}
        if total["proposed"]:
            per_image["acceptance"] = total["accepted"] / total["proposed"]
        per_image["sampling_seconds"] = round(max(part[3] for part in parts), 3)
        for part in parts[1:]:
            for key, values in part[2].items():
                notes.setdefault(key, []).extend(values)
        whole = merge([cast(FeatureStats, part[0]) for part in parts], size) if len(parts) > 1 else fake
        return whole, per_image, {key: float(np.mean(values)) for key, values in sorted(notes.items())}

    def _values(self, real: Reference, fake: FeatureStats) -> tuple[dict[str, float], dict[str, Any]]:
        cfg, stats, device = self.cfg, real.stats, str(self.networks.device)
        values: dict[str, float] = {}

        def neighbours(function: Callable[[str], T]) -> T:
            try:
                return function(device)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
            return function("cpu")  # the same values

        if "fid" in cfg.metrics:
            values["fid"] = frechet_distance(stats.mean, stats.cov, fake.mean, fake.cov, real.factor)
        if "is" in cfg.metrics and fake.probabilities is not None:
            values["is"] = inception_score(fake.probabilities, cfg.splits)
        if fake.probabilities is not None and self.backbone.classifies:
            values["accuracy"] = float((fake.probabilities.argmax(1) == fake.labels).mean())
        if stats.features is None or fake.features is None:
            return values, {}
        if "fid_infinity" in cfg.metrics:
            try:
                values["fid_infinity"] = frechet_infinity(fake.features, stats.mean, stats.cov, real.factor)
            except ValueError as error:
                raise UserError(f"{error}: raise --num, or leave fid_infinity out of --metrics") from error
        if "kid" in cfg.metrics:
            values["kid"] = kid(stats.features, fake.features)
        if "prdc" in cfg.metrics:
            x, y = stats.features, fake.features
            values.update(neighbours(lambda where: prdc(x, y, cfg.k, real.radii(cfg.k, where), where)))
        if "per_class" not in cfg.metrics:
            return values, {}
        per_class = neighbours(lambda where: within_classes(stats, fake, cfg.k, where))
        names = {name for found in per_class.values() for name in found} - {"num", "num_real"}
        means = {f"class_{name}": [found[name] for found in per_class.values() if name in found] for name in names}
        return values | {name: float(np.mean(means[name])) for name in sorted(means)}, per_class


def within_classes(real: FeatureStats, fake: FeatureStats, k: int, device: str = "cpu") -> dict[str, dict[str, float]]:
    """FID, precision, recall, density and coverage of each class by itself, under its label.

    Intra-class FID: Miyato and Koyama 2018, arXiv:1802.05637, section 4. What a class has too few images for, it lacks.
    """
    found: dict[str, dict[str, float]] = {}
    assert real.features is not None
    assert fake.features is not None
    for label in sorted(set(real.labels.tolist()) & set(fake.labels.tolist())):
        x, y = real.features[real.labels == label], fake.features[fake.labels == label]
        values: dict[str, float] = {"num": len(y), "num_real": len(x)}
        if min(len(x), len(y)) > 1:
            values["fid"] = frechet_distance_of(x, y)
        if min(len(x), len(y)) > k:
            values.update(prdc(x, y, k, device=device))
        found[str(label)] = values
    return found


def _classified(evaluation: Evaluation) -> bool:
    return "is" in evaluation.cfg.metrics or evaluation.backbone.classifies


def statistics(cfg: RunConfig, view: LatentView, sampler: Sampler) -> restat.Statistics:
    """The batch-norm statistics that a run asks for; empty for those of the checkpoint.

    They are the sampler's own, so what was computed once under other statistics is forgotten, and not kept on disk.
    """
    if not cfg.restat:
        return {}
    view.on_disk = False
    view.forget()
    return restat.accumulate(view, sampler, cfg.restat)


def _enough(cfg: RunConfig, num: int, num_real: int, processes: int) -> None:
    least = max(2, cfg.k + 2 if "prdc" in cfg.metrics else 2, cfg.splits)  # (fid_infinity asks for more by itself)
    if min(num, num_real) < least:
        raise UserError(
            f"{', '.join(cfg.metrics)} with k = {cfg.k} need at least {least} images, found {num} generated and "
            f"{num_real} real: raise --num, or give more data"
        )
    for count in (num, num_real):
        whole, rest = divmod(count, cfg.batch_size)
        if processes > 1 and whole + (rest > 1) < processes:
            raise UserError(
                f"{count} images in batches of {cfg.batch_size} are too few for {processes} processes: start fewer, or "
                "lower --batch-size"
            )
