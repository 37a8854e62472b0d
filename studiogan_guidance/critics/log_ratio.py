"""A calibrated discriminator as the log density ratio between real images and those of a generator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.batches import Halving
from studiogan_guidance.critics.calibration import Array, Flags, Map, cross_fitted, isotonic_map, logistic_map, quality
from studiogan_guidance.critics.critic import Critic, of_view
from studiogan_guidance.errors import UserError
from studiogan_guidance.features.images import check_class_count
from studiogan_guidance.latents.base import Companions, LabelPlan, LatentView
from studiogan_guidance.progress import track

BATCH_SIZE = 64  # of what is computed once
FEWEST = 10  # held-out images that a calibration needs
CALIBRATIONS = ("logistic", "isotonic", "head", "none")


@dataclass(frozen=True)
class LogRatio:
    """``ratio(images, labels) -> log p_data(x|c) / p_g(x|c)`` [B], by a calibrated discriminator.

    The evidence about an image is its logit, or (K > 1) its logit and the discriminator's features.

    Attributes:
        view: whose generator is sampled; its ledger counts the passes.
        critic: the discriminator.
        weights: of the evidence, [K].
        offset: added to that.
        knots: logits and log odds of an isotonic map instead, [M] each.
        facts: ``calibration.quality`` of the map, if there is one: ``calibration_z``, ``calibration_z_raw``, ``auc``.
        real: log ratios of the held-out real images and their labels, [N] each, if it was calibrated.
        with_class: whether the logit of a projection discriminator has the term of the class.
    """

    view: LatentView
    critic: Critic
    weights: Tensor
    offset: float = 0.0
    knots: tuple[Tensor, Tensor] | None = None
    facts: dict[str, float] = field(default_factory=dict)
    real: tuple[Tensor, Tensor] | None = None
    with_class: bool = True

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.of_evidence(self.evidence(images, labels))

    def evidence(self, images: Tensor, labels: Tensor) -> Tensor:
        """The logit as it is, or the logit and the features, [B, K]."""
        self.view.ledger.cost["discriminator"] += len(images)
        judge = self.critic.judge if self.with_class else self.critic.judge_without_class
        features, logits = judge(images, labels)
        return logits[:, None] if len(self.weights) == 1 else torch.cat([logits[:, None], features], 1)

    def of_evidence(self, evidence: Tensor) -> Tensor:
        """The log ratio of evidence [N, K], [N]."""
        if self.knots is None:
            return evidence @ self.weights.to(evidence) + self.offset

        # Find the knots on both sides of each logit.
        xs, ys = (knot.to(evidence) for knot in self.knots)
        logits = evidence[:, 0].contiguous()
        right = torch.searchsorted(xs, logits).clamp(1, max(len(xs) - 1, 1))
        left = right - 1
        right = right.clamp(max=len(xs) - 1)

        # Interpolate.
        share = ((logits - xs[left]) / (xs[right] - xs[left]).clamp_min(1e-12)).clamp(0, 1)
        return torch.lerp(ys[left], ys[right], share)


def calibrated(view: LatentView, calibration: str, count: int, noise_mode: str) -> LogRatio:
    """The log ratio of held-out real images and fresh fakes of a view.

    Args:
        view: whose generator is sampled.
        calibration: one of ``CALIBRATIONS``; ``none`` takes the logit as it is.
        count: number of held-out real images, at most; as many fakes are made.
        noise_mode: of the fakes' layer noise.

    Raises:
        UserError: no discriminator, fewer than 10 held-out images, classes that the generator does not have, or a
            logistic map with a negative slope.
    """
    critic = of_view(view)
    raw = LogRatio(view, critic, torch.ones(1))
    companions = view.networks.companions
    if calibration == "none" or companions is None:
        return raw

    # Score held-out real images, then fakes of the same classes; a head reads features, too (more than one weight).
    images, labels = _held_out(companions, count, view, critic)
    reader = LogRatio(view, critic, torch.ones(2)) if calibration == "head" else raw
    of_real = zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE))
    of_fakes = fakes(view, rng.FAKES, labels.tolist(), noise_mode)
    real = _evidence(reader, track(of_real, "held-out images", len(labels), BATCH_SIZE))
    fake = _evidence(reader, track(of_fakes, "fakes for calibration", len(labels), BATCH_SIZE))
    evidence = torch.cat([real, fake]).numpy()
    if failed := int((~np.isfinite(evidence).all(1)).sum()):
        raise UserError(
            f"the discriminator beside {view.networks.source} says nan or inf about {failed} of {len(evidence)} "
            "images: give another checkpoint, or a sampler that needs no discriminator"
        )
    is_real = np.arange(len(evidence)) < len(real)

    # Fit the map, and measure its quality on images that it was not fitted on.
    def fit(evidence: Array, is_real: Flags) -> Map:
        ratio = _fitted(raw, calibration, evidence, is_real)
        return lambda unseen: np.asarray(ratio.of_evidence(torch.from_numpy(unseen)))

    log_odds = cross_fitted(fit, evidence, is_real)
    ratio = _fitted(raw, calibration, evidence, is_real)
    if calibration == "logistic" and ratio.weights[0] <= 0:
        raise UserError(
            f"the discriminator beside {view.networks.source} ranks fakes above held-out real images (slope "
            f"{float(ratio.weights[0]):.3g}), so following it makes no sense: try -o calibration=head"
        )
    return replace(ratio, facts=quality(log_odds, evidence[:, 0], is_real), real=(ratio.of_evidence(real), labels))


def fakes(view: LatentView, first: int, labels: Sequence[int], noise_mode: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of a view from seed ``first`` on, one a label, and their labels, in batches."""
    halving = Halving()

    def make(numbers: range) -> tuple[Tensor, Tensor]:
        classes = tuple(labels[numbers.start : numbers.stop])
        seeds = range(first + numbers.start, first + numbers.stop)
        inputs = view.draw(seeds, 0, LabelPlan(classes), noise_mode)
        return view.images(inputs), inputs.labels

    with view.frozen(), torch.no_grad():
        for start in range(0, len(labels), BATCH_SIZE):
            yield from halving(make, range(start, min(start + BATCH_SIZE, len(labels))))


def _held_out(companions: Companions, count: int, view: LatentView, critic: Critic) -> tuple[Tensor, Tensor]:
    """Up to ``count`` held-out real images and their labels; enough of them, of the classes of the generator.

    Of an unconditional generator the labels are 0, whatever the classes of the images; of images of other classes than
    the generator's they are all of its classes in turn.
    """
    # Images of other classes than the generator's go without labels, if the critic sees none.
    num_classes = companions.held_out_classes() if companions.held_out_classes else view.num_classes
    if view.networks.is_conditional:
        advice = "say -o calibration=none" if critic.is_conditional else ""
        check_class_count(num_classes, "the held-out images", view.num_classes, advice)

    # Open them.
    images, labels = companions.held_out(count)
    if len(labels) < FEWEST:
        raise UserError(
            f"there are {len(labels)} held-out images ({companions.held_out_name()}), and calibrating needs {FEWEST}: "
            "give --held-out DIR with more, or say -o calibration=none"
        )
    if not view.networks.is_conditional:
        return images, torch.zeros_like(labels)
    if num_classes != view.num_classes:
        return images, torch.arange(len(images)) % view.num_classes
    return images, labels


def _evidence(ratio: LogRatio, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The evidence about all images, [N, K], float64 on the CPU."""
    halving = Halving()
    parts: list[Tensor] = []
    with torch.no_grad():
        for images, labels in batches:
            parts += halving(partial(_judged, ratio, images, labels), range(len(images)))
    return torch.cat(parts).double()


def _judged(ratio: LogRatio, images: Tensor, labels: Tensor, rows: range) -> Tensor:
    """The evidence about some rows of a batch, on the CPU."""
    device = ratio.view.device
    part = slice(rows.start, rows.stop)
    return ratio.evidence(images[part].to(device), labels[part].to(device)).cpu()


def _fitted(raw: LogRatio, calibration: str, evidence: Array, is_real: Flags) -> LogRatio:
    """``raw`` with the map that is fitted on ``evidence`` [N, K]."""
    if calibration == "isotonic":
        logits, log_odds = isotonic_map(evidence[:, 0], is_real)
        return replace(raw, knots=(torch.from_numpy(logits), torch.from_numpy(log_odds)))
    weights, offset = logistic_map(evidence, is_real)
    return replace(raw, weights=torch.from_numpy(weights), offset=offset)
