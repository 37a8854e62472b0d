"""The stage ``joint``: a small network learns the joint of a frozen generator (GANdance's second variant).

The paper (Zhang et al., ECCV 2024) says that the learned joint approximates the distribution of the whole data set and
guides better; it publishes no objective. The three here are our own, to be compared:

- ``distill``: the codes of ``class_mean``, without data; C mapping passes become one.
- ``latent``: the distribution of the generator's own codes over all classes, without data.
- ``adversarial``: real images without their labels, judged by a head on the checkpoint's discriminator.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from studiogan_guidance.critics.critic import Critic
from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.latents import learned, view_for
from studiogan_guidance.latents.base import LatentView, Networks
from studiogan_guidance.latents.joint import JOINTS, OURS
from studiogan_guidance.latents.learned import LearnedJoint
from studiogan_guidance.samplers.base import check_finite
from studiogan_guidance.training.adversary import Adversary
from studiogan_guidance.training.blocks import Blocks, StepSource
from studiogan_guidance.training.joint_losses import DISTANCES, Coupling, Marginal, first_row
from studiogan_guidance.training.loop import (
    Loop,
    by_layer,
    descend,
    deterministic,
    frozen_parameters,
    moving_average,
)
from studiogan_guidance.training.stage import STAGES, Stage, Trained
from studiogan_guidance.training.validation import best_scale

AUTO = "auto"  # the base that objectives and family decide
LAYER_RATE = 5.0  # learning rate of a layer of a free joint: lr, times this, times the root mean square of its weights
BLOCK = 16  # steps that a GPU draws and maps at once, where images are not needed
FADE = 10  # beside another objective, ``distill`` fades out over the first 1 / FADE of the steps
LEAST = {
    0: ("depth", "head_hidden", "steps", "eval_every", "weight_decay", "head_lr", "r1", "clip", "coupling"),
    1: ("hidden", "r1_every", "save_every", "note_every"),
    2: ("batch",),
}
CLASSES = ("stage 'joint'", "there is no joint of classes to learn")  # what needs them, and why
FREE = ("save_every", "eval_every")  # options that change no weight


@STAGES.register("joint", "learns the joint that gandance guides away from", OURS)
@dataclass(frozen=True)
class JointStage(Stage):
    """Learn a joint h(z) beside the frozen generator and write it to ``joint.safetensors`` in the run's folder.

    h is a training-free estimator plus a residual that starts at zero (``latents.learned``), so at step 0 guidance is
    that of the estimator; with the base none it is a copy of the generator's mapping, and free. With validation data,
    the step of the least FID is kept; else the last. The loss is the sum of the objectives times their weights.

    A run that is stopped and goes on ends with the weights of an uninterrupted one, byte for byte: on a CPU, and on the
    same GPU as far as torch has deterministic algorithms (it warns where not; see ``training.loop.deterministic``).

    Args:
        distill: weight of |h - class_mean|^2 / unit^2, 0 or more; beside another objective it fades out linearly over
            the first tenth of the steps.
        latent: weight of the distance between the distribution of h and that of the generator's own codes; None: 1 if
            there is no other objective, else 0.
        adversarial: weight of the non-saturating logistic loss on images of h; real images are used without labels. The
            score is a learned head on the discriminator's features (``training.adversary``).
        distance: of ``latent``: energy (the energy distance) or sliced (sliced Wasserstein, 64 directions).
        coupling: weight of |h - w_c|^2 in whitened w, beside objectives, which do not say which h goes with which code:
            without it guidance adds spread within classes (``training.joint_losses.Coupling``); 0 is none.
        base: the estimator to start from; auto: class_shift for w (mean_embedding if ``distill`` is the only
            objective), class_mean for other codes, where all estimators are one; none: for w, a copy of the mapping
            that sees the mean of all labels learns as a whole; for other codes, as auto.
        hidden: width of the hidden layers of the residual.
        depth: number of those layers; 0 is one vector for all z.
        steps: number of the steps.
        batch: images of a step, which the processes share.
        lr: learning rate of h; None: 1e-3, but 2e-4 for an MLP with ``adversarial``, since the head has to keep up. A
            free h has 5 lr times the root mean square of each layer's weights.
        weight_decay: of AdamW (beta 0 and 0.99, as for the GANs themselves), for h and head; 0 makes it Adam.
        head_lr: learning rate of the head.
        head_hidden: units of the head's hidden layer; 0: the head is linear.
        marginal: add the discriminator's own logit without a label (``critics.critic``) to the score.
        r1: weight gamma of gamma / 2 |gradient|^2 on real images (Mescheder et al. 2018, arXiv:1801.04406); 0 is none.
        r1_every: steps between two of its gradients (lazy regularisation, Karras et al. 2020, arXiv:1912.04958).
        ema: decay of the moving average of h, which is the h that is kept; 0 is none.
        clip: largest norm of the gradient of h; 0 is no bound.
        bf16: run generator and discriminator in bfloat16 wherever autocast does so.
        save_every: steps between two saved states.
        note_every: steps between two lines of joint.jsonl.
        eval_every: steps between evaluations on validation data; 0 is none, and the last step is kept.
        scales: guidance scales of those evaluations; the least FID among them counts.

    Raises:
        UserError: no objective, values out of range, a discriminator without an unconditional score.

    Example:
        >>> from studiogan_guidance.training import STAGES
        >>> STAGES.create("joint", {"adversarial": "1", "steps": "2000"}).rate
        0.0002
    """

    distill: float = 0.0
    latent: float | None = None
    adversarial: float = 0.0
    distance: str = "energy"
    coupling: float = 0.0
    base: str = AUTO
    hidden: int = 256
    depth: int = 2
    steps: int = 5000
    batch: int = 64
    lr: float | None = None
    weight_decay: float = 0.0
    head_lr: float = 3e-3
    head_hidden: int = 64
    marginal: bool = False
    r1: float = 1.0
    r1_every: int = 16
    ema: float = 0.999
    clip: float = 1.0
    bf16: bool = False
    save_every: int = 250
    note_every: int = 10
    eval_every: int = 1000
    scales: tuple[float, ...] = (0.9, 1.1, 1.3, 1.6)

    def __post_init__(self) -> None:
        # Objectives.
        weights = self.weights
        if not 0 < sum(weights.values()) < math.inf or min(weights.values()) < 0:
            listed = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
            raise UserError(f"joint needs an objective, found {listed}: give at least one of them a weight above 0")
        if self.distance not in DISTANCES:
            raise UserError(f"joint.distance is '{self.distance}': {nearest(self.distance, DISTANCES)}")

        # The estimator to start from.
        if self.base not in (AUTO, learned.NONE):
            JOINTS[self.base]
        if self.base in (*learned.NO_BASE, "class_subset"):
            raise UserError(f"joint.base is {self.base}: start from another estimator, such as class_mean")

        # Numbers.
        if not self.scales:
            raise UserError("joint.scales is empty: give guidance scales such as 0.9:1.1:1.3")
        for scale in self.scales:
            check_finite("joint.scales", scale)
        for least, names in LEAST.items():
            for name in names:
                if not least <= getattr(self, name) < math.inf:
                    raise UserError(f"joint.{name} must be {least} or more, found {getattr(self, name)}")
        if not 0 <= self.ema < 1 or not 0 < self.rate < math.inf:
            raise UserError(f"joint.ema must be in [0, 1) and joint.lr positive, found {self.ema} and {self.lr}")

    def check(self, networks: Networks, discriminator: nn.Module, processes: int) -> None:
        networks.check_conditional(*CLASSES)
        view_for(networks)
        self._check_shares(processes)
        if self.adversarial:
            Critic(discriminator)

    def _check_shares(self, processes: int) -> None:
        if self.batch % processes or self.batch < 2 * processes:
            raise UserError(
                f"joint.batch is {self.batch}: give a multiple of the {processes} processes, 2 or more for each"
            )

    def after_training(self, run: Trained) -> dict[str, Any]:
        """Train, keep the best step, write the files; returns the file, and step, FID and scale of what it holds."""
        group = Group(run.rank, run.world_size)
        self._check_shares(group.size)
        run.networks.check_conditional(*CLASSES)
        view = view_for(run.networks)
        with frozen_parameters(run.networks.generator), deterministic(view.device):
            result = Training(self, run, view, group).run_steps()
        run.log(f"The joint of step {result['step']} is in {result['joint']}")
        return result

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each objective."""
        others = {"distill": self.distill, "adversarial": self.adversarial}
        latent = self.latent if self.latent is not None else float(not any(others.values()))
        return {**others, "latent": latent}

    @property
    def rate(self) -> float:
        """The learning rate of the joint."""
        if self.lr is not None:
            return self.lr
        return 2e-4 if self.adversarial and self.depth else 1e-3

    @property
    def fades(self) -> bool:
        """Whether ``distill`` fades out, because there is another objective."""
        return bool(self.distill and (self.weights["latent"] or self.adversarial))

    @property
    def start(self) -> str | None:
        """The estimator to start from, where the options decide it."""
        if self.base != AUTO:
            return self.base
        return "mean_embedding" if self.distill and not self.fades else None


class Training:
    """One run of the stage.

    Args:
        stage: the options.
        run: the networks, data and folder; the generator's parameters must be frozen.
        view: of the run's generator.
        group: the processes of the run.
    """

    def __init__(self, stage: JointStage, run: Trained, view: LatentView, group: Group) -> None:
        self.stage = stage
        self.trained = run
        self.view = view
        self.group = group

        # What learns, and what it learns against.
        self.joint = self._new_joint()
        self.average = copy.deepcopy(self.joint)
        self.unit = self.joint.get_buffer("unit")
        self.learning = list(self.joint.residual.parameters())
        self.marginal = Marginal(stage.distance, self.unit, group, run.seed)
        self.coupling = Coupling(view, self.unit) if stage.coupling else None
        self.source = self._new_source()
        self.adversary = self._new_adversary() if stage.adversarial else None
        self.blocks = Blocks(self.source, self.block)

        # Networks and optimisers of the loop.
        modules: dict[str, nn.Module] = {"joint": self.joint, "average": self.average}
        self.optimisers: dict[str, torch.optim.Optimizer] = {"joint_optimiser": self._adam(self._rates(), stage.rate)}
        if self.adversary:
            modules["head"] = self.adversary.head
            self.optimisers["head_optimiser"] = self._adam(self.adversary.head.parameters(), stage.head_lr)

        # Validation.
        self.evaluation: Evaluation | None = None
        if run.evaluation and stage.eval_every:
            self.evaluation = run.evaluation()
        self.files = {name: run.folder / f"{name}.safetensors" for name in ("joint", "joint-last")}

        # Resume what the folder holds of this run.
        identity = self._identity()
        anew = () if run.evaluation else tuple(identity)  # a host run cannot choose another folder
        self.loop = Loop(run.folder / "joint", identity, modules, self.optimisers, group, run.record, anew)

    def _new_joint(self) -> LearnedJoint:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.trained.seed)  # of the CPU alone, which is restored
            return learned.create(self.view, self.stage.start, self.stage.hidden, self.stage.depth)

    def _new_source(self) -> StepSource:
        stage = self.stage
        wanted = [bool(weight) for weight in (stage.adversarial, stage.distill, stage.weights["latent"])]
        return StepSource(self.view, self.joint, self.group, self.trained.seed, stage.batch, *wanted)

    def _new_adversary(self) -> Adversary:
        stage = self.stage
        return Adversary(
            self.trained,
            self.view,
            self.group,
            self.source.draw(-1),
            batch=stage.batch,
            hidden=stage.head_hidden,
            marginal=stage.marginal,
            r1=stage.r1,
            r1_every=stage.r1_every,
        )

    @property
    def block(self) -> int:
        """Steps that are drawn and mapped at once."""
        return BLOCK if self._on_gpu and not self.stage.adversarial else 1

    @property
    def _on_gpu(self) -> bool:
        return self.view.device.type == "cuda"

    def _rates(self) -> Iterable[Any]:
        """What learns; of a free joint layer by layer, each with a learning rate of its own."""
        is_free = self.joint.base == learned.NONE
        return by_layer(self.joint.residual, LAYER_RATE * self.stage.rate) if is_free else self.learning

    def _adam(self, parameters: Iterable[Any], lr: float) -> torch.optim.Optimizer:
        fused = self._on_gpu or None  # one kernel for all parameters
        return torch.optim.AdamW(parameters, lr, (0.0, 0.99), weight_decay=self.stage.weight_decay, fused=fused)

    def _identity(self) -> dict[str, Any]:
        """All that the weights of a step depend on."""
        identity = dataclasses.asdict(self.stage)
        for name in FREE:
            del identity[name]
        if not self.stage.fades:
            del identity["steps"]  # a longer run begins as a shorter one does
        identity["lr"] = self.stage.rate
        identity["seed"] = self.trained.seed
        identity["generator_sha256"] = learned.fingerprint(self.view.generator)
        if self.adversary:
            identity["discriminator_sha256"] = learned.fingerprint(self.adversary.critic.module)
        return identity

    def run_steps(self) -> dict[str, Any]:
        """Train to the last step; returns the joint's file, and step, FID and scale of the joint in it."""
        stage = self.stage
        loop = self.loop
        if loop.step == 0 and not loop.result:
            self._keep_best()

        # Train against a discriminator that stays as it is.
        opponents = [self.adversary.critic.module] if self.adversary else []
        if self.adversary:
            self.adversary.start(loop.step)
        with frozen_parameters(*opponents):
            loop.run(stage.steps, self.update, stage.save_every, stage.note_every, self._keep_best)

        return {"joint": str(self.files["joint"]), **loop.finished(self.files["joint"])}

    def _autocast(self, enabled: bool) -> AbstractContextManager[Any]:
        return torch.autocast(self.view.device.type, torch.bfloat16, enabled=enabled)

    def update(self, step: int) -> dict[str, Tensor]:
        """Make step ``step``; returns the losses before it."""
        stage = self.stage
        view = self.view
        adversary = self.adversary
        fake = None

        # Losses of the joint.
        losses: dict[str, Tensor] = {}
        with self._autocast(stage.bf16):
            data = self.blocks.step(step)
            inputs = data.inputs
            h = data.start + self.joint.shift(view, inputs.z)
            if data.target is not None:
                losses["distill"] = ((h - data.target) / self.unit).square().mean()
            if data.others is not None:
                losses["latent"] = self.marginal(first_row(h), data.others, step)
            if self.coupling:
                losses["coupling"] = self.coupling(first_row(h), first_row(data.code))
            if adversary:
                fake = adversary.examine(view.decode(h, inputs.z, inputs.noise))
                losses["adversarial"] = adversary.joint_loss(fake)
                fake = fake.detached()

        # A step of the joint.
        total = self._total(losses, step)
        descend(total, self.learning, self.optimisers["joint_optimiser"], self.group, stage.clip)
        losses = {name: loss.detach() for name, loss in losses.items()}
        del h, total  # their graph is released before that of the head is built

        # A step of the head.
        if adversary and fake:
            with self._autocast(stage.bf16):
                head_loss = adversary.head_loss(fake, step)
            descend(head_loss, adversary.head.parameters(), self.optimisers["head_optimiser"], self.group, 0)
            losses["head"] = head_loss.detach()

        # The moving average, which forgets its first steps sooner.
        moving_average(self.average, self.joint, min(stage.ema, (1 + step) / (10 + step)))
        return losses

    def _total(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """The weighted sum of the losses of step ``step``."""
        weights = {**self.stage.weights, "coupling": self.stage.coupling}
        if self.stage.fades:
            weights["distill"] *= max(0.0, 1 - FADE * step / self.stage.steps)
        total = torch.zeros((), device=self.view.device)
        for name, loss in losses.items():
            total = total + weights[name] * loss
        return total

    def _keep_best(self) -> None:
        """After a step: measure where its turn has come, and write the best joint so far; without data, the last."""
        stage = self.stage
        measure = self._measure if self.evaluation else None
        self.loop.keep_best(stage.steps, stage.eval_every, measure, partial(self._write, "joint"))
        if self.loop.step == stage.steps:
            self._write("joint-last", {"step": self.loop.step})

    def _measure(self) -> dict[str, float]:
        """The least FID of guidance over the scales on validation data, and its scale."""
        assert self.evaluation is not None
        fid, scale = best_scale(self.evaluation, self.average, self.stage.scales)
        return {"fid": fid, "scale": scale}

    def _write(self, name: str, facts: Mapping[str, float]) -> None:
        if self.group.rank == 0:
            known = {**dataclasses.asdict(self.stage), "seed": self.trained.seed}
            learned.save(self.files[name], self.average, self.view, {**known, **facts})
