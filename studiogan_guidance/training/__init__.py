"""Extra training on top of the host's: stages that follow its loop, and losses inside its discriminator step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studiogan_guidance import submodules
from studiogan_guidance.training import amortised, frechet, glead, joint_latent, latent_reweighting, strengths  # noqa: F401  they register their stages
from studiogan_guidance.training.run import train
from studiogan_guidance.training.stage import STAGES, Stage, Trained

__all__ = ["STAGES", "Stage", "Trained", "train"]

if not TYPE_CHECKING:  # where types are checked, a name that is missing is an error
    __getattr__ = submodules(__name__)
