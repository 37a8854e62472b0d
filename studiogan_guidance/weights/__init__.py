"""Files of weights, read without running what is in them: what a file is, files of torch.save and of safetensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studiogan_guidance import submodules

if not TYPE_CHECKING:  # where types are checked, a name that is missing is an error
    __getattr__ = submodules(__name__)
