"""The best guidance scale, spread, and scale of each class in closed form, from one evaluation of each knob.

Let phi_c be the mean feature of generated images of class c, psi_c that of real ones, and g_c the derivative of phi_c
by a knob, from plain sampling and one other value of the knob, on the same seeds. If features are linear in the knob,
the scale that brings the classes nearest to the real ones is

    s - 1 = sum_c <psi_c - phi_c, g_c> / sum_c |g_c|^2,

and a class has its own, s_c, by its own terms. Standard deviations within classes, which means do not see, stand beside
the means in the same least squares, so that several knobs, such as scale and spread, are found together: what is made
small is the mean over classes of |difference of means|^2 + |difference of standard deviations|^2, the Frechet distance
of Gaussians with independent features.

The noise of finite samples biases such products, since derivative and difference share the generated images; so each
product takes one from one half of the images and the other from the other half. (The method is our own.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.features.stats import FeatureStats
from studiogan_guidance.latents import learned
from studiogan_guidance.latents.base import LatentView
from studiogan_guidance.options import Spec

Array = NDArray[np.float64]
SCALE = 1.2  # at which the derivatives by scale and spread are measured
HALVES = 2
TINY = 1e-300


@dataclass(frozen=True)
class ClassMoments:
    """What classes of images look like in a feature space.

    Attributes:
        counts: images of each class, [C].
        means: mean features of each class in each part of its images, [P, C, D]; nan where there are none.
        within: covariance about the means of classes, of all classes together, [D, D].
    """

    counts: Array
    means: Array
    within: Array

    @property
    def deviations(self) -> Array:
        """Standard deviation of each feature within classes, [D]."""
        deviations: Array = np.sqrt(self.within.diagonal())
        return deviations


@dataclass(frozen=True)
class OnePass:
    """Knobs by closed form.

    Attributes:
        knobs: the value of each knob that fits best; 1 is plain sampling.
        errors: standard error of each, from the noise of real and generated images.
        by_class: the first knob for each class, [C]: its own least squares, shrunk towards the value of all classes by
            empirical Bayes, as far as the noise of its images explains the difference.
    """

    knobs: list[float]
    errors: list[float]
    by_class: list[float]

    @property
    def scale(self) -> float:
        """The first knob."""
        return self.knobs[0]

    @property
    def spread(self) -> float:
        """The second knob; 1 where there is none."""
        return self.knobs[1] if len(self.knobs) > 1 else 1.0


def class_moments(features: NDArray[Any], labels: NDArray[Any], num_classes: int, parts: int = 1) -> ClassMoments:
    """The moments of classes from features [N, D] and labels [N]; images of a class go to its parts in turn."""
    counts = np.bincount(labels, minlength=num_classes)
    groups = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    width = features.shape[1]
    means = np.full((parts, num_classes, width), np.nan)
    scatter = np.zeros((width, width))

    # Class by class.
    for label, rows in enumerate(groups):
        values = features[rows].astype(np.float64)
        for part in range(min(parts, len(rows))):
            means[part, label] = values[part::parts].mean(0)
        if len(rows) > 1:
            values -= values.mean(0)
            scatter += values.T @ values

    free = max(1, int((counts - 1).clip(0).sum()))
    return ClassMoments(counts.astype(np.float64), means, scatter / free)


def closed_form(
    plain: ClassMoments, moved: Sequence[ClassMoments], real: ClassMoments, values: Sequence[float]
) -> OnePass:
    """Knobs by closed form.

    Args:
        plain: of images of plain sampling, all knobs 1.
        moved: with one knob at another value, for each knob; the same seeds and parts.
        real: of real images, in one part.
        values: that other value of each knob.

    Raises:
        UserError: no class has images in all parts, or a knob changes nothing.
    """
    # Classes with images everywhere.
    count = np.minimum(plain.counts, np.min([moments.counts for moments in moved], axis=0))
    known = (real.counts > 0) & (count >= len(plain.means))
    if not known.any():
        raise UserError(
            f"one-pass scales need {len(plain.means)} generated images and a real one of a class, and no class has "
            "them: raise --num"
        )

    # Derivatives by each knob, [K, P, C, D] and [K, D], and what is missing to the real images.
    steps = np.asarray(values) - 1
    by_mean = np.stack([(m.means - plain.means)[:, known] / step for m, step in zip(moved, steps)])
    by_deviation = np.stack([(m.deviations - plain.deviations) / step for m, step in zip(moved, steps)])
    missing = (real.means - plain.means)[:, known]
    missing_deviation = real.deviations - plain.deviations

    # Least squares; products of means across parts, and of deviations, of which all images have one.
    others = by_mean[:, ::-1]
    size = missing.shape[0] * missing.shape[1]
    gram = np.einsum("kpcd,lpcd->kl", by_mean, others) / size + by_deviation @ by_deviation.T
    right = np.einsum("kpcd,pcd->k", others, missing) / size + by_deviation @ missing_deviation
    if (gram.diagonal() <= 0).any():
        raise UserError("one-pass scales need knobs that change the images, and one of these does not: choose another")
    inverse = np.linalg.pinv(gram, hermitian=True)
    solution = inverse @ right

    # The noise of the right-hand side.
    slopes = by_mean.mean(1)
    noise = _noise(slopes, plain, real, known) / missing.shape[1] ** 2
    noise = noise + _noise_of_deviations(by_deviation, plain, real)
    errors = np.sqrt((inverse @ noise @ inverse).diagonal().clip(0))

    # The first knob of each class, the others as they are for all.
    rest = missing - np.einsum("k,kpcd->pcd", solution[1:], by_mean[1:])
    own = np.full(len(known), np.nan)
    variance = np.full(len(known), np.inf)
    lengths = np.square(slopes[0]).sum(1).clip(TINY)
    own[known] = np.einsum("pcd,pcd->c", others[0], rest) / len(rest) / lengths
    variance[known] = _noise_by_class(slopes[0], plain, real, known) / lengths**2
    by_class = 1 + shrunk(own, variance, float(solution[0]))
    return OnePass((1 + solution).tolist(), errors.tolist(), by_class.tolist())


def shrunk(values: Array, variances: Array, center: float) -> Array:
    """Values [C] of known sampling variance, moved towards ``center`` as their own spread does not exceed it.

    Empirical Bayes: a value is a draw about the center of variance t, plus noise; t by the moments of DerSimonian &
    Laird 1986. Values that are nan become the center.
    """
    known = np.isfinite(values) & np.isfinite(variances)
    result = np.full(len(values), center)
    if known.sum() < 2:
        return result

    # The variance that noise does not explain.
    x, v = values[known], variances[known]
    v = v.clip(max(1e-12 * x.var(), TINY))
    weights = 1 / v
    excess = weights @ np.square(x - np.average(x, weights=weights)) - (len(x) - 1)
    between = max(0.0, excess / (weights.sum() - np.square(weights).sum() / weights.sum()))

    result[known] = center + between / (between + v) * (x - center)
    return result


def _noise_by_class(slopes: Array, plain: ClassMoments, real: ClassMoments, known: NDArray[np.bool_]) -> Array:
    """The variance of <psi_c - phi_c, g_c> for given g_c [C, D]; [C]."""
    of_plain = np.einsum("cd,cd->c", slopes @ plain.within, slopes) / plain.counts[known]
    of_real = np.einsum("cd,cd->c", slopes @ real.within, slopes) / real.counts[known]
    return np.asarray(of_plain + of_real)


def _noise(slopes: Array, plain: ClassMoments, real: ClassMoments, known: NDArray[np.bool_]) -> Array:
    """The covariance of sum_c <psi_c - phi_c, g_kc> over the knobs k, for given g [K, C, D]; [K, K]."""
    total = np.zeros((len(slopes), len(slopes)))
    for moments in (plain, real):
        total += np.einsum("kcd,lcd,c->kl", slopes @ moments.within, slopes, 1 / moments.counts[known])
    return total


def _noise_of_deviations(slopes: Array, plain: ClassMoments, real: ClassMoments) -> Array:
    """The covariance of <difference of standard deviations, g_k> over the knobs, for Gaussian features; [K, K]."""
    total = np.zeros((len(slopes), len(slopes)))
    for moments in (plain, real):
        scale = np.outer(moments.deviations, moments.deviations).clip(TINY)
        cov = np.square(moments.within) / scale / (2 * max(1.0, float(moments.counts.sum())))
        total += slopes @ cov @ slopes.T
    return total


def one_pass(
    evaluation: Evaluation,
    options: Mapping[str, Any] | None = None,
    spread: str | None = None,
    scale: float = SCALE,
    seed: int | None = None,
) -> OnePass:
    """Scale, spread and per-class scales of ``gandance`` for the real images of an evaluation.

    It takes a pass over generated images for plain sampling, one at ``scale``, and one for the spread; none of them is
    compared with the real images as a whole. All processes must call it, and get the same.

    Args:
        evaluation: with a metric that keeps features, such as prdc or per_class.
        options: of gandance, but for scale and spread.
        spread: the option that widens classes (see ``samplers.gandance.spread_option``); None: the scale alone.
        scale: at which the derivatives are measured, of both.
        seed: the first seed; by default that of the run.

    Raises:
        UserError: no features are kept; see ``closed_form``.
    """
    seed = evaluation.cfg.seed if seed is None else seed
    reference = evaluation.reference
    kept = reference is None or reference.stats.features is not None
    if not evaluation.group.agree(kept):
        raise UserError("one-pass scales need the features of each image: add prdc to --metrics")

    # Plain sampling, and one knob at a time.
    base = dict(options or {})
    wanted = [{**base, "scale": 1.0}, {**base, "scale": scale}]
    if spread:
        wanted.append({**base, "scale": 1.0, spread: scale})
    passes = []
    for one in wanted:
        sampler = evaluation.checked(samplers.create(Spec("gandance", one)))
        passes.append(evaluation.generate("gandance", sampler, seed))

    # The first process has them all, and what it is refused is refused in all.
    found: OnePass | UserError | None = None
    if reference is not None:
        count = evaluation.networks.num_classes
        moments = [_moments_of(generated.stats, count, HALVES) for generated in passes if generated]
        real = _moments_of(reference.stats, count, 1)
        try:
            found = closed_form(moments[0], moments[1:], real, [scale] * (len(moments) - 1))
        except UserError as error:
            found = error
    found = evaluation.group.agree(found)
    if isinstance(found, UserError):
        raise found
    assert found is not None
    return found


def _moments_of(stats: FeatureStats, num_classes: int, parts: int) -> ClassMoments:
    assert stats.features is not None
    return class_moments(stats.features, stats.labels, num_classes, parts)


def with_class_scales(view: LatentView, found: OnePass, joint: str, path: Path) -> dict[str, Any]:
    """Options of gandance under which each class is guided by its own scale; they need the file that this writes.

    The file holds a learned joint equal to ``joint``, whose strengths are those of the classes.

    Args:
        view: of the generator.
        found: the scales.
        joint: a training-free estimator that a learned joint may start from.
        path: the file to write, such as joint.safetensors.
    """
    network = learned.create(view, joint, depth=0)
    steps = torch.tensor(found.by_class) - 1
    largest = float(steps[steps.abs().argmax()])
    if largest:
        with torch.no_grad():
            network.class_strength.copy_(steps / largest)
    learned.save(path, network, view, {"one_pass": found.by_class})
    return {"scale": 1 + largest, "joint": "learned", "joint_ckpt": str(path), "strengths": True}
