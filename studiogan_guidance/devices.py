"""What ``--device auto`` means, whether a run stays on the CPU, and how tensors get to a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from studiogan_guidance.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DEVICE = "STUDIOGAN_GUIDANCE_DEVICE"  # environment variable: what --device auto means
PROCESSES = "STUDIOGAN_GUIDANCE_PROCESSES"  # environment variable: how many CPU processes the host's -DDP starts


def default() -> str:
    """What ``--device auto`` means: what the environment says, auto where it says nothing."""
    return os.environ.get(DEVICE) or "auto"


def cpu_only() -> bool:
    """Whether a run stays on the CPU: the environment says so, or there is no GPU."""
    import torch

    return default() == "cpu" or not torch.cuda.is_available()


def processes() -> int:
    """How many CPU processes the host's -DDP starts."""
    text = os.environ.get(PROCESSES) or "1"
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{PROCESSES} is '{text}': give a number of processes")
    return int(text)


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables for the time of a with-block, for processes started in it, too; None removes one."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def chosen(device: str, processes: int | None = None) -> Iterator[None]:
    """``--device auto`` means ``device`` inside the with-block, and a -DDP of the host starts ``processes``.

    Neutral: "auto" and None, which leave what the environment says.
    """
    values: dict[str, str | None] = {}
    if device != "auto":
        values[DEVICE] = device
    if processes:
        values[PROCESSES] = str(processes)
    with environment(values):
        yield


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``. A GPU copies them from pinned memory, and this call does not wait for it."""
    if is_pinned_for(device) and values.device.type == "cpu":
        values = values.pin_memory()  # torch keeps such memory and uses it again
    return values.to(device, non_blocking=device.type == "cuda")


def is_pinned_for(device: torch.device) -> bool:
    """Whether what goes to ``device`` should lie in pinned memory."""
    import torch

    return device.type == "cuda" and torch.cuda.is_available()
