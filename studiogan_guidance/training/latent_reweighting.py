"""The stage ``latent_reweighting``: importance weights of latents, learned against a head on the discriminator.

Generator and discriminator are frozen, so fakes and real images go through them once, at the start; a step is one of
two small networks on rows of that pool. That is what makes the method almost free.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.critics.critic import Critic
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.latents import importance, learned, view_for
from studiogan_guidance.latents.base import LatentView, Networks
from studiogan_guidance.samplers.base import create, options
from studiogan_guidance.samplers.latent_reweighting import LatentReweighting
from studiogan_guidance.training.adversary import Head
from studiogan_guidance.training.evidence import filled
from studiogan_guidance.training.loop import Loop, descend, deterministic, frozen_parameters, moving_average, step_seeds
from studiogan_guidance.training.stage import STAGES, Stage, Trained, validation_distance

LEAST = {
    0: ("steps", "mean_weight", "cap_weight", "r1", "weight_decay", "eval_every"),
    1: ("hidden", "depth", "head_hidden", "head_steps", "save_every", "note_every"),
    2: ("batch", "pool"),
}
FREE = ("steps", "save_every", "note_every", "eval_every")  # options that change no weight of a step


def average_penalty(weights: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The mean over images of (E[w | c] - 1)^2 for their classes, from weights [B] and labels int64 [B].

    The square of an average of B weights would punish their variance over B, too. This one is unbiased: the mean of
    (w_i - 1)(w_j - 1) over pairs i, j of different images of a class. Classes with less than two images add nothing.
    """
    # Sums over each class.
    excess = weights - 1
    zeros = torch.zeros(num_classes, device=weights.device)
    count = zeros.scatter_add(0, labels, torch.ones_like(excess))
    total = zeros.scatter_add(0, labels, excess)
    squares = zeros.scatter_add(0, labels, excess.square())

    pairs = (total.square() - squares) / (count * (count - 1)).clamp_min(1)
    penalty: Tensor = (pairs * count * (count > 1)).sum() / len(weights)
    return penalty


def class_means(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The mean of the values [B] of its class for each image, [B]."""
    zeros = torch.zeros(num_classes, device=values.device)
    count = zeros.scatter_add(0, labels, torch.ones_like(values))
    return (zeros.scatter_add(0, labels, values) / count.clamp_min(1))[labels]


@STAGES.register(
    "latent_reweighting",
    "learns importance weights of latents, for the sampler of this name",
    "Issenhuth et al. 2022, arXiv:2110.09803",
)
@dataclass(frozen=True)
class LatentReweightingStage(Stage):
    """Learn weights w(z, c) beside the frozen generator, into ``latent_reweighting.safetensors`` of the run's folder.

    Two players alternate. The head d(x, c) tells real images from fakes that are weighted by w; the network raises the
    mean of w(z, c) d(G(z, c), c), so w grows where images look more real than the others of their class. Two
    penalties: mean_weight (E[w | c] - 1)^2, and cap_weight max(0, w - cap)^2. At rest d is constant where 0 < w < cap,
    so w is the density ratio of real images and fakes.

    The head sees the features of the checkpoint's discriminator, its logit and the class; it has the logistic loss
    (the paper trains a whole discriminator, by the loss of its GAN). The moving average of w is kept, at the step of
    the least FID on validation data, where w = 1, which is plain sampling, is the first; without data, at the last.

    A run that is stopped and goes on makes its pool again, and ends with the weights of an uninterrupted one.

    Paper: Issenhuth et al., "Latent reweighting, an almost free improvement for GANs", WACV 2022, arXiv:2110.09803.

    Args:
        pool: number of fakes, uniform over the classes, and of real images, each of which goes through the
            discriminator once; more of them teach weights that hold for other latents.
        base: the sampler on top of which the generator is reweighted, such as gandance:scale=1.2; the sampler
            ``latent_reweighting`` has to have the same.
        hidden, depth: width and number, from 1 up, of the hidden layers of w.
        head_hidden: units of the head's hidden layer.
        steps: number of the steps of w.
        head_steps: steps of the head before each of them.
        batch: fakes of a step, and real images of a step of the head, which the processes share.
        lr, head_lr: learning rates.
        weight_decay: of AdamW, for both.
        mean_weight, cap_weight, cap: of the penalties.
        r1: weight gamma of gamma / 2 |gradient|^2 of the head at real images, by their features in units of their
            deviation.
        ema: decay of the moving average of w; 0 is none.
        clip: largest norm of the gradient of w; 0 is no bound.
        save_every: steps between two saved states.
        note_every: steps between two lines of latent_reweighting.jsonl.
        eval_every: steps between evaluations on validation data; 0 is none, and the last step is kept.

    Raises:
        UserError: values out of range, a discriminator without a score of single images, too few real images.

    Example:
        >>> from studiogan_guidance.training import STAGES
        >>> STAGES.create("latent_reweighting", {"pool": "5000"}).pool
        5000
    """

    pool: int = 10_000
    base: str = "plain"
    hidden: int = 256
    depth: int = 3
    head_hidden: int = 64
    steps: int = 3000
    head_steps: int = 1
    batch: int = 512
    lr: float = 3e-4
    head_lr: float = 1e-3
    weight_decay: float = 1e-2
    mean_weight: float = 10.0
    cap_weight: float = 3.0
    cap: float = 3.0
    r1: float = 0.1
    ema: float = 0.998
    clip: float = 1.0
    save_every: int = 250
    note_every: int = 10
    eval_every: int = 500

    def __post_init__(self) -> None:
        create(self.base)
        for least, names in LEAST.items():
            for name in names:
                if not least <= getattr(self, name) < math.inf:
                    raise UserError(f"latent_reweighting.{name} must be {least} or more, found {getattr(self, name)}")

        # Rates, the moving average and the cap.
        for name in ("lr", "head_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"latent_reweighting.{name} must be positive, found {getattr(self, name)}")
        if not 0 <= self.ema < 1 or not self.clip >= 0:
            raise UserError(
                f"latent_reweighting.ema must be in [0, 1) and clip 0 or more, found {self.ema} and {self.clip}"
            )
        if not 1 < self.cap < math.inf:
            raise UserError(f"latent_reweighting.cap must be above 1, found {self.cap}: 3 is usual")

    def check(self, networks: Networks, discriminator: nn.Module, processes: int) -> None:
        create(self.base).check(view_for(networks))
        Critic(discriminator)
        self._check_shares(processes)

    def _check_shares(self, processes: int) -> None:
        for name in ("batch", "pool"):
            if getattr(self, name) % processes:
                raise UserError(
                    f"latent_reweighting.{name} is {getattr(self, name)}: give a multiple of the {processes} processes"
                )

    def after_training(self, run: Trained) -> dict[str, Any]:
        """Train, keep the best step, write the file; returns it, with the step and the FID of what it holds."""
        group = Group(run.rank, run.world_size)
        self._check_shares(group.size)
        view = view_for(run.networks)
        sampler = create(self.base)
        sampler.check(view)
        with frozen_parameters(run.networks.generator), deterministic(view.device):
            result = Training(self, run, sampler.built_into(view), group).run_steps()
        run.log(f"The weights of step {result['step']} are in {result['weights']}")
        return result


class Training:
    """One run of the stage.

    Args:
        stage: the options.
        run: the networks, data and folder; the generator's parameters must be frozen.
        view: of the run's generator, with the base built in.
        group: the processes of the run.
    """

    def __init__(self, stage: LatentReweightingStage, run: Trained, view: LatentView, group: Group) -> None:
        self.stage = stage
        self.trained = run
        self.view = view
        self.group = group
        self.file = run.folder / importance.KIND.file

        # The players.
        discriminator = run.discriminator()
        self.pool = filled(run, view, group, discriminator, stage.pool)
        self.weights, self.head = self._players()
        self.average = copy.deepcopy(self.weights)
        modules = {"weights": self.weights, "average": self.average, "head": self.head}
        self.optimisers = {
            "weights_optimiser": self._adam(self.weights, stage.lr),
            "head_optimiser": self._adam(self.head, stage.head_lr),
        }

        # Validation, and the state of this run in the folder.
        self.evaluation: Evaluation | None = None
        if run.evaluation and stage.eval_every:
            self.evaluation = run.evaluation()
        identity = self._identity(discriminator)
        anew = () if run.evaluation else tuple(identity)  # a host run cannot choose another folder
        path = run.folder / "latent_reweighting"
        self.loop = Loop(path, identity, modules, self.optimisers, group, run.record, anew)

    def _players(self) -> tuple[importance.ImportanceWeights, Head]:
        stage = self.stage
        base = options(LatentReweighting(base=create(stage.base)))["base"]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.trained.seed)  # of the CPU alone, which is restored
            weights = importance.create(self.view, stage.hidden, stage.depth, base)
            head = Head(self.pool.fakes.shape[1], torch.ones(()), stage.head_hidden)
        return weights, head.to(self.view.device)

    def _adam(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(network.parameters(), lr, (0.0, 0.99), weight_decay=self.stage.weight_decay)

    def _identity(self, discriminator: nn.Module) -> dict[str, Any]:
        """All that the weights of a step depend on."""
        identity = dataclasses.asdict(self.stage)
        for name in FREE:
            del identity[name]
        identity["seed"] = self.trained.seed
        identity["generator_sha256"] = learned.fingerprint(self.view.generator)
        identity["discriminator_sha256"] = learned.fingerprint(discriminator)
        return identity

    def run_steps(self) -> dict[str, Any]:
        """Train to the last step; returns the file, and the step and FID of what it holds."""
        stage = self.stage
        loop = self.loop
        if loop.step == 0 and not loop.result:
            self._keep_best()
        loop.run(stage.steps, self.update, stage.save_every, stage.note_every, self._keep_best)

        return {"weights": str(self.file), **loop.finished(self.file)}

    def update(self, step: int) -> dict[str, Tensor]:
        """Make step ``step``; returns the losses before it."""
        stage = self.stage
        losses: dict[str, Tensor] = {}
        for turn in range(stage.head_steps):
            losses["head"] = self._head_loss(*self._rows(step, turn))
            descend(losses["head"], self.head.parameters(), self.optimisers["head_optimiser"], self.group, 0)

        losses["weights"] = self._weights_loss(self._rows(step, stage.head_steps)[0])
        parameters = self.weights.parameters()
        descend(losses["weights"], parameters, self.optimisers["weights_optimiser"], self.group, stage.clip)

        # The moving average, which forgets its first steps sooner.
        moving_average(self.average, self.weights, min(stage.ema, (1 + step) / (10 + step)))
        return {name: loss.detach() for name, loss in losses.items()}

    def _rows(self, step: int, turn: int) -> tuple[Tensor, Tensor]:
        """Numbers of this process's fakes and real images of a turn of a step."""
        (seed,) = step_seeds(1, self.trained.seed, 1, step, turn, self.group.rank)
        gen = torch.Generator().manual_seed(seed)
        share = self.stage.batch // self.group.size
        fakes = torch.randint(len(self.pool.fakes), (share,), generator=gen)
        real = torch.randint(len(self.pool.real), (share,), generator=gen)
        return fakes.to(self.view.device), real.to(self.view.device)

    def _head_loss(self, fakes: Tensor, real: Tensor) -> Tensor:
        """The logistic loss on real images and weighted fakes, with R1."""
        pool = self.pool
        labels = pool.labels[fakes]
        with torch.no_grad():
            w = self.weights(pool.z[fakes], labels)
            w = w / class_means(w, labels, self.view.num_classes)

        rows = pool.real[real].requires_grad_(bool(self.stage.r1))
        logits = self.head(rows)
        loss: Tensor = F.softplus(-logits).mean() + (w * F.softplus(self.head(pool.fakes[fakes]))).mean()
        if self.stage.r1:
            (slope,) = torch.autograd.grad(logits.sum(), rows, create_graph=True)
            loss = loss + self.stage.r1 / 2 * slope.square().sum(1).mean()
        return loss

    def _weights_loss(self, fakes: Tensor) -> Tensor:
        """Minus the weighted mean of what the head says, and the two penalties.

        From what it says the mean of the class is taken: as the weights of a class average 1, that is the same to them.
        """
        stage = self.stage
        pool = self.pool
        labels = pool.labels[fakes]
        with torch.no_grad():
            d = self.head(pool.fakes[fakes])
            d = d - class_means(d, labels, self.view.num_classes)

        w = self.weights(pool.z[fakes], labels)
        average = average_penalty(w, labels, self.view.num_classes)
        beyond = (w - stage.cap).clamp_min(0).square().mean()
        loss: Tensor = stage.mean_weight * average + stage.cap_weight * beyond - (w * d).mean()
        return loss

    def _keep_best(self) -> None:
        """After a step: measure where its turn has come, and write the best weights so far; without data, the last."""
        stage = self.stage
        self.loop.keep_best(stage.steps, stage.eval_every, self._measure if self.evaluation else None, self._write)

    def _measure(self) -> dict[str, float]:
        """FID of the sampler with the averaged weights on validation data."""
        assert self.evaluation is not None
        sampler = LatentReweighting(base=create(self.stage.base)).with_weights(self.average)
        return {"fid": self.group.agree(validation_distance(self.evaluation, "latent_reweighting", sampler))}

    def _write(self, facts: Mapping[str, float]) -> None:
        if self.group.rank == 0:
            known = {**dataclasses.asdict(self.stage), "seed": self.trained.seed}
            importance.save(self.file, self.average, self.view, {**known, **facts})
