"""What a frozen discriminator says of fakes of a frozen generator and of real images, gathered once for a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.batches import Halving
from studiogan_guidance.critics import critic
from studiogan_guidance.critics.critic import Critic
from studiogan_guidance.devices import to_device
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.latents.base import LabelPlan, LatentView
from studiogan_guidance.progress import bar, track
from studiogan_guidance.training.loop import frozen_parameters, step_seeds
from studiogan_guidance.training.stage import Trained

BATCH_SIZE = 64  # images that go through the networks at once


@dataclass(frozen=True)
class Pool:
    """This process's share of the fakes and of the real images.

    A row of evidence holds the discriminator's features and its logit for the class, from which the mean over the
    fakes is taken, in units of their deviation; then the class as a one-hot vector.

    Attributes:
        z: of the fakes, InfoGAN's numbers included, [N, Z].
        labels: of the fakes, int64 [N].
        fakes: evidence of the fakes, [N, K].
        real: evidence of the real images, [N, K].
    """

    z: Tensor
    labels: Tensor
    fakes: Tensor
    real: Tensor


@torch.no_grad()
def filled(run: Trained, view: LatentView, group: Group, discriminator: nn.Module, size: int) -> Pool:
    """Fakes, of all classes in turn, and real images, ``size`` of each in all processes together.

    Args:
        run: its seed draws the fakes; its real images are the first ones of its order.
        view: of the generator.
        group: the processes, whose number divides ``size``.
        discriminator: the network that judges.
        size: of the pool.

    Raises:
        UserError: a discriminator without a score of single images, or real images that fill no batch.
    """
    judge = critic.opened(view.bare, discriminator)
    with frozen_parameters(discriminator):
        z, labels, fakes = _fakes(run.seed, view, group, judge, size)
        real, classes = _real(run, view, group, judge, size)

    # Centre and deviation of the fakes of all processes.
    centre = fakes.mean(0)
    group.average([centre])
    power = (fakes - centre).square().mean(0)
    group.average([power])
    unit = power.sqrt().clamp_min(1e-6)

    # Put the class beside them.
    def row(evidence: Tensor, of: Tensor) -> Tensor:
        return torch.cat([(evidence - centre) / unit, F.one_hot(of, view.num_classes).float()], 1)

    return Pool(z, labels, row(fakes, labels), row(real, classes))


def _fakes(seed: int, view: LatentView, group: Group, judge: Critic, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, labels and evidence of this process's fakes."""
    seeds = step_seeds(size, seed, 0)[group.rank :: group.size]
    classes = [number % view.num_classes for number in range(group.rank, size, group.size)]

    def make(rows: range) -> tuple[Tensor, Tensor, Tensor]:
        part = slice(rows.start, rows.stop)
        inputs = view.draw(seeds[part], 0, LabelPlan(tuple(classes[part])))
        return inputs.z, inputs.labels, _evidence(judge, view.images(inputs), inputs.labels)

    parts = _in_batches(make, len(seeds), "fakes")
    z, labels, evidence = (torch.cat(column) for column in zip(*parts))
    return z, labels, evidence


def _real(run: Trained, view: LatentView, group: Group, judge: Critic, size: int) -> tuple[Tensor, Tensor]:
    """Evidence and labels of this process's real images; of an unconditional generator all labels are 0."""
    batches = run.real(min(BATCH_SIZE * group.size, size))
    share = size // group.size
    rows: list[Tensor] = []
    classes: list[Tensor] = []
    with bar("real images", share) as shown:
        while sum(map(len, rows)) < share:
            # Examine the next batch.
            images, labels = (to_device(part, view.device) for part in next(batches))
            labels = labels.long() if view.networks.is_conditional else torch.zeros_like(labels, dtype=torch.int64)
            rows.append(_evidence(judge, images, labels))
            classes.append(labels)
            shown.advance(len(labels))
    return torch.cat(rows)[:share], torch.cat(classes)[:share]


def _evidence(judge: Critic, images: Tensor, labels: Tensor) -> Tensor:
    """The discriminator's features and logit of images, [B, F + 1]."""
    features, logits = judge.judge(images, labels)
    return torch.cat([features, logits[:, None]], 1).float()


def _in_batches(
    make: Callable[[range], tuple[Tensor, Tensor, Tensor]], count: int, what: str
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What ``make`` returns for rows 0 to ``count``, in batches that fit the memory."""
    halving = Halving()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in track(range(0, count, BATCH_SIZE), what, count, BATCH_SIZE):
        parts += halving(make, range(start, min(start + BATCH_SIZE, count)))
    return parts
