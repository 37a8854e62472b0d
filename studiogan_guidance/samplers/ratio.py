"""Base classes of the samplers that ask a calibrated discriminator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance.critics.calibration import Array
from studiogan_guidance.critics.critic import digest_of, of_view
from studiogan_guidance.critics.log_ratio import CALIBRATIONS, FEWEST, LogRatio, calibrated
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import LatentView
from studiogan_guidance.samplers import pool
from studiogan_guidance.samplers.base import BasedSampler, check_at_least, check_choice, options

POOL_VERSION = 2  # raise it when log ratios of the same pool change


@dataclass(frozen=True)
class RatioSampler(BasedSampler):
    """A sampler that asks the discriminator about images of its base.

    Args:
        calibration: the map from the discriminator to a log density ratio: ``logistic`` (Platt scaling of its logit),
            ``isotonic`` (a monotone map of its logit, for samplers without gradients), ``head`` (a new last layer on
            its logit and features, for a logit that no longer tells real images from fakes), or ``none`` (the logit as
            it is: right only for the logistic loss, at its optimum).
        calibration_images: number of held-out real images to calibrate on, at most; as many fakes of the base are made.
    """

    calibration: str = "logistic"
    calibration_images: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, calibration=CALIBRATIONS)
        check_at_least(self, calibration_images=FEWEST)

    def files(self, view: LatentView) -> dict[str, str]:
        files = super().files(view)
        if self._is_identity:
            return files
        files["discriminator_sha256"] = digest_of(view)
        if self.calibration != "none" and view.networks.companions:
            files["calibrated_on"] = view.networks.companions.held_out_name()
        return files

    def check(self, view: LatentView) -> None:
        super().check(view)
        if self._is_identity:
            return
        of_view(view)
        if self.calibration != "none" and view.networks.companions:
            view.networks.companions.held_out_name()  # missing images are reported before any work is done

    def ratio(self, view: LatentView, noise_mode: str = "random") -> LogRatio:
        """The calibrated log density ratio for the generator of a view of the base, computed once for it.

        ``noise_mode`` is that of the layer noise of its images.
        """
        key = f"ratio {self.calibration} {self.calibration_images} {noise_mode}"
        return view.once(key, lambda: calibrated(view, self.calibration, self.calibration_images, noise_mode))

    def pool_ratios(self, view: LatentView, label: int | None, size: int, noise_mode: str) -> Array:
        """Log ratios [size] of the images of the pool of a class, see ``pool.inputs``; cached on disk.

        Without a label, draw i is of class i modulo the number of classes.
        """
        ratio = self.ratio(view, noise_mode)
        key = {
            "version": POOL_VERSION,
            "class": "all" if label is None else label,
            "of": size,
            "noise": noise_mode,
            "base": options(self)["base"],
            "critic": self.files(view),
            "calibration": self.calibration,
            "by": self.calibration_images,
        }

        def compute(draws: range) -> Tensor:
            labels = [draw % view.num_classes if label is None else label for draw in draws]
            inputs = pool.inputs(view, labels, size, draws, noise_mode)
            return ratio(view.images(inputs), inputs.labels).double()

        return pool.values(view, "scores of fakes", key, size, compute)


@dataclass(frozen=True)
class GradientSampler(RatioSampler):
    """A ``RatioSampler`` that follows gradients of the log ratio, so isotonic maps, which are flat, are refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration == "isotonic":
            raise UserError("calibration=isotonic has no gradient to follow: use logistic")


def with_facts(ratio: LogRatio, **notes: Tensor) -> dict[str, Tensor]:
    """Notes about each image, [B], and how well the discriminator is calibrated."""
    count = len(next(iter(notes.values())))
    facts = {key: torch.full((count,), value) for key, value in ratio.facts.items()}
    return {key: value.detach().float().cpu() for key, value in notes.items()} | facts
