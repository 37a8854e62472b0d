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

from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView
from studiogan_guidance.registry import Registry, Spec


@dataclass(frozen=True)
class Samples:
    """A batch of images with what they cost.

    Attributes:
        images: float [B, 3, H, W] in [-1, 1].
        labels: int64 [B].
        seeds: int64 [B].
        cost: rows that went through each network for this batch: ``mapping``, ``synthesis`` (G), ``discriminator``,
            ``backward`` (one each through what was run forward); and of samplers that choose, ``proposed`` and
            ``accepted``.
        notes: what the sampler has to say about each image, such as the acceptance rate of its chain, float [B].
    """

    images: Tensor
    labels: Tensor
    seeds: Tensor
    cost: dict[str, int]
    notes: dict[str, Tensor] = dataclasses.field(default_factory=dict)


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

    def of(self, view: LatentView) -> LatentView:
        """``view`` as that of a generator with this sampler built into its codes, for other samplers to work on.

        Noise and its prior stay as they are: whatever the sampler does to noise happens on its way into the generator.
        """
        raise UserError(f"{self} cannot be the base of another sampler: use one that only changes codes, as gandance")

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
                view.notes.clear()
                with torch.no_grad():
                    inputs = view.draw(seeds[start : start + batch_size], first + start, plan, noise_mode)
                    images = self.images(view, inputs)
                if not torch.isfinite(images).all():
                    raise UserError(f"images are not finite with {self}: damaged weights, or options too extreme")
                yield Samples(images, inputs.labels, inputs.seeds, dict(view.cost - before), dict(view.notes))


@dataclass(frozen=True)
class Stacked(Sampler):
    """A sampler that works on top of another one, its base, as if that were built into the generator.

    Args:
        base: name of the sampler below, or a mapping with its name and options; ``plain`` is none. On the command line
            ``-o base=gandance -o base.scale=1.3``.
    """

    base: Spec = "plain"

    def __post_init__(self) -> None:
        spec = {"name": self.base} if isinstance(self.base, str) else dict(self.base)
        name = SAMPLERS[spec["name"]].name
        below = create(name, {key: value for key, value in spec.items() if key != "name"})
        object.__setattr__(self, "base", name if not options(below) else {"name": name, **options(below)})

    @property
    def _below(self) -> Sampler:
        spec = {"name": self.base} if isinstance(self.base, str) else self.base
        return create(spec["name"], {key: value for key, value in spec.items() if key != "name"})

    @property
    def neutral(self) -> bool:
        return self._still and (self.base == "plain" or self._below.neutral)

    @property
    def _still(self) -> bool:
        """Whether the options are such that images are those of the base, bit for bit."""
        return False

    def check(self, view: LatentView) -> None:
        self._below.check(view)
        self.under(view)

    def files(self, view: LatentView) -> dict[str, str]:
        return self._below.files(view)

    def under(self, view: LatentView) -> LatentView:
        """The view of the base, on which this sampler works."""
        return view if self.base == "plain" else view.once(f"base {self._below}", lambda: self._below.of(view))

    def images(self, view: LatentView, inputs: Inputs) -> Tensor:
        view = self.under(view)
        if self._still:
            return view.decode(view.encode(inputs.z, inputs.labels), inputs.z, inputs.noise)
        return self.stacked(view, inputs)

    @abstractmethod
    def stacked(self, view: LatentView, inputs: Inputs) -> Tensor:
        """Images [B, 3, H, W] for the random inputs of one batch, on the view of the base."""


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


def least(sampler: Sampler, **bounds: float) -> None:
    """Raise UserError unless each of these options is a number from its bound up; None is left alone."""
    for key, bound in bounds.items():
        value = getattr(sampler, key)
        if value is not None and not value >= bound:
            raise UserError(f"{SAMPLERS.name_of(sampler)}.{key} must be a number from {bound:g} up, found {value}")


def one_of(sampler: Sampler, **choices: Sequence[str]) -> None:
    """Raise UserError unless each of these options is one of its words."""
    for key, words in choices.items():
        value = getattr(sampler, key)
        if value not in words:
            raise UserError(f"{SAMPLERS.name_of(sampler)}.{key} is '{value}': {nearest(str(value), words)}")


def finite(name: str, value: float) -> None:
    """Raise UserError unless ``value`` is a finite number."""
    if not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, found {value}: give a number such as 1.2")
