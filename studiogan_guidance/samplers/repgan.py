"""REP-GAN: a Langevin chain in the latent whose every step is corrected by Metropolis' rule."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from studiogan_guidance.samplers.base import SAMPLERS
from studiogan_guidance.samplers.ddls import DDLS


@SAMPLERS.register(
    "repgan",
    "corrects each Langevin step of the latent by Metropolis' rule",
    "Wang et al. 2021, arXiv:2107.00352",
    family="discriminator",
    needs=("discriminator", "gradient"),
    neutral={"steps": 0},
)
@dataclass(frozen=True)
class RepGAN(DDLS):
    """Propose images by Langevin steps of their latents, and accept them by a Metropolis-Hastings rule for images.

    The rule's densities of proposals are taken in the latent space, whence the ratio is that of
    p0(z) exp(d(G(z))) q(z|z'): the chain is that of ``ddls`` with ``mala``, by another derivation, so here are its
    length and step. It starts at the plain z.

    Paper: Wang et al., "Reparameterized sampling for generative adversarial networks", ECML-PKDD 2021,
    arXiv:2107.00352; defaults are those of its code, where the noise has its usual size, the root of the step.

    Args:
        steps: length of the chain, from 0 (neutral) up.
        step: tau, positive: gradients are multiplied by tau / 2, noise by sqrt(tau).
        target_acceptance: see ``LangevinChain``; None keeps ``step``.
        space: z, or w for generators that have it, under a Gaussian fitted to w within classes.
        base, calibration, calibration_images: see ``RatioSampler``.

    Notes of each image: those of ``ddls``.

    Raises:
        UserError: values out of range, space w without w, no discriminator.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("repgan", {"steps": 2, "calibration_images": 100})
        >>> next(sampler.stream(view, range(2), 2, LabelPlan())).cost["proposed"]
        4
    """

    steps: int = 640
    temperature: float = dataclasses.field(default=1.0, init=False)
    mala: bool = dataclasses.field(default=True, init=False)
