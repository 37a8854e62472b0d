"""Reach the host's modules, and swap names in them for a while."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from studiogan_guidance.errors import UserError


def module(name: str) -> Any:
    """A module of the host, such as ``models.model``, or of a package that the host needs.

    The host's own modules exist within ``imports.inside`` only.

    Raises:
        UserError: a package that the module needs is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the host needs the package '{error.name}', which is missing: see 'studiogan-guidance doctor'"
        ) from error


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` inside the with-block, and what it was before afterwards."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
