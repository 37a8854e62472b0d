"""The interface of all samplers: from a view and the random inputs of a batch to images.

A sampler is a frozen dataclass whose fields are its options. The fields are the schema: names, types and defaults live
nowhere else. With every option at its neutral value (see the docstrings) images equal plain sampling bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studiogan_guidance.batches import Halving, Later
from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView, Networks
from studiogan_guidance.options import Spec, nested
from studiogan_guidance.registry import Registry
from studiogan_guidance.samplers import choices

AUTO = "auto"  # the scale that stands for the choice of ``tune --auto``


@dataclass(frozen=True)
class Samples:
    """A batch of images with what they cost.

    Attributes:
        images: float [B, 3, H, W] in [-1, 1].
        labels: int64 [B].
        seeds: int64 [B].
        cost: number of latents, codes or images that went through each network for this batch: ``mapping``,
            ``synthesis`` (G), ``discriminator``, ``backward`` (gradients), ``weights`` (of latents); and for samplers
            that choose among proposals, ``proposed`` and ``accepted``.
        notes: numbers about each image by name, such as the acceptance rate of its chain, float [B].
    """

    images: Tensor
    labels: Tensor
    seeds: Tensor
    cost: dict[str, int]
    notes: dict[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Sampled:
    """Images of one batch, [B, 3, H, W], and notes about each of them, [B], such as acceptance rates of chains."""

    images: Tensor
    notes: dict[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Sampler(ABC):
    """Base of all samplers. Subclasses add options as fields and define ``images``."""

    @abstractmethod
    def images(self, view: LatentView, inputs: Inputs) -> Tensor:
        """Images [B, 3, H, W] for the random inputs of one batch."""

    def sampled(self, view: LatentView, inputs: Inputs) -> Sampled:
        """The images of one batch with notes about them; a sampler that has notes overrides this."""
        return Sampled(self.images(view, inputs))

    @property
    def neutral(self) -> bool:
        """Whether the options are such that images are those of the generator itself, bit for bit."""
        return False

    def check(self, view: LatentView) -> None:  # noqa: B027
        """Raise UserError where an option has no meaning on this view."""

    def files(self, view: LatentView) -> dict[str, str]:
        """Hashes of the files that the options name, for results."""
        return {}

    def resolved(self, view: LatentView) -> Sampler:
        """The sampler that works on this view, with all its options; another one where these stand for a choice."""
        return self

    def built_into(self, view: LatentView) -> LatentView:
        """A view whose ``encode`` already applies this sampler, so that another sampler can be stacked on it.

        Drawing and the prior stay as they are. A sampler that changes z does so at the start of both ``encode`` and
        ``decode``, as some families use z in ``decode``.

        Raises:
            UserError: a sampler that does more than change codes.
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
        turn: tuple[int, int] = (0, 1),
    ) -> Iterator[Samples]:
        """Sample one image a seed, in batches, with the networks frozen, and afterwards as before.

        Image i depends on ``seeds[i]``, its position ``first + i`` in the run (where classes are chosen) and the
        options alone. Networks round differently at other batch sizes: on a CPU by less than 1e-5 of the largest
        pixel, on GPUs whose convolutions use TF32 (the default of PyTorch) by more.

        Args:
            view: the generator.
            seeds: one seed an image.
            batch_size: images of a batch; smaller ones follow where memory runs out.
            plan: where labels come from.
            noise_mode: "random" or "const", see ``LatentView.draw``.
            first: position in the run of the first image.
            turn: (rank, size) of processes that take the batches in turn; this one gets every ``size``-th batch.

        Raises:
            UserError: options without a meaning on this view, a single image that is too much for the memory, or
                images that are not finite: the first batch at once, later ones when the second batch after them is
                asked for, or at the end, so that nothing waits for a GPU.
        """
        checked(self, view)
        rank, size = turn
        halving = Halving()
        finite = _FiniteCheck(self)

        def batch(rows: range) -> Samples:
            return self._batch(view, [seeds[row] for row in rows], plan, noise_mode, first + rows[0])

        with view.frozen():
            for start in range(rank * batch_size, len(seeds), size * batch_size):
                rows = range(start, min(start + batch_size, len(seeds)))
                for samples in halving(batch, rows):
                    finite.add(samples.images)
                    yield samples
            finite.settle()

    def _batch(self, view: LatentView, seeds: Sequence[int], plan: LabelPlan, noise_mode: str, first: int) -> Samples:
        """One batch of ``stream``."""
        cost_before = view.ledger.cost.copy()
        with torch.no_grad():
            inputs = view.draw(seeds, first, plan, noise_mode)
            sampled = self.sampled(view, inputs)
        cost = dict(view.ledger.cost - cost_before)
        return Samples(sampled.images, inputs.labels, inputs.seeds, cost, sampled.notes)


@dataclass(frozen=True)
class Chosen(Sampler):
    """The sampler that ``tune --auto`` chose for the generator of the view, whatever it is: ``scale: auto``."""

    scale: str = AUTO

    def resolved(self, view: LatentView) -> Sampler:
        spec = choices.find(view)
        return view.bare.once(("chosen sampler", spec), lambda: create(spec))

    def check(self, view: LatentView) -> None:
        checked(self.resolved(view), view)

    def files(self, view: LatentView) -> dict[str, str]:
        return self.resolved(view).files(view)

    def images(self, view: LatentView, inputs: Inputs) -> Tensor:
        return self.resolved(view).images(view, inputs)

    def sampled(self, view: LatentView, inputs: Inputs) -> Sampled:
        return self.resolved(view).sampled(view, inputs)

    def built_into(self, view: LatentView) -> LatentView:
        return self.resolved(view).built_into(view)


class _FiniteCheck:
    """Refuses images that are not finite; only for the first batch it waits for a GPU."""

    LAG = 2  # batches that are made before one is checked

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._is_first = True
        self._unread: deque[Later] = deque()

    def add(self, images: Tensor) -> None:
        """Take in a batch; raises UserError for the batch before the last one."""
        self._unread.append(Later(torch.isfinite(images).all()))
        self._read(0 if self._is_first else self.LAG)
        self._is_first = False

    def settle(self) -> None:
        """Check what is left."""
        self._read(0)

    def _read(self, left: int) -> None:
        while len(self._unread) > left:
            if not self._unread.popleft().value():
                raise UserError(f"images are not finite with {self._sampler}: damaged weights, or options too extreme")


@dataclass(frozen=True)
class BasedSampler(Sampler):
    """A sampler that works on top of another one, its base, as if that were built into the generator.

    Args:
        base: the sampler below: its name, a mapping with its name and options, or the sampler itself; ``plain`` is
            none. On the command line ``-o base=gandance -o base.scale=1.3``.
    """

    base: Sampler = dataclasses.field(default_factory=lambda: create("plain"))

    def __post_init__(self) -> None:
        if not isinstance(self.base, Sampler):
            object.__setattr__(self, "base", create(self.base))

    @property
    def neutral(self) -> bool:
        return self._is_identity and (SAMPLERS.name_of(self.base) == "plain" or self.base.neutral)

    @property
    def _is_identity(self) -> bool:
        """Whether the options are such that images are those of the base, bit for bit."""
        return False

    def check(self, view: LatentView) -> None:
        self.base.check(view)
        self.under(view)

    def files(self, view: LatentView) -> dict[str, str]:
        return self.base.files(view)

    def under(self, view: LatentView) -> LatentView:
        """The view of the base, on which this sampler works."""
        return view.once(f"base {self.base}", lambda: self.base.built_into(view))

    def images(self, view: LatentView, inputs: Inputs) -> Tensor:
        return self.sampled(view, inputs).images

    def sampled(self, view: LatentView, inputs: Inputs) -> Sampled:
        view = self.under(view)
        return Sampled(view.images(inputs)) if self._is_identity else self.stacked(view, inputs)

    @abstractmethod
    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        """Images for the random inputs of one batch, on the view of the base, and notes about each of them."""


SAMPLERS: Registry[type[Sampler]] = Registry("sampler", "studiogan_guidance.samplers")


def create(spec: str | Mapping[str, Any] | Spec, options: Mapping[str, Any] | None = None) -> Sampler:
    """The sampler that ``spec`` names, with its options and ``options``; strings become the type of the field.

    ``scale=auto`` of gandance is the sampler that ``tune --auto`` chose, which is known where there is a view.

    Raises:
        UserError: unknown sampler or option (the nearest known one is named), a value of the wrong type or range.
    """
    named = Spec.parse(spec, "the sampler")
    values = nested({**named.options, **(options or {})})
    if named.name == "gandance" and values.get("scale") == AUTO:
        if others := [key for key in values if key != "scale"]:
            raise UserError(f"gandance.scale=auto takes all options from its choice: leave out {', '.join(others)}")
        return Chosen()
    sampler: Sampler = SAMPLERS.create(named, options)
    return sampler


def checked(sampler: Sampler, view: LatentView) -> Sampler:
    """``sampler``, if the generator of a view has what it and its bases need, and its options mean something on it.

    ``scale=auto`` becomes the sampler that it stands for.

    Raises:
        UserError: otherwise.
    """
    sampler = sampler.resolved(view)
    check_classes(sampler, view.networks)
    sampler.check(view)
    return sampler


def check_classes(sampler: Sampler, networks: Networks) -> None:
    """Raise UserError where a sampler, or one of its bases, needs the classes that a generator does not have."""
    if networks.is_conditional:
        return

    # What does without classes, whatever the architecture.
    entries = list(SAMPLERS)
    names = [entry.name for entry in entries if not {"classes", "w", "snapshot", "weights"} & set(entry.needs)]

    # Each sampler of the stack.
    needs = {entry.target: entry.needs for entry in entries}
    for part in _stack(sampler):
        if "classes" in needs.get(type(part), ()):
            networks.check_conditional(f"sampler '{SAMPLERS.name_of(part)}'", f"use {', '.join(names)}")


def _stack(sampler: Sampler) -> Iterator[Sampler]:
    """A sampler, and all samplers among its options and theirs."""
    yield sampler
    for value in vars(sampler).values():
        if isinstance(value, Sampler):
            yield from _stack(value)


def options(sampler: Sampler) -> dict[str, Any]:
    """All options of a sampler with their values, as results and configurations keep them.

    A base is its name, or a mapping with its name and its options if it has any.
    """
    values = {field.name: getattr(sampler, field.name) for field in dataclasses.fields(sampler) if field.init}
    return {key: _spec(value) if isinstance(value, Sampler) else value for key, value in values.items()}


def _spec(sampler: Sampler) -> str | dict[str, Any]:
    name = SAMPLERS.name_of(sampler)
    values = options(sampler)
    return {"name": name, **values} if values else name


def check_at_least(sampler: Sampler, **bounds: float) -> None:
    """Raise UserError unless each of these options is a number from its bound up; None is left alone."""
    for key, bound in bounds.items():
        value = getattr(sampler, key)
        if value is not None and not value >= bound:
            raise UserError(f"{SAMPLERS.name_of(sampler)}.{key} must be a number from {bound:g} up, found {value}")


def check_positive(name: str, value: float, advice: str) -> None:
    """Raise UserError, with ``advice`` such as "0.1 is usual", unless ``value`` is a positive finite number."""
    check_finite(name, value)
    if not value > 0:
        raise UserError(f"{name} must be positive, found {value}: {advice}")


def check_choice(sampler: Sampler, **choices: Sequence[str]) -> None:
    """Raise UserError unless each of these options is one of its words."""
    for key, words in choices.items():
        value = getattr(sampler, key)
        if value not in words:
            raise UserError(f"{SAMPLERS.name_of(sampler)}.{key} is '{value}': {nearest(str(value), words)}")


def check_finite(name: str, value: float) -> None:
    """Raise UserError unless ``value`` is a finite number."""
    if not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, found {value}: give a number such as 1.2")
