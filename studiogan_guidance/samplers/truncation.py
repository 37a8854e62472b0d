"""The truncation tricks: of the prior noise (BigGAN) and of w towards a mean (StyleGAN)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from studiogan_guidance.errors import UserError, notice_once
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.latents.joint import of_class
from studiogan_guidance.samplers.base import SAMPLERS, Sampler, check_choice, check_finite

CENTRES = ("global", "class")


def truncated_normal(z: Tensor, threshold: float) -> Tensor:
    """Standard normal z -> normal truncated to [-threshold, threshold], by matching quantiles; any shape.

    The law is that of redrawing every coordinate beyond the threshold (Brock et al. 2019, arXiv:1809.11096, section
    3.1), but each output is a monotone function of its input: same seed, similar image, and no extra random numbers.
    An infinite threshold is the identity.
    """
    bound = torch.special.ndtr(torch.tensor(-threshold, dtype=torch.float64))
    quantile = bound + torch.special.ndtr(-z.double().abs()) * (1 - 2 * bound)  # of -|z|: precise in the tail
    size: Tensor = torch.special.ndtri(quantile).abs().clamp(max=threshold)
    return (size * z.sign()).to(z.dtype)


@SAMPLERS.register(
    "truncation",
    "truncates z (`threshold`), or pulls w towards the global or class mean (`psi`)",
    "Brock et al. 2019, arXiv:1809.11096; Karras et al. 2019, arXiv:1812.04948; Dobler et al. 2022, arXiv:2202.11777",
    family="code",
    neutral={"psi": 1.0, "threshold": None},
)
@dataclass(frozen=True)
class Truncation(Sampler):
    """Trade diversity for fidelity by pulling samples towards the middle of the latent space.

    ``threshold`` truncates the prior noise of any Gaussian-prior generator: z from a normal truncated to [-t, t]
    (Brock et al. 2019, arXiv:1809.11096). ``psi`` moves w: mean + psi * (w - mean), where the mean is the checkpoint's
    w_avg (Karras et al. 2019, arXiv:1812.04948, eq. in appendix B) or the mean w of the class (Dobler et al. 2022,
    arXiv:2202.11777).

    Args:
        psi: finite number, for generators with w; 1 is plain, 0 is the mean itself, more than 1 spreads.
        threshold: positive number, or None (plain). Generators that normalise z (StyleGAN2, StyleGAN3, the built-in) do
            not read its norm, so there it trades next to nothing: use psi.
        center: "global" or "class": which mean w moves towards.
        cutoff: number of leading w rows to truncate; None truncates all.

    Raises:
        UserError: psi or cutoff on a generator without w, a threshold on a uniform prior, a value out of range.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("truncation", {"psi": 0.7, "cutoff": 4})
        >>> tuple(next(sampler.stream(view, range(2), 2, LabelPlan())).images.shape)
        (2, 3, 32, 32)
    """

    psi: float = 1.0
    threshold: float | None = None
    center: str = "global"
    cutoff: int | None = None

    def __post_init__(self) -> None:
        check_finite("truncation.psi", self.psi)
        if self.threshold is not None and not self.threshold > 0:
            raise UserError(
                f"truncation.threshold must be positive, found {self.threshold}: leave it out to switch it off"
            )
        check_choice(self, center=CENTRES)

    @property
    def neutral(self) -> bool:
        return self.psi == 1 and self.threshold is None

    def check(self, view: LatentView) -> None:
        networks = view.networks

        # w.
        if view.rows is None and (self.psi != 1 or self.cutoff is not None):
            raise UserError(
                f"truncation.psi and cutoff need a generator with w, {networks.backbone} has none: use threshold"
            )
        if self.cutoff is not None and not 0 <= self.cutoff <= (view.rows or 0):
            raise UserError(f"truncation.cutoff is {self.cutoff}, but this generator has w rows 0-{view.rows}")

        # Classes.
        if self.center == "class" and self.psi != 1:
            networks.check_conditional("truncation.center=class", "use center=global")

        # z.
        if self.threshold is not None and networks.z_prior != "gaussian":
            raise UserError(
                f"truncation.threshold needs a gaussian prior, this {networks.backbone} has {networks.z_prior}"
            )
        if self.threshold is not None and view.normalises_z:
            notice_once(
                f"a threshold truncates z, whose norm {networks.backbone} does not read, so quality and variety hardly "
                "change: use psi"
            )

    def images(self, view: LatentView, inputs: Inputs) -> Tensor:
        return self.built_into(view).images(inputs)

    def truncated_z(self, view: LatentView, z: Tensor) -> Tensor:
        """Prior noise with its Gaussian part truncated to the threshold, [B, Z]."""
        if self.threshold is None:
            return z
        prior, info = view.split(z)
        return torch.cat([truncated_normal(prior, self.threshold), info], 1)

    def truncated_code(self, code: Tensor, mean: Tensor) -> Tensor:
        """``mean + psi * (code - mean)`` in the leading ``cutoff`` rows, [B, rows, w_dim]."""
        truncated = mean.lerp(code, self.psi)
        if self.cutoff is None:
            return truncated
        return torch.cat([truncated[:, : self.cutoff], code[:, self.cutoff :]], 1)

    def built_into(self, view: LatentView) -> LatentView:
        def towards_mean(code: Tensor, labels: Tensor) -> Tensor:
            if self.psi == 1:
                return code
            mean = view.global_mean() if self.center == "global" else of_class(view.class_means(), labels)
            return self.truncated_code(code, mean)

        def encode(z: Tensor, labels: Tensor) -> Tensor:
            return towards_mean(view.encode(self.truncated_z(view, z), labels), labels)

        def decode(code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
            return view.decode(code, self.truncated_z(view, z), noise)

        def class_means() -> Tensor:
            return towards_mean(view.class_means(), torch.arange(view.num_classes, device=view.device))

        return view.altered(encode=encode, decode=decode, class_means=class_means)

    def while_drawing(self, view: LatentView) -> LatentView:
        """``view`` with noise truncated as it is drawn, and codes towards the global mean after any guidance."""
        if self.neutral:
            return view

        def prior(gens: Sequence[Generator]) -> Tensor:
            return self.truncated_z(view, view.prior(gens))

        def decode(code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
            if self.psi != 1:
                code = self.truncated_code(code, view.global_mean())
            return view.decode(code, z, noise)

        return view.altered(decode=decode, prior=prior)
