"""FID of guidance away from a joint that is in memory, on validation data."""

from __future__ import annotations

from collections.abc import Sequence

from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.latents.learned import LearnedJoint
from studiogan_guidance.samplers.gandance import GANdance
from studiogan_guidance.training.stage import validation_distance


def validation_fid(evaluation: Evaluation, joint: LearnedJoint, scale: float, strengths: bool = False) -> float:
    """FID of guidance away from ``joint`` on validation data; inf in processes above rank 0."""
    sampler = GANdance(scale=scale, joint="learned", strengths=strengths).away_from(joint)
    return validation_distance(evaluation, "gandance", sampler)


def best_scale(evaluation: Evaluation, joint: LearnedJoint, scales: Sequence[float]) -> tuple[float, float]:
    """The least FID of guidance away from ``joint`` over the scales, and its scale; the same in all processes."""
    return evaluation.group.agree(min((validation_fid(evaluation, joint, scale), scale) for scale in scales))
