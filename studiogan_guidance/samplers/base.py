"""The call shape of all samplers: a view and the random inputs of a batch go in, images come out.

A sampler is a frozen dataclass whose fields are its options. The fields are the schema: names, types and defaults live
nowhere else. With every option at its neutral value (see the docstrings) images equal plain sampling bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studiogan_guidance.common import UserError
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView
from studiogan_guidance.registry import Registry


@dataclass(frozen=True)
class Samples:
    """A batch: ``images`` float [B, 3, H, W] in [-1, 1], ``labels`` and ``seeds`` int64 [B], ``cost`` in passes."""

    images: Tensor
    labels: Tensor
    seeds: Tensor
    cost: dict[str, int]


@dataclass(frozen=True)
class Sampler(ABC):
    """Base of all samplers. Subclasses add options as fields and say in ``images`` how they use a view."""

    @abstractmethod
    def images(self, view: LatentView, inputs: Inputs) -> Tensor:
        """Images [B, 3, H, W] for the random inputs of one batch."""

    @property
    def neutral(self) -> bool:
        """Whether the options are such that images are those of the generator itself, bit for bit."""
        return False

    def check(self, view: LatentView) -> None:  # noqa: B027
        """Raise UserError where an option has no meaning on this view."""

    def files(self, view: LatentView) -> dict[str, str]:
        """Hashes of what the options only point at, so that results say what was used."""
        return {}

    def stream(
        self,
        view: LatentView,
        seeds: Sequence[int],
        batch_size: int,
        plan: LabelPlan,
        noise_mode: str = "random",
        first: int = 0,
    ) -> Iterator[Samples]:
        """Sample one image a seed, in batches, with the networks frozen and left as they were found.

        Image i depends on ``seeds[i]``, its position ``first + i`` in the run (where classes are chosen) and the
        options alone. Networks round differently at other batch sizes: on a CPU by less than 1e-5 of the largest
        pixel, on GPUs whose convolutions use TF32 (the default of PyTorch) by more.
        """
        self.check(view)
        with view.frozen():
            for start in range(0, len(seeds), batch_size):
                before = view.cost.copy()
                with torch.no_grad():
                    inputs = view.draw(seeds[start : start + batch_size], first + start, plan, noise_mode)
                    images = self.images(view, inputs)
                if not torch.isfinite(images).all():
                    raise UserError(f"images are not finite with {self}: damaged weights, or options too extreme")
                yield Samples(images, inputs.labels, inputs.seeds, dict(view.cost - before))


SAMPLERS: Registry[type[Sampler]] = Registry("sampler", "studiogan_guidance.samplers")


def create(name: str, options: Mapping[str, Any] | None = None) -> Sampler:
    """The sampler called ``name`` with ``options``; strings (from a command line) become the type of the field.

    Raises:
        UserError: unknown sampler or option (the nearest known one is named), a value of the wrong type or range.
    """
    sampler: Sampler = SAMPLERS.create(name, options)
    return sampler


def options(sampler: Sampler) -> dict[str, Any]:
    """All options of a sampler with their values, as results and configurations keep them."""
    return dataclasses.asdict(sampler)


def finite(name: str, value: float) -> None:
    """Raise UserError unless ``value`` is a finite number."""
    if not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, found {value}: give a number such as 1.2")
