"""The part of a host generator above a resolution, which makes images of features that something else gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import Networks

SMALLEST = 8  # resolution of features, unless another is asked for


class Latent(NamedTuple):
    """What a generator has made of its noise when it is at a resolution r.

    Attributes:
        feature: output of its last block at r, float32 [B, C, r, r].
        image: its image at r, float32 [B, 3, r, r]; None where a generator makes no image before its last layer.
        code: what the blocks above read beside the feature, float32 [B, K].
    """

    feature: Tensor
    image: Tensor | None
    code: Tensor


def usual_resolution(image_size: int) -> int:
    """The resolution at which features are decoded: a quarter of the images (Bai et al. 2023, arXiv:2212.03752)."""
    return max(SMALLEST, image_size // 4)


class UpperBlocks(ABC):
    """Images of a ``Latent`` by the blocks above its resolution alone.

    Parameters, buffers and modes of the generator are left as they are, and gradients reach the latent only.

    Attributes:
        resolution: r.
        channels: C of the feature.
        has_image: whether a latent holds an image.
        code_width: K.
    """

    has_image: bool
    channels: int
    code_width: int
    _reader: nn.Module  # is called with the code of each ordinary pass
    _last: nn.Module  # gives the feature

    def __init__(self, networks: Networks, resolution: int) -> None:
        self.resolution = resolution
        self._generator: Any = networks.generator

    def __call__(self, latent: Latent, labels: Tensor, noise: str = "random") -> Tensor:
        """Images [B, 3, R, R] of a latent and of labels int64 [B].

        Batch norms use the statistics of the batch in training mode, and those of the checkpoint in evaluation mode.

        Args:
            latent: of B images.
            labels: read by the class embedding of BigGAN; w holds them already.
            noise: of StyleGAN2's layers: "random", from the global generator, or "const".
        """
        with _still(self._generator):
            return self._images(latent, labels, noise)

    @contextmanager
    def listening(self) -> Iterator[list[Latent]]:
        """Inside the with-block, each ordinary pass of the generator appends its own latent to the list.

        The code of StyleGAN2 is the row of w that the first layer above reads; a pass that mixes styles above that
        layer has other rows, so its latent does not give its image.
        """
        latents: list[Latent] = []
        codes: list[Tensor] = []

        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            codes[:] = [self._code(*args, **kwargs).float()]

        def hear(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            feature, image = output if self.has_image else (output, None)
            latents.append(Latent(feature.float(), image, codes[0]))

        # Listen to the generator.
        handles = [self._reader.register_forward_pre_hook(read, with_kwargs=True)]
        try:
            handles.append(self._last.register_forward_hook(hear))
            yield latents
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    @abstractmethod
    def resolutions(generator: Any) -> list[int]:
        """Resolutions below that of the images at which a block ends, in increasing order."""

    @abstractmethod
    def _images(self, latent: Latent, labels: Tensor, noise: str) -> Tensor: ...

    @abstractmethod
    def _code(self, first: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The code of an ordinary pass, from the arguments of ``_reader``."""


class StyleGANBlocks(UpperBlocks):
    """Blocks of StyleGAN2, which read one w for all of their layers, and add to the image of the blocks below."""

    has_image = True

    def __init__(self, networks: Networks, resolution: int) -> None:
        super().__init__(networks, resolution)
        synthesis = self._generator.synthesis
        blocks = {side: getattr(synthesis, f"b{side}") for side in synthesis.block_resolutions}

        # The blocks, and the place of their first layer among all.
        self._upper: list[Any] = [block for side, block in blocks.items() if side > resolution]
        self._row = sum(block.num_conv for side, block in blocks.items() if side <= resolution)

        # What they read.
        self._reader = synthesis
        self._last = blocks[resolution]
        self.channels = int(blocks[resolution].conv1.weight.shape[0])
        self.code_width = int(synthesis.w_dim)

    @staticmethod
    def resolutions(generator: Any) -> list[int]:
        return list(generator.synthesis.block_resolutions[:-1])

    def _images(self, latent: Latent, labels: Tensor, noise: str) -> Tensor:
        x, image = latent.feature, latent.image
        for block in self._upper:
            ws = latent.code[:, None].expand(-1, block.num_conv + block.num_torgb, -1)
            x, image = block(x, image, ws, noise_mode=noise)
        assert image is not None
        return image

    def _code(self, first: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return first[:, self._row]


class BigGANBlocks(UpperBlocks):
    """Blocks of the BigGAN family, whose conditional batch norms read the class embedding and noise.

    Those of BigGAN have a chunk of the noise each, which follow each other in a code; those of BigGAN-deep read all of
    it. They start after the last module at the resolution, attention included. Where the host trains in half precision,
    a feature stays in float32 until a convolution reads it, so its image agrees with the host's to rounding.
    """

    has_image = False

    def __init__(self, networks: Networks, resolution: int) -> None:
        super().__init__(networks, resolution)
        generator = self._generator
        blocks = flat(generator.blocks)
        sides = _sides(generator)

        # The blocks above the resolution.
        first = max(i for i, side in enumerate(sides) if side == resolution) + 1
        self._upper: list[Any] = blocks[first:]
        self._reader = generator
        self._last = blocks[first - 1]
        self.channels = width(self._last)

        # What they read.
        self._is_conditional = networks.is_conditional
        self._chunk: int | None = getattr(generator, "chunk_size", None)
        readers = sum(not is_attention(block) for block in self._upper)
        self.code_width = self._chunk * readers if self._chunk else int(generator.z_dim)

    @staticmethod
    def resolutions(generator: Any) -> list[int]:
        sides = _sides(generator)
        return sorted({side for side in sides if side < sides[-1]})

    def _images(self, latent: Latent, labels: Tensor, noise: str) -> Tensor:
        generator = self._generator

        with self._precision():
            conditions = self._conditions(latent.code, labels)
            x = latent.feature
            for block in self._upper:
                x = block(x) if is_attention(block) else block(x, next(conditions))
            x = generator.activation(generator.bn4(x))
            images: Tensor = generator.tanh(generator.conv2d5(x))
        return images

    def _precision(self) -> AbstractContextManager[object]:
        """Half precision where the host's training uses it."""
        is_mixed = self._generator.mixed_precision and self._generator.training
        return torch.autocast("cuda") if is_mixed else nullcontext()

    def _conditions(self, code: Tensor, labels: Tensor) -> Iterator[Tensor]:
        """What each conditional block reads, [B, Y]."""
        parts: Sequence[Tensor] = code.split(self._chunk, 1) if self._chunk else [code] * len(self._upper)
        shared = [self._generator.shared(labels)] if self._is_conditional else []
        for part in parts:
            yield torch.cat([*shared, part], 1)

    def _code(self, first: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return first[:, -self.code_width :]


KINDS: dict[str, type[UpperBlocks]] = {
    "stylegan2": StyleGANBlocks,
    "big_resnet": BigGANBlocks,
    "big_resnet_deep_legacy": BigGANBlocks,
    "big_resnet_deep_studiogan": BigGANBlocks,
}


def upper_blocks(networks: Networks, resolution: int) -> UpperBlocks:
    """The blocks of a generator above a resolution.

    Raises:
        UserError: a backbone without such blocks, InfoGAN numbers, or a resolution at which no block ends.
    """
    kind = KINDS.get(networks.backbone)
    if kind is None:
        raise UserError(f"a {networks.backbone} generator cannot decode features: choose one of {', '.join(KINDS)}")
    if networks.info_discrete or networks.info_continuous:
        raise UserError(
            f"this {networks.backbone} generator has InfoGAN numbers, whose features cannot be decoded: "
            "set MODEL.info_type to N/A"
        )

    # Find the resolution among those of its blocks.
    sides = kind.resolutions(networks.generator)
    if resolution not in sides:
        raise UserError(
            f"no block of this {networks.backbone} generator of {networks.image_size}x{networks.image_size} images "
            f"ends at resolution {resolution} with others above it: choose one of {', '.join(map(str, sides))}"
        )
    return kind(networks, resolution)


def flat(blocks: Any) -> list[Any]:
    """The modules of the BigGAN family's ``blocks`` in the order in which they run."""
    return [block for row in blocks for block in row]


def is_attention(block: nn.Module) -> bool:
    """Whether a module among blocks is self-attention, which changes neither resolution nor channels."""
    return type(block).__name__ == "SelfAttention"


def width(block: Any) -> int:
    """Channels of the output of a module among the BigGAN family's blocks."""
    if is_attention(block):
        return int(block.in_channels)
    convolutions = {name: child for name, child in block.named_children() if name.startswith("conv2d")}
    return int(convolutions[max(convolutions)].out_channels)  # conv2d0 is the shortcut


def _sides(generator: Any) -> list[int]:
    """The resolution of the output of each module in the BigGAN family's ``blocks``."""
    sides: list[int] = []
    side = int(generator.bottom)
    for block in flat(generator.blocks):
        doubles = not is_attention(block) and getattr(block, "upsample", True)  # all blocks of big_resnet do
        side *= 2 if doubles else 1
        sides.append(side)
    return sides


@contextmanager
def _still(generator: nn.Module) -> Iterator[None]:
    """Inside the with-block, passes in any mode change no buffer of a network, and no graph holds its parameters.

    Spectral norms keep their vectors, so their weights are those of the last pass.
    """
    modules = list(generator.modules())
    parameters = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    spectral = [module for module in modules if module.training and "weight_u" in module._buffers]
    norms = [module for module in modules if module.training and isinstance(module, _BatchNorm)]
    buffers = [dict(norm._buffers) for norm in norms]

    try:
        # Freeze them, and let norms that track statistics do so in copies.
        for parameter in parameters:
            parameter.requires_grad_(False)
        for module in spectral:
            module.training = False
        for norm, own in zip(norms, buffers):
            norm._buffers.update({name: value.clone() for name, value in own.items() if value is not None})
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for module in spectral:
            module.training = True
        for norm, own in zip(norms, buffers):
            norm._buffers.update(own)
