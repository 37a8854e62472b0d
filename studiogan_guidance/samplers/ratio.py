"""Samplers that ask a calibrated discriminator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.critics.calibration import Flags, calibration_statistic, isotonic_map, logistic_map
from studiogan_guidance.critics.critic import Critic, digest_of, of_view
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView
from studiogan_guidance.samplers import pool
from studiogan_guidance.samplers.base import BasedSampler, check_at_least, check_choice, options

Array = NDArray[Any]
BATCH_SIZE = 64  # of what is computed once
SCORES_VERSION = 1  # raise it when scores of the same fakes change
FEWEST = 10  # held-out images that a calibration needs
CALIBRATIONS = ("logistic", "isotonic", "head", "none")


@dataclass(frozen=True)
class LogRatio:
    """``ratio(images, labels) -> log p_data(x|c) / p_g(x|c)`` [B], as what a calibrated discriminator says.

    Attributes:
        view: whose generator is sampled; passes are booked there.
        critic: the discriminator.
        weights: of the evidence, [K]: of the logit, or also of the discriminator's features before it.
        offset: added to that.
        knots: logits and log odds of an isotonic map instead, [N] each.
        facts: how good it is: ``calibration_z`` (each half of the images judged by the map of the other),
            ``calibration_z_raw`` (the same for logits as they are), and ``auc``, the chance that a held-out real image
            gets more than a fake, likewise crossed.
        real: log ratios of the held-out real images and their labels, [N] each, if it was calibrated.
    """

    view: LatentView
    critic: Critic
    weights: Tensor
    offset: float = 0.0
    knots: tuple[Tensor, Tensor] | None = None
    facts: dict[str, float] = field(default_factory=dict)
    real: tuple[Tensor, Tensor] | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.of_evidence(self.evidence(images, labels))

    def evidence(self, images: Tensor, labels: Tensor) -> Tensor:
        """The logit as it is, or the logit and the features, [B, K]."""
        self.view.ledger.cost["discriminator"] += len(images)
        features, logits = self.critic.judge(images, labels)
        return logits[:, None] if len(self.weights) == 1 else torch.cat([logits[:, None], features], 1)

    def of_evidence(self, evidence: Tensor) -> Tensor:
        """The log ratio of evidence [N, K], [N]."""
        if self.knots is None:
            return evidence @ self.weights.to(evidence) + self.offset
        xs, ys = (knot.to(evidence) for knot in self.knots)
        score = evidence[:, 0].contiguous()
        right = torch.searchsorted(xs, score).clamp(1, max(len(xs) - 1, 1))
        left, right = right - 1, right.clamp(max=len(xs) - 1)
        share = ((score - xs[left]) / (xs[right] - xs[left]).clamp_min(1e-12)).clamp(0, 1)
        return torch.lerp(ys[left], ys[right], share)


@dataclass(frozen=True)
class RatioSampler(BasedSampler):
    """A sampler that asks the discriminator about images of its base.

    Args:
        calibration: what makes a log density ratio of the discriminator: ``logistic`` (Platt scaling of its logit),
            ``isotonic`` (the same by a monotone map, for samplers without gradients), ``head`` (its last layer fitted
            anew, on its logit and features: for a logit that tells real images from fakes no longer), or ``none`` (the
            logit as it is: right only for the logistic loss, at its optimum).
        calibration_images: number of held-out real images to calibrate on, at most; as many fakes of the base are made.
    """

    calibration: str = "logistic"
    calibration_images: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, calibration=CALIBRATIONS)
        check_at_least(self, calibration_images=FEWEST)

    def files(self, view: LatentView) -> dict[str, str]:
        files, companions = super().files(view), view.networks.companions
        if self._is_identity:
            return files
        files["discriminator_sha256"] = digest_of(view)
        return (
            files
            if self.calibration == "none" or not companions
            else files | {"calibrated_on": companions.held_out_name()}
        )

    def check(self, view: LatentView) -> None:
        super().check(view)
        if self._is_identity:
            return
        of_view(view)
        if self.calibration != "none" and view.networks.companions:
            view.networks.companions.held_out_name()  # what is missing is missed before any work is done

    def ratio(self, view: LatentView, mode: str = "random") -> LogRatio:
        """The calibrated log density ratio for the generator of a view of the base, made once for it.

        ``mode`` is that of the layer noise of its images.
        """
        key = f"ratio {self.calibration} {self.calibration_images} {mode}"
        return view.once(key, lambda: self._calibrated(view, mode))

    def _calibrated(self, view: LatentView, mode: str) -> LogRatio:
        from sklearn.metrics import roc_auc_score

        critic, companions = of_view(view), view.networks.companions
        plain = LogRatio(view, critic, torch.ones(1))
        if self.calibration == "none" or companions is None:
            return plain
        images, labels = companions.held_out(self.calibration_images)
        if len(labels) < FEWEST:
            raise UserError(
                f"there are {len(labels)} held-out images ({companions.held_out_name()}), and calibrating needs "
                f"{FEWEST}: give --held-out DIR with more, or say -o calibration=none"
            )
        if int(labels.max()) >= view.num_classes:
            raise UserError(
                f"a held-out image has class {int(labels.max())}, this generator {view.num_classes} classes"
            )
        wide = plain if self.calibration != "head" else LogRatio(view, critic, torch.ones(2))
        real = _evidence(wide, zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE)))
        seen = torch.cat([real, _evidence(wide, fakes(view, rng.FAKES, labels.tolist(), mode))])
        is_real = np.arange(len(seen)) < len(real)
        crossed = np.empty(len(seen))
        for half in (0, 1):
            own = np.arange(len(seen)) % 2 == half
            crossed[own] = self._map(plain, seen[~own], is_real[~own]).of_evidence(seen[own]).numpy()
        made = self._map(plain, seen, is_real)
        if self.calibration == "logistic" and made.weights[0] <= 0:
            raise UserError(
                f"the discriminator beside {view.networks.source} ranks fakes above held-out real images (slope "
                f"{float(made.weights[0]):.3g}), so following it makes no sense: try -o calibration=head"
            )
        facts = {
            "calibration_z": calibration_statistic(crossed, is_real),
            "calibration_z_raw": calibration_statistic(seen[:, 0].numpy(), is_real),
            "auc": float(roc_auc_score(is_real, crossed)),
        }
        return replace(made, facts=facts, real=(made.of_evidence(real), labels))

    def _map(self, ratio: LogRatio, evidence: Tensor, is_real: Flags) -> LogRatio:
        if self.calibration == "isotonic":
            xs, ys = isotonic_map(evidence[:, 0].numpy(), is_real)
            return replace(ratio, knots=(torch.from_numpy(xs), torch.from_numpy(ys)))
        weights, offset = logistic_map(evidence.numpy(), is_real)
        return replace(ratio, weights=torch.from_numpy(weights), offset=offset)

    def scores(self, view: LatentView, label: int, size: int, mode: str) -> Array:
        """Log ratios [size] of the pool ``pool_inputs(view, label, size, range(size), mode)``, kept on disk."""
        ratio = self.ratio(view, mode)
        key = {
            "version": SCORES_VERSION,
            "class": label,
            "base": str(options(self)["base"]),
            "critic": self.files(view),
            "by": self.calibration_images,
        }
        key["noise"] = mode

        def compute(draws: range) -> Tensor:
            inputs = pool_inputs(view, label, size, draws, mode)
            images = view.images(inputs)
            return ratio(images, inputs.labels).double()

        return pool.values(view, "scores of fakes", {**key, "calibration": self.calibration, "of": size}, size, compute)


@dataclass(frozen=True)
class GradientSampler(RatioSampler):
    """A ``RatioSampler`` that follows gradients of the log ratio, so isotonic maps, which are flat, are refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration == "isotonic":
            raise UserError("calibration=isotonic has no gradient to follow: use logistic")


def pool_inputs(view: LatentView, label: int, size: int, draws: Sequence[int], mode: str = "random") -> Inputs:
    """Members ``draws`` of the pool of ``size`` draws of a class, each by a seed of its own, with layer noise."""
    seeds = [rng.POOLS + (label * size + draw) % 2**30 for draw in draws]
    return view.draw(seeds, 0, LabelPlan((label,)), mode)


def noise_mode(inputs: Inputs) -> str:
    """The mode that gives fresh inputs the same kind of layer noise."""
    return "random" if inputs.noise else "const"


def fakes(view: LatentView, first: int, labels: Sequence[int], mode: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of a view from seed ``first`` on, one a label, and their labels, in batches; ``mode`` of layer noise."""
    with view.frozen(), torch.no_grad():
        for start in range(0, len(labels), BATCH_SIZE):
            some = tuple(labels[start : start + BATCH_SIZE])
            inputs = view.draw(range(first + start, first + start + len(some)), 0, LabelPlan(some), mode)
            yield view.images(inputs), inputs.labels


def _evidence(ratio: LogRatio, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    device = ratio.view.device
    with torch.no_grad():
        found = [ratio.evidence(images.to(device), labels.to(device)).cpu() for images, labels in batches]
    return torch.cat(found).double()


def with_facts(ratio: LogRatio, **notes: Tensor) -> dict[str, Tensor]:
    """Notes about each image, [B], and how well the discriminator is calibrated."""
    count = len(next(iter(notes.values())))
    facts = {key: torch.full((count,), value) for key, value in ratio.facts.items()}
    return {key: value.detach().float().cpu() for key, value in notes.items()} | facts
