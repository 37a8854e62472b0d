"""The adversarial objective of the stage ``joint``: a head without labels on the checkpoint's discriminator."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.critics.critic import Critic, Scores
from studiogan_guidance.devices import to_device
from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.training.loop import frozen_parameters
from studiogan_guidance.training.stage import Trained


class Head(nn.Module):
    """A logit without labels on a discriminator's features [B, F], which are divided by ``unit``; zero at first.

    Linear, or with one hidden layer of ``hidden`` units.
    """

    def __init__(self, width: int, unit: Tensor, hidden: int = 0) -> None:
        super().__init__()
        self.register_buffer("unit", unit.clamp_min(1e-6))
        last = nn.Linear(hidden or width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first = [nn.Linear(width, hidden), nn.LeakyReLU(0.2)] if hidden else []
        self.layers = nn.Sequential(*first, last)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layers(features / self.get_buffer("unit")).squeeze(1)
        return logits


@dataclass(frozen=True)
class Evidence:
    """What the frozen discriminator says of images: features [B, F], and its own logit without a label [B], or 0."""

    features: Tensor
    score: Tensor

    def detached(self) -> Evidence:
        """The same without the graph that made it."""
        return Evidence(self.features.detach(), self.score.detach())


class Adversary:
    """The opponent of a joint: it tells images of the joint from real images, whose labels it does not see.

    Both sides have the non-saturating logistic loss (Goodfellow et al. 2014, arXiv:1406.2661). The head has R1 too:
    r1 / 2 |gradient|^2 on real images (Mescheder et al. 2018, arXiv:1801.04406), in every ``r1_every``-th step with
    ``r1_every`` times the weight (lazily: Karras et al. 2020, arXiv:1912.04958).

    Args:
        run: opens the discriminator and the real images.
        view: the generator.
        group: the processes of the run.
        inputs: of this process's share of a batch, to try the discriminator on.
        batch: images of a step, of all processes.
        hidden: units of the head's hidden layer; 0: it is linear.
        marginal: add the discriminator's own logit without a label to that of the head.
        r1, r1_every: weight and period of R1; weight 0 is none.

    Raises:
        UserError: real images that fill no batch; a discriminator without an unconditional score, or one that cannot
            take this many images.
    """

    def __init__(
        self,
        run: Trained,
        view: LatentView,
        group: Group,
        inputs: Inputs,
        *,
        batch: int,
        hidden: int,
        marginal: bool,
        r1: float,
        r1_every: int,
    ) -> None:
        run.real(batch)  # fails where there are too few
        self.critic = Critic(run.discriminator())
        self.marginal = marginal
        self.r1 = r1
        self.r1_every = r1_every
        self.head = self._new_head(view, group, inputs, hidden, run.seed)
        self._batches = functools.partial(run.real, batch)

    def _new_head(self, view: LatentView, group: Group, inputs: Inputs, hidden: int, seed: int) -> Head:
        """A head whose unit is the root mean square of the features of a batch, alike in all processes."""
        with frozen_parameters(self.critic.module), torch.no_grad(), torch.random.fork_rng(devices=[]):
            features = scores_of(self.critic, view.images(inputs))[0]

            # Their root mean square over all processes.
            power = features.square().mean()
            group.average([power])

            torch.default_generator.manual_seed(seed)
            return Head(features.shape[1], power.sqrt(), hidden).to(view.device)

    def start(self, first: int) -> None:
        """Open the real images at step ``first``."""
        self._real = self._batches(first)

    def examine(self, images: Tensor) -> Evidence:
        """The evidence that the discriminator gives about images; gradients flow to them."""
        features, score = self.critic.marginal(images)
        return Evidence(features, score * self.marginal)

    def joint_loss(self, fake: Evidence) -> Tensor:
        """-log sigmoid(logit) of images of the joint."""
        return F.softplus(-self._logits(fake)).mean()

    def head_loss(self, fake: Evidence, step: int) -> Tensor:
        """The head's loss on these fakes and on the next real images, with R1 where its turn has come."""
        # Examine real images.
        images = to_device(next(self._real)[0], fake.features.device)
        regularised = bool(self.r1) and step % self.r1_every == 0
        with torch.set_grad_enabled(regularised):
            images.requires_grad_(regularised)
            real = self.examine(images)

        # The logistic loss, and R1.
        logits = self._logits(real)
        loss = F.softplus(-logits).mean() + F.softplus(self._logits(fake)).mean()
        if regularised:
            (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
            loss = loss + self.r1 / 2 * self.r1_every * slope.square().sum((1, 2, 3)).mean()
        return loss

    def _logits(self, evidence: Evidence) -> Tensor:
        logits: Tensor = evidence.score + self.head(evidence.features)
        return logits.float()


def scores_of(critic: Critic, images: Tensor) -> Scores:
    """Features and logits of images; UserError where the discriminator cannot take this many at once."""
    try:
        return critic(images)
    except (RuntimeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"the discriminator cannot take {len(images)} images at once ({one_line(error, 120)}): make the option "
            "batch a multiple of its minibatch groups, for each process"
        ) from error
