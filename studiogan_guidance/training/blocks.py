"""What does not learn in the steps of the stage ``joint``, drawn and mapped for a block of steps at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView
from studiogan_guidance.latents.joint import JOINTS, JointOptions
from studiogan_guidance.latents.learned import LearnedJoint
from studiogan_guidance.training.joint_losses import first_row
from studiogan_guidance.training.loop import step_seeds


@dataclass(frozen=True)
class StepData:
    """What does not learn, for the images of a step, or of several.

    Attributes:
        inputs: of B images.
        code: of these inputs.
        start: the estimator that the joint starts from, of the shape of codes.
        target: codes of ``class_mean``, of the same shape; None where nothing asks for them.
        others: codes [B, D] of other inputs; None where nothing asks for them.
    """

    inputs: Inputs
    code: Tensor
    start: Tensor
    target: Tensor | None = None
    others: Tensor | None = None

    def rows(self, part: slice) -> StepData:
        """The same for some of the images."""
        inputs = self.inputs
        some = dataclasses.replace(
            inputs,
            seeds=inputs.seeds[part],
            z=inputs.z[part],
            labels=inputs.labels[part],
            noise=[layer[part] for layer in inputs.noise] if inputs.noise else None,
            generators=inputs.generators[part],
        )
        target = self.target[part] if self.target is not None else None
        others = self.others[part] if self.others is not None else None
        return StepData(some, self.code[part], self.start[part], target, others)


@dataclass(frozen=True)
class StepSource:
    """Draws and maps what does not learn; a process draws its share of each batch.

    Attributes:
        view: of the generator.
        joint: that learns; its estimator is the start.
        group: the processes of the run.
        seed: of the run; it and the numbers of the steps alone decide.
        batch: images of a step, of all processes.
        images: whether images will be made, with layer noise.
        target: whether ``class_mean`` is asked for.
        others: whether codes of other inputs are.
    """

    view: LatentView
    joint: LearnedJoint
    group: Group
    seed: int
    batch: int
    images: bool
    target: bool
    others: bool

    def draw(self, *batches: int, noise_mode: str = "random") -> Inputs:
        """This process's share of the inputs of some batches, by their numbers."""
        seeds: list[int] = []
        for batch in batches:
            seeds += step_seeds(self.batch, self.seed, batch + 1)[self.group.rank :: self.group.size]
        return self.view.draw(seeds, 0, LabelPlan(), noise_mode)

    @torch.no_grad()
    def __call__(self, steps: range) -> StepData:
        """The data of some steps."""
        # Inputs, their codes, and the estimators of the joint.
        inputs = self.draw(*(2 * step for step in steps), noise_mode="random" if self.images else "const")
        code = self.view.encode(inputs.z, inputs.labels)
        start = self.joint.start(self.view, inputs, code)
        target = JOINTS["class_mean"].target(self.view, inputs, code, JointOptions()) if self.target else None

        # Codes of other inputs.
        if not self.others:
            return StepData(inputs, code, start, target)
        others = self.draw(*(2 * step + 1 for step in steps), noise_mode="const")
        return StepData(inputs, code, start, target, first_row(self.view.encode(others.z, others.labels)))


class Blocks:
    """The data of each step, computed for a block of ``size`` steps at once.

    A block depends on its own number alone, so a run that goes on in the middle of one computes the very same.

    Args:
        compute: the data of some steps, as many images for each.
        size: steps of a block.
    """

    def __init__(self, compute: Callable[[range], StepData], size: int) -> None:
        self.size = size
        self._compute = compute
        self._number = -1
        self._block: StepData | None = None

    def step(self, step: int) -> StepData:
        """The data of one step."""
        number, place = divmod(step, self.size)

        # Compute its block.
        if self._block is None or number != self._number:
            self._block = None  # its memory is free for the next one
            self._block = self._compute(range(number * self.size, (number + 1) * self.size))
            self._number = number

        # Take the share of the step.
        share = len(self._block.start) // self.size
        return self._block.rows(slice(place * share, (place + 1) * share))
