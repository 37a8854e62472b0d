"""Guided sampling for pretrained conditional GANs, inside and outside of PyTorch-StudioGAN.

Importing this package imports neither torch nor the host: names and modules are looked up when they are first used, so
that ``studiogan_guidance.evaluation.fid`` works after ``import studiogan_guidance``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # where types are checked, names have those of their modules
    from studiogan_guidance.errors import UserError as UserError
    from studiogan_guidance.gan import GAN as GAN
    from studiogan_guidance.gan import Images as Images
    from studiogan_guidance.gan import Table as Table
    from studiogan_guidance.gan import load as load
    from studiogan_guidance.latents import LabelPlan as LabelPlan
    from studiogan_guidance.latents import LatentView as LatentView
    from studiogan_guidance.latents import Networks as Networks
    from studiogan_guidance.latents import view_for as view_for

__version__ = "0.2.0"


def submodules(package: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for the module ``package`` that imports its sub-modules when they are first used."""

    def look_up(name: str) -> Any:
        path = f"{package}.{name}"
        try:
            return importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path:
                raise  # the sub-module is there, and lacks something else
            raise AttributeError(f"module '{package}' has no attribute '{name}'") from None

    return look_up


_HOMES = {
    "GAN": "studiogan_guidance.gan",
    "Images": "studiogan_guidance.gan",
    "LabelPlan": "studiogan_guidance.latents",
    "LatentView": "studiogan_guidance.latents",
    "Networks": "studiogan_guidance.latents",
    "Table": "studiogan_guidance.gan",
    "UserError": "studiogan_guidance.errors",
    "load": "studiogan_guidance.gan",
    "view_for": "studiogan_guidance.latents",
}
_MODULES = (
    "builtin",
    "config",
    "critics",
    "evaluation",
    "features",
    "gan",
    "host",
    "latents",
    "plugin",
    "samplers",
    "training",
    "weights",
)
__all__ = ["__version__", *sorted(_HOMES), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    return submodules(__name__)(name)
