"""A network that nobody trained: the same weights for everyone, and features that a slow twin gives, too."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from studiogan_guidance.features.random_network import CHANNELS, Convolutions, RandomNetwork


def test_weights_are_the_same_bits_everywhere_and_leave_the_global_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    network = RandomNetwork(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    assert network.protocol == {"backbone": "random", "backbone_sha256": "a5d1505aea52f7d6", "resizer": "clean"}
    for weight, channels in zip(Convolutions().buffers(), CHANNELS):
        assert weight.square().mean().item() == pytest.approx(2 / (9 * channels), rel=0.1)
        assert weight.abs().max().item() <= (6 / (9 * channels)) ** 0.5


def test_features_are_means_of_the_last_three_levels() -> None:
    network = RandomNetwork(torch.device("cpu"))
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features, logits = network(network.prepare(images))
    assert logits is None
    assert features.shape == (2, 512)

    # Each convolution as a product with patches of 3x3.
    outputs = network.prepare(images)
    means = []
    for weight in Convolutions().buffers():
        patches = F.unfold(outputs, 3, padding=1, stride=2)
        side = outputs.shape[2] // 2
        outputs = (weight.flatten(1) @ patches).clamp(min=0).reshape(2, len(weight), side, side)
        means.append(outputs.mean((2, 3)))
    torch.testing.assert_close(features, torch.cat(means[-3:], 1))
    torch.testing.assert_close(network.soft(images), features, atol=0.02, rtol=0.02)  # without rounding to 8 bits
