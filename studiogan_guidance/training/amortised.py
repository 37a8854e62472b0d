"""The stage ``amortised``: a small network moves codes and noise to where a retrained head cannot tell them from real.

Sampling from the density that a calibrated discriminator corrects costs many passes an image: gradient steps (DDLS: Che
et al. 2020, arXiv:2003.06060) or rejections (DRS: Azadi et al. 2019, arXiv:1810.06758). Here the correction is learned
once, and an image costs one pass of the generator, as before. (Network and objective are our own design.)
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from studiogan_guidance.critics.critic import Critic
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.latents import learned, moves, view_for
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView, Networks
from studiogan_guidance.latents.joint import OURS
from studiogan_guidance.latents.moves import Move
from studiogan_guidance.samplers.base import check_finite
from studiogan_guidance.samplers.gandance import GANdance
from studiogan_guidance.training.label_head import Opponent
from studiogan_guidance.training.loop import Loop, descend, deterministic, frozen_parameters, moving_average, step_seeds
from studiogan_guidance.training.stage import STAGES, Stage, Trained, validation_distance

OBJECTIVES = ("energy", "deceive", "classify")
LEAST = {
    0: ("depth", "head_first", "steps", "eval_every", "ridge_code", "ridge_noise", "clip", *OBJECTIVES),
    1: ("hidden", "head_hidden", "memory", "save_every", "note_every"),
    2: ("batch",),
}
FREE = ("save_every", "eval_every")  # options that change no weight


@STAGES.register("amortised", "learns moves that a retrained head cannot tell from real images", OURS)
@dataclass(frozen=True)
class AmortisedStage(Stage):
    """Learn a move of codes and noise, and write it to ``amortised.safetensors`` in the run's folder.

    Two small networks of noise and class (``latents.moves``) say what is added to code and noise. They play against a
    head with labels; generator and discriminator stay as they are. The head reads what all convolutions of the
    discriminator see (``critics.maps``) and learns to tell the real images of a class from moved ones, by the logistic
    loss; the move descends

        energy E(x, c) - deceive log sigmoid(head(x, c)) - classify log p(c | x) + ridge_code |dw|^2 / unit^2
            + ridge_noise |dz|^2,

    with x the image of the moved code and noise, E the energy distance between features with labels of moved and of
    real images, p a classifier on the same features that learns from real images alone, and the squares means over the
    numbers of a code and of z. E alone sees where images vary too little, and does not depend on how far a head has
    learned; head and classifier see single images more sharply. With validation data, the step of the least FID is
    kept, the start included; else the last. Sample with ``-o joint=amortised`` and the ``scale`` given here.

    A run that is stopped and goes on ends with the weights of an uninterrupted one, as for the stage ``joint``.

    Args:
        scale: finite guidance scale, not 1, at which ``gandance`` makes the moved images: 1 stays plain, and other
            scales inter- and extrapolate.
        start_scale: scale about the mean of all classes to start from; 1 is plain.
        start_spread: spread within a class to start from: psi where there are rows of w, else tau; 1 is plain.
        per_block: give each row of w, or conditional block, a code of its own.
        hidden: width of the hidden layers of the move's networks.
        depth: number of those layers; 0: one offset for each class and one linear map, no network.
        steps: number of the steps.
        batch: images of a step, which the processes share.
        lr: learning rate of the move; it falls to 0 over the second half of the steps.
        energy: weight of the energy distance (Szekely and Rizzo 2013), which has the batch and ``memory`` before it.
        deceive: weight of the head's opinion.
        classify: weight of the classifier's.
        ridge_code: weight of the squared move of the code.
        ridge_noise: weight of the squared move of the noise, which keeps it near its prior.
        memory: earlier real and moved images whose features are kept for the energy distance.
        head_first: steps of the head alone before the move's first.
        head_hidden: units of the head's hidden layer.
        head_lr: learning rate of the head.
        ema: decay of the moving average of the move, which is the one that is kept; 0 is none.
        clip: largest norm of the move's gradient; 0 is no bound.
        bf16: run generator and discriminator in bfloat16 wherever autocast does so.
        save_every: steps between two saved states.
        note_every: steps between two lines of amortised.jsonl.
        eval_every: steps between evaluations on validation data; 0 is none, and the last step is kept.

    Raises:
        UserError: values out of range, a generator without classes, a discriminator without scores of single images.

    Example:
        >>> from studiogan_guidance.training import STAGES
        >>> STAGES.create("amortised", {"steps": "400"}).classify
        0.1
    """

    scale: float = 2.0
    start_scale: float = 1.0
    start_spread: float = 1.0
    per_block: bool = True
    hidden: int = 256
    depth: int = 2
    steps: int = 200
    batch: int = 64
    lr: float = 5e-4
    energy: float = 50.0
    deceive: float = 0.5
    classify: float = 0.1
    ridge_code: float = 0.3
    ridge_noise: float = 3.0
    memory: int = 1024
    head_first: int = 20
    head_hidden: int = 128
    head_lr: float = 1e-3
    ema: float = 0.99
    clip: float = 1.0
    bf16: bool = False
    save_every: int = 50
    note_every: int = 10
    eval_every: int = 50

    def __post_init__(self) -> None:
        for name in ("scale", "start_scale", "start_spread"):
            check_finite(f"amortised.{name}", getattr(self, name))
        if self.scale == 1:
            raise UserError("amortised.scale is 1, at which nothing is moved: give another guidance scale, such as 2")
        for least, names in LEAST.items():
            for name in names:
                if not least <= getattr(self, name) < math.inf:
                    raise UserError(f"amortised.{name} must be {least} or more, found {getattr(self, name)}")
        for name in ("lr", "head_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"amortised.{name} must be positive, found {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise UserError(f"amortised.ema must be in [0, 1), found {self.ema}")

    def check(self, networks: Networks, discriminator: nn.Module, processes: int) -> None:
        _check_classes(networks)
        view_for(networks)
        self._check_shares(processes)
        Critic(discriminator)

    def _check_shares(self, processes: int) -> None:
        if self.batch % processes or self.batch < 2 * processes:
            raise UserError(
                f"amortised.batch is {self.batch}: give a multiple of the {processes} processes, 2 or more for each"
            )

    def after_training(self, run: Trained) -> dict[str, Any]:
        """Train, keep the best step, write the file; returns it, and step and FID of what it holds."""
        group = Group(run.rank, run.world_size)
        self._check_shares(group.size)
        _check_classes(run.networks)
        view = view_for(run.networks)
        with frozen_parameters(run.networks.generator), deterministic(view.device):
            result = Training(self, run, view, group).run_steps()
        run.log(f"The move of step {result['step']} is in {result['joint']}: sample with scale={self.scale:g}")
        return result

    def rate(self, step: int) -> float:
        """The learning rate of the move at a step; 0 while the head learns alone."""
        if step < self.head_first:
            return 0.0
        left = (self.steps - step) / max(1, self.steps - self.head_first)
        return self.lr * min(1.0, 2 * left)


def _check_classes(networks: Networks) -> None:
    networks.check_conditional("stage 'amortised'", "there are no codes of classes to move")


class Training:
    """One run of the stage.

    Args:
        stage: the options.
        run: the networks, data and folder; the generator's parameters must be frozen.
        view: of the run's generator.
        group: the processes of the run.
    """

    def __init__(self, stage: AmortisedStage, run: Trained, view: LatentView, group: Group) -> None:
        self.stage = stage
        self.trained = run
        self.view = view
        self.group = group

        # What learns, and what it learns against.
        self.move = self._new_move()
        self.average = copy.deepcopy(self.move)
        self.learning = list(self.move.parameters())
        self.opponent = Opponent(run, view, group, self._draw(-1), stage.batch, stage.head_hidden, stage.memory)
        self.optimisers = {
            "move_optimiser": self._adam(self.learning, stage.lr),
            "head_optimiser": self._adam(self.opponent.head.parameters(), stage.head_lr),
        }
        modules = {
            "move": self.move,
            "average": self.average,
            "head": self.opponent.head,
            "memory": self.opponent.memory,
        }

        # Validation.
        self.evaluation: Evaluation | None = None
        if run.evaluation and stage.eval_every:
            self.evaluation = run.evaluation()
        self.file = run.folder / moves.FILES["amortised"].file

        # Resume what the folder holds of this run.
        identity = self._identity()
        anew = () if run.evaluation else tuple(identity)  # a host run cannot choose another folder
        self.loop = Loop(run.folder / "amortised", identity, modules, self.optimisers, group, run.record, anew)

    def _new_move(self) -> Move:
        stage = self.stage
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.trained.seed)  # of the CPU alone, which is restored
            return moves.create(
                self.view,
                "amortised",
                per_block=stage.per_block,
                hidden=stage.hidden,
                depth=stage.depth,
                scale=stage.scale,
                start_scale=stage.start_scale,
                start_spread=stage.start_spread,
            )

    def _adam(self, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        fused = self.view.device.type == "cuda" or None  # one kernel for all parameters
        return torch.optim.Adam(parameters, lr, (0.0, 0.99), fused=fused)

    def _identity(self) -> dict[str, Any]:
        """All that the weights of a step depend on."""
        identity = dataclasses.asdict(self.stage)
        for name in FREE:
            del identity[name]
        identity["seed"] = self.trained.seed
        identity["generator_sha256"] = learned.fingerprint(self.view.generator)
        identity["discriminator_sha256"] = learned.fingerprint(self.opponent.discriminator)
        return identity

    def run_steps(self) -> dict[str, Any]:
        """Train to the last step; returns the move's file, and step and FID of the move in it."""
        stage = self.stage
        loop = self.loop
        if loop.step == 0 and not loop.result:
            self._keep_best()

        # Train against a discriminator that stays as it is.
        self.opponent.start(loop.step)
        with frozen_parameters(self.opponent.discriminator):
            loop.run(stage.steps, self.update, stage.save_every, stage.note_every, self._keep_best)

        return {"joint": str(self.file), **loop.finished(self.file)}

    def _draw(self, step: int) -> Inputs:
        """This process's share of the inputs of a step: the run's seed and its number alone decide."""
        seeds = step_seeds(self.stage.batch, self.trained.seed, step + 1)[self.group.rank :: self.group.size]
        return self.view.draw(seeds, 0, LabelPlan())

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.view.device.type, torch.bfloat16, enabled=self.stage.bf16)

    def update(self, step: int) -> dict[str, Tensor]:
        """Make step ``step``; returns the losses before it."""
        stage = self.stage
        rate = stage.rate(step)
        losses: dict[str, Tensor] = {}

        # Images of the move.
        with torch.set_grad_enabled(rate > 0), self._autocast():
            inputs = self._draw(step)
            images, ridges = moved_images(self.move, self.view, inputs)
            features = self.opponent.examine(images)

        # A step of the move.
        if rate > 0:
            losses = {**self.opponent.move_losses(features, inputs.labels), **ridges}
            self.optimisers["move_optimiser"].param_groups[0]["lr"] = rate
            total = self._total(losses)
            descend(total, self.learning, self.optimisers["move_optimiser"], self.group, stage.clip)
            moving_average(self.average, self.move, min(stage.ema, (1 + step) / (10 + step)))
            losses = {name: loss.detach() for name, loss in losses.items()}
            del total, images  # their graph is released before that of the head is built

        # A step of the head.
        with self._autocast():
            head_losses = self.opponent.head_losses(features.detach(), inputs.labels)
        total = torch.stack(list(head_losses.values())).sum()
        descend(total, self.opponent.head.parameters(), self.optimisers["head_optimiser"], self.group, 0)
        return {**losses, **{name: loss.detach() for name, loss in head_losses.items()}}

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the move's losses."""
        stage = self.stage
        weights = {name: getattr(stage, name) for name in OBJECTIVES}
        weights |= {"code": stage.ridge_code, "noise": stage.ridge_noise}
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    def _keep_best(self) -> None:
        """After a step: measure where its turn has come, and write the best move so far; without data, the last."""
        stage = self.stage
        self.loop.keep_best(stage.steps, stage.eval_every, self._measure if self.evaluation else None, self._write)

    def _write(self, facts: Mapping[str, float]) -> None:
        if self.group.rank == 0:
            known = {**dataclasses.asdict(self.stage), "seed": self.trained.seed}
            moves.save(self.file, self.average, self.view, {**known, **facts})

    def _measure(self) -> dict[str, float]:
        """FID of the moved images on validation data."""
        assert self.evaluation is not None
        sampler = GANdance(scale=self.stage.scale, joint="amortised").away_from(self.average)
        return {"fid": self.group.agree(validation_distance(self.evaluation, "gandance", sampler))}


def moved_images(move: Move, view: LatentView, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Images of moved code and noise, [B, 3, H, W], and the mean squares of both moves.

    That of the code is in units of the spread of the class means, that of the noise in those of its prior.
    """
    # Move the noise, then the code that is made of it.
    z = move.noise(view, inputs)
    moved = dataclasses.replace(inputs, z=z)
    code = view.encode(z, inputs.labels)
    target = move.target(view, moved, code)

    # How far both are from where they were.
    plain = code if code.dim() == target.dim() else code[:, None]
    distance = ((target - plain) / move.get_buffer("unit")).square().mean()
    ridges = {"code": distance, "noise": (z - inputs.z).square().mean()}
    return view.decode(target, z, inputs.noise), ridges
