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
from studiogan_guidance.devices import to_device
from studiogan_guidance.evaluation.source import open_backbone, open_source
from studiogan_guidance.features.preparation import Compiled, Preparation
from studiogan_guidance.features.stats import accumulate, to_uint8


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


HALF = torch.full((3,), 0.5)


def test_images_are_resized_on_the_device_of_the_network_unless_told() -> None:
    def place(device: str, resize_on: str) -> bool:
        return Preparation(32, "legacy", HALF, HALF, torch.device(device), resize_on).on_device

    assert [place("cpu", word) for word in ("auto", "cpu", "device")] == [False, False, True]
    assert [place("meta", word) for word in ("auto", "cpu", "device")] == [True, False, True]
    assert RunConfig().resize_on == "auto"


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
def test_the_place_of_resizing_changes_no_bit(name: str) -> None:
    for channels_last in (False, True):
        found = [
            Preparation(56, name, HALF, HALF, torch.device("cpu"), place, channels_last)(random_images(size=20))
            for place in ("auto", "cpu", "device")
        ]
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


@pytest.mark.gpu
def test_inputs_on_a_gpu_are_those_of_the_cpu_bit_for_bit() -> None:
    gpu = torch.device("cuda", 0)
    images = torch.linspace(-1.1, 1.1, 2 * 3 * 40 * 40).view(2, 3, 40, 40)
    assert torch.equal(to_device(to_uint8(images), gpu), to_uint8(images.cuda()))
    for name in ("bilinear", "bicubic", "lanczos", "legacy"):
        expected = Preparation(299, name, HALF, HALF, torch.device("cpu"), "device")(images)
        for place in ("auto", "cpu") if name != "legacy" else ("auto",):
            prepare = Preparation(299, name, HALF, HALF, gpu, place)
            for source in (images, images.cuda()):
                assert torch.equal(prepare(source).cpu(), expected), (name, place)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["legacy", "bicubic"])
def test_preparing_images_on_a_gpu_never_waits_for_it(name: str) -> None:
    prepare = Preparation(299, name, HALF, HALF, torch.device("cuda", 0))
    images = random_images().cuda()
    prepare(images)  # tables are uploaded once
    torch.cuda.set_sync_debug_mode("error")
    try:
        prepare(images)
        prepare(random_images())
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
