"""What a stage sees of a training run, whoever runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from studiogan_guidance.latents.base import Networks
from studiogan_guidance.registry import Registry


@dataclass(frozen=True)
class Trained:
    """A run whose own training loop is over; the networks hold the weights that will be evaluated.

    Attributes:
        networks: the generator (its moving average where there is one).
        discriminator: as the training left it.
        real: opens a pass over this process's share of the training data, batches of images [B, 3, H, W] in [-1, 1]
            and labels int64 [B].
        folder: where the run keeps its checkpoints.
        seed: of the run; rank, world_size: this process among those of the run.
        log: writes a line to the run's log (on rank 0, nothing elsewhere).
    """

    networks: Networks
    discriminator: nn.Module
    real: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    folder: Path
    seed: int
    rank: int
    world_size: int
    log: Callable[[str], None]


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
class Stage:
    """Base of all stages; subclasses add options as fields and override what they need."""

    def after_training(self, run: Trained) -> None:
        """Called once in every process after the training loop. The run's own networks must be left as they are."""

    def discriminator_loss(self, step: DiscriminatorStep) -> Tensor | None:
        """A scalar to add to the discriminator's loss of this step."""
        return None


STAGES: Registry[type[Stage]] = Registry("stage", "studiogan_guidance.stages")
