"""What samplers compute once, in batches of fixed sizes: halved where memory runs out, with the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ToyGAN, toy_networks

from studiogan_guidance import builtin, samplers
from studiogan_guidance.critics.critic import Critic
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, view_for
from studiogan_guidance.latents.stylegan import WView
from studiogan_guidance.samplers import restat

ONCE = [
    ("truncation towards classes", "conditional_truncation", {"psi": 0.5}, "_map"),
    ("centres", "cluster_truncation", {"psi": 0.5, "clusters": 3, "draws": 700}, "encode"),
    ("hubs", "hubness", {"space": "w", "pool": 1200, "threshold": 6}, "encode"),
    ("volumes", "polarity", {"k": 2, "pool": 300, "projections": 3, "rho": 1.0}, "decode"),
    ("cells", "simplicial", {"centers": "clusters", "cells": 2, "draws": 400}, "decode"),
    ("pool and fakes", "drs", {}, "decode"),
    ("held-out images", "ddls", {"steps": 1}, "judge"),
    ("pairs", "dot", {"steps": 1, "pairs": 60, "calibration": "none"}, "decode"),
]


def short_of_memory(patch: pytest.MonkeyPatch, owner: type, name: str, most: int) -> list[int]:
    """Let the method ``name`` of ``owner`` fail on more than ``most`` rows; returns the sizes that it is asked for."""
    method = getattr(owner, name)
    sizes: list[int] = []

    def limited(self: Any, rows: torch.Tensor, *rest: Any, **options: Any) -> Any:
        sizes.append(len(rows))
        if len(rows) > most:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return method(self, rows, *rest, **options)

    patch.setattr(owner, name, limited)
    return sizes


@pytest.mark.parametrize(("sampler", "options", "method"), [row[1:] for row in ONCE], ids=[row[0] for row in ONCE])
def test_what_is_computed_once_is_halved_where_memory_runs_out(
    sampler: str, options: dict[str, Any], method: str, toy: ToyGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def images(cache: str) -> torch.Tensor:
        monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / cache))
        stream = samplers.create(sampler, options).stream(view_for(toy_networks(toy)), range(8), 8, LabelPlan())
        return next(stream).images

    whole = images("whole")
    sizes = short_of_memory(monkeypatch, Critic if method == "judge" else WView, method, 20)
    torch.testing.assert_close(images("halved"), whole, rtol=1e-5, atol=1e-5)
    assert max(sizes) > 20
    assert sizes[-1] <= 20


def test_batches_whose_statistics_are_wanted_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_for(builtin.networks())
    short_of_memory(monkeypatch, WView, "decode", 20)
    with pytest.raises(UserError, match="are those of batches of 64 images, and only 16 fit into memory"):
        restat.accumulate(view, samplers.create("plain"), 1)
