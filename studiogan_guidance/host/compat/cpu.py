"""Fixes for runs on the CPU, which the host does not expect: without a GPU, or beside one that is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from studiogan_guidance.devices import cpu_only, processes
from studiogan_guidance.host.compat.table import shim
from studiogan_guidance.host.modules import module, swapped


class CpuRank(str):
    """The host's ``local_rank`` without a GPU: the text "cpu" where a device is wanted, a number elsewhere."""

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


@shim(
    "cpu_rank",
    symptom="RuntimeError: Found no NVIDIA driver (torch.cuda.current_device), then int 0 taken for cuda:0",
    since="upstream (no GPU)",
    until="the host knows a CPU device",
    when=cpu_only,
)
def cpu_rank() -> Iterator[None]:
    with (
        swapped(torch.cuda, "current_device", CpuRank),
        swapped(torch.cuda, "device_count", processes),
        swapped(torch.cuda, "set_device", lambda device: None),
    ):
        yield


@shim(
    "gpu_unseen",
    symptom="--device cpu beside a GPU: pinned memory, automatic precision and seeds reach for the GPU",
    since="upstream",
    until="the host has an option for the device",
    when=cpu_only,
)
def gpu_unseen() -> Iterator[None]:
    with (
        swapped(torch.cuda, "is_available", lambda: False),
        swapped(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: False),
        swapped(torch.cuda, "manual_seed", lambda seed: None),
        swapped(torch.cuda, "manual_seed_all", lambda seed: None),
        swapped(torch.accelerator, "is_available", lambda: False),
        swapped(torch.accelerator, "device_count", lambda: 0),
        swapped(torch.accelerator, "current_accelerator", lambda *args, **kwargs: None),
    ):
        yield


class _CudaMeansCpu(TorchFunctionMode):
    """Torch calls that name the device "cuda" get the CPU; nothing else changes."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        args = tuple(_cpu(value) for value in args)
        kwargs = {key: _cpu(value) for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _cpu(value: Any) -> Any:
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return "cpu"
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value


@shim(
    "cuda_means_cpu",
    symptom='RuntimeError: Found no NVIDIA driver, wherever the host writes "cuda" or .cuda()',
    since="upstream (no GPU)",
    until="the host uses local_rank everywhere",
    when=cpu_only,
)
def cuda_means_cpu() -> Iterator[None]:
    with _CudaMeansCpu():
        yield


@shim(
    "ddp_device_ids",
    symptom="ValueError: device_ids only work with GPU modules (-DDP --backend gloo)",
    since="upstream (no GPU)",
    until="the host passes device_ids on GPUs only",
    when=cpu_only,
)
def ddp_device_ids() -> Iterator[None]:
    original = torch.nn.parallel.DistributedDataParallel

    def on_cpu(*args: Any, device_ids: Any = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    with (
        swapped(module("models.model"), "DDP", on_cpu),
        swapped(module("metrics.preparation"), "DDP", on_cpu),
    ):
        yield
