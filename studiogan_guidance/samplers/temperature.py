"""The temperature of the prior noise: the spread within classes of generators that do not normalise z."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import LatentView
from studiogan_guidance.samplers.base import check_finite
from studiogan_guidance.samplers.profile import shares


@dataclass(frozen=True)
class Temperature:
    """z -> tau z on the prior noise; InfoGAN's numbers stay.

    Source: the variance of z at which Brock et al. 2019 (arXiv:1809.11096) sample, here also above 1.

    Args:
        tau: a number from 0 up; 1 is neutral.
        profile: shares p of tau - 1 in equal groups of the view's chunks of noise, each multiplied by
            1 + (tau - 1) p; None is 1 everywhere.
        owner: the name of the sampler that has these options, for messages.

    Raises:
        UserError: a value that is not finite, or below 0.
    """

    tau: float = 1.0
    profile: tuple[float, ...] | None = None
    owner: str = "gandance"

    def __post_init__(self) -> None:
        check_finite(f"{self.owner}.tau", self.tau)
        if self.tau < 0:
            raise UserError(f"{self.owner}.tau must be a number from 0 up, found {self.tau}: 1 is plain")
        for share in self.profile or ():
            check_finite(f"{self.owner}.tau_profile", share)

    @property
    def neutral(self) -> bool:
        """Whether z stays as it is."""
        return self.tau == 1

    def check(self, view: LatentView) -> None:
        """Raise UserError where the images of a view do not depend on the temperature, or its noise is not split."""
        backbone = view.networks.backbone
        if not self.neutral and view.normalises_z:
            raise UserError(
                f"{self.owner}.tau changes nothing on {backbone}, whose mapping normalises z: use psi, the spread of w"
            )
        if self.profile is not None and not 1 <= len(self.profile) <= view.noise_chunks:
            advice = "use tau alone" if view.noise_chunks == 1 else "give fewer groups"
            raise UserError(
                f"{self.owner}.tau_profile has {len(self.profile)} groups, but the noise of this {backbone} is in "
                f"{view.noise_chunks} chunk(s): {advice}"
            )

    def applied(self, view: LatentView, z: Tensor) -> Tensor:
        """z [B, Z] with its prior noise multiplied by the temperature."""
        if self.neutral:
            return z
        prior, info = view.split(z)
        prior = prior * self._factor(view)
        return torch.cat([prior, info], 1) if info.shape[1] else prior

    def _factor(self, view: LatentView) -> float | Tensor:
        """``tau``, or with a profile that of each number of the prior noise, [z_dim]."""
        if self.profile is None:
            return self.tau
        return view.once(("temperature", self), lambda: self._of_numbers(view, self.profile or ()))

    def _of_numbers(self, view: LatentView, profile: tuple[float, ...]) -> Tensor:
        table = 1 + (self.tau - 1) * shares(profile, view.noise_chunks)
        width = view.networks.z_dim // view.noise_chunks
        return table.repeat_interleave(width).float().to(view.device)
