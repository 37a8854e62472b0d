"""The stage ``frechet``: codes of least Frechet distance in the features of the checkpoint's own discriminator.

Guidance by any estimator and scale adds a vector to the code of an image. Here that vector is learned itself, as far as
it depends on the class (offsets) or linearly on the code or the noise, against the real images of each class. The
discriminator's features need no further network, and what they gain holds in feature spaces that were never trained on,
which cannot be said of the features that a Frechet distance is reported in. (Our own addition to GANdance, ECCV 2024.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from studiogan_guidance.critics.critic import Critic
from studiogan_guidance.devices import to_device
from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.latents import learned, moves, view_for
from studiogan_guidance.latents.base import LabelPlan, LatentView, Networks
from studiogan_guidance.latents.joint import OURS
from studiogan_guidance.progress import track
from studiogan_guidance.samplers.base import check_finite
from studiogan_guidance.samplers.gandance import GANdance
from studiogan_guidance.training.adversary import scores_of
from studiogan_guidance.training.judge import Judge, Memory
from studiogan_guidance.training.loop import Loop, deterministic, frozen_parameters, step_seeds
from studiogan_guidance.training.stage import STAGES, Stage, Trained, validation_distance

PARTS = {"offsets": ("offsets",), "affine": ("affine",), "noise": ("temperature", "shift")}
LEAST = {
    0: ("alpha", "label", "ridge", "steps", "memory", "eval_every"),
    1: ("save_every", "note_every"),
    2: ("batch", "num_real"),
}
FREE = ("save_every", "eval_every", "note_every")  # options that change no weight
WARM = 2**31  # steps from here on are those of the features that fill the memory at first


@STAGES.register("frechet", "learns codes of least Frechet distance to the real images", OURS)
@dataclass(frozen=True)
class FrechetStage(Stage):
    """Learn what to add to codes and noise, and write it to ``frechet.safetensors`` in the run's folder.

    The loss is the Frechet distance of two Gaussians (``evaluation.fid``), over the number of features, of

        [f(x) / u, alpha onehot(c)],

    where f are the discriminator's features and u is their root mean square deviation on real images: so the means of
    the classes are compared as well. Moments do not see single images that leave their class, so a linear classifier of
    f, fitted to the real images, adds its cross-entropy, as far as it is above that of real images. (The logits of a
    projection discriminator cannot tell: they ask whether an image is real, not of which class it is.) Real images
    count so that all classes weigh the same. A ridge holds what is learned near the start. The moments are those of
    the batch and of the ``memory`` batches before it, whose features carry no gradients. With validation data, the
    step of the least FID is kept, the start included; else the last. Sample with ``-o joint=frechet`` and the
    ``scale`` given here.

    A run that is stopped and goes on ends with the weights of an uninterrupted one, as that of ``joint`` does.

    Args:
        parts: what is learned (``latents.moves.Move``): offsets of the classes, affine (of w about the class mean; of
            noise where codes ignore it), noise (a temperature for each coordinate and offsets of the classes, where
            codes ignore noise); None: offsets, with noise where codes ignore it.
        per_block: offsets for each row of w, or conditional block; else all share them.
        alpha: weight of the labels, in units of the features' deviation; 0 is none.
        label: weight of the cross-entropy; 0 is none; much of it keeps classes narrow.
        ridge: weight of the mean squared change of offsets, affine map, and noise.
        steps: number of Adam steps; the learning rate falls linearly to 0.
        batch: images of a step, which the processes share.
        memory: earlier batches in the moments.
        lr: learning rate, in units of the spread of the class means; that of the affine map is over the root of its
            width.
        num_real: real images whose moments are taken, as many whole batches as fill it.
        scale: guidance scale at which sampling reaches what is learned; not 1.
        start_scale: scale about the mean of all classes to start from, such as the best that costs nothing.
        start_spread: spread within a class to start from.
        bf16: run generator and discriminator in bfloat16 wherever autocast does so.
        save_every: steps between two saved states.
        note_every: steps between two lines of frechet.jsonl.
        eval_every: steps between evaluations on validation data; 0 is none, and the last step is kept.

    Raises:
        UserError: values out of range, a generator without classes or without the parts, a discriminator without
            features of single images, real images that fill no batch.

    Example:
        >>> from studiogan_guidance.training import STAGES
        >>> STAGES.create("frechet", {"parts": "offsets,affine"}).parts
        ('offsets', 'affine')
    """

    parts: tuple[str, ...] | None = None
    per_block: bool = False
    alpha: float = 3.0
    label: float = 0.1
    ridge: float = 0.01
    steps: int = 100
    batch: int = 64
    memory: int = 15
    lr: float = 0.02
    num_real: int = 10_000
    scale: float = 2.0
    start_scale: float = 1.0
    start_spread: float = 1.0
    bf16: bool = False
    save_every: int = 25
    note_every: int = 10
    eval_every: int = 25

    def __post_init__(self) -> None:
        # What is learned.
        for part in self.parts or ():
            if part not in PARTS:
                raise UserError(f"frechet.parts has '{part}': {nearest(part, PARTS)}")
        if self.parts is not None and not self.parts:
            raise UserError("frechet.parts is empty: give offsets, affine or noise")

        # Numbers.
        for name in ("scale", "start_scale", "start_spread"):
            check_finite(f"frechet.{name}", getattr(self, name))
        if self.scale == 1:
            raise UserError("frechet.scale is 1, at which guidance moves nothing: give another, such as 2")
        for least, names in LEAST.items():
            for name in names:
                if not least <= getattr(self, name) < math.inf:
                    raise UserError(f"frechet.{name} must be {least} or more, found {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise UserError(f"frechet.lr must be positive, found {self.lr}")

    def check(self, networks: Networks, discriminator: nn.Module, processes: int) -> None:
        self._check_view(view_for(networks), processes)
        Critic(discriminator)

    def _check_view(self, view: LatentView, processes: int) -> None:
        """Refuse a generator without classes or parts, and batches that the processes cannot share."""
        view.networks.check_conditional("stage 'frechet'", "there are no codes of classes to learn")
        if view.rows and "noise" in self.learns(view):
            raise UserError(
                "frechet.parts has noise, but codes of this generator hold the noise: use offsets and affine"
            )
        if self.batch % processes or self.batch < 2 * processes:
            raise UserError(
                f"frechet.batch is {self.batch}: give a multiple of the {processes} processes, 2 or more for each"
            )

    def learns(self, view: LatentView) -> tuple[str, ...]:
        """The parts that are learned on this generator."""
        if self.parts is not None:
            return self.parts
        return ("offsets",) if view.rows else ("offsets", "noise")

    def after_training(self, run: Trained) -> dict[str, Any]:
        """Train, keep the best step, write the file; returns the file, and step and FID of what it holds."""
        view = view_for(run.networks)
        self._check_view(view, run.world_size)
        with frozen_parameters(run.networks.generator), deterministic(view.device):
            result = Training(self, run, view, Group(run.rank, run.world_size)).run_steps()
        run.log(f"The codes of step {result['step']} are in {result['joint']}: sample with scale={self.scale:g}")
        return result


class Training:
    """One run of the stage.

    Args:
        stage: the options.
        run: the networks, data and folder; the generator's parameters must be frozen.
        view: of the run's generator.
        group: the processes of the run.
    """

    def __init__(self, stage: FrechetStage, run: Trained, view: LatentView, group: Group) -> None:
        self.stage = stage
        self.trained = run
        self.view = view
        self.group = group

        # What learns, and what it is judged by.
        self.move = moves.create(
            view,
            "frechet",
            per_block=stage.per_block,
            scale=stage.scale,
            start_scale=stage.start_scale,
            start_spread=stage.start_spread,
        ).requires_grad_(False)
        names = [name for part in stage.learns(view) for name in PARTS[part]]
        self.learning = {name: self.move.get_parameter(name).requires_grad_(True) for name in names}
        self.start = {name: value.detach().clone() for name, value in self.learning.items()}
        self.discriminator = run.discriminator()
        self.critic = Critic(self.discriminator)
        self.judge = self._judge()
        self.memory = Memory(stage.memory * stage.batch, len(self.judge.mean)).to(view.device)

        # The optimiser; entries of the affine map add up over its width.
        groups = [{"params": [value], "lr": self._rate(name)} for name, value in self.learning.items()]
        self.adam = torch.optim.Adam(groups, betas=(0.9, 0.99))

        # Validation, and what the folder holds of this run.
        self.evaluation: Evaluation | None = None
        if run.evaluation and stage.eval_every:
            self.evaluation = run.evaluation()
        self.file = run.folder / moves.FILES["frechet"].file
        identity = self._identity()
        anew = () if run.evaluation else tuple(identity)  # a host run cannot choose another folder
        modules = {"move": self.move, "memory": self.memory}
        self.loop = Loop(run.folder / "frechet", identity, modules, {"adam": self.adam}, group, run.record, anew)

    def _rate(self, name: str) -> float:
        width = self.move.shape.affine_width if name == "affine" else 1
        return self.stage.lr / math.sqrt(width)

    @torch.no_grad()
    def _judge(self) -> Judge:
        """The judge by as many real images as the stage asks for, the same in all processes."""
        stage = self.stage
        features, labels = [], []
        batches = islice(self.trained.real(stage.batch), math.ceil(stage.num_real / stage.batch))
        with frozen_parameters(self.discriminator):
            for images, classes in track(batches, "real images", stage.num_real, stage.batch):
                images = to_device(images, self.view.device)
                features.append(self.group.all_rows(scores_of(self.critic, images)[0].float()))
                labels.append(self.group.all_rows(to_device(classes, self.view.device)))
        return Judge(torch.cat(features), torch.cat(labels), self.view.num_classes, stage.alpha)

    def _identity(self) -> dict[str, Any]:
        """All that the weights of a step depend on."""
        identity = dataclasses.asdict(self.stage)
        for name in FREE:
            del identity[name]
        identity["seed"] = self.trained.seed
        identity["generator_sha256"] = learned.fingerprint(self.view.generator)
        identity["discriminator_sha256"] = learned.fingerprint(self.discriminator)
        return identity

    def run_steps(self) -> dict[str, Any]:
        """Train to the last step; returns the file, and step and FID of what it holds."""
        stage = self.stage
        loop = self.loop
        if loop.step == 0 and not loop.result:
            self._keep_best()
        with frozen_parameters(self.discriminator):
            if loop.step == 0:
                self._fill_memory()
            loop.run(stage.steps, self.update, stage.save_every, stage.note_every, self._keep_best)

        return {"joint": str(self.file), **loop.finished(self.file)}

    @torch.no_grad()
    def _fill_memory(self) -> None:
        for i in track(range(self.stage.memory), "batches for the memory"):
            self.memory.put(self.judge.joined(*self.features(WARM + i)))

    def features(self, step: int) -> tuple[Tensor, Tensor]:
        """Features [B, F] and labels [B] of the images of a step, those of all processes in turn.

        Gradients reach the images of this process.
        """
        seeds = step_seeds(self.stage.batch, self.trained.seed, step)[self.group.rank :: self.group.size]
        inputs = self.view.draw(seeds, 0, LabelPlan())
        inputs = dataclasses.replace(inputs, z=self.move.noise(self.view, inputs))
        target = self.move.target(self.view, inputs, self.view.encode(inputs.z, inputs.labels))
        with self._autocast():
            images = self.view.decode(target, inputs.z, inputs.noise)
            features = scores_of(self.critic, images)[0]
        return self.group.all_rows(features.float()), self.group.all_rows(inputs.labels)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.view.device.type, torch.bfloat16, enabled=self.stage.bf16)

    def update(self, step: int) -> dict[str, Tensor]:
        """Make step ``step``; returns the parts of the loss before it."""
        stage = self.stage
        share = 1 - step / stage.steps
        for group, name in zip(self.adam.param_groups, self.learning):
            group["lr"] = share * self._rate(name)

        # The distance of the batches in memory and this one; gradients come from the latter alone.
        features, labels = self.features(step)
        rows = self.judge.joined(features, labels)
        distance = self.judge.distance(torch.cat([self.memory.rows, rows]))
        self.memory.put(rows)

        # What leaves its class, and the ridge.
        misread = self.judge.classifier.excess(features, labels)
        ridge = torch.stack([self._change(name) for name in self.learning]).sum()

        # A step down. Gradients of this process's images, times the processes, are averaged over them.
        loss = self.group.size * ((stage.memory + 1) * distance + stage.label * misread) + stage.ridge * ridge
        self.adam.zero_grad()
        loss.backward(inputs=list(self.learning.values()))
        self.group.average(value.grad for value in self.learning.values() if value.grad is not None)
        self.adam.step()
        return {"distance": distance.detach(), "misread": misread.detach(), "ridge": ridge.detach()}

    def _change(self, name: str) -> Tensor:
        """How much a parameter adds to a number of order 1, mean squared."""
        change = (self.learning[name] - self.start[name]).square().mean()
        return self.move.shape.affine_width * change if name == "affine" else change

    def _keep_best(self) -> None:
        """After a step: measure where its turn has come, and write the best so far; without data, the last."""
        stage = self.stage
        self.loop.keep_best(stage.steps, stage.eval_every, self._measure if self.evaluation else None, self._write)

    def _write(self, facts: Mapping[str, float]) -> None:
        if self.group.rank == 0:
            known = {**dataclasses.asdict(self.stage), "seed": self.trained.seed}
            moves.save(self.file, self.move, self.view, {**known, **facts})

    def _measure(self) -> dict[str, float]:
        """FID of guidance to what is learned, on validation data."""
        assert self.evaluation is not None
        sampler = GANdance(scale=self.move.scale, joint="frechet").away_from(self.move)
        return {"fid": self.group.agree(validation_distance(self.evaluation, "gandance", sampler))}
