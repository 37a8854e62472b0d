"""Guided sampling for pretrained conditional GANs, inside and outside of PyTorch-StudioGAN.

Importing this package imports neither torch nor the host; the names below are looked up when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "LabelPlan": "studiogan_guidance.latents",
    "LatentView": "studiogan_guidance.latents",
    "Networks": "studiogan_guidance.latents",
    "view_for": "studiogan_guidance.latents",
    "UserError": "studiogan_guidance.errors",
}
_MODULES = (
    "builtin",
    "config",
    "critics",
    "evaluation",
    "features",
    "host",
    "latents",
    "plugin",
    "samplers",
    "training",
)
__all__ = ["__version__", *sorted(_HOMES), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
