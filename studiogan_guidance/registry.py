"""A table of named things, the same for built-ins and for other packages."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from studiogan_guidance.errors import UserError, nearest

T = TypeVar("T")
Spec = str | dict[str, Any]  # of a thing with options: its name, or {"name": ..., option: value}


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered thing: its name in YAML, the thing, one line about it, and where it comes from."""

    name: str
    target: T
    description: str
    paper: str


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

    def register(self, name: str, description: str, paper: str) -> Callable[[T], T]:
        """Decorator that adds a thing under ``name``; a second use of the name raises ValueError."""

        def add(target: T) -> T:
            self._free(name)
            self._entries[name] = Entry(name, target, description, paper)
            return target

        return add

    def alias(self, other: str, name: str) -> None:
        """Let ``other`` stand for the registered ``name``; a second use of a name raises ValueError."""
        self._free(other)
        self._aliases[other] = self._entries[name].name

    def _free(self, name: str) -> None:
        if name in self._entries or name in self._aliases:
            raise ValueError(f"a {self.kind} named '{name}' is registered already: choose another name")

    def __getitem__(self, name: str) -> Entry[T]:
        """The entry called ``name``, by an alias too; UserError with the nearest known name if there is none."""
        self._load_plugins()
        name = self._aliases.get(name, name)
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} '{name}': {nearest(name, self._entries)}")
        return self._entries[name]

    def create(self, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """An instance of the dataclass called ``name``; strings (from a command line) become the type of the field.

        A key with a dot, such as ``base.scale``, is an option of the thing that the option ``base`` names.

        Raises:
            UserError: unknown name or option (the nearest known one is named), a value of the wrong type or range.
        """
        cls: Any = self[name].target
        fields = typing.get_type_hints(cls)
        options = _nested(options or {})
        for key in options:
            if key not in fields:
                known = nearest(key, fields) if fields else "it takes none"
                raise UserError(f"{self.kind} '{name}' has no option '{key}': {known}")
        return cls(**{key: _convert(f"{name}.{key}", value, fields[key]) for key, value in options.items()})

    def name_of(self, thing: object) -> str:
        """The name under which the class of ``thing`` is registered, or that of the class itself."""
        return next(
            (name for name, entry in self._entries.items() if entry.target is type(thing)), type(thing).__name__
        )

    def __iter__(self) -> Iterator[Entry[T]]:
        self._load_plugins()
        return iter(self._entries.values())

    def _load_plugins(self) -> None:
        group, self._group = self._group, None
        for point in entry_points(group=group) if group else ():
            point.load()


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    whole = {key: value for key, value in options.items() if "." not in key}
    for key, value in options.items():
        head, dot, tail = key.partition(".")
        if dot:
            inner = whole.get(head, {})
            whole[head] = {**({"name": inner} if isinstance(inner, str) else inner), tail: value}
    return whole


def _convert(name: str, value: Any, kind: Any) -> Any:
    if kind == Spec or dataclasses.is_dataclass(kind):  # a thing with options
        if dataclasses.is_dataclass(value):
            return value
        named = isinstance(value, dict) and isinstance(value.get("name"), str)
        if not (named or isinstance(value, str)):
            raise UserError(f"{name} must be a name or a mapping with a name, found {value!r}")
        return value
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    kinds = typing.get_args(kind) if union else (kind,)
    if types.NoneType in kinds and (value is None or value in ("none", "null")):
        return None
    (kind,) = (k for k in kinds if k is not types.NoneType)
    try:
        if kind is bool:
            return {True: True, False: False, "true": True, "false": False}[value]
        if typing.get_args(kind) == (float, ...):
            return tuple(float(part) for part in (re.split("[:,]", value) if isinstance(value, str) else value))
        if typing.get_origin(kind) is tuple:
            parts = value.replace(":", "-").replace(",", "-").split("-") if isinstance(value, str) else list(value)
            low, high = (int(part) for part in parts)
            return low, high
        if isinstance(value, bool) or (kind is int and float(value) != int(float(value))):
            raise ValueError
        return kind(float(value)) if kind is int else kind(value)
    except (TypeError, ValueError, KeyError, OverflowError):
        words = {(int, int): "two whole numbers such as 0-4", (float, ...): "numbers such as 1:0.5:0"}
        word = words.get(typing.get_args(kind)) or kind.__name__
        raise UserError(f"{name} must be {word}, found {value!r}") from None
