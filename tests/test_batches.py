"""Memory that runs out, as torch and the libraries under it say so, and as a user meets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ok, run

from studiogan_guidance import builtin, samplers
from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.latents import LabelPlan, view_for

TEXTS = [
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "GET was unable to find an engine to execute this computation",
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_of_libraries_are_known(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(ValueError(text))


def test_what_torch_itself_raises_is_known() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    with pytest.raises(RuntimeError) as error:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(error.value)
    with pytest.raises(MemoryError) as failure:
        np.empty(2**60, np.uint8)
    assert is_out_of_memory(failure.value)


@pytest.mark.gpu
def test_a_gpu_that_is_full_is_known() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(error.value)


@pytest.mark.gpu
def test_a_gpu_with_too_little_memory_for_a_batch_takes_smaller_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """The allocator is held to what it has and 256 MB, which 16,384 images exceed and 256 do not."""
    view = view_for(builtin.networks("cuda"))
    plain = samplers.create("plain")

    def images(batch_size: int) -> torch.Tensor:
        return torch.cat([batch.images.cpu() for batch in plain.stream(view, range(16384), batch_size, LabelPlan())])

    whole = images(256)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
        halved = images(16384)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with 16384 images at a time: continuing with 8192" in capsys.readouterr().err
    assert (halved - whole).abs().max() < 0.02  # TF32 convolutions round differently at other batch sizes


def test_sample_takes_smaller_batches_and_makes_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["sample", "--num", 30, "--batch-size", 24, "--classes", "1,2,3", "-o", "scale=1.5"]
    ok(*common, "--out", tmp_path / "whole")
    view = type(view_for(builtin.networks()))
    decode = view.decode

    def short_of_memory(self: Any, code: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(code) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return decode(self, code, *rest)

    monkeypatch.setattr(view, "decode", short_of_memory)
    result = run(*common, "--out", tmp_path / "parts")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "out of memory with 24 images at a time: continuing with 12",
        "out of memory with 12 images at a time: continuing with 6",
    ]
    with np.load(tmp_path / "whole/samples.npz") as whole, np.load(tmp_path / "parts/samples.npz") as parts:
        assert np.array_equal(parts["labels"], whole["labels"])
        assert np.array_equal(parts["seeds"], whole["seeds"])
        assert abs(parts["images"].astype(int) - whole["images"]).max() <= 1  # of 255


def test_what_cannot_be_halved_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("CUDA error: out of memory\nmore lines")

    monkeypatch.setattr("studiogan_guidance.evaluation.sample.label_plan", full)
    result = run("sample", "--out", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: out of memory (CUDA error: out of memory more lines): use smaller batches")
    assert len(result.stderr.splitlines()) == 1
