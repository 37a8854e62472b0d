"""Enter the host: its bare module names (config, utils, models, metrics, ...) exist inside a with-block only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from studiogan_guidance.host import compat
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.modules import module

__all__ = ["inside", "module", "root"]

_LOADED: dict[str, dict[str, ModuleType]] = {}  # the modules of each checkout, between visits
_INSIDE: list[str] = []


@contextmanager
def inside(checkout: Checkout, quiet: bool = True) -> Iterator[None]:
    """Make the host importable, with the shims on, and put everything back at the end.

    Modules of the same names that were imported before (your own ``utils``, say) are out of sight meanwhile and back
    afterwards. Entering twice is fine.

    Args:
        checkout: the host.
        quiet: what the host prints goes to stderr.
    """
    src = str(checkout.path / "src")
    if _INSIDE and _INSIDE[-1] == src:
        yield
        return

    # Modules of the same names go out of sight, those of an earlier visit come back.
    names = {entry.stem for entry in (checkout.path / "src").iterdir() if entry.suffix == ".py" or entry.is_dir()}
    strangers = _take_out(names)
    sys.modules.update(_LOADED.get(src, {}))
    sys.path.insert(0, src)
    _INSIDE.append(src)
    try:
        with compat.active(), contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
            yield
    finally:
        _INSIDE.pop()
        sys.path.remove(src)
        _LOADED[src] = _take_out(names)
        sys.modules.update(strangers)


def root() -> Path:
    """The folder of the checkout whose modules are importable."""
    return Path(module("config").__file__).parents[1]


def _take_out(names: set[str]) -> dict[str, ModuleType]:
    """Remove the modules of these top-level names from ``sys.modules``, and return them."""
    loaded = [name for name in sys.modules if name.partition(".")[0] in names]
    return {name: sys.modules.pop(name) for name in loaded}
