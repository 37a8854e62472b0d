"""Networks with channels last, compiled, or on a GPU: values change by rounding only."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from conftest import backbone_of, random_images
from torch import Tensor, nn

from studiogan_guidance.builtin.images import BuiltinImages
from studiogan_guidance.config import RunConfig
from studiogan_guidance.evaluation.source import open_backbone, open_source
from studiogan_guidance.features.preparation import Compiled
from studiogan_guidance.features.stats import accumulate


def test_channels_last_changes_only_rounding() -> None:
    plain, other = backbone_of("builtin"), backbone_of("builtin", channels_last=True)
    assert other.prepare(random_images()).is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(plain(plain.prepare(random_images())), other(other.prepare(random_images()))):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * a.abs().max().item())
    assert plain.protocol == other.protocol


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1) * self.scale, x.flatten(1)[:, :2]


def test_compiled_networks_fill_up_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # inductor takes 40 s
    compiled, x = Compiled(Pair()), random_images()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        for count in (5, 2, 1, 5):
            for found, expected in zip(compiled(x[:count]), Pair()(x[:count])):
                torch.testing.assert_close(found, expected)


@pytest.mark.gpu
def test_on_a_gpu_features_are_those_of_the_cpu() -> None:
    device = torch.device("cuda", 0)
    for resize_on in ("cpu", "device"):
        cfg = RunConfig(resize_on=resize_on)
        stats = [
            accumulate(BuiltinImages("valid").batches(50), open_backbone(cfg, open_source(cfg), place)).features
            for place in (torch.device("cpu"), device)
        ]
        np.testing.assert_allclose(stats[0], stats[1], rtol=1e-2, atol=1e-2)
