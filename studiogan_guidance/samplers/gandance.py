"""GANdance: guided sampling of a pretrained conditional GAN (Zhang et al., ECCV 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance.common import UserError
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.latents.joint import JOINTS
from studiogan_guidance.samplers.base import Sampler, finite


def guide(code: Tensor, joint: Tensor, scale: float) -> Tensor:
    """``joint + scale * (code - joint)``; at scale 1 the very ``code``. Any shapes that broadcast.

    GANdance, ECCV 2024, Fig. 1 (direction and extrapolation; the formula is our reading, as no code was published).
    """
    return code if scale == 1 else joint + scale * (code - joint)


@dataclass(frozen=True)
class GANdance(Sampler):
    """Extrapolate each code away from the code of no particular class: code_g = joint + scale * (code - joint).

    The joint is estimated by arithmetic on the generator's own latents, so nothing is trained and nothing but the
    latents changes. More scale buys fidelity and class accuracy and costs diversity. The estimators, and what each
    does to between-class and within-class spread, are in ``studiogan_guidance.latents.joint``.

    Paper: Zhang et al., "GANdance: Exploring Guided Sampling of Conditional GANs", ECCV 2024.

    Args:
        scale: finite number; 1 is plain sampling (neutral), more guides, less goes towards the joint; 1.05 to 2 is
            usual.
        joint: name of the estimator: class_mean, class_subset, global_mean, class_shift or mean_embedding.
        subset: number of classes that ``class_subset`` averages, from 1 up (capped at the number of classes).
        layers: rows [low, high) of w to guide, for views with layers; None guides all of them.
        keep_norm: rescale each guided code to the Euclidean norm of the plain one; off by default.

    Raises:
        UserError: a scale that is not finite, an unknown joint, layers outside the view's rows or on a view without.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> guided = samplers.create("gandance", {"scale": 1.3, "joint": "class_mean"})
        >>> batch = next(guided.stream(view, seeds=range(4), batch_size=4, plan=LabelPlan(classes=(3,))))
        >>> batch.labels.tolist()
        [3, 3, 3, 3]
    """

    scale: float = 1.2  # not the neutral 1: whoever asks for gandance by name alone wants guidance
    joint: str = "class_mean"
    subset: int = 8
    layers: tuple[int, int] | None = None
    keep_norm: bool = False

    def __post_init__(self) -> None:
        finite("gandance.scale", self.scale)
        JOINTS[self.joint]
        if self.subset < 1:
            raise UserError(f"gandance.subset must be at least 1, found {self.subset}: give a number of classes")

    @property
    def neutral(self) -> bool:
        return self.scale == 1

    def check(self, view: LatentView) -> None:
        if self.layers is None:
            return
        if view.rows is None:
            raise UserError(
                f"gandance.layers needs a generator with w rows, but {view.networks.backbone} has none: leave it out"
            )
        low, high = self.layers
        if not 0 <= low < high <= view.rows:
            raise UserError(f"gandance.layers is {low}-{high}, but this generator has rows 0-{view.rows}")

    def images(self, view: LatentView, inputs: Inputs) -> Tensor:
        code = view.encode(inputs.z, inputs.labels)
        return view.decode(self.guided(view, inputs, code), inputs.z, inputs.noise)

    def guided(self, view: LatentView, inputs: Inputs, code: Tensor) -> Tensor:
        """The guided codes, of the shape of ``code`` (for samplers that build on guidance)."""
        if self.neutral:
            return code
        joint = JOINTS[self.joint].target(view, inputs, code, self.subset)
        guided = guide(code, joint, self.scale)
        if self.keep_norm:
            norm = torch.linalg.vector_norm
            guided = guided * (norm(code, dim=-1, keepdim=True) / norm(guided, dim=-1, keepdim=True).clamp_min(1e-12))
        if self.layers:
            low, high = self.layers
            guided = torch.cat([code[:, :low], guided[:, low:high], code[:, high:]], 1)
        return guided
