"""Plain sampling: what the generator makes by itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.samplers.base import SAMPLERS, Sampler


@SAMPLERS.register(
    "plain",
    "the generator as it is",
    "each backbone's own",
    family="code",
    neutral={},
)
@dataclass(frozen=True)
class Plain(Sampler):
    """Decode the code of the noise and the label as they are; the reference for every other sampler.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> batch = next(samplers.create("plain").stream(view, range(4), 4, LabelPlan()))
        >>> tuple(batch.images.shape)
        (4, 3, 32, 32)
    """

    def images(self, view: LatentView, inputs: Inputs) -> Tensor:
        return view.images(inputs)

    def built_into(self, view: LatentView) -> LatentView:
        return view
