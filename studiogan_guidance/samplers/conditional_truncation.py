"""Truncation of w towards the mean of its class, and the base class of truncations of w towards any centre."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.latents.joint import of_class
from studiogan_guidance.samplers.base import SAMPLERS, BasedSampler, Sampled, check_finite
from studiogan_guidance.samplers.truncation import Truncation


@dataclass(frozen=True)
class TruncationTowards(BasedSampler):
    """A sampler that moves each w of its base towards some centre: centre + psi * (w - centre).

    Args:
        psi: finite number; 1 is plain (neutral), 0 is the centre itself, more than 1 spreads.
        cutoff: number of leading w rows to move; None moves all.
    """

    psi: float = 0.7
    cutoff: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(f"{SAMPLERS.name_of(self)}.psi", self.psi)

    @property
    def _is_identity(self) -> bool:
        return self.psi == 1

    @property
    def _truncation(self) -> Truncation:
        return Truncation(psi=self.psi, center="class", cutoff=self.cutoff)

    def check(self, view: LatentView) -> None:
        super().check(view)
        name = SAMPLERS.name_of(self)
        backbone = view.networks.backbone
        if view.rows is None and not self._is_identity:
            raise UserError(f"{name} needs a generator with w, {backbone} has none: use truncation with threshold")
        if self.cutoff is not None and not 0 <= self.cutoff <= (view.rows or 0):
            raise UserError(f"{name}.cutoff is {self.cutoff}, but this generator has w rows 0-{view.rows or 0}")

    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        code = view.encode(inputs.z, inputs.labels)
        centres, notes = self.centres(view, inputs.labels, code)
        code = self._truncation.truncated_code(code, centres)
        return Sampled(view.decode(code, inputs.z, inputs.noise), notes)

    @abstractmethod
    def centres(self, view: LatentView, labels: Tensor, code: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The centre for each w, of the shape of ``code`` [B, rows, w_dim], and notes about each image, [B]."""


@SAMPLERS.register(
    "conditional_truncation",
    "pulls w towards the mean w of its class",
    "Dobler et al. 2022, arXiv:2202.11777",
    family="code",
    needs=("classes", "w"),
    neutral={"psi": 1.0},
)
@dataclass(frozen=True)
class ConditionalTruncation(TruncationTowards):
    """Move w towards the mean of its class, so that a small psi gives the typical image of the class, not of the data.

    w' = m_c + psi * (w - m_c), with m_c = E_z f(z, c) over 10,000 draws. On a guided base, w and m_c are the guided
    ones: guide, then truncate. It is ``truncation`` with ``center=class``, but works on any base and may be one.

    Paper: Dobler et al., "Art creation with multi-conditional StyleGANs", 2022, arXiv:2202.11777 (conditional
    truncation trick); also StyleGAN-XL, Sauer et al. 2022, arXiv:2202.00273.

    Args:
        psi: finite number; 1 is plain (neutral), 0 is the mean itself. Less than 1 gives more typical images of the
            class, more than 1 more various ones; 0.7 to 1.8 is worth a search.
        cutoff: number of leading w rows to truncate; None truncates all.
        base: see ``BasedSampler``.

    Raises:
        UserError: a generator without w, a value out of range.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("conditional_truncation", {"psi": 0.5, "base": "gandance", "base.scale": 1.5})
        >>> tuple(next(sampler.stream(view, range(2), 2, LabelPlan())).images.shape)
        (2, 3, 32, 32)
    """

    def centres(self, view: LatentView, labels: Tensor, code: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return of_class(view.class_means(), labels), {}

    def built_into(self, view: LatentView) -> LatentView:
        return self._truncation.built_into(self.under(view))
