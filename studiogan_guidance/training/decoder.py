"""From a discriminator's features of an image to what a generator needs to make that image again.

Bai et al. 2023, "GLeaD: Improving GANs with A Generator-Leading Task" (arXiv:2212.03752).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import Networks
from studiogan_guidance.training.upper_blocks import Latent, flat, is_attention, width

Maps = dict[int, Tensor]


class Passes(Protocol):
    """A list or a deque of features."""

    def append(self, features: Maps, /) -> None: ...


class DiscriminatorFeatures:
    """The output of the last block at each resolution of a host's discriminator.

    It stands before minibatch statistics, label conditioning, the last activation and pooling.

    Args:
        networks: the generator beside it.
        discriminator: of StyleGAN2 or of the BigGAN family, out of its wrappers.

    Attributes:
        channels: of each resolution.
    """

    def __init__(self, networks: Networks, discriminator: nn.Module) -> None:
        ends = _style_ends if networks.backbone == "stylegan2" else _resnet_ends
        self._blocks, self.channels = ends(discriminator, networks.image_size)

        # An activation that works in place changes the output of the block before it.
        self._copies = any(getattr(module, "inplace", False) for module in discriminator.modules())

    @contextmanager
    def listening(self, passes: Passes, largest: int | None = None) -> Iterator[None]:
        """Inside the with-block, each complete pass of the discriminator appends its features to ``passes``.

        They are float32 [B, C, r, r] by resolution r, of resolutions up to ``largest`` (None: all), with their graph.
        """
        maps: Maps = {}
        lowest = min(self._blocks)

        def listener(side: int) -> Any:
            def hear(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                feature = output[0] if isinstance(output, tuple) else output
                single = feature.float()
                maps[side] = single.clone() if self._copies and single is feature else single

                # The last block ends a pass.
                if side == lowest:
                    passes.append(dict(maps))
                    maps.clear()

            return hear

        # Listen to the blocks.
        handles = []
        try:
            for side, block in self._blocks.items():
                if largest is None or side <= max(largest, lowest):
                    handles.append(block.register_forward_hook(listener(side)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _style_ends(discriminator: Any, image_size: int) -> tuple[dict[int, nn.Module], dict[int, int]]:
    """The last block at each resolution of StyleGAN2's discriminator, and the channels of its output."""
    blocks = {side // 2: getattr(discriminator, f"b{side}") for side in discriminator.block_resolutions}
    return blocks, {side: int(block.conv1.weight.shape[0]) for side, block in blocks.items()}


def _resnet_ends(discriminator: Any, image_size: int) -> tuple[dict[int, nn.Module], dict[int, int]]:
    """The same of the BigGAN family."""
    blocks: dict[int, nn.Module] = {}
    side = image_size
    for block in flat(discriminator.blocks):
        halves = not is_attention(block) and getattr(block, "downsample", True)  # the first block of big_resnet does
        side //= 2 if halves else 1
        blocks[side] = block
    return blocks, {side: width(block) for side, block in blocks.items()}


class EqualisedConvolution(nn.Module):
    """A linear 1x1 convolution with equalised learning rate (Karras et al. 2018, arXiv:1710.10196, section 4.1).

    Weights are standard normal and divided by sqrt(in_channels) when they are used, so inputs of mean square 1 give
    outputs of mean square 1; biases start at zero.

    Args:
        in_channels, out_channels: of its maps.
        draws: gives the weights.
        upsamples: whether the output is twice as large.
    """

    kernel: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, draws: Generator, upsamples: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1, generator=draws))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        line = torch.tensor([0.25, 0.75, 0.75, 0.25])
        self.register_buffer("kernel", torch.outer(line, line) if upsamples else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight * self.weight.shape[1] ** -0.5)
        y = y if self.kernel is None else upsampled(y, self.kernel)
        return y + self.bias[:, None, None]


def upsampled(x: Tensor, kernel: Tensor) -> Tensor:
    """Maps [B, C, H, W] twice as large, with zeros between their pixels and around them, filtered by ``kernel`` [4, 4].

    As upsampling in StyleGAN2 (Karras et al. 2020, arXiv:1912.04958, appendix B), whose filter is [1, 3, 3, 1] in each
    direction.
    """
    channels = x.shape[1]
    return F.conv_transpose2d(x, kernel.expand(channels, 1, 4, 4), stride=2, padding=1, groups=channels)


class LatentDecoder(nn.Module):
    """A ``Latent`` from a discriminator's features, by linear levels from the lowest resolution up.

    A level gives the map at r from the map at r/2 beside the discriminator's feature at r/2; the lowest one has the
    feature alone. The last map gives feature, image and, by its mean over pixels, code. All is float32.

    Args:
        channels: of the discriminator's features, by resolution; a level has those of the nearest resolution.
        out_channels: of the feature.
        has_image: whether the latent holds an image.
        code_width: numbers of the code.
        resolution: of the last map, at least the lowest; levels end there.
        target: resolution of the latent; bilinear, if it is another.
        seed: of the weights.

    Raises:
        UserError: a resolution whose levels need features that the discriminator does not have.
    """

    def __init__(
        self,
        channels: Mapping[int, int],
        out_channels: int,
        has_image: bool,
        code_width: int,
        resolution: int,
        target: int,
        seed: int,
    ) -> None:
        super().__init__()
        lowest = min(channels)
        sides = _level_sides(channels, resolution)
        draws = Generator().manual_seed(seed)

        # Levels.
        self.levels = nn.ModuleDict()
        last = channels[lowest]
        for side in sides:
            fan_in = channels[side // 2] + (last if side > 2 * lowest else 0)
            last = channels[min(channels, key=lambda known: abs(known - side))]
            self.levels[str(side)] = EqualisedConvolution(fan_in, last, draws, upsamples=True)

        # Heads.
        self.feature = EqualisedConvolution(last, out_channels, draws)
        self.image = EqualisedConvolution(last, 3, draws) if has_image else None
        self.code = EqualisedConvolution(last, code_width, draws)

        self.target = target
        self.lowest = lowest
        self.largest = max(lowest, sides[-1] // 2) if sides else lowest

    def forward(self, features: Mapping[int, Tensor]) -> Latent:
        """The latent of features [B, C, r, r] by resolution r; those above ``largest`` are not read."""
        with torch.autocast(features[self.lowest].device.type, enabled=False):
            x = features[self.lowest].float()
            for name, level in self.levels.items():
                side = int(name) // 2
                x = level(x if side == self.lowest else torch.cat([x, features[side].float()], 1))

            # The heads.
            feature = self._resized(self.feature(x))
            image = None if self.image is None else self._resized(self.image(x))
            code = self.code(x.mean((2, 3), keepdim=True)).flatten(1)
        return Latent(feature, image, code)

    def _resized(self, maps: Tensor) -> Tensor:
        if maps.shape[-1] == self.target:
            return maps
        return F.interpolate(maps, size=(self.target, self.target), mode="bilinear", align_corners=False)


def _level_sides(channels: Mapping[int, int], resolution: int) -> list[int]:
    """Resolutions of the levels up to ``resolution``, from the lowest up."""
    lowest = min(channels)
    sides: list[int] = []
    while (side := lowest << (len(sides) + 1)) <= resolution:
        sides.append(side)

    # Each needs the feature below it.
    ends_there = resolution <= lowest or (sides and sides[-1] == resolution)
    if not ends_there or any(side // 2 not in channels for side in sides):
        known = [lowest, *(2 * side for side in sorted(channels))]
        raise UserError(
            f"features cannot be decoded up to resolution {resolution} from those of this discriminator at "
            f"{', '.join(map(str, sorted(channels)))}: choose one of {', '.join(map(str, known))}"
        )
    return sides
