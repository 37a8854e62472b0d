"""GANdance: guided sampling of a pretrained conditional GAN (Zhang et al., ECCV 2024)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance.common import UserError
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.latents.joint import JOINTS
from studiogan_guidance.samplers.base import Sampler, finite
from studiogan_guidance.samplers.truncation import Truncation


def guide(code: Tensor, joint: Tensor, scale: float | Tensor) -> Tensor:
    """``joint + scale * (code - joint)``; at the number 1 the very ``code``. Any shapes that broadcast.

    GANdance, ECCV 2024, Fig. 1 (direction and extrapolation; the formula is our reading, as no code was published).
    """
    return code if isinstance(scale, (int, float)) and scale == 1 else joint + scale * (code - joint)


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
        scales: several scales in place of ``scale``, for equal groups of w rows, coarse to fine (1.4:1.2:1 for coarse,
            middle and fine rows); None for one scale everywhere.
        keep_norm: rescale each guided code to the Euclidean norm of the plain one; off by default.
        psi: finite number: after guiding, w is pulled towards the guided mean of its class, m + psi * (w - m), which
            keeps the condition (plain truncation towards the mean of all undoes guidance); None or 1 is off.
        threshold: positive number: z from a normal truncated to [-t, t] (see ``truncation``); None is off.

    Raises:
        UserError: a value that is not finite, an unknown joint, layers outside the view's rows, layers, scales or psi
            on a view without rows, a threshold on a uniform prior.

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
    scales: tuple[float, ...] | None = None
    keep_norm: bool = False
    psi: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        for scale in (self.scale, *(self.scales or ())):
            finite("gandance.scale", scale)
        self._truncation  # noqa: B018  checks its values
        JOINTS[self.joint]
        if self.subset < 1:
            raise UserError(f"gandance.subset must be at least 1, found {self.subset}: give a number of classes")

    @property
    def neutral(self) -> bool:
        return all(scale == 1 for scale in self.scales or (self.scale,)) and self._truncation.neutral

    @property
    def _truncation(self) -> Truncation:
        return Truncation(psi=1.0 if self.psi is None else self.psi, threshold=self.threshold)

    def check(self, view: LatentView) -> None:
        self._truncation.check(view)
        low, high = self.layers or (0, 1)
        for name in ("layers", "scales"):
            if getattr(self, name) is not None and view.rows is None:
                backbone = view.networks.backbone
                raise UserError(f"gandance.{name} needs a generator with w rows, but {backbone} has none: leave it out")
        if self.layers and not 0 <= low < high <= (view.rows or 0):
            raise UserError(f"gandance.layers is {low}-{high}, but this generator has rows 0-{view.rows}")
        if self.scales is not None and not 1 <= len(self.scales) <= (view.rows or 0):
            raise UserError(f"gandance.scales has {len(self.scales)} scales, but this generator has {view.rows} w rows")

    def images(self, view: LatentView, inputs: Inputs) -> Tensor:
        z = self._truncation.truncated_z(view, inputs.z)
        inputs = dataclasses.replace(inputs, z=z)
        return view.decode(self.guided(view, inputs, view.encode(z, inputs.labels)), z, inputs.noise)

    def guided(self, view: LatentView, inputs: Inputs, code: Tensor) -> Tensor:
        """The guided codes, of the shape of ``code`` (for samplers that build on guidance)."""
        if self.neutral:
            return code
        guided = code
        if any(scale != 1 for scale in self.scales or (self.scale,)):
            joint = JOINTS[self.joint].target(view, inputs, code, self.subset)
            guided = guide(code, joint, self._per_row(view, code) if self.scales else self.scale)
        if self.keep_norm:
            norm = torch.linalg.vector_norm
            guided = guided * (norm(code, dim=-1, keepdim=True) / norm(guided, dim=-1, keepdim=True).clamp_min(1e-12))
        if self.layers:
            low, high = self.layers
            guided = torch.cat([code[:, :low], guided[:, low:high], code[:, high:]], 1)
        if self.psi is not None and self.psi != 1:
            means, mean = view.class_means(), view.global_mean()
            own = means[inputs.labels] if inputs.labels.dim() == 1 else torch.tensordot(inputs.labels, means, 1)
            scale = self._per_row(view, code) if self.scales else self.scale
            guided = self._truncation.truncated_code(guided, guide(own, mean, scale))
        return guided

    def _per_row(self, view: LatentView, code: Tensor) -> Tensor:
        """The scale of each w row, [rows, 1]."""
        assert self.scales is not None
        rows = view.rows or 1
        picks = [self.scales[row * len(self.scales) // rows] for row in range(rows)]
        return torch.tensor(picks, dtype=code.dtype, device=code.device)[:, None]
