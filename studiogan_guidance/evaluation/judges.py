"""Networks that see the images of a pass beside the feature network: second feature spaces, and a classifier.

They see the same images in the same batches, and leave the values of the feature network alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studiogan_guidance.config import RunConfig
from studiogan_guidance.critics import critic
from studiogan_guidance.errors import UserError, notice_once
from studiogan_guidance.evaluation import reference
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.reference import Reference
from studiogan_guidance.evaluation.source import Source, open_backbone
from studiogan_guidance.features.images import Real, split_digest
from studiogan_guidance.features.stats import Accumulator, Backbone, FeatureStats, to_uint8
from studiogan_guidance.latents import LatentView, Networks

ACCURACY = "accuracy"  # the metric of the classifier
DISCRIMINATOR = "discriminator"  # the judge that is no --backbone
FILES = ("torchscript", "dinov2")  # kinds of networks whose names are paths


class Judges:
    """The judges and the classifier of a run.

    Args:
        cfg: the run, for ``judges`` and ``classifier``.
        source: what the run points at.
        view: of the generator, whose discriminator may be a judge.
        real: the real images, which judges need.

    Attributes:
        spaces: feature networks by their metrics, such as ``fid@random``.
        networks: these, and the classifier under ``accuracy``.
        protocol: what a row says about them.

    Raises:
        UserError: an unknown judge, two of one name, a classifier that is no TorchScript; see also ``open_backbone``.
    """

    def __init__(self, cfg: RunConfig, source: Source, view: LatentView, real: Real | None) -> None:
        self._source = source
        self._real = real
        self._with_features = "kid" in cfg.metrics
        self.spaces: dict[str, Backbone] = {}
        self.protocol: dict[str, Any] = {}

        # Open the judges, as they are: exact, and not compiled.
        exact = dataclasses.replace(cfg, channels_last=False, compile=False, fast=False, resize_on="auto")
        for spec in cfg.judges:
            name = name_of(spec)
            if f"fid@{name}" in self.spaces:
                raise UserError(f"two judges have the name {name}: drop one of them, or rename its file")
            with _about("--judge"):
                network = _judge(dataclasses.replace(exact, backbone=spec), source, view)
            self.spaces[f"fid@{name}"] = network
            self.protocol[f"judge@{name}"] = _words(network)
        if self.spaces and cfg.reference_stats and real is not None:
            self.protocol["judged_on"] = split_digest(real)

        # Open the classifier.
        self.networks = dict(self.spaces)
        if cfg.classifier is not None:
            with _about("--classifier"):
                classifier = Classifier(dataclasses.replace(exact, backbone=cfg.classifier), source, view.device)
            self.networks[ACCURACY] = classifier
            self.protocol["classifier"] = _words(classifier)

    def accumulators(self, what: str, name: Callable[[int], str]) -> dict[str, Accumulator]:
        """What sees the images of a pass, by metric; ``what`` they are and their names are for errors."""
        accumulators = {}
        for metric, network in self.networks.items():
            is_judge = metric in self.spaces
            accumulators[metric] = Accumulator(
                network, self._with_features and is_judge, probabilities=not is_judge, what=what, name=name
            )
        return accumulators

    def references(self, group: Group, batch_size: int) -> dict[str, Reference]:
        """Statistics of the real images in each space, see ``reference.load_or_make``; nothing above rank 0."""
        references = {}
        for metric, network in self.spaces.items():
            assert self._real is not None
            found = reference.load_or_make(
                self._real, network, self._source.protocol, group, batch_size, self._with_features
            )
            if found is not None:
                references[metric] = found
        return references


class Discriminator:
    """The features of the discriminator beside a generator, as a Backbone; images are in 256 steps.

    Those of StyleGAN2's depend on a batch: the statistic is taken over an image and fixed fakes, see ``Critic.judge``.

    Raises:
        UserError: no discriminator beside the generator, or one without scores of single images.
    """

    classifies = False

    def __init__(self, view: LatentView) -> None:
        self.device = view.device
        self._critic = critic.of_view(view)
        digest = critic.digest_of(view)[:16]
        peers = {"peers": view.networks.digest[:16]} if self._critic.minibatch.count else {}
        self.protocol = {"backbone": DISCRIMINATOR, "backbone_sha256": digest, "resizer": "none", **peers}

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], rounded to 8 bits, as the real ones are."""
        return to_uint8(images.to(self.device)).float() / 127.5 - 1

    def __call__(self, prepared: Tensor) -> tuple[Tensor, None]:
        labels = torch.zeros(len(prepared), dtype=torch.int64, device=self.device)  # features do not depend on them
        return self._critic.judge(prepared, labels)[0], None


class Classifier:
    """The class logits of a TorchScript file as a Backbone: what it returns second, or alone, [B, K].

    Raises:
        UserError: ``cfg.backbone`` names no such file.
    """

    classifies = True

    def __init__(self, cfg: RunConfig, source: Source, device: torch.device) -> None:
        if str(cfg.backbone).partition(":")[0] != "torchscript":
            raise UserError(f"--classifier is '{cfg.backbone}': give torchscript:PATH")
        self._network = open_backbone(cfg, source, device)
        self.device = device
        self.protocol = self._network.protocol

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> uint8."""
        return self._network.prepare(images)

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self._network(prepared)
        of_classes = features if logits is None else logits
        return of_classes, of_classes


def name_of(spec: str) -> str:
    """The name of a judge in metrics: the stem of its file, the name of the host's network, or the word itself.

    Example:
        >>> [name_of(spec) for spec in ("torchscript:nets/a.pt", "host:InceptionV3_tf", "random")]
        ['a', 'InceptionV3_tf', 'random']
    """
    kind, _, rest = spec.partition(":")
    return Path(rest).stem if kind in FILES else rest or kind


def labelled(stats: FeatureStats, networks: Networks) -> bool:
    """Whether class probabilities are of as many classes as the generator takes, so that they may be its labels."""
    return networks.is_conditional and _count(stats) == networks.num_classes


def of_classifier(stats: FeatureStats, networks: Networks) -> FeatureStats | None:
    """``stats`` of a classifier if its classes may be the generator's, else None, with a notice."""
    if labelled(stats, networks):
        return stats
    takes = f"takes {networks.num_classes}" if networks.is_conditional else "takes none"
    notice_once(f"no accuracy: the classifier tells {_count(stats)} classes, and the generator {takes}")
    return None


def _count(stats: FeatureStats) -> int:
    return 0 if stats.probabilities is None else int(stats.probabilities.shape[1])


def _judge(cfg: RunConfig, source: Source, view: LatentView) -> Backbone:
    if cfg.backbone == DISCRIMINATOR:
        return Discriminator(view)
    return open_backbone(cfg, source, view.device, also=(DISCRIMINATOR,))


def _words(network: Backbone) -> str:
    """Everything about a network that changes a metric, in one text."""
    return " ".join(map(str, network.protocol.values()))


@contextmanager
def _about(flag: str) -> Iterator[None]:
    """Let errors about ``--backbone`` name the ``flag`` that the network stands in."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("--backbone", flag)
        raise UserError(text if flag in text else f"{flag}: {text}") from error
