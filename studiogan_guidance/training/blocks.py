"""What does not learn in the steps of the stage ``joint``, drawn and mapped for a block of steps at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from studiogan_guidance.latents.base import Inputs


@dataclass(frozen=True)
class StepData:
    """What does not learn, for the images of a step, or of several.

    Attributes:
        inputs: of B images.
        start: the estimator that the joint starts from, of the shape of codes.
        target: codes of ``class_mean``, of the same shape; None where nothing asks for them.
        others: codes [B, D] of other inputs; None where nothing asks for them.
    """

    inputs: Inputs
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
        return StepData(some, self.start[part], target, others)


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
