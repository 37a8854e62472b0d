"""One evaluation: sample, measure, write down. ``sample`` stops after the stream; ``eval`` goes all the way."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studiogan_guidance import samplers
from studiogan_guidance.common import Halving, UserError, progress, replacing
from studiogan_guidance.config import RunConfig
from studiogan_guidance.evaluation import distributed, reference, report
from studiogan_guidance.evaluation.backbones import open_backbone
from studiogan_guidance.evaluation.features import (
    Backbone,
    BuiltinImages,
    FeatureStats,
    accumulate,
    merge,
    to_uint8,
)
from studiogan_guidance.evaluation.fid import frechet_distance, frechet_distance_of, frechet_infinity
from studiogan_guidance.evaluation.inception_score import inception_score
from studiogan_guidance.evaluation.kid import kid
from studiogan_guidance.evaluation.prdc import prdc
from studiogan_guidance.evaluation.reference import Reference
from studiogan_guidance.latents import LabelPlan, LatentView, Networks, view_for
from studiogan_guidance.latents.base import Beside
from studiogan_guidance.samplers import SAMPLERS, Sampler, Samples, restat

Array = NDArray[Any]
T = TypeVar("T")


class Real(Protocol):
    """Real images of one split."""

    fingerprint: dict[str, Any]

    def __len__(self) -> int: ...
    def labels(self) -> list[int]: ...
    def batches(
        self, batch_size: int, first: int = 0, step: int = 1, only: Sequence[int] | None = None
    ) -> Iterable[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Bench:
    """What a generator is measured with."""

    real: Real
    backbone: Backbone
    protocol: dict[str, Any]


def device_of(name: str) -> torch.device:
    """auto, cpu, cuda (under torchrun: this process's) or cuda:N as a device that exists here; UserError otherwise."""
    own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    name = {"auto": own if torch.cuda.is_available() else "cpu", "cuda": own}.get(name, name)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device is '{name}': give auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is '{name}': give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device is '{name}', but {torch.cuda.device_count()} CUDA devices are visible: use --device cpu"
        )
    return device


def open_networks(cfg: RunConfig) -> Networks:
    """The generator of a configuration: the host's checkpoint or the built-in."""
    device = device_of(cfg.device)
    if not cfg.uses_host:
        from studiogan_guidance import builtin

        return builtin.networks(device)
    from studiogan_guidance.host import networks
    from studiogan_guidance.host.locate import locate

    loaded = networks.load(cfg, locate(cfg.studiogan), device)
    real = functools.cache(lambda: _held_out(cfg, loaded))
    beside = Beside(
        discriminator=lambda: open_discriminator(cfg),
        held_out=lambda count: spread_images(real(), count),
        held_out_name=lambda: told(real()),
        snapshot=lambda path: networks.snapshot(loaded.generator, path, cfg),
    )
    return dataclasses.replace(loaded, beside=beside)


def held_out_split(cfg: RunConfig) -> str:
    """The split of a checkpoint's data that its discriminator was not trained on: valid, or test for CIFAR."""
    return "test" if validation_split(cfg) == "train" else "valid"


def _held_out(cfg: RunConfig, networks: Networks) -> Real:
    if not (cfg.held_out or cfg.data):
        raise UserError(
            "this sampler calibrates the discriminator on held-out real images: add --held-out DIR (or --data DIR), or "
            "say -o calibration=none"
        )
    return open_real(dataclasses.replace(cfg, data=cfg.held_out or cfg.data, reference=held_out_split(cfg)), networks)


def spread_images(real: Real, count: int) -> tuple[Tensor, Tensor]:
    """Up to ``count`` real images, evenly spread over the split, [N, 3, H, W] in [-1, 1], and their labels [N]."""
    count = min(count, len(real))
    parts = list(real.batches(64, only=[i * len(real) // count for i in range(count)]))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def told(real: Real) -> str:
    """The split of real images and a hash of all that is known about them."""
    digest = hashlib.sha256(json.dumps(real.fingerprint, sort_keys=True).encode()).hexdigest()
    return f"{real.fingerprint['reference']} split {digest[:16]}"


def open_discriminator(cfg: RunConfig) -> torch.nn.Module:
    """The discriminator beside the generator of a configuration."""
    device = device_of(cfg.device)
    if not cfg.uses_host:
        from studiogan_guidance import builtin

        return builtin.load(builtin.network.Discriminator, "discriminator", device)[0]
    from studiogan_guidance.host import networks
    from studiogan_guidance.host.locate import locate

    return networks.load_discriminator(cfg, locate(cfg.studiogan), device)


def open_real(cfg: RunConfig, networks: Networks) -> Real:
    """The real images of a configuration."""
    if not cfg.uses_host:
        return BuiltinImages(cfg.reference or "test")
    from studiogan_guidance.host.locate import locate
    from studiogan_guidance.host.metrics import RealImages
    from studiogan_guidance.host.networks import host_yaml

    checkout = locate(cfg.studiogan)
    return RealImages(cfg, checkout, _data_name(host_yaml(cfg, checkout)), networks.image_size)


def validation_split(cfg: RunConfig) -> str:
    """The split to choose options on: valid, or train for CIFAR, which has no other than train and test."""
    if not cfg.uses_host:
        return "valid"
    from studiogan_guidance.host.locate import locate
    from studiogan_guidance.host.networks import host_yaml

    return "train" if _data_name(host_yaml(cfg, locate(cfg.studiogan))).startswith("CIFAR") else "valid"


def _model_digest(cfg: RunConfig) -> str:
    """A hash of the sections of the host's YAML that a generator is built from."""
    if not cfg.uses_host:
        return ""
    from studiogan_guidance.host.locate import locate
    from studiogan_guidance.host.networks import host_yaml

    sections = host_yaml(cfg, locate(cfg.studiogan))
    built = {key: sections.get(key) for key in ("DATA", "MODEL", "STYLEGAN")}
    return hashlib.sha256(json.dumps(built, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _data_name(sections: Mapping[str, Any]) -> str:
    return str((sections.get("DATA") or {}).get("name", "CIFAR10"))


def open_bench(cfg: RunConfig, networks: Networks) -> Bench:
    """The real images and the feature network of a configuration."""
    real, backbone = open_real(cfg, networks), open_backbone(cfg, networks.device)
    if not cfg.uses_host:
        return Bench(real, backbone, {})
    from studiogan_guidance.host.locate import locate

    return Bench(real, backbone, {"host_commit": locate(cfg.studiogan).commit or "unknown"})


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


def sample(cfg: RunConfig, scales: Sequence[float] = (), png: bool = False) -> dict[str, Any]:
    """Write DIR/grid.png and DIR/samples.npz: images uint8 [N, H, W, 3], labels int64 [N], seeds int64 [N].

    Args:
        cfg: the run; ``num`` defaults to 64.
        scales: guidance scales to sample the same seeds at: a column of the grid for each, and in the npz one block of
            N images after the other with ``scales`` float64 [N * len(scales)] beside them.
        png: also write every image as DIR/images/<seed>-<class>[-<scale>].png.

    Returns:
        The files written, the sampler with its options, and the number of images.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("sample runs in one process, found WORLD_SIZE > 1: start it without torchrun")
    variants = [{**cfg.options, "scale": scale} for scale in scales] or [dict(cfg.options)]
    chosen = [samplers.create(cfg.sampler, options) for options in variants]
    view = view_for(open_networks(cfg))
    for sampler in chosen:
        sampler.check(view)
    plan = label_plan(cfg, view.num_classes, open_real(cfg, view.networks) if cfg.labels == "data" else None)
    folder = report.writable(Path(cfg.out))
    num = cfg.num or 64
    parts: list[tuple[Array, Array, Array]] = []
    for sampler in chosen:
        with restat.applied(statistics(cfg, view, sampler)):
            stream = sampler.stream(view, range(cfg.seed, cfg.seed + num), cfg.batch_size, plan, cfg.noise_mode)
            for batch in progress(stream, cfg.sampler, total=math.ceil(num / cfg.batch_size)):
                pixels = to_uint8(batch.images).permute(0, 2, 3, 1).cpu().numpy()
                parts.append((pixels, batch.labels.cpu().numpy(), batch.seeds.numpy()))
    images, labels, seeds = (np.concatenate(arrays) for arrays in zip(*parts))
    columns = len(scales) or min(num, 8)
    sheet = (
        images.reshape(len(chosen), num, *images.shape[1:]).swapaxes(0, 1).reshape(images.shape) if scales else images
    )
    column: dict[str, Any] = {"scales": np.repeat(np.asarray(scales, np.float64), num)} if scales else {}
    with replacing(folder / "samples.npz") as beside:
        np.savez(beside, images=images, labels=labels, seeds=seeds, **column)
        report.save_png(folder / "grid.png", report.grid(sheet, columns))
    if png:
        for i, image in enumerate(images):
            tail = f"-{column['scales'][i]:g}" if scales else ""
            report.save_png(folder / "images" / f"{seeds[i]:06d}-{labels[i]:03d}{tail}.png", image)
    options = samplers.options(chosen[0]) | ({"scale": list(scales)} if scales else {})
    written = {"grid": str(folder / "grid.png"), "samples": str(folder / "samples.npz")}
    return {**written, "sampler": SAMPLERS[cfg.sampler].name, "options": options, "images": len(images)}


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
        networks: the generator of ``cfg``, if it is open already.
    """

    def __init__(
        self,
        cfg: RunConfig,
        group: distributed.Group,
        wanted: Sequence[tuple[str, Mapping[str, Any]]],
        networks: Networks | None = None,
    ) -> None:
        self.cfg, self.group = cfg, group
        created = [(SAMPLERS[name].name, samplers.create(name, options)) for name, options in wanted]
        self.networks = networks or open_networks(cfg)
        self.view = view_for(self.networks)
        self.chosen = [(name, self.checked(sampler)) for name, sampler in created]
        self.bench = open_bench(cfg, self.networks)
        self.plan = label_plan(cfg, self.networks.num_classes, self.bench.real)
        self.num = cfg.num or _default_count(self.bench.real)
        _enough(cfg, self.num, len(self.bench.real), group.size)
        if "is" in cfg.metrics and not cfg.compile:  # what cannot work fails before the pass over the real images
            image = torch.zeros(1, 3, self.networks.image_size, self.networks.image_size)
            with torch.no_grad():
                if self.bench.backbone(self.bench.backbone.prepare(image))[1] is None:
                    name = self.bench.backbone.protocol["backbone"]
                    raise UserError(f"{name} has no class logits: leave 'is' out of --metrics")

    def checked(self, sampler: Sampler) -> Sampler:
        """``sampler``, if its options have a meaning on this generator; UserError otherwise."""
        sampler.check(self.view)
        return sampler

    @cached_property
    def real(self) -> Reference | None:
        """The statistics of the real images; None in processes above rank 0."""
        return _real_stats(self.cfg, self.bench, self.group)

    def protocol(self, seed: int) -> dict[str, Any]:
        """Everything that changes the values of a row, but for the generator and the sampler."""
        cfg, real = self.cfg, self.bench.real
        kept = _default_count(real)
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
            **self.bench.backbone.protocol,
            **self.bench.protocol,
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
                "model_sha256": _model_digest(self.cfg),
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
        real, before = self.real, self.view.setup.copy()
        started = time.perf_counter()
        fake, cost, notes = self._features(name, sampler, seed)
        if fake is None or real is None:
            return None  # rank 0 has them all
        values, per_class = self._values(real, fake)
        processes = f", {self.group.size} processes" if self.group.size > 1 else ""
        return report.row(
            **self.facts(name, sampler, seed),
            metrics=values,
            cost=cost,
            setup=dict(self.view.setup - before),
            notes=notes,
            seconds=time.perf_counter() - started,
            device=f"{self.networks.device}{processes}",
        ) | ({"per_class": per_class} if per_class else {})

    @cached_property
    def _warm(self) -> None:
        view, cost = self.view, self.view.cost.copy()
        if view.device.type == "cuda":
            with view.frozen(), torch.no_grad():
                inputs = view.draw(range(min(self.cfg.batch_size, self.num)), 0, LabelPlan(), self.cfg.noise_mode)
                view.decode(view.encode(inputs.z, inputs.labels), inputs.z, inputs.noise)
        view.cost.clear()
        view.cost.update(cost)

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
                started, clock = time.perf_counter(), view.clock["setup"]
                batch: Samples | None = next(samples, None)
                spent = time.perf_counter() - started  # (on a GPU much of it waits for the network's kernels)
                sampling += spent - (view.clock["setup"] - clock)
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
                fake = accumulate(
                    steps, self.bench.backbone, features=_neighbours(cfg), probabilities=_classified(self)
                )
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
        if fake.probabilities is not None and self.bench.backbone.classifies:
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


def _neighbours(cfg: RunConfig) -> bool:
    return bool({"prdc", "kid", "fid_infinity", "per_class"} & set(cfg.metrics))  # they need the features themselves


def _classified(evaluation: Evaluation) -> bool:
    return "is" in evaluation.cfg.metrics or evaluation.bench.backbone.classifies


def statistics(cfg: RunConfig, view: LatentView, sampler: Sampler) -> restat.Statistics:
    """The batch-norm statistics that a run asks for; empty for those of the checkpoint.

    They are the sampler's own, so what was computed once under other statistics is forgotten, and not kept on disk.
    """
    if not cfg.restat:
        return {}
    view.on_disk = False
    view.forget()
    return restat.accumulate(view, sampler, cfg.restat)


def _default_count(real: Real) -> int:
    big = str(real.fingerprint["data"]).endswith("ImageNet") and not str(real.fingerprint["data"]).startswith("Tiny")
    return 50_000 if big and real.fingerprint["reference"] == "train" else len(real)  # as in the host's evaluation


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


def _real_stats(cfg: RunConfig, bench: Bench, group: distributed.Group) -> Reference | None:
    real, only = bench.real, None
    if _neighbours(cfg) and len(real) > _default_count(real):  # as many as the host takes, always the same ones
        only = np.random.default_rng(0).choice(len(real), _default_count(real), replace=False).tolist()
    kept = (len(only) if only else len(real)) if _neighbours(cfg) else 0
    key = {**real.fingerprint, **bench.backbone.protocol, **bench.protocol, "features": kept}

    def pass_over(features: bool, only: list[int] | None) -> FeatureStats | None:
        images = real.batches(cfg.batch_size, group.rank, group.size, only)
        total = math.ceil((len(only) if only else len(real)) / cfg.batch_size / group.size)
        steps = progress(images, "real images", total=total)
        parts = group.gather(accumulate(steps, bench.backbone, features=features, probabilities=False))
        return merge(parts, cfg.batch_size) if len(parts) > 1 else parts[0] if parts else None

    def compute() -> FeatureStats | None:
        whole = pass_over(kept > 0 and not only, None)
        some = pass_over(True, only) if only else None
        return dataclasses.replace(whole, features=some.features, labels=some.labels) if whole and some else whole

    with reference.locked(key) if group.rank == 0 else nullcontext():
        cached = reference.find(key) if group.rank == 0 else None
        if group.agree(cached is not None):
            return Reference(key, cached) if cached else None
        if group.rank:
            compute()
            return None
        return Reference(key, reference.save(key, lambda: cast(FeatureStats, compute())))
