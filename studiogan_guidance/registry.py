"""A table of named things, the same for built-ins and for other packages."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from studiogan_guidance.errors import UserError, nearest, one_line
from studiogan_guidance.options import Spec, convert, nested, shown

T = TypeVar("T")

FAMILIES = {  # in the order of display
    "code": "change the code of an image",
    "prior": "change the noise that images come from",
    "discriminator": "follow the discriminator",
    "pool": "choose from a pool of draws",
    "": "others",
}
PACKAGE = f"{__name__.partition('.')[0]}."
MOST = {  # that a whole number of this name may be: what it makes must fit into memory, and end
    "pool": 10**7,
    "draws": 10**7,
    "burn_in": 10**7,
    "clusters": 10**4,
    "cells": 10**4,
    "particles": 10**4,
    "k": 10**4,
    "subset": 10**4,
    "depth": 1000,
    "hidden": 2**15,
    "head_hidden": 2**15,
    "batch": 2**16,
}
MOST_OF_OTHERS = 10**6  # such as steps, each of them a pass through a network
NEEDS = ("classes", "w", "gaussian", "discriminator", "gradient", "snapshot", "weights")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered thing.

    Attributes:
        name: its name in YAML.
        target: the thing, such as the class of a sampler.
        description: one line about it.
        paper: where it comes from.
        family: of a sampler, what it changes: one of FAMILIES.
        needs: of a sampler, what a generator must bring: words of NEEDS.
        neutral: options that make a sampler plain sampling: {} where its defaults do, None where no options do.
    """

    name: str
    target: T
    description: str
    paper: str
    family: str = ""
    needs: tuple[str, ...] = ()
    neutral: Mapping[str, Any] | None = None

    @property
    def documentation(self) -> str:
        """The docstring of the thing, without its indentation."""
        return inspect.getdoc(self.target) or ""


class Registry(Generic[T]):
    """Names of one kind of thing.

    Args:
        kind: the word for one of them in error messages, such as "sampler".
        group: an entry-point group; installed packages that name it are imported at the first look-up, and register
            their things by the same ``register`` as the built-ins.
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind = kind
        self._group = group
        self._entries: dict[str, Entry[T]] = {}
        self._aliases: dict[str, str] = {}
        self._broken: dict[str, str] = {}

    def register(
        self,
        name: str,
        description: str,
        paper: str,
        *,
        family: str = "",
        needs: Sequence[str] = (),
        neutral: Mapping[str, Any] | None = None,
    ) -> Callable[[T], T]:
        """Decorator that adds a thing under ``name``; see Entry for the arguments.

        Raises:
            ValueError: the name is in use, or ``family`` or ``needs`` has a word that is not known.
        """
        if family not in FAMILIES:
            raise ValueError(f"the family of '{name}' is '{family}': {nearest(family, filter(None, FAMILIES))}")
        for word in needs:
            if word not in NEEDS:
                raise ValueError(f"the needs of '{name}' have '{word}': {nearest(word, NEEDS)}")

        def add(target: T) -> T:
            self._check_free(name)
            self._entries[name] = Entry(name, target, description, paper, family, tuple(needs), neutral)
            return target

        return add

    def arrange(self, *names: str) -> None:
        """Put all entries of this package into the order of ``names``; KeyError unless it names each of them."""
        entries = {name: self._entries.pop(name) for name in names}
        if self._entries:
            raise KeyError(f"no place for {', '.join(self._entries)}")
        self._entries.update(entries)

    def alias(self, other: str, name: str) -> None:
        """Let ``other`` stand for the registered ``name``; a second use of a name raises ValueError."""
        self._check_free(other)
        self._aliases[other] = self._entries[name].name

    def is_alias(self, name: str) -> bool:
        """Whether ``name`` stands for another one."""
        return name in self._aliases

    def _check_free(self, name: str) -> None:
        if name in self._entries or name in self._aliases:
            raise ValueError(f"a {self.kind} named '{name}' is registered already: choose another name")

    def __getitem__(self, name: str) -> Entry[T]:
        """The entry called ``name``, by an alias too; UserError with the nearest known name if there is none."""
        self._load_plugins()
        name = self._aliases.get(name, name)
        if name in self._entries:
            return self._entries[name]
        if name in self._broken:
            raise UserError(self._broken[name])
        broken = "".join(f"; {reason}" for reason in self._broken.values())
        raise UserError(f"unknown {self.kind} '{name}': {nearest(name, self._entries)}{broken}")

    def create(self, spec: str | Mapping[str, Any] | Spec, options: Mapping[str, Any] | None = None) -> Any:
        """An instance of the dataclass that ``spec`` names; strings (from a command line) become the type of the field.

        A key with a dot, such as ``base.scale``, is an option of the thing that the option ``base`` names.

        Args:
            spec: a name, or a name with options: see ``options.Spec``.
            options: more options; they override those of ``spec``.

        Raises:
            UserError: unknown name or option (the nearest known one is named), a value of the wrong type or range.
        """
        # The options that the thing takes, with their types.
        spec = Spec.parse(spec, f"the {self.kind}")
        cls: Any = self[spec.name].target
        hints = typing.get_type_hints(cls)
        kinds = {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}

        # Its options as these types.
        values: dict[str, Any] = {}
        for key, value in nested({**spec.options, **(options or {})}).items():
            if key not in kinds:
                known = nearest(key, kinds) if kinds else "it takes none"
                raise UserError(f"{self.kind} '{spec.name}' has no option '{key}': {known}")
            values[key] = convert(f"{spec.name}.{key}", value, kinds[key])
            if cls.__module__.startswith(PACKAGE):  # other packages know their own limits
                _check_most(f"{spec.name}.{key}", values[key], MOST.get(key, MOST_OF_OTHERS))
        return cls(**values)

    def name_of(self, thing: object) -> str:
        """The name under which the class of ``thing`` is registered, or that of the class itself."""
        for name, entry in self._entries.items():
            if entry.target is type(thing):
                return name
        return type(thing).__name__

    def broken(self) -> tuple[str, ...]:
        """A line for each entry point that could not be imported."""
        self._load_plugins()
        return tuple(self._broken.values())

    def __iter__(self) -> Iterator[Entry[T]]:
        self._load_plugins()
        return iter(sorted(self._entries.values(), key=lambda entry: list(FAMILIES).index(entry.family)))

    def _load_plugins(self) -> None:
        """Import the entry points of the group, once; one that fails is kept with its reason, and the others go on."""
        group = self._group
        self._group = None
        for point in entry_points(group=group) if group else ():
            try:
                point.load()
            except Exception as error:
                source = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
                self._broken[point.name] = (
                    f"cannot import {self.kind} '{point.name}' of {source} (entry point {point.value}: "
                    f"{type(error).__name__}: {one_line(error)}): update or uninstall that package"
                )


def _check_most(name: str, value: Any, most: int) -> None:
    """Raise UserError for a whole number that nothing could end or hold."""
    if isinstance(value, int) and value > most:
        raise UserError(f"{name} must be at most {most}, found {shown(value)}: more takes all memory, or never ends")
