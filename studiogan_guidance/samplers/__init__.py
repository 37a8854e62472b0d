"""Samplers by name. Other packages add theirs through the entry-point group ``studiogan_guidance.samplers``."""

from studiogan_guidance.samplers.base import SAMPLERS, Sampler, Samples, create, options
from studiogan_guidance.samplers.gandance import GANdance
from studiogan_guidance.samplers.plain import Plain
from studiogan_guidance.samplers.truncation import Truncation

__all__ = ["SAMPLERS", "GANdance", "Plain", "Sampler", "Samples", "Truncation", "create", "options"]

SAMPLERS.register("plain", "the generator as it is", "each backbone's own")(Plain)
SAMPLERS.register(
    "gandance", "extrapolate from the condition-free code towards the class", "Zhang et al., GANdance, ECCV 2024"
)(GANdance)
SAMPLERS.register(
    "truncation",
    "truncated-normal z; w towards the global or the class mean",
    "Brock et al. 2019, arXiv:1809.11096; Karras et al. 2019, arXiv:1812.04948; Dobler et al. 2022, arXiv:2202.11777",
)(Truncation)
