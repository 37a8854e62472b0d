"""One named shim per incompatibility between the host and today's libraries; each is on only while the host is.

A shim never changes a number: it supplies what was removed, with the behaviour that the host expects.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shim:
    """``needed`` says whether this environment breaks; ``apply`` mends it for the time of a with-block."""

    name: str
    symptom: str
    since: str
    needed: Callable[[], bool]
    apply: Callable[[], AbstractContextManager[None]]


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None  # what is missing, the host's import reports by name


@contextmanager
def _pkg_resources() -> Iterator[None]:
    from packaging.version import parse

    stub: Any = types.ModuleType("pkg_resources")
    stub.parse_version = parse
    sys.modules["pkg_resources"] = stub
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]


@contextmanager
def _sqrtm_disp() -> Iterator[None]:
    import scipy.linalg

    original = scipy.linalg.sqrtm

    def sqrtm(matrix: Any, disp: bool = True, **kwargs: Any) -> Any:
        root = original(matrix, **kwargs)
        return root if disp else (root, float("nan"))

    scipy.linalg.sqrtm = sqrtm
    try:
        yield
    finally:
        scipy.linalg.sqrtm = original


def _sqrtm_lost_disp() -> bool:
    if not _installed("scipy"):
        return False
    import scipy.linalg

    return "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters


@contextmanager
def _warnings() -> Iterator[None]:
    logger = logging.getLogger("torch.utils.cpp_extension")  # "No CUDA runtime is found" on machines without a GPU
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


SHIMS = (
    Shim(
        "pkg_resources",
        "ModuleNotFoundError: No module named 'pkg_resources' on importing the host's style_ops",
        "setuptools 82",
        lambda: "pkg_resources" not in sys.modules and not _installed("pkg_resources") and _installed("packaging"),
        _pkg_resources,
    ),
    Shim(
        "sqrtm_disp",
        "TypeError: sqrtm() got an unexpected keyword argument 'disp' in the host's FID",
        "scipy 1.18",
        _sqrtm_lost_disp,
        _sqrtm_disp,
    ),
    Shim(
        "warnings",
        "the legacy resizer switches off all warnings of the process; old calls print deprecation warnings",
        "always",
        lambda: True,
        _warnings,
    ),
)


@contextmanager
def active() -> Iterator[None]:
    """All shims that this environment needs, for the time of a with-block."""
    with ExitStack() as stack:
        for shim in SHIMS:
            if shim.needed():
                stack.enter_context(shim.apply())
        yield
