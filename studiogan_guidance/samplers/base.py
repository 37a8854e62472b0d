"""The call shape of all samplers: a view and the random inputs of a batch go in, images come out.

A sampler is a frozen dataclass whose fields are its options. The fields are the schema: names, types and defaults live
nowhere else. With every option at its neutral value (see the docstrings) images equal plain sampling bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studiogan_guidance.common import UserError, nearest
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

    def check(self, view: LatentView) -> None:  # noqa: B027
        """Raise UserError where an option has no meaning on this view."""

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
        options alone. Networks round differently at other batch sizes: on a CPU pixels move by less than 1e-5, on GPUs
        whose convolutions use TF32 (the default of PyTorch) by more.
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
    cls = SAMPLERS[name].target
    fields = typing.get_type_hints(cls)
    for key in options or {}:
        if key not in fields:
            raise UserError(
                f"sampler '{name}' has no option '{key}': {nearest(key, fields) if fields else 'it takes none'}"
            )
    return cls(**{key: _convert(f"{name}.{key}", value, fields[key]) for key, value in (options or {}).items()})


def options(sampler: Sampler) -> dict[str, Any]:
    """All options of a sampler with their values, as results and configurations keep them."""
    return dataclasses.asdict(sampler)


def finite(name: str, value: float) -> None:
    """Raise UserError unless ``value`` is a finite number."""
    if not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, found {value}: give a number such as 1.2")


def _convert(name: str, value: Any, kind: Any) -> Any:
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    kinds = typing.get_args(kind) if union else (kind,)
    if types.NoneType in kinds and (value is None or value in ("none", "null")):
        return None
    (kind,) = (k for k in kinds if k is not types.NoneType)
    try:
        if kind is bool:
            return {True: True, False: False, "true": True, "false": False}[value]
        if typing.get_origin(kind) is tuple:
            parts = value.replace(":", "-").replace(",", "-").split("-") if isinstance(value, str) else list(value)
            low, high = (int(part) for part in parts)
            return low, high
        if isinstance(value, bool) or (kind is int and float(value) != int(float(value))):
            raise ValueError
        return kind(float(value)) if kind is int else kind(value)
    except (TypeError, ValueError, KeyError, OverflowError):
        word = "two whole numbers such as 0-4" if typing.get_origin(kind) is tuple else kind.__name__
        raise UserError(f"{name} must be {word}, found {value!r}") from None
