"""A GPU that is not there: tensors that have a device and a shape, and no numbers (torch's FakeTensorMode).

Operations on them check that their tensors are on one device, and whatever would wait for a GPU (``item``, ``bool``, an
index of booleans) raises ``DataDependentOutputException`` or ``DynamicOutputShapeException``.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from studiogan_guidance.batches import Later
from studiogan_guidance.features import resize
from studiogan_guidance.latents import Networks

DEVICE = torch.device("cuda", 0)


class NoEvent:
    """In place of torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: NoEvent) -> float:
        return 0.0


@contextmanager
def fake_gpu() -> Iterator[list[Later]]:
    """Tensors that are made inside the with-block have no numbers; the list holds the numbers that were read."""
    read: list[Later] = []

    def value(self: Later) -> float:
        read.append(self)
        return 1.0

    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(torch.cuda, "is_available", lambda: False)  # beside a real one, nothing is pinned for it
        patch.setattr(torch.cuda, "Event", NoEvent)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: None)
        patch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        patch.setattr(Later, "value", value)
        for name in ("neighbours", "taps"):  # tables that are kept
            patch.setattr(resize, name, functools.cache(getattr(resize, name).__wrapped__))
        yield read


def moved(module: nn.Module) -> nn.Module:
    """A copy of a network on the GPU that is not there; inside of ``fake_gpu`` only."""
    with unset_fake_temporarily():
        twin = copy.deepcopy(module)
    for part in twin.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(_like(value), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _like(buffer)
    return twin


def _like(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)


def moved_networks(networks: Networks) -> Networks:
    """Networks whose generator is on the GPU that is not there; nothing of them is cached on disk."""
    return dataclasses.replace(networks, generator=moved(networks.generator), device=DEVICE, digest="")
