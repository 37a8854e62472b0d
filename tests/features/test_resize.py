"""Resizing against Pillow and torch, bit for bit, on the CPU and by the operations of a device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from studiogan_guidance.features.resize import FILTERS, filter_of, resize, resize_on_device, resize_smoothly, weights

SIZES = ((32, 299), (200, 224), (512, 299), (299, 299))


def pixels(size: int, count: int = 3) -> Tensor:
    return torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(size)).byte()


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_pillows_bit_for_bit(name: str) -> None:
    for size, target in SIZES:
        images = pixels(size)
        for image, found in zip(images, resize(images, target, name)):
            for channel, values in zip(image.float().numpy(), found):
                expected = Image.fromarray(channel).resize((target, target), FILTERS[name])
                assert np.array_equal(values, np.asarray(expected))


@pytest.fixture
def threads() -> Iterator[None]:
    """Two threads of torch: in one, its bilinear interpolation is summed in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def sizes(target: int) -> Iterator[tuple[int, int]]:
    """Heights and widths above and below a target, and the target itself.

    None is higher than wide: Pillow, from 13 on, filters the columns of such images first where it makes them smaller.
    """
    for height in (8, 27, 64, 100, 299, 512):
        yield height, height
    yield 41, 200
    yield 27, target
    yield target, 512
    yield target, target


@pytest.mark.parametrize("target", [224, 299, 64])
@pytest.mark.parametrize("name", FILTERS)
def test_operations_of_a_device_are_pillows_bit_for_bit(name: str, target: int) -> None:
    for height, width in sizes(target):
        images = torch.cat([pixels(max(height, width), 1)[..., :height, :width], extremes(height, width)])
        found = resize_on_device(images, target, name)
        assert found.dtype == torch.float32
        assert torch.equal(found, resize(images, target, name)), (height, width)


def extremes(height: int, width: int) -> Tensor:
    """An image of 0 and 255 only, where filters overshoot most."""
    return (pixels(max(height, width), 1)[..., :height, :width] > 127).byte() * 255


@pytest.mark.parametrize("target", [224, 299, 64])
def test_legacy_of_a_device_is_torchs_bit_for_bit(target: int, threads: None) -> None:
    fused = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    for height, width in sizes(target):
        images = torch.cat([pixels(max(height, width), 2)[..., :height, :width], extremes(height, width)])
        found, expected = resize_on_device(images, target, "legacy"), resize(images, target, "legacy")
        assert (found - expected).abs().max() < 1e-4  # of 255, on any CPU
        if fused:
            assert torch.equal(found, expected), (height, width)


@pytest.mark.gpu
@pytest.mark.parametrize("target", [224, 299])
@pytest.mark.parametrize("name", ["legacy", *FILTERS])
def test_a_gpu_has_the_bits_of_the_cpu(name: str, target: int) -> None:
    for height, width in sizes(target):
        images = torch.cat([pixels(max(height, width), 2)[..., :height, :width], extremes(height, width)])
        found = resize_on_device(images.cuda(), target, name)
        assert found.device.type == "cuda"
        assert torch.equal(found.cpu(), resize_on_device(images, target, name)), (height, width)


@pytest.mark.parametrize("name", ["legacy", "bicubic"])
def test_images_are_resized_a_few_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(32, 5)
    expected = resize_on_device(images, 80, name)
    for memory in (2 * 24 * 3 * 80 * 80, 1):  # two images, or less than one
        monkeypatch.setattr("studiogan_guidance.features.resize.MEMORY", memory)
        assert torch.equal(resize_on_device(images, 80, name), expected)


@pytest.mark.parametrize("name", ["legacy", *FILTERS])
def test_matrix_products_differ_by_rounding_and_pass_gradients(name: str) -> None:
    for size, target in SIZES:
        images = pixels(size)
        values = images.float().requires_grad_()
        found = resize_smoothly(values, target, name)
        assert (found - resize(images, target, name)).abs().max() < 1e-3  # of 255
        (slope,) = torch.autograd.grad(found.sum(), values)
        assert slope.abs().sum() > 0


def test_legacy_interpolates_without_averaging() -> None:
    images = pixels(512)
    expected = F.interpolate(images.float(), (299, 299), mode="bilinear", align_corners=False)
    assert torch.equal(resize(images, 299, "legacy"), expected)
    assert (resize(images, 299, "bilinear") - expected).abs().mean() > 10  # noise, of which Pillow takes the mean


def test_sides_and_axes_are_not_mixed_up() -> None:
    images = pixels(64)[:, :, :40, :]
    for name in ("bicubic", "legacy"):
        found = resize_smoothly(images.float(), 96, name)
        assert found.shape == (3, 3, 96, 96)
        assert (found - resize(images, 96, name)).abs().max() < 1e-3
    table = weights("bicubic", 64, 96, torch.device("cpu"))
    assert table.shape == (96, 64)
    torch.testing.assert_close(table.sum(1), torch.ones(96))


def test_the_filter_of_each_network() -> None:
    assert filter_of("legacy", "InceptionV3_tf") == "legacy"
    assert filter_of("clean", "InceptionV3_torch") == "bicubic"
    assert filter_of("friendly", "InceptionV3_tf") == "bilinear"
    assert filter_of("friendly", "InceptionV3_torch") == "lanczos"
    assert filter_of("friendly", "Swin-T_torch") == "bicubic"
