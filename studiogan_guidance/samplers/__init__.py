"""Samplers by name. Other packages add theirs through the entry-point group ``studiogan_guidance.samplers``."""

from studiogan_guidance.samplers import ddls, gandance, plain, truncation  # noqa: F401  each registers itself
from studiogan_guidance.samplers.base import SAMPLERS, Sampler, Samples, create, options
from studiogan_guidance.samplers.gandance import GANdance
from studiogan_guidance.samplers.plain import Plain
from studiogan_guidance.samplers.truncation import Truncation

__all__ = ["SAMPLERS", "GANdance", "Plain", "Sampler", "Samples", "Truncation", "create", "options"]
