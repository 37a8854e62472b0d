"""One named shim per incompatibility between the host and today's libraries, machines without a GPU included.

A shim never changes a number: it supplies what was removed, with the behaviour that the host expects. ``SHIMS`` are on
whenever the host is entered; ``RUN_SHIMS``, which reach into the host's own training and evaluation, are on while
``hooks.register`` is.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from studiogan_guidance.errors import UserError

PLUGINS = ("bias_act", "upfirdn2d", "filtered_lrelu")  # of StyleGAN, compiled at first use
PROCESSES = "STUDIOGAN_GUIDANCE_PROCESSES"  # environment variable: how many CPU processes the host's -DDP starts

# What real host checkpoints hold besides tensors and plain Python: the best FID is a numpy scalar. Nothing else passes.
_SCALAR = np.float64(0).__reduce__()[0]
ALLOWED: list[Any] = [_SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), np.dtype, type(np.dtype(np.float64))]


@dataclass(frozen=True)
class Shim:
    """One break and its mend.

    Attributes:
        name: what the tests and the README call it.
        symptom: what the host does without it.
        since: the first version that breaks, or "upstream" for what never worked.
        until: when the shim can go.
        needed: whether this environment breaks.
        apply: mends it for the time of a with-block.
    """

    name: str
    symptom: str
    since: str
    until: str
    needed: Callable[[], bool]
    apply: Callable[[], AbstractContextManager[Any]]


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` inside the with-block."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None  # what is missing, the host's import reports by name


def _lacks(module: str, function: str, parameter: str) -> bool:
    if not _installed(module.partition(".")[0]):
        return False
    return parameter not in inspect.signature(getattr(_module(module), function)).parameters


def _no_gpu() -> bool:
    return not torch.cuda.is_available()


# ---------------------------------------------------------------------------- on whenever the host is entered


@contextmanager
def _pkg_resources() -> Iterator[None]:
    from packaging.version import parse

    stub: Any = types.ModuleType("pkg_resources")
    stub.parse_version = parse
    sys.modules["pkg_resources"] = stub
    try:
        yield
    finally:
        sys.modules.pop("pkg_resources", None)


def _sqrtm_disp() -> AbstractContextManager[None]:
    linalg = _module("scipy.linalg")
    original = linalg.sqrtm

    def sqrtm(matrix: Any, disp: bool = True, **kwargs: Any) -> Any:
        root = original(matrix, **kwargs)
        return root if disp else (root, float("nan"))

    return swapped(linalg, "sqrtm", sqrtm)


@contextmanager
def _filters() -> Iterator[None]:
    logger = logging.getLogger("torch.utils.cpp_extension")  # "No CUDA runtime is found" on machines without a GPU
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# ---------------------------------------------------------------------------- on while the host runs itself


def _float_betas() -> AbstractContextManager[None]:
    host = _module("config").Configurations
    original = host.define_optimizer

    def define_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.OPTIMIZATION.beta1, self.OPTIMIZATION.beta2 = (
            float(b) if isinstance(b, int) else b for b in (self.OPTIMIZATION.beta1, self.OPTIMIZATION.beta2)
        )
        return original(self, *args, **kwargs)

    return swapped(host, "define_optimizer", define_optimizer)


def _wandb_image() -> AbstractContextManager[None]:
    wandb = _module("wandb")
    original = wandb.Image

    def image(data: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(data, torch.Tensor) and data.dim() == 4:
            data = _module("torchvision.utils").make_grid(data.detach().cpu(), normalize=True)
        return original(data, *args, **kwargs)

    return swapped(wandb, "Image", image)


def _tsne_n_iter() -> AbstractContextManager[None]:
    worker = _module("worker")
    original = worker.TSNE

    def tsne(*args: Any, n_iter: int = 1000, **kwargs: Any) -> Any:
        return original(*args, max_iter=n_iter, **kwargs)

    return swapped(worker, "TSNE", tsne)


def _workers_0() -> AbstractContextManager[None]:
    loader = _module("loader")
    original = loader.DataLoader

    def data_loader(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("num_workers"):
            kwargs["persistent_workers"] = False
        return original(*args, **kwargs)

    return swapped(loader, "DataLoader", data_loader)


def _current_when_no_best() -> AbstractContextManager[None]:
    ckpt = _module("utils.ckpt")
    original, glob = ckpt.load_best_model, ckpt.glob

    def load_best_model(ckpt_dir: str, *args: Any, **kwargs: Any) -> Any:
        if glob.glob(os.path.join(ckpt_dir, "model=G-best-weights-step*.pth")):
            return original(ckpt_dir, *args, **kwargs)
        current = types.SimpleNamespace(glob=lambda pattern: glob.glob(pattern.replace("-best-", "-current-")))
        with swapped(ckpt, "glob", current):
            return original(ckpt_dir, *args, **kwargs)

    return swapped(ckpt, "load_best_model", load_best_model)


@contextmanager
def _resnet50_key() -> Iterator[None]:
    versions = _module("metrics.preparation").model_versions
    versions["ResNet50_torch"] = versions["ResNet_torch"]
    try:
        yield
    finally:
        del versions["ResNet50_torch"]


def _whole_cutoff() -> AbstractContextManager[None]:
    host = _module("config").Configurations
    original = host.update_cfgs

    def update_cfgs(self: Any, cfgs: Mapping[str, Any], super: str = "RUN") -> Any:
        if isinstance(cutoff := cfgs.get("truncation_cutoff"), float):
            if not cutoff.is_integer():
                raise UserError(f"--truncation_cutoff is {cutoff}: give a whole number of layers")
            cfgs = {**cfgs, "truncation_cutoff": int(cutoff)}
        return original(self, cfgs, super)

    return swapped(host, "update_cfgs", update_cfgs)


def _classifier_mode() -> AbstractContextManager[None]:
    worker, ckpt = _module("worker").WORKER, _module("utils.ckpt")
    original, check = worker.compute_GAN_train_or_test_classifier_accuracy_score, ckpt.check_is_pre_trained_model

    def compute(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.RUN.resume_classifier_train:
            return original(self, *args, **kwargs)
        not_trained = lambda **given: (False, check(**given)[1])  # noqa: E731  its second value names the file to save
        with (
            swapped(self.RUN, "resume_classifier_train", True),
            swapped(ckpt, "check_is_pre_trained_model", not_trained),
        ):
            return original(self, *args, **kwargs)

    return swapped(worker, "compute_GAN_train_or_test_classifier_accuracy_score", compute)


def _tables_from_anywhere() -> AbstractContextManager[None]:
    misc = _module("utils.misc")
    original, root = misc.load_ImageNet_label_dict, Path(misc.__file__).parents[2]

    def load(*args: Any, **kwargs: Any) -> Any:
        here = os.getcwd()
        os.chdir(root)
        try:
            return original(*args, **kwargs)
        finally:
            os.chdir(here)

    return swapped(misc, "load_ImageNet_label_dict", load)


def _empty_classes() -> AbstractContextManager[None]:
    datasets = _module("torchvision.datasets")
    return swapped(datasets, "ImageFolder", functools.partial(datasets.ImageFolder, allow_empty=True))


@contextmanager
def _no_nvcc() -> Iterator[None]:
    with ExitStack() as stack:
        for name in PLUGINS:  # their own slower reference code
            stack.enter_context(swapped(_module(f"utils.style_ops.{name}"), "_init", lambda: False))
        yield


def no_compiler() -> bool:
    """Whether there is a GPU but no nvcc, so that the host's StyleGAN plugins cannot be compiled."""
    return torch.cuda.is_available() and _module("torch.utils.cpp_extension").CUDA_HOME is None


class CpuRank(str):
    """The host's ``local_rank`` without a GPU: the text "cpu" for whoever wants a device, a number for the rest."""

    number: int

    def __new__(cls, number: int = 0) -> CpuRank:
        self = super().__new__(cls, "cpu")
        self.number = number
        return self

    def __getnewargs__(self) -> tuple[int]:  # type: ignore[override]
        return (self.number,)

    def __eq__(self, other: object) -> bool:
        return self.number == other if isinstance(other, int) else str(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash("cpu")

    def __index__(self) -> int:
        return self.number

    __int__ = __index__

    def __add__(self, other: Any) -> Any:
        return self.number + other if isinstance(other, int) else super().__add__(other)

    __radd__ = __add__

    def __lt__(self, other: Any) -> bool:
        return bool(self.number < other)

    def __le__(self, other: Any) -> bool:
        return bool(self.number <= other)

    def __gt__(self, other: Any) -> bool:
        return bool(self.number > other)

    def __ge__(self, other: Any) -> bool:
        return bool(self.number >= other)


@contextmanager
def _cpu_rank() -> Iterator[None]:
    def processes() -> int:
        return int(os.environ.get(PROCESSES, "1"))

    with (
        swapped(torch.cuda, "current_device", CpuRank),
        swapped(torch.cuda, "device_count", processes),
        swapped(torch.cuda, "set_device", lambda device: None),
    ):
        yield


class _CudaMeansCpu(TorchFunctionMode):
    """Torch calls that name the device "cuda" get the CPU; nothing else changes."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        args = tuple(_cpu(value) for value in args)
        return func(*args, **{key: _cpu(value) for key, value in (kwargs or {}).items()})


def _cpu(value: Any) -> Any:
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return "cpu"
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


@contextmanager
def _ddp_device_ids() -> Iterator[None]:
    original = torch.nn.parallel.DistributedDataParallel

    def on_cpu(*args: Any, device_ids: Any = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    with (
        swapped(_module("models.model"), "DDP", on_cpu),
        swapped(_module("metrics.preparation"), "DDP", on_cpu),
    ):
        yield


def _always() -> bool:
    return True


SHIMS = (
    Shim(
        "pkg_resources",
        "ModuleNotFoundError: No module named 'pkg_resources' on importing the host's style_ops",
        "setuptools 82",
        "the host stops importing pkg_resources",
        lambda: "pkg_resources" not in sys.modules and not _installed("pkg_resources") and _installed("packaging"),
        _pkg_resources,
    ),
    Shim(
        "sqrtm_disp",
        "TypeError: sqrtm() got an unexpected keyword argument 'disp' in the host's FID",
        "scipy 1.18",
        "the host calls sqrtm without disp",
        lambda: _lacks("scipy.linalg", "sqrtm", "disp"),
        _sqrtm_disp,
    ),
    Shim(
        "filters",
        "the legacy resizer switches off all warnings of the process; old calls print deprecation warnings",
        "upstream",
        "the host leaves the warning filters alone",
        _always,
        _filters,
    ),
)

RUN_SHIMS = (
    Shim(
        "numpy_scalars",
        "UnpicklingError: Weights only load failed, for every D saved after an FID (best_fid is a numpy scalar)",
        "torch 2.6",
        "the host saves best_fid as a float",
        _always,
        lambda: torch.serialization.safe_globals(ALLOWED),
    ),
    Shim(
        "float_betas",
        "ValueError: betas must be either both floats or both Tensors (StyleGAN3 with beta1: 0 and g_reg_interval 1)",
        "torch 2.6",
        "the host's YAMLs say 0.0",
        _always,
        _float_betas,
    ),
    Shim(
        "wandb_image",
        "ValueError: Un-supported shape for image conversion, at the first save_freq step of any training",
        "seen with wandb 0.31",
        "the host passes a grid",
        lambda: _installed("wandb"),
        _wandb_image,
    ),
    Shim(
        "tsne_n_iter",
        "TypeError: TSNE got an unexpected keyword argument 'n_iter' (-tsne)",
        "scikit-learn 1.7",
        "the host says max_iter",
        lambda: _lacks("sklearn.manifold", "TSNE", "n_iter"),
        _tsne_n_iter,
    ),
    Shim(
        "workers_0",
        "ValueError: persistent_workers option needs num_workers > 0 (--num_workers 0)",
        "upstream",
        "the host ties the two together",
        _always,
        _workers_0,
    ),
    Shim(
        "current_when_no_best",
        "IndexError: list index out of range after a training without FID, which saves no best checkpoint",
        "upstream",
        "load_best_model looks for current, too",
        _always,
        _current_when_no_best,
    ),
    Shim(
        "resnet50_key",
        "KeyError: 'ResNet50_torch' (--eval_backbone ResNet50_torch)",
        "upstream",
        "the host's table of versions has the key",
        lambda: "ResNet50_torch" not in _module("metrics.preparation").model_versions,
        _resnet50_key,
    ),
    Shim(
        "whole_cutoff",
        "TypeError: slice indices must be integers (--truncation_cutoff is parsed as a float)",
        "upstream",
        "the host parses an int",
        _always,
        _whole_cutoff,
    ),
    Shim(
        "classifier_mode",
        "UnboundLocalError: 'mode' (--GAN_train, --GAN_test without -resume_ct)",
        "upstream",
        "the host sets mode in both branches",
        _always,
        _classifier_mode,
    ),
    Shim(
        "tables_from_anywhere",
        "FileNotFoundError: ./src/utils/..., on ImageNet accuracies when not started from the checkout",
        "upstream",
        "the host opens its tables beside its code",
        _always,
        _tables_from_anywhere,
    ),
    Shim(
        "empty_classes",
        "FileNotFoundError: Found no valid file for the classes, in evaluate.py on a folder that -sf wrote",
        "upstream",
        "-sf makes folders only for classes with images",
        _always,
        _empty_classes,
    ),
    Shim(
        "no_nvcc",
        "RuntimeError or FileNotFoundError from compiling the StyleGAN plugins on a GPU machine without nvcc",
        "upstream",
        "the host falls back by itself",
        no_compiler,
        _no_nvcc,
    ),
    Shim(
        "cpu_rank",
        "RuntimeError: Found no NVIDIA driver (torch.cuda.current_device), then int 0 taken for cuda:0",
        "upstream (no GPU)",
        "the host knows a CPU device",
        _no_gpu,
        _cpu_rank,
    ),
    Shim(
        "cuda_means_cpu",
        'RuntimeError: Found no NVIDIA driver, wherever the host writes "cuda" or .cuda()',
        "upstream (no GPU)",
        "the host uses local_rank everywhere",
        _no_gpu,
        _CudaMeansCpu,
    ),
    Shim(
        "ddp_device_ids",
        "ValueError: device_ids only work with GPU modules (-DDP --backend gloo)",
        "upstream (no GPU)",
        "the host passes device_ids on GPUs only",
        _no_gpu,
        _ddp_device_ids,
    ),
)


@contextmanager
def active(shims: tuple[Shim, ...] | None = None) -> Iterator[None]:
    """The shims (by default ``SHIMS``) that this environment needs, for the time of a with-block."""
    with ExitStack() as stack:
        for shim in SHIMS if shims is None else shims:
            if shim.needed():
                stack.enter_context(shim.apply())
        yield
