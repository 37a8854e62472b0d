"""The metrics of a row by name: each compares generated with real images and gives one or several values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, notice_once
from studiogan_guidance.evaluation.fid import frechet_distance, frechet_distance_of, frechet_infinity
from studiogan_guidance.evaluation.inception_score import inception_score
from studiogan_guidance.evaluation.kid import kid
from studiogan_guidance.evaluation.prdc import prdc
from studiogan_guidance.evaluation.reference import Reference
from studiogan_guidance.features.stats import FeatureStats
from studiogan_guidance.progress import bar, track

Array = NDArray[Any]
T = TypeVar("T")
BY_CLASS = "per_class"  # the entry that holds the values of each class


@dataclass(frozen=True)
class Comparison:
    """Generated images and the real ones that they are measured against.

    Attributes:
        real: statistics of the real images.
        fake: statistics of the generated images.
        cfg: the run, for ``k`` and ``splits``.
        classified: statistics with probabilities of the classes that are the labels of the images; None without.
        judged: statistics of the real and the generated images in other feature spaces, by the name of their FID.
        device: where distances between features are computed; on the CPU where its memory is too small.
    """

    real: Reference
    fake: FeatureStats
    cfg: RunConfig
    classified: FeatureStats | None = None
    judged: Mapping[str, tuple[Reference, FeatureStats]] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def features(self) -> tuple[Array, Array]:
        """Features of the real and of the generated images, [N, D] and [M, D]."""
        return _features(self.real, self.fake)

    def on_device(self, function: Callable[[str], T]) -> T:
        """``function(device)``, or on the CPU, with the same values, where the device has too little memory."""
        try:
            return function(self.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
        return function("cpu")


@dataclass(frozen=True)
class Metric:
    """One word of ``--metrics``.

    Attributes:
        values: gives its values by name; a metric may have several.
        needs: "moments" of the features, the "features" of all images, or the "probabilities" of their classes.
        of_real: "moments" where those of the real images are enough, else "features" or their "labels", too.
    """

    values: Callable[[Comparison], dict[str, Any]]
    needs: str = "features"
    of_real: str = "features"


def need(cfg: RunConfig, what: str) -> bool:
    """Whether a metric of the run needs ``what``: see ``Metric``."""
    return any(METRICS[name].needs == what for name in cfg.metrics)


def of_real(cfg: RunConfig, *what: str) -> list[str]:
    """The metrics of the run that need ``what`` of the real images: see ``Metric``."""
    return [name for name in cfg.metrics if METRICS[name].of_real in what]


def compute(comparison: Comparison) -> dict[str, Any]:
    """The values of the run's metrics, FID and KID in other spaces, and ``accuracy`` where classes are told.

    With per_class among them, the entry ``per_class`` holds the values of each class.
    """
    values: dict[str, Any] = {}
    for name, metric in METRICS.items():
        if name in comparison.cfg.metrics:
            with bar(f"metric {name}"):
                values |= metric.values(comparison)
    for name, (real, fake) in comparison.judged.items():
        with bar(f"metric {name}"):
            values[name] = distance(real, fake)
            if "kid" in comparison.cfg.metrics:
                values[name.replace("fid", "kid", 1)] = kid(*_features(real, fake))
    if comparison.classified is not None:
        values["accuracy"] = accuracy(comparison.classified)
    return values


def _features(real: Reference, fake: FeatureStats) -> tuple[Array, Array]:
    assert real.stats.features is not None
    assert fake.features is not None
    return real.stats.features, fake.features


def accuracy(fake: FeatureStats) -> float:
    """The share of images whose most probable class is their label."""
    assert fake.probabilities is not None
    return float((fake.probabilities.argmax(1) == fake.labels).mean())


def within_classes(real: FeatureStats, fake: FeatureStats, k: int, device: str = "cpu") -> dict[str, dict[str, float]]:
    """FID, precision, recall, density and coverage of each class by itself, under its label.

    Intra-class FID: Miyato and Koyama 2018, arXiv:1802.05637, section 4. A class with too few images for a metric
    lacks its values.
    """
    assert real.features is not None
    assert fake.features is not None
    # Classes of which there are real and generated images.
    labels = set(real.labels.tolist()) & set(fake.labels.tolist())

    # The values that each class has enough images for.
    by_class: dict[str, dict[str, float]] = {}
    for label in track(sorted(labels), "classes"):
        x = real.features[real.labels == label]
        y = fake.features[fake.labels == label]
        values: dict[str, float] = {"num": len(y), "num_real": len(x)}
        if min(len(x), len(y)) > 1:
            values["fid"] = frechet_distance_of(x, y)
        if min(len(x), len(y)) > k:
            values.update(prdc(x, y, k, device=device))
        by_class[str(label)] = values
    return by_class


def distance(real: Reference, fake: FeatureStats) -> float:
    """The Frechet distance between real and generated images in a feature space."""
    return frechet_distance(real.stats.mean, real.stats.cov, fake.mean, fake.cov, real.factor)


def _fid(comparison: Comparison) -> dict[str, Any]:
    return {"fid": distance(comparison.real, comparison.fake)}


def _inception_score(comparison: Comparison) -> dict[str, Any]:
    probabilities = comparison.fake.probabilities
    assert probabilities is not None
    if (probabilities == 0).any():
        notice_once(
            "some class probabilities are 0 in float32; the Inception Score takes 0 log 0 as 0, where the host's own "
            "evaluation gives nan"
        )
    return {"is": inception_score(probabilities, comparison.cfg.splits)}


def _fid_infinity(comparison: Comparison) -> dict[str, Any]:
    real = comparison.real.stats
    fake = comparison.fake.features
    assert fake is not None
    try:
        return {"fid_infinity": frechet_infinity(fake, real.mean, real.cov, comparison.real.factor)}
    except ValueError as error:
        raise UserError(f"{error}: raise --num, or leave fid_infinity out of --metrics") from error


def _kid(comparison: Comparison) -> dict[str, Any]:
    return {"kid": kid(*comparison.features)}


def _prdc(comparison: Comparison) -> dict[str, Any]:
    real, fake = comparison.features
    k = comparison.cfg.k
    follow = partial(track, what="neighbours")
    return dict(
        comparison.on_device(lambda device: prdc(real, fake, k, comparison.real.radii(k, device), device, follow))
    )


def _per_class(comparison: Comparison) -> dict[str, Any]:
    """``class_*``: the mean of each value over the classes that have it; and the values of each class."""
    real = comparison.real.stats
    fake = comparison.fake
    k = comparison.cfg.k
    by_class = comparison.on_device(lambda device: within_classes(real, fake, k, device))

    # The mean of each value over the classes that have it.
    columns: dict[str, list[float]] = {}
    for values in by_class.values():
        for name, value in values.items():
            columns.setdefault(name, []).append(value)

    means = {f"class_{name}": float(np.mean(columns[name])) for name in sorted(columns) if not name.startswith("num")}
    return {**means, BY_CLASS: by_class}


# A new metric is a line here, a word of ``config.METRICS``, and a heading in ``tables.HEADINGS``.
METRICS = {
    "fid": Metric(_fid, "moments", of_real="moments"),
    "is": Metric(_inception_score, "probabilities", of_real="moments"),
    "fid_infinity": Metric(_fid_infinity, of_real="moments"),
    "kid": Metric(_kid),
    "prdc": Metric(_prdc),
    "per_class": Metric(_per_class, of_real="labels"),
}
