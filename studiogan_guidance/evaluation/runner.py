"""One evaluation: sample, measure, write down. ``sample`` stops after the stream; ``eval`` goes all the way."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studiogan_guidance import samplers
from studiogan_guidance.common import UserError, progress, replacing
from studiogan_guidance.config import RunConfig
from studiogan_guidance.evaluation import distributed, reference, report
from studiogan_guidance.evaluation.features import (
    Backbone,
    BuiltinBackbone,
    BuiltinImages,
    FeatureStats,
    accumulate,
    merge,
    to_uint8,
)
from studiogan_guidance.evaluation.fid import frechet_distance
from studiogan_guidance.evaluation.inception_score import inception_score
from studiogan_guidance.evaluation.prdc import prdc
from studiogan_guidance.latents import LabelPlan, LatentView, Networks, view_for
from studiogan_guidance.samplers import Sampler, Samples, restat

Array = NDArray[Any]
HOST_PRDC_PAIRS = 10**8  # the host's prdc holds some 30 bytes a pair; beyond this ours gives the same values in blocks


class Metrics(Protocol):
    """The three functions that turn statistics into numbers, and whose they are."""

    name: str

    def frechet_distance(self, mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float: ...
    def prdc(self, real: Array, fake: Array, k: int) -> dict[str, float]: ...
    def inception_score(self, probabilities: Array, splits: int) -> float: ...


class Real(Protocol):
    """Real images of one split."""

    fingerprint: dict[str, Any]

    def __len__(self) -> int: ...
    def labels(self) -> list[int]: ...
    def batches(self, batch_size: int, first: int = 0, step: int = 1) -> Iterable[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Bench:
    """What a generator is measured with."""

    real: Real
    backbone: Backbone
    metrics: Metrics
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

    return networks.load(cfg, locate(cfg.studiogan), device)


def open_real(cfg: RunConfig, networks: Networks) -> Real:
    """The real images of a configuration."""
    if not cfg.uses_host:
        return BuiltinImages(cfg.reference or "test")
    from studiogan_guidance.host.locate import locate
    from studiogan_guidance.host.metrics import RealImages
    from studiogan_guidance.host.networks import host_yaml

    checkout = locate(cfg.studiogan)
    name = (host_yaml(cfg, checkout).get("DATA") or {}).get("name", "CIFAR10")
    return RealImages(cfg, checkout, name, networks.image_size)


def open_bench(cfg: RunConfig, networks: Networks) -> Bench:
    """The real images, backbone and metric functions of a configuration."""
    real = open_real(cfg, networks)
    if not cfg.uses_host:
        return Bench(real, BuiltinBackbone(networks.device), OwnMetrics(), {})
    from studiogan_guidance.host.locate import locate
    from studiogan_guidance.host.metrics import HostBackbone, HostMetrics

    checkout = locate(cfg.studiogan)
    commit = {"host_commit": checkout.commit or "unknown"}
    return Bench(real, HostBackbone(cfg, checkout, networks.device), HostMetrics(checkout), commit)


class OwnMetrics:
    """This package's pure functions."""

    name = "studiogan_guidance"
    frechet_distance = staticmethod(frechet_distance)
    prdc = staticmethod(prdc)
    inception_score = staticmethod(inception_score)


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
        with restat.applied(_statistics(cfg, view, sampler)):
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
    return {**written, "sampler": cfg.sampler, "options": options, "images": len(images)}


def evaluate(cfg: RunConfig) -> list[dict[str, Any]]:
    """Measure the configured sampler and, unless told otherwise, plain sampling on the same seeds and labels.

    Under torchrun the processes take the batches in turn, so that values agree with those of one process to rounding.

    Returns one row a sampler: sampler, options, metrics, protocol, cost (per image), seconds, and where they came from;
    in processes above rank 0, nothing.
    """
    with distributed.group() as group:
        return _evaluate(cfg, group)


def _evaluate(cfg: RunConfig, group: distributed.Group) -> list[dict[str, Any]]:
    chosen = [samplers.create(cfg.sampler, cfg.options)]
    names = [cfg.sampler]
    if cfg.compare_plain and cfg.sampler != "plain":
        chosen, names = [samplers.create("plain"), *chosen], ["plain", *names]
    networks = open_networks(cfg)
    view = view_for(networks)
    for sampler in chosen:
        sampler.check(view)
    bench = open_bench(cfg, networks)
    plan = label_plan(cfg, networks.num_classes, bench.real)
    num = cfg.num or _default_count(bench.real)
    _enough(cfg, num, len(bench.real), group.size)
    real = _real_stats(cfg, bench, group)
    protocol = {
        "num": num,
        "num_real": len(bench.real),
        "seed": cfg.seed,
        "labels": list(cfg.classes) or cfg.labels,
        "noise_mode": cfg.noise_mode,
        "statistics": f"restat {cfg.restat}x{restat.BATCH_SIZE}" if cfg.restat else "checkpoint",
        "k": cfg.k,
        "splits": cfg.splits,
        **bench.real.fingerprint,
        **bench.backbone.protocol,
        "metric_functions": bench.metrics.name,
        **bench.protocol,
    }
    rows = []
    for name, sampler in zip(names, chosen):
        started = time.perf_counter()
        fake, cost = _features(cfg, view, sampler, name, plan, num, bench, group)
        if fake is None or real is None:
            continue  # rank 0 has them all
        values = _values(cfg, bench, real, fake)
        rows.append(
            report.row(
                sampler=name,
                options=samplers.options(sampler),
                metrics=values,
                protocol=protocol,
                cost=cost,
                seconds=time.perf_counter() - started,
                generator={"backbone": networks.backbone, "source": networks.source, "sha256": networks.digest},
                config=cfg.to_dict(),
                device=f"{networks.device}" + (f", {group.size} processes" if group.size > 1 else ""),
            )
        )
    return rows


def _statistics(cfg: RunConfig, view: LatentView, sampler: Sampler) -> restat.Statistics:
    return restat.accumulate(view, sampler, cfg.restat) if cfg.restat else {}


def _default_count(real: Real) -> int:
    big = str(real.fingerprint["data"]).endswith("ImageNet") and not str(real.fingerprint["data"]).startswith("Tiny")
    return 50_000 if big and real.fingerprint["reference"] == "train" else len(real)  # as in the host's evaluation


def _enough(cfg: RunConfig, num: int, num_real: int, processes: int) -> None:
    least = max(2, cfg.k + 2 if "prdc" in cfg.metrics else 2, cfg.splits)
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


def _real_stats(cfg: RunConfig, bench: Bench, group: distributed.Group) -> FeatureStats | None:
    with_features = "prdc" in cfg.metrics
    key = {**bench.real.fingerprint, **bench.backbone.protocol, **bench.protocol, "features": with_features}
    batches = math.ceil(len(bench.real) / cfg.batch_size / group.size)

    def share() -> FeatureStats:
        images = bench.real.batches(cfg.batch_size, group.rank, group.size)
        steps = progress(images, "real images", total=batches)
        return accumulate(steps, bench.backbone, features=with_features, probabilities=False)

    def compute() -> FeatureStats:
        return merge(group.gather(share()), cfg.batch_size) if group.size > 1 else share()

    cached = reference.find(key) if group.rank == 0 else None
    if group.agree(cached is not None):
        return cached
    if group.rank == 0:
        return reference.load(key, compute)
    group.gather(share())
    return None


def _features(
    cfg: RunConfig,
    view: LatentView,
    sampler: Sampler,
    name: str,
    plan: LabelPlan,
    num: int,
    bench: Bench,
    group: distributed.Group,
) -> tuple[FeatureStats | None, dict[str, float]]:
    cost: Counter[str] = Counter()
    sampling = 0.0
    size = cfg.batch_size

    def stream() -> Iterator[Samples]:
        for first in range(group.rank * size, num, group.size * size):
            seeds = range(cfg.seed + first, cfg.seed + min(first + size, num))
            yield from sampler.stream(view, seeds, size, plan, cfg.noise_mode, first)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal sampling
        samples = stream()
        while True:
            started = time.perf_counter()
            batch: Samples | None = next(samples, None)
            if view.device.type == "cuda":
                torch.cuda.synchronize(view.device)
            sampling += time.perf_counter() - started
            if batch is None:
                return
            cost.update(batch.cost)
            yield batch.images, batch.labels

    with restat.applied(_statistics(cfg, view, sampler)):
        steps = progress(batches(), name, total=math.ceil(num / size / group.size))
        fake = accumulate(steps, bench.backbone, features="prdc" in cfg.metrics, probabilities="is" in cfg.metrics)
    parts = group.gather((fake, cost, sampling))
    if not parts:
        return None, {}
    total = sum((part[1] for part in parts), Counter[str]())
    per_image = {key: count / num for key, count in sorted(total.items())}
    whole = merge([part[0] for part in parts], size) if len(parts) > 1 else fake
    return whole, {**per_image, "sampling_seconds": round(max(part[2] for part in parts), 3)}


def _values(cfg: RunConfig, bench: Bench, real: FeatureStats, fake: FeatureStats) -> dict[str, float]:
    values: dict[str, float] = {}
    if "fid" in cfg.metrics:
        values["fid"] = bench.metrics.frechet_distance(real.mean, real.cov, fake.mean, fake.cov)
    if fake.probabilities is not None:
        values["is"] = bench.metrics.inception_score(fake.probabilities, cfg.splits)
        if bench.backbone.classifies:
            values["accuracy"] = float((fake.probabilities.argmax(1) == fake.labels).mean())
    if real.features is not None and fake.features is not None:
        small = len(real.features) * len(fake.features) <= HOST_PRDC_PAIRS
        values.update((bench.metrics.prdc if small else prdc)(real.features, fake.features, cfg.k))
    return values
