"""Inside a run of PyTorch-StudioGAN: the only code that swaps names in the host's modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studiogan_guidance import submodules

if not TYPE_CHECKING:  # where types are checked, a name that is missing is an error
    __getattr__ = submodules(__name__)
