"""The host on the CPU, beside a GPU or without one."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from shims import breaks_without, no_gpu, shim

from studiogan_guidance import devices
from studiogan_guidance.host import compat
from studiogan_guidance.host.compat import CpuRank
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout


@pytest.fixture
def host(checkout: Checkout) -> Iterator[None]:
    with inside(checkout):
        yield


@no_gpu
def test_cpu_rank() -> None:
    rank = breaks_without("cpu_rank", lambda: torch.cuda.current_device(), Exception, "NVIDIA|CUDA")
    assert rank == 0
    assert torch.zeros(1, device=rank).device.type == "cpu"


def test_a_cpu_rank_is_a_device_and_a_number() -> None:
    one: Any = CpuRank(1)
    assert torch.device(one) == torch.device("cpu")
    assert (one == 1, one != 1, one == 0, one == "cpu", one > 0, one >= 1, one < 2, one <= 1) == (
        True,
        False,
        False,
    ) + (True,) * 5
    assert (3 + one, one + 3, int(one), [5, 6][one], list(range(4))[one:]) == (4, 4, 1, 6, [1, 2, 3])
    copied = pickle.loads(pickle.dumps(one))
    assert isinstance(copied, CpuRank)
    assert copied == 1
    assert torch.nn.Linear(1, 1).to(one).weight.device.type == "cpu"


def test_gpu_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a GPU, which is imitated: nothing finds it while the environment says cpu, everything does afterwards."""
    monkeypatch.setenv(devices.DEVICE, "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    shims = [shim(name) for name in ("cpu_rank", "gpu_unseen", "cuda_means_cpu", "ddp_device_ids")]
    assert not any(one.needed() for one in shims)

    def seen() -> tuple[Any, ...]:
        loader = torch.utils.data.DataLoader([1.0], pin_memory=True)
        pins = iter(loader)._pin_memory  # type: ignore[attr-defined]
        return torch.cuda.is_available(), torch.cuda.current_device(), torch.accelerator.current_accelerator(), pins

    assert seen() == (True, 0, torch.device("cuda"), True)
    with devices.chosen("cpu"):
        assert all(one.needed() for one in shims)
        with compat.active(shims[:3]):
            assert seen() == (False, CpuRank(0), None, False)
            assert next(iter(torch.utils.data.DataLoader([1.0], pin_memory=True))).device.type == "cpu"
            assert not torch.amp.GradScaler("cuda").is_enabled()
            torch.manual_seed(0)
            with torch.autocast("cuda"):
                assert torch.ones(2, 2).cuda().mm(torch.ones(2, 2)).dtype == torch.float32
            assert all(one.needed() for one in shims)  # for a process that the host starts
    assert not any(one.needed() for one in shims)
    assert seen() == (True, 0, torch.device("cuda"), True)


@no_gpu
@pytest.mark.studiogan
def test_cuda_means_cpu(host: None) -> None:
    images = torch.utils.data.TensorDataset(torch.rand(6, 3), torch.arange(6))
    model = SimpleNamespace(eval=lambda: None, get_outputs=lambda x, quantize: (x, x))

    def call() -> Any:
        loader = torch.utils.data.DataLoader(images, 2)
        return module("metrics.fid").calculate_moments(loader, model, "N/A", 2, True, 1, False, True)

    mean, cov = breaks_without("cuda_means_cpu", call, Exception, "NVIDIA|CUDA")
    x = images.tensors[0].double().numpy()
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-7)
    np.testing.assert_allclose(cov, np.cov(x, rowvar=False), atol=1e-7)
    with shim("cuda_means_cpu").apply():
        assert torch.ones(1).cuda().to("cuda:0").device.type == "cpu"
        assert torch.nn.Linear(1, 1).to("cuda").weight.device.type == "cpu"
        assert torch.linspace(0, 1, 3, device="cuda").tolist() == [0.0, 0.5, 1.0]


@no_gpu
@pytest.mark.studiogan
def test_ddp_device_ids(host: None, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:

        def call() -> Any:
            return module("models.model").DDP(torch.nn.Linear(2, 2), device_ids=[CpuRank(0)], broadcast_buffers=False)

        assert breaks_without("ddp_device_ids", call, ValueError, "device_ids").module.in_features == 2
    finally:
        torch.distributed.destroy_process_group()
