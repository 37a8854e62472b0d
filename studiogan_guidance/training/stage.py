"""What a stage of extra training is, and what it sees of a run: of ``train``, or of a training of the host."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.latents.base import Networks
from studiogan_guidance.registry import Registry
from studiogan_guidance.samplers import Sampler

Record = Callable[[int, Mapping[str, float]], None]  # takes numbers by step
TINY = 1e-12  # FID of what cannot be told apart, which rounding may make 0


def validation_distance(evaluation: Evaluation, name: str, sampler: Sampler) -> float:
    """FID of a sampler on validation data, inf in processes above rank 0.

    With judges it is the geometric mean of the FIDs in all feature spaces, so that a step that gains in one and loses
    in another is not kept.
    """
    row = evaluation.measure(name, sampler)
    if not row:
        return math.inf
    fids = [float(value) for key, value in row["metrics"].items() if key.partition("@")[0] == "fid"]
    return fids[0] if len(fids) == 1 else statistics.geometric_mean(max(fid, TINY) for fid in fids)


class Batches(Protocol):
    """Opens this process's share of endless batches of real images, after the first ``first`` batches."""

    def __call__(self, batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Trained:
    """A run whose own training loop is over; the networks hold the weights that will be evaluated.

    Attributes:
        networks: the generator (its moving average where there is one).
        discriminator: opens the discriminator as the training left it.
        real: opens the training data without end: images [B, 3, H, W] in [-1, 1] and labels int64 [B], this process's
            share of batches of ``batch_size``. It raises UserError if the images fill no batch. Inside a host run the
            batches are cut from the host's own, in its order.
        folder: where the run keeps its checkpoints.
        seed: of the run.
        rank: number of this process among those of the run.
        world_size: number of those processes.
        log: writes a line to the run's log (on rank 0, nothing elsewhere).
        record: keeps numbers by step for TensorBoard or W&B.
        evaluation: opens what measures on validation data; None inside a host run, which measures by itself.
    """

    networks: Networks
    discriminator: Callable[[], nn.Module]
    real: Batches
    folder: Path
    seed: int
    rank: int
    world_size: int
    log: Callable[[str], None]
    record: Record = field(default=lambda step, values: None)
    evaluation: Callable[[], Evaluation] | None = None


@dataclass(frozen=True)
class DiscriminatorStep:
    """One discriminator update before its backward pass: images [B, 3, H, W] as the discriminator saw them (augmented),
    labels [B], and the dictionaries of outputs that it returned for them."""

    real_images: Tensor
    real_labels: Tensor
    real_outputs: dict[str, Tensor]
    fake_images: Tensor
    fake_labels: Tensor
    fake_outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Training:
    """A training of the host that begins or goes on, as what a stage trains beside it sees it.

    Attributes:
        networks: the generator that trains, not its moving average.
        discriminator: that trains, out of its wrappers.
        optimiser: of the discriminator.
        augmentation: the host's word for what the discriminator sees images through, such as "ada"; "" for none.
        processes: number of them.
        rank: of this process.
        seed: of the run.
        log: writes a line to the run's log (on rank 0, nothing elsewhere).
    """

    networks: Networks
    discriminator: nn.Module
    optimiser: torch.optim.Optimizer
    augmentation: str
    processes: int
    rank: int
    seed: int
    log: Callable[[str], None]


class Companion(Protocol):
    """What a stage trains beside the discriminator, with an optimiser of its own.

    The optimiser steps when the discriminator's does, on gradients that are averaged over the processes, and is saved
    and resumed with the host's checkpoint.

    Attributes:
        network: its parameters and buffers, on the device of the networks.
        optimiser: of those parameters.
        losses: the last losses, for logs.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    losses: Mapping[str, Tensor]

    def listening(self) -> AbstractContextManager[None]:
        """Inside the with-block, which is a discriminator step of the host, it sees the passes of both networks."""

    def loss(self, step: DiscriminatorStep) -> Tensor:
        """A scalar to add to the discriminator's loss; called after the passes on real and on fake images."""


@dataclass(frozen=True)
class Stage:
    """Base of all stages; subclasses add options as fields and override what they need."""

    def check(self, networks: Networks, discriminator: nn.Module, processes: int) -> None:
        """Raise UserError for what cannot work in a host run; called at its start, in every process."""

    def after_training(self, run: Trained) -> Any:
        """Called once in every process after the training loop. The run's own networks must be left as they are."""

    def companion(self, run: Training) -> Companion | None:
        """What trains beside the discriminator; called before the training loop, and None where nothing does.

        It must leave the networks and all random numbers of the process as they are.
        """
        return None

    def discriminator_loss(self, step: DiscriminatorStep) -> Tensor | None:
        """A scalar to add to the discriminator's loss of this step."""
        return None


def has_companion(stage: Stage) -> bool:
    """Whether a stage may train something beside the discriminator of a host run."""
    return type(stage).companion is not Stage.companion


STAGES: Registry[type[Stage]] = Registry("stage", "studiogan_guidance.stages")
