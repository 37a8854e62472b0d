"""A table of named things, the same for built-ins and for other packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from studiogan_guidance.common import UserError, nearest

T = TypeVar("T")


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

    def register(self, name: str, description: str, paper: str) -> Callable[[T], T]:
        """Decorator that adds a thing under ``name``; a second use of the name raises ValueError."""

        def add(target: T) -> T:
            if name in self._entries:
                raise ValueError(f"a {self.kind} named '{name}' is registered already: choose another name")
            self._entries[name] = Entry(name, target, description, paper)
            return target

        return add

    def __getitem__(self, name: str) -> Entry[T]:
        """The entry called ``name``; UserError with the nearest known name if there is none."""
        self._load_plugins()
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} '{name}': {nearest(name, self._entries)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[Entry[T]]:
        self._load_plugins()
        return iter(self._entries.values())

    def _load_plugins(self) -> None:
        group, self._group = self._group, None
        for point in entry_points(group=group) if group else ():
            point.load()
