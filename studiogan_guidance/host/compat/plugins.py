"""The StyleGAN plug-ins of the host, compiled by nvcc at first use: they load, and what cannot be compiled is off."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from studiogan_guidance.devices import environment
from studiogan_guidance.errors import one_line, say
from studiogan_guidance.host.compat.table import shim
from studiogan_guidance.host.modules import module, swapped

PLUGINS = {  # of each backbone, in the order in which they are compiled
    "stylegan2": ("bias_act", "upfirdn2d"),
    "stylegan3": ("bias_act", "upfirdn2d", "filtered_lrelu"),
}
ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"  # environment variable that the host empties before it compiles


@shim(
    "plugin_modules",
    symptom="ModuleNotFoundError: No module named 'bias_act_plugin' (StyleGAN on a GPU, where nvcc is installed)",
    since="torch with pybind11 3, whose modules do not enter themselves in sys.modules",
    until="the host takes the module that cpp_extension.load returns",
)
def plugin_modules() -> Iterator[None]:
    extensions = module("torch.utils.cpp_extension")
    original = extensions.load
    added: list[str] = []

    def load(name: str, *args: Any, **kwargs: Any) -> Any:
        _announce(name, Path(kwargs.get("build_directory") or "."))
        loaded = original(name, *args, **kwargs)
        if isinstance(loaded, ModuleType) and name not in sys.modules:
            sys.modules[name] = loaded
            added.append(name)
        return loaded

    try:
        with swapped(extensions, "load", load):
            yield
    finally:
        for name in added:
            sys.modules.pop(name, None)


@shim(
    "plugins_off",
    symptom="any error from compiling the StyleGAN plug-ins (no nvcc, nvcc of another CUDA than torch's) ends the run",
    since="upstream",
    until="the host falls back by itself",
)
def plugins_off() -> Iterator[None]:
    say = functools.cache(_say)  # the same line once
    with ExitStack() as stack:
        for name in PLUGINS["stylegan3"]:
            operation = module(f"utils.style_ops.{name}")
            stack.enter_context(swapped(operation, "_init", _or_off(operation._init, say)))
        yield


def compile_plugins(backbone: str) -> None:
    """Compile what a backbone needs on a GPU now, since later the host is out of reach; within ``inside`` only.

    What cannot be compiled is off from then on. Backbones without plug-ins: nothing.
    """
    say = functools.cache(_say)  # the same line once
    with plugin_modules():
        for name in PLUGINS.get(backbone, ()):
            operation = module(f"utils.style_ops.{name}")
            if not _or_off(operation._init, say)():
                operation._init = _off


def _off() -> bool:
    """In place of a plug-in's ``_init``: the host runs slower reference code of its own."""
    return False


def _or_off(init: Callable[[], bool], say: Callable[[str], None]) -> Callable[[], bool]:
    """A plug-in's ``_init`` that says why and is False from then on where the plug-in cannot be compiled."""

    @functools.cache
    def init_or_off() -> bool:
        try:
            with environment({ARCHITECTURES: os.environ.get(ARCHITECTURES)}):  # the host empties it for good
                _check_compiler()
                return init()
        except Exception as error:  # compilers fail in many ways, and none should end the run
            say(f"StyleGAN plug-ins are off, so the host's slower reference code runs: {_cause(error)}")
            return False

    return init_or_off


def _check_compiler() -> None:
    """Raise RuntimeError where there is no nvcc: torch's own error is about a path that is None."""
    if module("torch.utils.cpp_extension").CUDA_HOME is None:
        raise RuntimeError("no nvcc was found")


def _cause(error: Exception) -> str:
    """Why a plug-in could not be compiled and what to do, in one line."""
    # Of a build that failed, the first line with an error.
    wrong = [line for line in str(error).splitlines() if "error:" in line.lower()]
    text = one_line(RuntimeError(wrong[0]) if wrong else error)

    version = torch.version.cuda or "of torch"
    return f"{text}; install the CUDA toolkit {version} (nvcc), g++ and ninja, or export CUDA_HOME"


def _announce(name: str, folder: Path) -> None:
    """Say that compiling takes time, and what to do about a lock that an older torch leaves when it is killed."""
    if (folder / f"{name}.so").exists():
        return
    _say(f"compiling the host's plug-in {name} for this GPU, once; it may take minutes")
    lock = folder / "lock"
    if lock.exists() and hasattr(module("torch.utils.cpp_extension"), "FileBaton"):
        _say(f"another process is compiling it; if none is, delete {lock}")


def _say(text: str) -> None:
    """One line on stderr, of the first process only."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if distributed else int(os.environ.get("RANK", "0"))
    if rank == 0:
        say(text)
