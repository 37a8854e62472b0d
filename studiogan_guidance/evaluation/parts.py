"""An evaluation of a part of its images: their first ones, each class as often as the others."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.judges import Judges
from studiogan_guidance.latents import LabelPlan

FEWEST = 100  # images of a part
IN_TURN = "in turn"  # the labels of a part, where those of the whole are uniform


def part(evaluation: Evaluation, share: float) -> Evaluation:
    """The evaluation of the first images, about this share of them; of all images, the evaluation itself.

    Uniform labels of a part are the classes in turn, so that it has as many images of each, and the seeds are those
    of the whole. Second feature spaces are left out.
    """
    if share == 1:
        return evaluation
    _ = evaluation.reference  # computed once for all parts

    # Fewer images, as many of each class.
    classes = _classes(evaluation)
    smaller = copy.copy(evaluation)
    smaller.num = max(classes, round(evaluation.num * share / classes) * classes)
    if not evaluation.plan.classes and not evaluation.plan.weights and evaluation.networks.is_conditional:
        smaller.plan = LabelPlan(classes=tuple(range(classes)))
        smaller.labels = IN_TURN

    # No other network sees them.
    smaller.cfg = dataclasses.replace(evaluation.cfg, judges=(), classifier=None)
    smaller.judges = Judges(smaller.cfg, evaluation.source, evaluation.view, None)
    smaller.__dict__.pop("judged_references", None)
    return smaller


def feasible(evaluation: Evaluation, shares: Sequence[float]) -> list[float]:
    """Those of the shares whose part has enough images: for each class, each process, each metric."""
    cfg = evaluation.cfg
    fewest = max(FEWEST, 2 * _classes(evaluation), cfg.k + 2, evaluation.batch_size * evaluation.group.size)
    return [share for share in shares if share == 1 or evaluation.num * share >= fewest]


def _classes(evaluation: Evaluation) -> int:
    """The classes that images are drawn of."""
    return len(evaluation.plan.classes) or evaluation.networks.num_classes
