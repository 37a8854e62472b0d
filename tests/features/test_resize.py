from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from studiogan_guidance.features.resize import FILTERS, filter_of, resize, resize_on_device, weights

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


@pytest.mark.parametrize("name", ["legacy", *FILTERS])
def test_on_the_device_only_rounding_differs(name: str) -> None:
    for size, target in SIZES:
        images = pixels(size)
        found, expected = resize_on_device(images, target, name), resize(images, target, name)
        assert found.dtype == expected.dtype == torch.float32
        assert (found - expected).abs().max() < 1e-3  # of 255


def test_legacy_interpolates_without_averaging() -> None:
    images = pixels(512)
    expected = F.interpolate(images.float(), (299, 299), mode="bilinear", align_corners=False)
    assert torch.equal(resize(images, 299, "legacy"), expected)
    assert (resize(images, 299, "bilinear") - expected).abs().mean() > 10  # noise, of which Pillow takes the mean


def test_sides_and_axes_are_not_mixed_up() -> None:
    images = pixels(64)[:, :, :40, :]
    for name in ("bicubic", "legacy"):
        found = resize_on_device(images, 96, name)
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
