"""The host's StyleGAN plug-ins on today's torch: compiled, or off with one line that says why."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shims import breaks_without, shim

from studiogan_guidance.host import compat
from studiogan_guidance.host.compat import plugins
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout


@pytest.fixture
def host(checkout: Checkout) -> Iterator[None]:
    with inside(checkout):
        yield


SOURCE = """
#include <pybind11/pybind11.h>
double twice(double x) { return 2 * x; }
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("twice", &twice); }
"""
compiler = pytest.mark.skipif(
    not (shutil.which("g++") and shutil.which("ninja")), reason="g++ and ninja, which build C++ extensions, are missing"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the extension is built, once."""
    folder = tmp_path_factory.mktemp("extension")
    (folder / "twice.cpp").write_text(SOURCE)
    return folder


@pytest.fixture
def extension(built: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Lets the host build and load a plug-in of a few lines, for a GPU of the name "none"."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(built / "plugins"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")

    def call() -> Any:
        custom_ops = module("utils.custom_ops")
        custom_ops._cached_plugins.pop("twice_plugin", None)
        return custom_ops.get_plugin("twice_plugin", ["twice.cpp"], source_dir=str(built))

    return call


@compiler
@pytest.mark.studiogan
def test_plugin_modules(host: None, extension: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")  # to be put back after the test: the host empties it
    plugin = breaks_without("plugin_modules", extension, ModuleNotFoundError, "twice_plugin")
    assert plugin.twice(1.5) == 3
    assert "twice_plugin" not in sys.modules


@compiler
@pytest.mark.studiogan
def test_plugins_are_compiled_while_the_host_is_within_reach(
    host: None, extension: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for StyleGAN on a GPU: afterwards they are on, without shims, and the environment is as it was."""
    operation = module("utils.style_ops.bias_act")
    monkeypatch.setattr(plugins, "PLUGINS", {"stylegan2": ("bias_act",)})
    monkeypatch.setattr(plugins, "_check_compiler", lambda: None)
    monkeypatch.setattr(operation, "_plugin", None)
    monkeypatch.setattr(operation, "custom_ops", SimpleNamespace(get_plugin=lambda **_: extension()))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    init = operation._init
    compat.compile_plugins("stylegan2")
    assert operation._init is init
    assert operation._plugin.twice(1.5) == 3
    assert "TORCH_CUDA_ARCH_LIST" not in os.environ
    compat.compile_plugins("big_resnet")  # which has none


def test_compiling_and_a_lock_of_an_older_torch_are_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An older torch waits for a lock file, though the process that made it may have been killed."""

    def said() -> list[str]:
        plugins._announce("twice_plugin", tmp_path)
        return capsys.readouterr().err.splitlines()

    compiling = "compiling the host's plug-in twice_plugin for this GPU, once; it may take minutes"
    monkeypatch.setattr("torch.utils.cpp_extension.FileBaton", object, raising=False)
    assert said() == [compiling]
    (tmp_path / "lock").touch()
    assert said() == [compiling, f"another process is compiling it; if none is, delete {tmp_path / 'lock'}"]
    monkeypatch.setenv("RANK", "1")
    assert said() == []
    monkeypatch.delenv("RANK")
    (tmp_path / "twice_plugin.so").touch()
    assert said() == []


WITHOUT_NVCC = OSError("CUDA_HOME environment variable is not set")
OTHER_CUDA = RuntimeError("The detected CUDA version (12.1)\nmismatches the version that was used to compile PyTorch")
BROKEN_BUILD = RuntimeError("Error building extension\n[1/3] nvcc a.cu\na.h:1: fatal error: no cusparse.h\nninja: stop")


@pytest.mark.studiogan
@pytest.mark.parametrize(
    ("home", "error", "cause"),
    [
        (None, WITHOUT_NVCC, "no nvcc was found; install the CUDA toolkit"),
        (
            "/cuda",
            OTHER_CUDA,
            "The detected CUDA version (12.1) mismatches the version that was used to compile PyTorch;",
        ),
        ("/cuda", BROKEN_BUILD, "a.h:1: fatal error: no cusparse.h; install the CUDA toolkit"),
    ],
)
def test_plugins_that_cannot_be_compiled_are_off(
    host: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    home: str | None,
    error: Exception,
    cause: str,
) -> None:
    """In one line, and once for all of them; in a host run until its end, otherwise for good."""
    calls: list[str] = []

    def fails(name: str, **_: Any) -> None:
        calls.append(name)
        raise error

    extensions = module("torch.utils.cpp_extension")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")  # as the host would leave it
    monkeypatch.setattr(extensions, "CUDA_HOME", home)
    monkeypatch.setattr(extensions, "load", fails)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")
    monkeypatch.setattr(module("utils.custom_ops"), "verbosity", "none")
    operations = [module(f"utils.style_ops.{name}") for name in compat.PLUGINS["stylegan3"]]
    before = [one._init for one in operations]
    for one in operations:
        monkeypatch.setattr(one, "_init", one._init)  # put back at the end
        monkeypatch.setattr(one, "_plugin", None)

    # The host's own run: tried once each.
    if home:
        with pytest.raises(type(error)):
            operations[0]._init()
        calls.clear()
    with shim("plugins_off").apply():
        assert not any(one._init() for one in (*operations, *operations))
    assert [one._init for one in operations] == before
    assert calls == (["bias_act_plugin", "upfirdn2d_plugin", "filtered_lrelu_plugin"] if home else [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"StyleGAN plug-ins are off, so the host's slower reference code runs: {cause}")

    # Loading a checkpoint.
    compat.compile_plugins("stylegan2")
    assert [one._init() for one in operations[:2]] == [False, False]
    assert operations[2]._init is before[2]
    assert len([line for line in capsys.readouterr().err.splitlines() if "are off" in line]) == 1
