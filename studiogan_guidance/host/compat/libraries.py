"""Fixes for what newer versions of libraries removed or changed."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from studiogan_guidance.host.compat.table import SHIMS, installed, lacks, shim
from studiogan_guidance.host.modules import module, swapped

# What real host checkpoints hold besides tensors and plain Python: numbers of numpy, as the best FID. No more passes.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS = [type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"]
ALLOWED: list[Any] = [_SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), np.dtype, *dict.fromkeys(_NUMBERS)]


def _no_pkg_resources() -> bool:
    missing = "pkg_resources" not in sys.modules and not installed("pkg_resources")
    return missing and installed("packaging")


@shim(
    "pkg_resources",
    symptom="ModuleNotFoundError: No module named 'pkg_resources' on importing the host's style_ops",
    since="setuptools 82",
    until="the host stops importing pkg_resources",
    when=_no_pkg_resources,
    table=SHIMS,
)
def pkg_resources() -> Iterator[None]:
    from packaging.version import parse

    stub: Any = types.ModuleType("pkg_resources")
    stub.parse_version = parse
    sys.modules["pkg_resources"] = stub
    try:
        yield
    finally:
        sys.modules.pop("pkg_resources", None)


@shim(
    "sqrtm_disp",
    symptom="TypeError: sqrtm() got an unexpected keyword argument 'disp' in the host's FID",
    since="scipy 1.18",
    until="the host calls sqrtm without disp",
    when=lambda: lacks("scipy.linalg", "sqrtm", "disp"),
    table=SHIMS,
)
def sqrtm_disp() -> Iterator[None]:
    linalg = module("scipy.linalg")
    original = linalg.sqrtm

    def sqrtm(matrix: Any, disp: bool = True, **kwargs: Any) -> Any:
        root = original(matrix, **kwargs)
        return root if disp else (root, float("nan"))

    with swapped(linalg, "sqrtm", sqrtm):
        yield


@shim(
    "numpy_scalars",
    symptom="UnpicklingError: Weights only load failed, for every D saved after an FID (best_fid is a numpy scalar)",
    since="torch 2.6",
    until="the host saves best_fid as a float",
)
def numpy_scalars() -> Iterator[None]:
    with torch.serialization.safe_globals(ALLOWED):
        yield


@shim(
    "float_betas",
    symptom="ValueError: betas must be either both floats or both Tensors (StyleGAN3, beta1: 0, g_reg_interval 1)",
    since="torch 2.6",
    until="the host's YAMLs say 0.0",
)
def float_betas() -> Iterator[None]:
    host = module("config").Configurations
    original = host.define_optimizer

    def define_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name in ("beta1", "beta2"):
            beta = getattr(self.OPTIMIZATION, name)
            if isinstance(beta, int):
                setattr(self.OPTIMIZATION, name, float(beta))
        return original(self, *args, **kwargs)

    with swapped(host, "define_optimizer", define_optimizer):
        yield


@shim(
    "wandb_image",
    symptom="ValueError: Un-supported shape for image conversion, at the first save_freq step of any training",
    since="seen with wandb 0.31",
    until="the host passes a grid",
    when=lambda: installed("wandb"),
)
def wandb_image() -> Iterator[None]:
    wandb = module("wandb")
    original = wandb.Image

    def image(data: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(data, torch.Tensor) and data.dim() == 4:
            data = module("torchvision.utils").make_grid(data.detach().cpu(), normalize=True)
        return original(data, *args, **kwargs)

    with swapped(wandb, "Image", image):
        yield


@shim(
    "wandb_mode",
    symptom="W&B logs in although WANDB_MODE says offline, where it was imported before that was said",
    since="seen with wandb 0.31",
    until="wandb.init reads the environment",
    when=lambda: installed("wandb"),
)
def wandb_mode() -> Iterator[None]:
    wandb = module("wandb")
    original = wandb.init

    def init(*args: Any, **kwargs: Any) -> Any:
        if mode := os.environ.get("WANDB_MODE"):
            kwargs.setdefault("mode", mode)
        return original(*args, **kwargs)

    with swapped(wandb, "init", init):
        yield


@shim(
    "tsne_n_iter",
    symptom="TypeError: TSNE got an unexpected keyword argument 'n_iter' (-tsne)",
    since="scikit-learn 1.7",
    until="the host says max_iter",
    when=lambda: lacks("sklearn.manifold", "TSNE", "n_iter"),
)
def tsne_n_iter() -> Iterator[None]:
    worker = module("worker")
    original = worker.TSNE

    def tsne(*args: Any, n_iter: int = 1000, **kwargs: Any) -> Any:
        return original(*args, max_iter=n_iter, **kwargs)

    with swapped(worker, "TSNE", tsne):
        yield
