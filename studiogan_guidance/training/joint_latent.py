"""The stage ``joint``: a small network learns the joint of a frozen generator (GANdance's second variant).

The paper (Zhang et al., ECCV 2024) says that the learned joint approximates the distribution of the whole data set and
guides better; it publishes no objective. The three here are our inference, made to be compared:

- ``distill``: the codes of ``class_mean``, without data; C mapping passes become one.
- ``latent``: the distribution of the generator's own codes over all classes, without data.
- ``adversarial``: real images without their labels, judged by the checkpoint's discriminator.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance import samplers
from studiogan_guidance.batches import progress
from studiogan_guidance.critics.critic import Critic
from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.latents import learned, view_for
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView, Networks
from studiogan_guidance.latents.joint import GANDANCE, JOINTS, JointOptions
from studiogan_guidance.latents.learned import LearnedJoint
from studiogan_guidance.samplers.base import check_finite
from studiogan_guidance.samplers.gandance import guide
from studiogan_guidance.training.loop import Loop, descend, moving_average, still
from studiogan_guidance.training.stage import STAGES, Stage, Trained

STRENGTHS = ("none", "class", "row", "both")
DISTANCES = ("energy", "sliced")
NO_STRENGTHS = (
    "joint.strengths needs validation data and a feature network with gradients: use 'studiogan-guidance train' and "
    "--backbone builtin, host:NAME or dinov2:PATH, or set strengths to none"
)
LEAST = {
    0: ("depth", "head_hidden", "steps", "eval_every", "strength_steps", "weight_decay", "head_lr", "r1", "clip"),
    1: ("hidden", "r1_every", "save_every", "note_every"),
    2: ("batch", "strength_batch"),
}


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'| of samples [N, D] and [M, D], unbiased: below 0 by noise if they are alike.

    Szekely and Rizzo 2013, "Energy statistics", J. Stat. Plan. Inference 143(8), eq. 2.5, as a U-statistic. 0 only for
    equal distributions.
    """
    n, m = len(x), len(y)
    pairs = functools.partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")  # which would cancel
    between, of_x, of_y = pairs(x, y).mean(), pairs(x, x).sum(), pairs(y, y).sum()
    distance: Tensor = 2 * between - of_x / (n * n - n) - of_y / (m * m - m)
    return distance


def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """Mean squared 2-Wasserstein distance of samples [N, D] and [N, D] along unit vectors ``directions`` [K, D].

    Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters", J. Math. Imaging Vis. 51, eq. 9.
    """
    a, b = ((points @ directions.T).sort(0).values for points in (x, y))
    return (a - b).square().mean()


def frechet(features: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """The Frechet distance of ``evaluation.fid`` with gradients, from features [N, D] to a Gaussian.

    With Y the centred features over sqrt(N - 1) and L L^T the covariance of the Gaussian, the trace of the root is the
    sum of the singular values of Y L, whose gradient is finite for any N.
    """
    own = features.mean(0)
    centred = (features - own) / math.sqrt(len(features) - 1)
    spread = factor.square().sum() + centred.square().sum()
    distance: Tensor = (own - mean).square().sum() + spread - 2 * torch.linalg.svdvals(centred @ factor).sum()
    return distance


class Head(nn.Module):
    """An unconditional logit on a discriminator's features [B, F], which are divided by ``unit``; zero at first.

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


@STAGES.register("joint", "learns the joint that gandance guides away from", GANDANCE)
@dataclass(frozen=True)
class JointStage(Stage):
    """Learn a joint h(z) beside the frozen generator and write it to ``joint.safetensors`` in the run's folder.

    h is a training-free estimator plus a residual that starts at zero (``latents.learned``), so guidance away from it
    is never worse at step 0; with validation data at hand the best step is kept. Objectives add up with their weights.

    Args:
        distill: weight of |h - class_mean|^2 / unit^2; beside another objective it fades out over the first tenth.
        latent: weight of the distance between the distribution of h and that of the generator's own codes; None: 1 if
            there is no other objective, else 0.
        adversarial: weight of the non-saturating logistic loss on images of h; real images are used without labels. The
            score is a learned head on the discriminator's features (with ``head_hidden`` units, 0: linear) plus, with
            ``marginal``, the discriminator's own logit without a label (``samplers.critic``).
        distance: of ``latent``: energy (the energy distance) or sliced (sliced Wasserstein, 64 directions).
        base: the estimator to start from; None: class_shift for w (mean_embedding to distill alone), class_mean for
            other codes, where all of them are one.
        hidden, depth: width and number of the hidden layers of the residual; depth 0 is one vector for all z.
        steps, batch: number and size of the steps; a batch is shared out among processes.
        lr, head_lr, weight_decay: of AdamW (beta 0 and 0.99, as for the GANs themselves; decay 0 makes it Adam). None:
            1e-3, but 2e-4 for an MLP against a head, which has to keep up with it.
        r1, r1_every: weight gamma of gamma / 2 |gradient|^2 on real images (Mescheder et al. 2018, arXiv:1801.04406),
            taken every so many steps (lazily, Karras et al. 2020); 0 is none.
        ema: decay of the moving average of h, which is what is kept; 0 is none.
        clip: largest norm of the gradient of h; 0 is no bound.
        bf16: run generator and discriminator in bfloat16 where autocast does so.
        save_every, note_every: steps between states, and between lines of joint.jsonl.
        eval_every: steps between evaluations on validation data; 0 is none, and the last step is kept.
        scales: guidance scales of those evaluations; the least FID counts.
        strengths: learn what multiplies scale - 1 for each class, w row, both or none, by the Frechet distance on
            validation data at ``strength_scale``, in ``strength_steps`` steps of ``strength_batch`` images.

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
    base: str | None = None
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
    strengths: str = "none"
    strength_scale: float = 1.2
    strength_steps: int = 200
    strength_batch: int = 256

    def __post_init__(self) -> None:
        weights = self.weights
        if not 0 < sum(weights.values()) < math.inf or min(weights.values()) < 0:
            said = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
            raise UserError(f"joint needs an objective, found {said}: give at least one of them a weight above 0")
        for name, known in (("distance", DISTANCES), ("strengths", STRENGTHS)):
            if getattr(self, name) not in known:
                raise UserError(f"joint.{name} is '{getattr(self, name)}': {nearest(getattr(self, name), known)}")
        if not self.scales:
            raise UserError("joint.scales is empty: give guidance scales such as 0.9:1.1:1.3")
        for scale in self.scales:
            check_finite("joint.scales", scale)
        check_finite("joint.strength_scale", self.strength_scale)
        if self.base is not None:
            JOINTS[self.base]
        if self.base in ("learned", "class_subset"):
            raise UserError(f"joint.base is {self.base}: start from another estimator, such as class_mean")
        for least, names in LEAST.items():
            for name in names:
                if not least <= getattr(self, name) < math.inf:
                    raise UserError(f"joint.{name} must be {least} or more, found {getattr(self, name)}")
        if not 0 <= self.ema < 1 or not 0 < self.rate < math.inf:
            raise UserError(f"joint.ema must be in [0, 1) and joint.lr positive, found {self.ema} and {self.lr}")

    def check(self, networks: Networks, discriminator: nn.Module, processes: int) -> None:
        view_for(networks)
        self._shares(processes)
        if self.adversarial:
            Critic(discriminator)
        if self.strengths != "none":
            raise UserError(NO_STRENGTHS)

    def _shares(self, processes: int) -> None:
        if self.batch % processes or self.batch < 2 * processes:
            raise UserError(
                f"joint.batch is {self.batch}: give a multiple of the {processes} processes, 2 or more for each"
            )

    def after_training(self, run: Trained) -> dict[str, Any]:
        """Train, keep the best, write the files; returns step, FID and scale of what was kept, and its path."""
        group = Group(run.rank, run.world_size)
        self._shares(group.size)
        view = view_for(run.networks)
        with still(run.networks.generator):
            result = Training(self, run, view, group).go()
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
        return self.lr if self.lr is not None else 2e-4 if self.adversarial and self.depth else 1e-3

    @property
    def fades(self) -> bool:
        """Whether ``distill`` is there for the start only."""
        return bool(self.distill and (self.weights["latent"] or self.adversarial))

    @property
    def start(self) -> str | None:
        """The estimator to start from, where the options decide it."""
        return self.base or ("mean_embedding" if self.distill and not self.fades else None)


class Training:
    """One run of the stage."""

    def __init__(self, stage: JointStage, run: Trained, view: LatentView, group: Group) -> None:
        self.stage, self.run, self.view, self.group = stage, run, view, group
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(run.seed)  # of the CPU alone, which is put back
            self.joint = learned.create(view, stage.start, stage.hidden, stage.depth)
        self.average = copy.deepcopy(self.joint)
        self.unit = self.joint.get_buffer("unit")
        self.learning = list(self.joint.residual.parameters())
        self.optimisers: dict[str, torch.optim.Optimizer] = {"joint_optimiser": self._adam(self.learning, stage.rate)}
        self.modules: dict[str, nn.Module] = {"joint": self.joint, "average": self.average}
        self.critic, self.head = None, None
        if stage.adversarial:
            run.real(stage.batch)  # what cannot work fails here
            self.critic = Critic(run.discriminator())
            self.head = self._new_head(self.critic)
            self.modules["head"] = self.head
            self.optimisers["head_optimiser"] = self._adam(self.head.parameters(), stage.head_lr)
        self.evaluation: Evaluation | None = None
        if run.evaluation and (stage.eval_every or stage.strengths != "none"):
            self.evaluation = run.evaluation()
        if stage.strengths != "none" and (self.evaluation is None or not hasattr(self.evaluation.backbone, "soft")):
            raise UserError(NO_STRENGTHS)
        self.files = {name: run.folder / f"{name}.safetensors" for name in ("joint", "joint-last")}

    def _new_head(self, critic: Critic) -> Head:
        inputs, view = self._draw(-1, self.stage.batch), self.view
        with still(critic.module), torch.no_grad(), torch.random.fork_rng(devices=[]):
            images = view.images(inputs)
            try:
                features = critic(images)[0]
            except (RuntimeError, IndexError) as error:
                reason = " ".join(str(error).split())[:120]
                raise UserError(
                    f"the discriminator cannot take {len(images)} images at once ({reason}): make the option batch a "
                    "multiple of its minibatch groups, for each process"
                ) from error
            power = features.square().mean()
            self.group.average([power])
            torch.default_generator.manual_seed(self.run.seed)
            return Head(features.shape[1], power.sqrt(), self.stage.head_hidden).to(view.device)

    def _adam(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr, (0.0, 0.99), weight_decay=self.stage.weight_decay)

    def go(self) -> dict[str, Any]:
        """Train to the last step, then learn the strengths."""
        stage = self.stage
        free = {"save_every", "eval_every", "strengths", "strength_scale", "strength_steps", "strength_batch"}
        if not stage.fades:
            free.add("steps")  # a longer run begins as a shorter one does
        options = {key: value for key, value in dataclasses.asdict(stage).items() if key not in free} | {
            "lr": stage.rate
        }
        generator = learned.fingerprint(self.view.generator)
        identity = {**options, "seed": self.run.seed, "generator_sha256": generator}
        path = self.run.folder / "joint"
        if self.critic:
            identity["discriminator_sha256"] = learned.fingerprint(self.critic.module)
        anew = () if self.run.evaluation else tuple(identity)  # a host run cannot choose another folder
        loop = Loop(path, identity, self.modules, self.optimisers, self.group, self.run.record, anew)
        self.loop, self.real = loop, self._real(loop.step)
        frozen = [self.critic.module] if self.critic else []
        if loop.step == 0 and not loop.kept:
            self._keep()
        with still(*frozen):
            loop.run(stage.steps, self.update, stage.save_every, stage.note_every, self._keep)
        self.group.agree(None)  # the first process has written what there is to write
        if not self.files["joint"].exists():
            raise UserError(f"{self.files['joint']} is missing, though the run is over: remove {loop.state_file}")
        result = {"joint": str(self.files["joint"]), **loop.kept}
        return {**result, **self._strengths()} if stage.strengths != "none" else result

    def _real(self, first: int) -> Iterator[tuple[Tensor, Tensor]] | None:
        return self.run.real(self.stage.batch, first) if self.stage.adversarial else None

    def _draw(self, block: int, count: int) -> Inputs:
        """This process's share of ``count`` inputs; the same for the same ``block`` of the same run."""
        return self.view.draw(
            seeds(count, self.run.seed, block + 1)[self.group.rank :: self.group.size], 0, LabelPlan()
        )

    def update(self, step: int) -> dict[str, Tensor]:
        """Step ``step``; the losses before it."""
        stage, view = self.stage, self.view
        inputs = self._draw(2 * step, stage.batch)
        with torch.autocast(view.device.type, torch.bfloat16, enabled=stage.bf16):
            h = self.joint(view, inputs, view.encode(inputs.z, inputs.labels))
            losses: dict[str, Tensor] = {}
            total = torch.zeros((), device=view.device)
            if stage.distill:
                target = JOINTS["class_mean"].target(view, inputs, h, JointOptions())
                losses["distill"] = ((h - target) / self.unit).square().mean()
                fade = max(0.0, 1 - 10 * step / stage.steps) if stage.fades else 1.0
                total = total + stage.distill * fade * losses["distill"]
            if stage.weights["latent"]:
                losses["latent"] = self._latent(flat(h), step)
                total = total + stage.weights["latent"] * losses["latent"]
            if self.critic and self.head:
                features, score = self._score(view.decode(h, inputs.z, inputs.noise))
                losses["adversarial"] = F.softplus(-(score + self.head(features)).float()).mean()
                total = total + stage.adversarial * losses["adversarial"]
                features, score = features.detach(), score.detach()  # the graph is let go before that of the head
        descend(total, self.learning, self.optimisers["joint_optimiser"], self.group, stage.clip)
        losses = {name: loss.detach() for name, loss in losses.items()}
        del h, total
        if self.head:
            with torch.autocast(view.device.type, torch.bfloat16, enabled=stage.bf16):
                losses["head"] = self._head(features, score, step)
            descend(losses["head"], self.head.parameters(), self.optimisers["head_optimiser"], self.group, 0)
            losses["head"] = losses["head"].detach()
        moving_average(self.average, self.joint, min(stage.ema, (1 + step) / (10 + step)))
        return losses

    def _score(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert self.critic is not None
        features, score = self.critic.marginal(images)
        return features, score * self.stage.marginal

    def _latent(self, h: Tensor, step: int) -> Tensor:
        inputs = self._draw(2 * step + 1, self.stage.batch)
        codes = flat(self.view.encode(inputs.z, inputs.labels))
        with torch.autocast(self.view.device.type, enabled=False):
            x, y = ((values / self.unit).float() for values in (h, codes))
            if self.stage.distance == "energy":
                return energy_distance(x, y)
            gen = torch.Generator().manual_seed(seeds(1, self.run.seed, step, 1)[0])
            return sliced_wasserstein(x, y, F.normalize(torch.randn(64, x.shape[1], generator=gen)).to(x.device))

    def _head(self, features: Tensor, score: Tensor, step: int) -> Tensor:
        """The head's logistic loss on real images and on these fakes; every ``r1_every`` steps with R1."""
        assert self.critic is not None
        assert self.head is not None
        assert self.real is not None
        stage, images = self.stage, next(self.real)[0].to(self.view.device)
        lazy = bool(stage.r1) and step % stage.r1_every == 0
        with torch.set_grad_enabled(lazy):
            images.requires_grad_(lazy)
            real, real_score = self._score(images)
        logits = (real_score + self.head(real)).float()
        loss = F.softplus(-logits).mean() + F.softplus((score + self.head(features)).float()).mean()
        if lazy:
            (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
            loss = loss + stage.r1 / 2 * stage.r1_every * slope.square().sum((1, 2, 3)).mean()
        return loss

    def _keep(self) -> None:
        """After a step: measure where it is time to, and write the best so far, or the last."""
        stage, step = self.stage, self.loop.step
        last = step == stage.steps
        facts = {**dataclasses.asdict(stage), "seed": self.run.seed, "step": step}
        if self.evaluation and stage.eval_every and (last or step % stage.eval_every == 0):
            fid, scale = self._measure()
            self.loop.note(fid=fid, scale=scale)
            if fid < self.loop.kept.get("fid", math.inf):
                self.loop.kept = {"step": step, "fid": fid, "scale": scale}
                self._write("joint", {**facts, "validation_fid": fid, "validation_scale": scale})
        elif last and not (self.evaluation and stage.eval_every):
            self.loop.kept = {"step": step}
            self._write("joint", facts)
        if last:
            self._write("joint-last", facts)

    def _write(self, name: str, facts: dict[str, Any]) -> None:
        if self.group.rank == 0:
            learned.save(self.files[name], self.average, self.view, facts)

    def _measure(self, **options: Any) -> tuple[float, float]:
        """Least FID of guidance away from the average over the scales, and its scale."""
        evaluation, path = self.evaluation, str(self.files["joint"])
        assert evaluation is not None
        scales = options.pop("scales", self.stage.scales)
        learned.provide(evaluation.view, path, self.average)
        found = []
        for scale in scales:
            sampler = samplers.create("gandance", {"scale": scale, "joint": "learned", "joint_ckpt": path, **options})
            row = evaluation.measure("gandance", sampler)
            found.append((float(row["metrics"]["fid"]) if row else math.inf, scale))
        return self.group.agree(min(found))

    def _strengths(self) -> dict[str, Any]:
        """Learn the strengths of the best joint; they are written if they lower the FID of validation."""
        stage, view, evaluation = self.stage, self.view, self.evaluation
        assert evaluation is not None
        joint = learned.load(self.files["joint"], view)
        nn.init.ones_(joint.class_strength)
        nn.init.ones_(joint.row_strength)
        self.average = joint
        before = self._measure(scales=[stage.strength_scale])[0]
        real = evaluation.real
        if real is not None:
            chosen = {"class": [joint.class_strength], "row": [joint.row_strength]}
            parameters = chosen.get(stage.strengths) or [joint.class_strength, joint.row_strength]
            for value in parameters:
                value.requires_grad_(True)
            mean, factor = (torch.from_numpy(x).float().to(view.device) for x in (real.stats.mean, real.factor))
            soft: Callable[[Tensor], Tensor] = getattr(evaluation.backbone, "soft")  # noqa: B009  a protocol lacks it
            learn_strengths(view, joint, parameters, soft, mean, factor, stage, self.run.seed)
        for value in (joint.class_strength, joint.row_strength):
            value.requires_grad_(False)
            value.copy_(self.group.agree(value.cpu()))
        after = self._measure(scales=[stage.strength_scale], strengths=True)[0]
        if after < before and self.group.rank == 0:
            facts = {**dataclasses.asdict(stage), **self.loop.kept, "seed": self.run.seed}
            learned.save(self.files["joint"], joint, view, {**facts, "strength_fid": after})
        return {"strength_scale": stage.strength_scale, "fid_plain_scale": before, "fid_strengths": after}


def learn_strengths(
    view: LatentView,
    joint: LearnedJoint,
    parameters: list[nn.Parameter],
    soft: Callable[[Tensor], Tensor],
    mean: Tensor,
    factor: Tensor,
    stage: JointStage,
    seed: int,
) -> None:
    """Move the strengths ``parameters`` of ``joint`` down the Frechet distance between guided images and a Gaussian.

    The moments are those of the batch and of the seven before it, whose features are kept without gradients: the
    distance of a batch alone would be mostly that of its size.

    Args:
        view: the generator; its parameters must not ask for gradients.
        joint: of that view.
        parameters: among class_strength and row_strength.
        soft: images to features, with gradients.
        mean, factor: of the real features: [D], and L [D, D] with L L^T their covariance.
        stage: gives strength_scale, strength_steps and strength_batch.
        seed: of the noise.
    """
    optimiser = torch.optim.Adam(parameters, 0.05)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, max(1, stage.strength_steps))  # linearly to 0
    bank: list[Tensor] = []
    with view.frozen():
        for step in progress(range(stage.strength_steps), "strengths"):
            with torch.no_grad():
                inputs = view.draw(seeds(stage.strength_batch, seed, step, 2), 0, LabelPlan())
                code = view.encode(inputs.z, inputs.labels)
                h = joint(view, inputs, code)
            guided = guide(code, h, 1 + (stage.strength_scale - 1) * joint.strength(inputs.labels, code))
            features = soft(view.decode(guided, inputs.z, inputs.noise)).float()
            loss = frechet(torch.cat([*bank, features]), mean, factor) * (len(bank) + 1)  # of the batch's own share
            bank = [*bank, features.detach()][-7:]
            optimiser.zero_grad()
            loss.backward(inputs=parameters)
            optimiser.step()
            schedule.step()


def seeds(count: int, *key: int) -> list[int]:
    """Seeds of images for a place in a run, hashed: a generator of the CPU takes the low 32 bits of a seed only."""
    return [int(seed) for seed in np.random.SeedSequence(key).generate_state(count)]


def flat(codes: Tensor) -> Tensor:
    """Codes [B, D], the first of their equal rows where they have rows."""
    return codes[:, 0] if codes.dim() == 3 else codes
