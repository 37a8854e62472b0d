"""DINOv2 as a feature network, from a file of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.features.preparation import Preparation, tuned, weights_sha256
from studiogan_guidance.weights import archives, tables

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of channels
MODEL_SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}  # by the width of a token
IMAGE_SIZE = 224  # side of the input
PATCH_SIZE = 14  # side of a patch


class DinoV2:
    """A DINOv2 ViT (Oquab et al. 2023, arXiv:2304.07193) as a Backbone: the normalised class token, no classes.

    Images are resized to 224 by Pillow's bicubic filter on float channels, as dgm-eval's ``clean_resize`` does
    (Stein et al. 2023, arXiv:2306.04675); position embeddings are interpolated as facebook's own code does.

    Args:
        path: facebook's or timm's weights, as .pth or .safetensors.
        device: where it runs.
        resize_on: cpu, device, or auto (on ``device``); values are the same.
        channels_last: memory format of the network.
        compile: run it through torch.compile.

    Raises:
        UserError: timm is missing; the file is missing, damaged or of another network.
    """

    classifies = False

    def __init__(
        self,
        path: Path,
        device: torch.device,
        resize_on: str = "auto",
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        name, net = dinov2(path)
        mean, std = map(torch.tensor, IMAGENET)
        self.device = device
        self._prepare = Preparation(IMAGE_SIZE, "bicubic", mean, std, device, resize_on, channels_last)
        self.prepares_on_cpu = not self._prepare.on_device
        self._net = tuned(net.to(device), channels_last, compile)
        self.protocol = {"backbone": f"dinov2:{name}", "backbone_sha256": weights_sha256(path), "resizer": "clean"}

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> [B, 3, 224, 224]."""
        return self._prepare(images)

    def __call__(self, prepared: Tensor) -> tuple[Tensor, None]:
        return self._net(prepared), None

    def soft(self, images: Tensor) -> Tensor:
        """Features [B, D] of images in [-1, 1], with gradients."""
        return self(self._prepare.soft(images))[0]


def dinov2(path: Path) -> tuple[str, nn.Module]:
    """A DINOv2 network from facebook's or timm's weights, and its name in timm, such as vit_large_patch14_dinov2.

    Only tensors are read, never code.

    Raises:
        UserError: timm is missing; the file is missing, damaged or of another network.
    """
    # Recognise the network by the shapes of its weights.
    state = _tensors(path)
    width = _width(state)
    if width is None:
        raise UserError(
            f"--backbone {path} holds no DINOv2 ViT in facebook's or timm's format: give dinov2_vit*14_pretrain.pth"
        )
    registers = bool({"register_tokens", "reg_token"} & set(state))
    name = f"vit_{MODEL_SIZES[width]}_patch14{'_reg4' if registers else ''}_dinov2"

    # Load them into timm's network, whose import takes seconds.
    try:
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn
    except ImportError as error:
        raise UserError("--backbone dinov2 needs the package timm, which is missing: pip install timm") from error
    state.setdefault("mask_token", torch.zeros(1, width))  # by which timm knows facebook's names; it is dropped
    try:
        state["pos_embed"] = _positions(state["pos_embed"], IMAGE_SIZE // PATCH_SIZE, registers)
        with torch.random.fork_rng(devices=[]):
            net: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, img_size=IMAGE_SIZE)
        net.load_state_dict(checkpoint_filter_fn(state, net))  # type: ignore[arg-type]
    except (RuntimeError, KeyError, IndexError) as error:
        raise UserError(
            f"--backbone {path} does not fit {name} ({one_line(error)}): give the file as it came"
        ) from error
    return name, net.eval().requires_grad_(False)


def _width(state: Mapping[str, Tensor]) -> int | None:
    """The width of a token of a DINOv2 ViT; None for weights of another network."""
    patches = state.get("patch_embed.proj.weight")
    if patches is None or "pos_embed" not in state or patches.shape[2:] != (PATCH_SIZE, PATCH_SIZE):
        return None
    return patches.shape[0] if patches.shape[0] in MODEL_SIZES else None


def _positions(embedding: Tensor, side: int, registers: bool) -> Tensor:
    """Position embeddings [1, (1 +) n * n, D] for ``side * side`` patches, by the rule that facebook evaluates with."""
    # Separate the class token's from those of the patches; timm's reg4 has none for the class token.
    prefix = int(math.isqrt(embedding.shape[1]) ** 2 != embedding.shape[1])
    first = embedding[:, :prefix]
    patches = embedding[:, prefix:]
    from_side = math.isqrt(patches.shape[1])
    if from_side == side:
        return embedding

    # Interpolate the grid.
    grid = patches.reshape(1, from_side, from_side, -1).permute(0, 3, 1, 2)
    if registers:
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    else:
        grid = F.interpolate(grid, scale_factor=(side + 0.1) / from_side, mode="bicubic")
    return torch.cat([first, grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)], 1)


def _tensors(path: Path) -> dict[str, Tensor]:
    """The weights in a file, by name."""
    # Read the file, and run no code of it.
    if path.suffix == ".safetensors":
        _, state = tables.read(path, "the weights")
    else:
        state = archives.read(path, "the weights")

    # Check that it holds finite tensors only.
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds more than a dictionary of tensors: give dinov2_vit*14_pretrain.pth as it came")
    for key, value in state.items():
        if value.is_complex() or not archives.is_finite(value):
            raise UserError(f"the weights {path} have numbers in {key} that are not finite or not real: download them")
    return dict(state)
