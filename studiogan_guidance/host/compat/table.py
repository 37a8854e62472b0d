"""The tables of shims, and the decorator that fills them."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from studiogan_guidance.host.modules import module


@dataclass(frozen=True)
class Shim:
    """One incompatibility and its fix.

    Attributes:
        name: the name in tests and in the documentation.
        symptom: what the host does without the shim.
        since: the first version that breaks, or "upstream" for what never worked.
        until: when the shim can be removed.
        needed: whether this environment has the incompatibility.
        apply: fixes it for the time of a with-block.
    """

    name: str
    symptom: str
    since: str
    until: str
    needed: Callable[[], bool]
    apply: Callable[[], AbstractContextManager[None]]


SHIMS: list[Shim] = []  # on whenever the host is entered
RUN_SHIMS: list[Shim] = []  # on while the host trains and evaluates by itself


def _always() -> bool:
    return True


def shim(
    name: str,
    *,
    symptom: str,
    since: str,
    until: str,
    when: Callable[[], bool] = _always,
    table: list[Shim] = RUN_SHIMS,
) -> Callable[[Callable[[], Iterator[None]]], Callable[[], AbstractContextManager[None]]]:
    """Enter the decorated generator function, which yields once while its fix is on, into a table of shims.

    Args:
        name, symptom, since, until: see ``Shim``.
        when: whether this environment has the incompatibility; by default every one has it.
        table: ``RUN_SHIMS``, or ``SHIMS`` for what must be on before any module of the host is imported.
    """

    def enter(fix: Callable[[], Iterator[None]]) -> Callable[[], AbstractContextManager[None]]:
        apply = contextmanager(fix)
        table.append(Shim(name, symptom, since, until, when, apply))
        return apply

    return enter


@contextmanager
def active(shims: Sequence[Shim] | None = None) -> Iterator[None]:
    """The shims (by default ``SHIMS``) that this environment needs, for the time of a with-block."""
    with ExitStack() as stack:
        for entry in SHIMS if shims is None else shims:
            if entry.needed():
                stack.enter_context(entry.apply())
        yield


def installed(package: str) -> bool:
    """Whether a package is there, without importing it; the host's own import reports a missing one by name."""
    return importlib.util.find_spec(package) is not None


def lacks(name: str, function: str, parameter: str) -> bool:
    """Whether a function of an installed library no longer has a parameter."""
    if not installed(name.partition(".")[0]):
        return False
    return parameter not in inspect.signature(getattr(module(name), function)).parameters
