"""Inside a run of PyTorch-StudioGAN: its evaluations use our samplers, and our stages follow its training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studiogan_guidance import submodules

if not TYPE_CHECKING:  # where types are checked, a name that is missing is an error
    __getattr__ = submodules(__name__)
