"""The stage ``strengths``: how strongly each class, and each w row or block, is guided away from a learned joint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.latents import learned
from studiogan_guidance.latents.base import LabelPlan, LatentView, Networks
from studiogan_guidance.latents.joint import OURS
from studiogan_guidance.latents.learned import LearnedJoint
from studiogan_guidance.progress import track
from studiogan_guidance.samplers.base import check_finite
from studiogan_guidance.samplers.gandance import by_block, guide
from studiogan_guidance.training.loop import deterministic, frozen_parameters, step_seeds
from studiogan_guidance.training.objectives import frechet
from studiogan_guidance.training.stage import STAGES, Stage, Trained
from studiogan_guidance.training.validation import validation_fid

STRENGTHS = {"class": ("class_strength",), "row": ("row_strength",), "both": ("class_strength", "row_strength")}
NEEDS = (
    "strengths needs validation data and a feature network with gradients: use 'studiogan-guidance train' and "
    "--backbone builtin, host:NAME or dinov2:PATH"
)
RATE = 0.05  # of Adam at the first step; it falls linearly to 0
MEMORY = 7  # earlier batches whose features are in the moments


@STAGES.register("strengths", "learns how strongly gandance guides each class and w row or block", OURS)
@dataclass(frozen=True)
class StrengthStage(Stage):
    """Learn what multiplies scale - 1 for each class and w row or block, by the Frechet distance on validation data.

    A code of class c is guided in w row l (without w: in conditional block l) with

        scale_eff = 1 + (scale - 1) (class_strength[c] + row_strength[l] - 1),

    where all strengths are 1 at first. They are written to ``joint.safetensors`` in the run's folder if they lower the
    FID of validation at ``scale``; sample with ``-o strengths=true`` at this scale. (Strengths are our own addition.)
    They are learned anew in each run, on a GPU with deterministic algorithms, as the joint is.

    Args:
        per: learn strengths per class, per row (of w, or conditional block), or both.
        joint_ckpt: file of the learned joint; None: ``joint.safetensors`` in the run's folder, where ``joint`` left it.
        scale: finite guidance scale at which they are learned; at 1 they change nothing.
        steps: number of Adam steps, 0 or more.
        batch: images of a step, 2 or more, all of them at once on each process.

    Raises:
        UserError: values out of range, no such joint, a feature network without gradients, or a host run, which has no
            validation data.

    Example:
        >>> from studiogan_guidance.training import STAGES
        >>> STAGES.create("strengths", {"per": "class"}).steps
        200
    """

    per: str = "both"
    joint_ckpt: str | None = None
    scale: float = 1.2
    steps: int = 200
    batch: int = 256

    def __post_init__(self) -> None:
        if self.per not in STRENGTHS:
            raise UserError(f"strengths.per is '{self.per}': {nearest(self.per, STRENGTHS)}")
        check_finite("strengths.scale", self.scale)
        for name, least in (("steps", 0), ("batch", 2)):
            if getattr(self, name) < least:
                raise UserError(f"strengths.{name} must be {least} or more, found {getattr(self, name)}")

    def check(self, networks: Networks, discriminator: nn.Module, processes: int) -> None:
        raise UserError(NEEDS)

    def after_training(self, run: Trained) -> dict[str, Any]:
        """Learn and write the strengths; returns the file, the scale, and FID at it without and with strengths."""
        run.networks.check_conditional("stage 'strengths'", "there is no guidance away from classes to learn")
        group = Group(run.rank, run.world_size)
        path = run.folder / learned.FILE
        source = Path(self.joint_ckpt) if self.joint_ckpt else path
        with frozen_parameters(run.networks.generator), deterministic(run.networks.device):
            evaluation = run.evaluation() if run.evaluation else None
            if evaluation is None or not hasattr(evaluation.backbone, "soft"):
                raise UserError(NEEDS)

            # Start from strengths that change nothing.
            joint = learned.load(source, evaluation.view)
            nn.init.ones_(joint.class_strength)
            nn.init.ones_(joint.row_strength)
            before = group.agree(validation_fid(evaluation, joint, self.scale))

            # Learn them in the first process, and share them.
            self._learn(evaluation, joint, run.seed)
            for value in (joint.class_strength, joint.row_strength):
                value.requires_grad_(False)
                value.copy_(group.agree(value.cpu()))

            # Keep them where they help.
            after = group.agree(validation_fid(evaluation, joint, self.scale, strengths=True))
            if after < before and group.rank == 0:
                facts = {**dataclasses.asdict(self), "seed": run.seed, "validation_fid": after}
                training = {**learned.training_facts(source), "strengths": facts}
                learned.save(path, joint, evaluation.view, training)

        result = path if after < before else source
        run.log(f"Strengths: FID {before:.4g} without, {after:.4g} with them, in {result}")
        return {"joint": str(result), "strength_scale": self.scale, "fid_plain_scale": before, "fid_strengths": after}

    def _learn(self, evaluation: Evaluation, joint: LearnedJoint, seed: int) -> None:
        """Learn the strengths of ``joint`` in the first process, which alone has the real images' statistics."""
        real = evaluation.reference
        view = evaluation.view
        if real is None:
            return
        parameters = [getattr(joint, name) for name in STRENGTHS[self.per]]
        for value in parameters:
            value.requires_grad_(True)

        soft: Callable[[Tensor], Tensor] = getattr(evaluation.backbone, "soft")  # noqa: B009  a protocol lacks it
        mean = torch.from_numpy(real.stats.mean).float().to(view.device)
        factor = torch.from_numpy(real.factor).float().to(view.device)
        learn_strengths(view, joint, parameters, soft, mean, factor, self, seed)


def learn_strengths(
    view: LatentView,
    joint: LearnedJoint,
    parameters: list[nn.Parameter],
    soft: Callable[[Tensor], Tensor],
    mean: Tensor,
    factor: Tensor,
    stage: StrengthStage,
    seed: int,
) -> None:
    """Move the strengths ``parameters`` of ``joint`` down the Frechet distance between guided images and a Gaussian.

    The moments are those of the batch and of the ``MEMORY`` batches before it, whose features carry no gradients: the
    distance of a batch alone would be mostly that of its size.

    Args:
        view: the generator; its parameters must not ask for gradients.
        joint: of that view.
        parameters: among class_strength and row_strength.
        soft: images to features, with gradients.
        mean: of the real features, [D].
        factor: L [D, D] with L L^T the covariance of the real features.
        stage: gives scale, steps and batch.
        seed: of the noise.

    Raises:
        UserError: features that are not finite.
    """
    optimiser = torch.optim.Adam(parameters, RATE)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, max(1, stage.steps))
    memory: list[Tensor] = []
    with view.frozen():
        for step in track(range(stage.steps), "strengths"):
            # Draw codes and their joints.
            with torch.no_grad():
                inputs = view.draw(step_seeds(stage.batch, seed, step, 2), 0, LabelPlan())
                code = view.encode(inputs.z, inputs.labels)
                h = joint(view, inputs, code)

            # Guide them with the strengths so far.
            scale = 1 + (stage.scale - 1) * joint.strength(inputs.labels, code)
            code, h = by_block(scale, code, h)
            images = view.decode(guide(code, h, scale), inputs.z, inputs.noise)
            features = soft(images).float()
            if failed := int((~features.isfinite().all(1)).sum()):
                raise UserError(
                    f"--backbone gives features that are not finite (nan or inf) for {failed} of {stage.batch} images "
                    f"of step {step}: choose another, or a scale nearer to 1"
                )

            # Descend the distance, whose gradient is that of the batch's share of the features.
            loss = frechet(torch.cat([*memory, features]), mean, factor) * (len(memory) + 1)
            memory = [*memory, features.detach()][-MEMORY:]
            optimiser.zero_grad()
            loss.backward(inputs=parameters)
            optimiser.step()
            schedule.step()
