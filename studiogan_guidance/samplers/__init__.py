"""Samplers by name. Other packages add theirs through the entry-point group ``studiogan_guidance.samplers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studiogan_guidance import submodules
from studiogan_guidance.samplers import (  # noqa: F401  each registers itself
    autoguidance,
    cluster_truncation,
    collaborative,
    conditional_truncation,
    ddls,
    dgflow,
    dot,
    drs,
    ex2mcmc,
    gandance,
    hubness,
    isir,
    latent_reweighting,
    metropolis,
    plain,
    polarity,
    repgan,
    simplicial,
    truncation,
)
from studiogan_guidance.samplers.base import (
    SAMPLERS,
    BasedSampler,
    Sampled,
    Sampler,
    Samples,
    check_classes,
    checked,
    create,
    options,
)
from studiogan_guidance.samplers.gandance import GANdance
from studiogan_guidance.samplers.plain import Plain
from studiogan_guidance.samplers.truncation import Truncation

SAMPLERS.arrange(
    "plain",
    "gandance",
    "truncation",
    "conditional_truncation",
    "cluster_truncation",
    "autoguidance",
    "simplicial",
    "latent_reweighting",
    "drs",
    "metropolis",
    "isir",
    "ddls",
    "repgan",
    "ex2mcmc",
    "dgflow",
    "dot",
    "collaborative",
    "hubness",
    "polarity",
)

__all__ = [
    "SAMPLERS",
    "BasedSampler",
    "GANdance",
    "Plain",
    "Sampled",
    "Sampler",
    "Samples",
    "Truncation",
    "check_classes",
    "checked",
    "create",
    "options",
]

if not TYPE_CHECKING:  # where types are checked, a name that is missing is an error
    __getattr__ = submodules(__name__)
