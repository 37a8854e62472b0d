"""The precision of fast mode: the fastest with the FID of the exact networks, measured on the networks of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from studiogan_guidance import fast, rng
from studiogan_guidance.errors import one_line, say
from studiogan_guidance.evaluation import fid
from studiogan_guidance.evaluation.reference import Reference
from studiogan_guidance.features.preparation import Accelerated
from studiogan_guidance.features.stats import Backbone, accumulate
from studiogan_guidance.features.torchscript import TorchScript
from studiogan_guidance.files import Arrays, cached
from studiogan_guidance.latents import LabelPlan, LatentView
from studiogan_guidance.latents.accelerated import accelerated
from studiogan_guidance.progress import track
from studiogan_guidance.samplers import Plain

VERSION = 2  # of the cached choices: raise it when fast mode or the measurement changes
LIMIT = 0.05  # the difference of FID must be below
IMAGES = 10_000  # at most
SEED = rng.PILOTS


@dataclass(frozen=True)
class Pipeline:
    """A generator and the feature network that its images go through."""

    view: LatentView
    backbone: Backbone

    def fast(self, precision: str, size: int) -> Pipeline:
        """Both under a precision, in batches of ``size``; a feature network in TorchScript runs as it was saved."""
        view = accelerated(self.view, precision, size)
        backbone = self.backbone if self.is_fixed else Accelerated(self.backbone, precision, size)
        return Pipeline(view, backbone)

    @property
    def is_fixed(self) -> bool:
        """Whether the feature network runs as it was saved."""
        return isinstance(self.backbone, TorchScript)

    def fid(self, real: Reference, num: int, size: int) -> float:
        """FID of ``num`` plain images of fixed seeds, in batches of ``size``."""
        samples = Plain().stream(self.view, range(SEED, SEED + num), size, LabelPlan())
        batches = ((batch.images, batch.labels) for batch in samples)
        steps = track(batches, "images for --fast", num, size)
        with self.view.ledger.pausing():
            stats = accumulate(steps, self.backbone, features=False, probabilities=False, what="images of plain")
        return fid.frechet_distance(real.stats.mean, real.stats.cov, stats.mean, stats.cov, real.factor)


@dataclass(frozen=True)
class Choice:
    """A precision of fast mode, and how much each that was tried changes FID; nan where it cannot run.

    Attributes:
        precision: the last of those that were tried, one of ``fast.PRECISIONS``.
        differences: of FID from that of the exact networks, by precision.
        num: images of each measurement.
        protocol: what a row says: the precision, and whether it is that of the generator alone.
    """

    precision: str
    differences: dict[str, float]
    num: int
    protocol: str

    @property
    def difference(self) -> float:
        """How much the chosen precision changes FID."""
        return self.differences[self.precision]

    def facts(self) -> dict[str, Any]:
        """What was measured, for results."""
        return {"fid_difference": self.difference, "num": self.num}

    def __str__(self) -> str:
        """One line: what was chosen and why."""
        refused = [
            f"{name} by {value:.3g}" if math.isfinite(value) else f"{name} cannot run"
            for name, value in self.differences.items()
            if name != self.precision
        ]
        because = f"; {', '.join(refused)}, limit {LIMIT:g}" if refused else ""
        return f"fast: {self.protocol} changes FID by {self.difference:.3g} on {self.num} images{because}"


def choose(exact: Pipeline, real: Reference, num: int, size: int, facts: Mapping[str, Any]) -> Choice:
    """The fastest precision that changes FID by less than ``LIMIT``, else float32; measured once for these networks.

    Plain images of the same seeds go through the exact networks and the fast ones; both are compared with the
    statistics of the real images that the exact network gave. So are the mixtures, of which one network is fast.

    Args:
        exact: the networks as they are.
        real: the real images.
        num: images of the run; ``IMAGES`` of them at most are made.
        size: images a batch.
        facts: what else the choice depends on; with the hash of the weights it is the key of the cache on disk.
    """
    num = min(num, IMAGES)
    networks = exact.view.networks
    candidates = fast.precisions(networks.device)
    key = {
        "version": VERSION,
        "weights": networks.digest,
        "backbone": exact.backbone.protocol,
        "real": {name: value for name, value in real.key.items() if name != "features"},
        "num": num,
        "device": _name_of(networks.device),
        "torch": torch.__version__,
        **facts,
    }

    measure = partial(_differences, exact, real, num, size, candidates)
    differences = cached("fast", key, measure, enabled=bool(networks.digest))["differences"].tolist()
    tried = dict(zip(candidates, differences))
    chosen = list(tried)[-1]
    return Choice(chosen, tried, num, f"{chosen}, generator only" if exact.is_fixed else chosen)


def _differences(exact: Pipeline, real: Reference, num: int, size: int, candidates: Sequence[str]) -> Arrays:
    """``differences``: of FID, of each candidate up to the first that is within the limit."""
    of_exact = exact.fid(real, num, size)
    differences: list[float] = []
    for name in candidates:
        differences.append(_largest(exact, name, of_exact, real, num, size))
        if differences[-1] < LIMIT:
            break
    return {"differences": np.asarray(differences)}


def _largest(exact: Pipeline, name: str, of_exact: float, real: Reference, num: int, size: int) -> float:
    """The largest difference of FID that a precision makes in the generator, in the feature network, and in both.

    Differences of opposite signs may cancel in both, for these images only. It is nan where a network has kernels
    without this precision, or where numbers are not finite.
    """
    try:
        both = exact.fast(name, size)
        parts = [both]
        if not exact.is_fixed:
            parts += [Pipeline(both.view, exact.backbone), Pipeline(exact.view, both.backbone)]
        return float(np.max([abs(part.fid(real, num, size) - of_exact) for part in parts]))
    except Exception as error:  # whatever a network raises
        say(f"fast: {name} cannot run ({one_line(error)})")
        return math.nan


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
