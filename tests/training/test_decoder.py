"""The decoder of a discriminator's features."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from studiogan_guidance.errors import UserError
from studiogan_guidance.training.decoder import EqualisedConvolution, LatentDecoder, upsampled

CHANNELS = {4: 12, 8: 10, 16: 6}
KERNEL = EqualisedConvolution(1, 1, torch.Generator(), upsamples=True).get_buffer("kernel")


def decoder(resolution: int = 16, target: int = 16, seed: int = 0, has_image: bool = True) -> LatentDecoder:
    return LatentDecoder(CHANNELS, 7, has_image, 5, resolution, target, seed)


def features(seed: int = 0) -> dict[int, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {side: torch.randn(3, width, side, side, generator=draws) for side, width in CHANNELS.items()}


def test_upsampling_is_filtered_insertion_of_zeros() -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    # Put zeros between pixels, and filter by [1, 3, 3, 1] / 4 in each direction.
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 4
    spread = x.new_zeros(2, 3, 8, 10)
    spread[:, :, ::2, ::2] = x
    kernel = torch.outer(line, line).expand(3, 1, 4, 4)
    expected = F.conv2d(F.pad(spread, (2, 1, 2, 1)), kernel, groups=3)
    torch.testing.assert_close(upsampled(x, KERNEL.double()), expected)

    # A constant stays itself away from the border.
    assert torch.equal(upsampled(torch.ones(1, 1, 4, 4), KERNEL)[0, 0, 1:-1, 1:-1], torch.ones(6, 6))


@pytest.mark.parametrize("width", [4, 400])
def test_learning_rates_are_equalised(width: int) -> None:
    draws = torch.Generator().manual_seed(0)
    layer = EqualisedConvolution(width, 500, draws)
    assert abs(float(layer.weight.detach().square().mean()) - 1) < 0.1  # stored as standard normal
    assert not layer.bias.any()

    # Outputs of white noise have the variance of the input, whatever the number of channels.
    x = torch.randn(50, width, 8, 8, generator=draws)
    assert abs(float(layer(x).detach().square().mean()) - 1) < 0.1

    # The gradient of a weight is that of the plain convolution divided by sqrt(fan in).
    plain = (layer.weight.detach() * width**-0.5).requires_grad_()
    F.conv2d(x, plain).square().mean().backward()
    layer(x).square().mean().backward()
    torch.testing.assert_close(layer.weight.grad, plain.grad * width**-0.5)


def by_hand(net: LatentDecoder, maps: dict[int, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Levels at 8 and 16, and heads, written out."""

    def conv(layer: EqualisedConvolution, x: Tensor) -> Tensor:
        matrix = layer.weight[:, :, 0, 0] / x.shape[1] ** 0.5
        return torch.einsum("oi,bihw->bohw", matrix, x)

    def bias(layer: EqualisedConvolution) -> Tensor:
        return layer.bias.view(1, -1, 1, 1)

    first, second = net.levels["8"], net.levels["16"]
    x = upsampled(conv(first, maps[4]), KERNEL) + bias(first)
    x = upsampled(conv(second, torch.cat([x, maps[8]], 1)), KERNEL) + bias(second)
    code = (conv(net.code, x) + bias(net.code)).mean((2, 3))
    return conv(net.feature, x) + bias(net.feature), conv(net.image, x) + bias(net.image), code


def test_levels_and_heads_are_those_of_the_paper() -> None:
    net = decoder()
    for parameter in net.parameters():  # biases, too
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    maps = features()
    latent = net(maps)
    for value, expected in zip(latent, by_hand(net, maps)):
        torch.testing.assert_close(value, expected)

    # Each level has the channels of the discriminator at its resolution, and takes twice those below.
    shapes = {name: tuple(layer.weight.shape[:2]) for name, layer in net.levels.items()}
    assert shapes == {"8": (10, 12), "16": (6, 20)}
    assert [tuple(head.weight.shape[:2]) for head in (net.feature, net.image, net.code)] == [(7, 6), (3, 6), (5, 6)]


def test_only_maps_below_are_read() -> None:
    net = decoder()
    assert net.largest == 8
    maps = features()
    del maps[16]
    assert net(maps).feature.shape == (3, 7, 16, 16)

    # The highest resolution of images has no features of its own, and the channels of the nearest.
    top = decoder(resolution=32, target=32)
    assert top.largest == 16
    assert top.levels["32"].weight.shape[:2] == (6, 12)


@pytest.mark.parametrize("resolution", [4, 2])
def test_the_lowest_feature_is_read_by_the_heads_themselves(resolution: int) -> None:
    net = decoder(resolution, target=4, has_image=False)
    maps = features()
    latent = net(maps)
    assert not len(net.levels)
    assert net.largest == 4
    assert latent.image is None
    torch.testing.assert_close(latent.feature, net.feature(maps[4]))
    torch.testing.assert_close(latent.code, net.code(maps[4]).mean((2, 3)))


@pytest.mark.parametrize("target", [4, 8, 32])
def test_maps_are_resized_to_another_resolution(target: int) -> None:
    maps = features()
    same, other = decoder()(maps), decoder(target=target)(maps)
    for value, expected in zip(other[:2], same[:2]):
        resized = F.interpolate(expected, size=(target, target), mode="bilinear", align_corners=False)
        torch.testing.assert_close(value, resized)
    assert torch.equal(other.code, same.code)


def test_a_seed_is_all_that_decides() -> None:
    state = torch.get_rng_state()
    first, again, other = (decoder(seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    weights = [key for key in first if key.endswith("weight")]
    assert all(not torch.equal(first[key], other[key]) for key in weights)
    assert len({float(first[key].flatten()[0]) for key in weights}) == len(weights)


def test_single_precision_is_kept() -> None:
    net = decoder()
    maps = features()
    expected = net(maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latent = net(maps)
    assert all(map(torch.equal, latent, expected))

    # Every weight has a gradient.
    total = sum(value.square().mean() for value in latent)
    total.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
    copy.deepcopy(net).load_state_dict(net.state_dict())


@pytest.mark.parametrize("resolution", [64, 12])
def test_a_resolution_without_features_is_refused(resolution: int) -> None:
    with pytest.raises(
        UserError,
        match=f"up to resolution {resolution} from those of this discriminator at 4, 8, 16: choose one of 4, 8, 16, 32",
    ) as error:
        decoder(resolution)
    assert "\n" not in str(error.value)
