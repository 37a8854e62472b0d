"""Discriminator gradient flow: the latent drifts up the log density ratio, with little noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance.errors import UserError
from studiogan_guidance.samplers.base import SAMPLERS, check_at_least, check_choice, check_finite
from studiogan_guidance.samplers.chain import SpaceChain, Target, Walk

DRIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": torch.ones_like,
    "logd": lambda d: torch.sigmoid(-d),
    "js": torch.sigmoid,
}


def drift(d: Tensor, divergence: str) -> Tensor:
    """s_f(d), what the gradient of the log ratio d is multiplied by; any shape.

    1 for kl, 1 / (1 + e^d) for logd, 1 / (1 + e^-d) for js (Ansari et al. 2021, arXiv:2012.00780).
    """
    return DRIFTS[divergence](d)


def flow(z: Tensor, slope: Tensor, size: Tensor, eta: float, gamma: float, noise: Tensor) -> Tensor:
    """One step of the flow, ``z + eta s_f(d) grad d(G(z)) + sqrt(2 eta gamma) noise``, [B, D]; ``size`` s_f(d) is [B].

    Ansari et al. 2021, arXiv:2012.00780, algorithm 1.
    """
    return z + eta * size[:, None] * slope + math.sqrt(2 * eta * gamma) * noise


@SAMPLERS.register(
    "dgflow",
    "takes a few noisy gradient steps of the latent up the log ratio",
    "Ansari et al. 2021, arXiv:2012.00780",
    family="discriminator",
    needs=("discriminator", "gradient"),
    neutral={"steps": 0},
)
@dataclass(frozen=True)
class DGflow(SpaceChain):
    """Refine the latent along the gradient flow of a divergence between data and generator, discretised.

    z <- z + eta s_f(d) grad d(G(z)) + sqrt(2 eta gamma) xi, d the log density ratio, from the plain z. Only the number
    of steps keeps z near its prior: watch the note ``norm``. A uniform prior reflects at its borders. Layer noise and
    InfoGAN's numbers of an image stay as they are.

    Paper: Ansari, Ang, Soh, "Refining deep generative models via discriminator gradient flow", ICLR 2021,
    arXiv:2012.00780, algorithm 1; with its defaults.

    The paper's eta is for the logit as it is, as here with calibration=none. A logistic map multiplies the logit, and
    so the gradient, by its slope: the drift is that of eta times the slope in the paper's units, while the noise stays.

    Args:
        steps: from 0 (neutral) up.
        eta: size of a step, from 0 up; 0.1 is published for logits that are not calibrated.
        gamma: strength of the entropy term, from 0 (no noise) up.
        divergence: kl (s_f = 1), logd (less where the ratio is high: it stops in time) or js (less where it is low).
        space: z, or w for generators that have it, whitened within classes.
        base, calibration, calibration_images: see ``RatioSampler``.

    Notes of each image: ``score`` and ``score_start``, the log ratio at both ends; ``norm``, |z| / sqrt(D), 1 in the
    prior.

    Raises:
        UserError: values out of range, space w without w, no discriminator.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("dgflow", {"steps": 2, "calibration_images": 100})
        >>> batch = next(sampler.stream(view, range(2), 2, LabelPlan()))
        >>> batch.cost["backward"], batch.cost["discriminator"]
        (4, 6)
    """

    steps: int = 25
    eta: float = 0.1
    gamma: float = 0.01
    divergence: str = "kl"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, eta=0, gamma=0)
        check_choice(self, divergence=tuple(DRIFTS))
        for name in ("eta", "gamma"):
            check_finite(f"dgflow.{name}", getattr(self, name))
        if self.steps and not self.eta:
            raise UserError(f"dgflow.eta is 0, so {self.steps} steps would not move: use steps=0 for plain sampling")

    def walk(self, target: Target) -> Walk:
        z = target.latent.start
        for _ in range(self.steps):
            d, slope = target.slope(z)
            z = flow(z, slope, drift(d, self.divergence), self.eta, self.gamma, target.noise())
            z = target.latent.inside(z)
        return z, {}
