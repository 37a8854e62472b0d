"""Feature networks by name: the built-in's, the host's, any TorchScript file, DINOv2 from a file of weights."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance import builtin
from studiogan_guidance.common import UserError, nearest
from studiogan_guidance.config import RunConfig
from studiogan_guidance.evaluation.features import Backbone, to_uint8
from studiogan_guidance.evaluation.resize import resize, resize_on_device

HOST = ("InceptionV3_tf", "InceptionV3_torch", "ResNet50_torch", "SwAV_torch", "DINO_torch", "Swin-T_torch")
KNOWN = ("builtin", *(f"host:{name}" for name in HOST), "torchscript:PATH", "dinov2:PATH")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINOV2 = {384: "small", 768: "base", 1024: "large", 1536: "giant"}  # by the width of a token
DINOV2_SIZE, DINOV2_PATCH = 224, 14


def open_backbone(cfg: RunConfig, device: torch.device) -> Backbone:
    """The feature network that ``cfg.backbone`` names; by default the host's Inception, the built-in GAN's own.

    ====================  ==============================================================================================
    builtin               the classifier of digits, for images of 32x32
    host:NAME, or NAME    one of the host's networks (see HOST), with the host's resizers
    torchscript:PATH      takes uint8 images [B, 3, H, W], returns features [B, D], or them and class logits [B, K];
                          ``return_features`` of its forward (NVIDIA's inception-2015-12-05.pt) is set to true
    dinov2:PATH           facebook's or timm's weights of a DINOv2 ViT, as .pth or .safetensors; needs timm
    ====================  ==============================================================================================

    Raises:
        UserError: an unknown name, a missing, damaged or foreign file, a missing package.
    """
    spec = cfg.backbone or ("host:InceptionV3_tf" if cfg.uses_host else "builtin")
    kind, _, name = spec.partition(":")
    if spec in HOST:
        kind, name = "host", spec
    if spec == "builtin":
        return BuiltinBackbone(device, not cfg.uses_host, cfg.channels_last, cfg.compile)
    if kind == "torchscript" and name:
        if cfg.channels_last or cfg.compile or cfg.resize_on != "cpu":
            raise UserError(
                f"--backbone {spec} runs as it was saved: leave out --channels-last, --compile, --resize-on"
            )
        return TorchScript(Path(name), device)
    if kind == "dinov2" and name:
        return DinoV2(Path(name), device, cfg.resize_on, cfg.channels_last, cfg.compile)
    if kind == "host" and name in HOST:
        from studiogan_guidance.host.locate import locate
        from studiogan_guidance.host.metrics import HostBackbone

        checkout = locate(cfg.studiogan)
        return HostBackbone(name, checkout, device, cfg.resizer, cfg.resize_on, cfg.channels_last, cfg.compile)
    raise UserError(f"--backbone is '{spec}': {nearest(spec, KNOWN)}")


class Preparation:
    """Images in [-1, 1] to the input of a network, in the host's steps: 8 bits, resized, (x / 255 - mean) / std.

    Args:
        size: side of the network's input.
        name: the filter, as in ``resize``.
        mean: of each channel.
        std: of each channel.
        device: the network's.
        resize_on: cpu (the host's numbers, bit for bit) or device.
        channels_last: memory format of the result.
    """

    def __init__(
        self,
        size: int,
        name: str,
        mean: Tensor,
        std: Tensor,
        device: torch.device,
        resize_on: str = "cpu",
        channels_last: bool = False,
    ) -> None:
        self.size, self.name, self.device, self.resize_on = size, name, device, resize_on
        self.mean, self.std = (values.view(1, 3, 1, 1).to(device) for values in (mean, std))
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] on any device -> [B, 3, size, size] on the network's."""
        if self.resize_on == "device":
            pixels = resize_on_device(to_uint8(images.to(self.device)), self.size, self.name)
        else:
            pixels = resize(to_uint8(images), self.size, self.name)
            if self.device.type == "cuda":
                pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        return pixels.div_(255.0).sub_(self.mean).div_(self.std).contiguous(memory_format=self.layout)

    def soft(self, images: Tensor) -> Tensor:
        """The same on the network's device without rounding to 8 bits, so that gradients pass."""
        pixels = ((images.to(self.device) + 1) * 127.5).clamp(0, 255)
        inputs = (resize_on_device(pixels, self.size, self.name) / 255.0 - self.mean) / self.std
        return inputs.contiguous(memory_format=self.layout)


class BuiltinBackbone:
    """The built-in feature net, a digit classifier, as a Backbone."""

    def __init__(
        self, device: torch.device | str, classifies: bool = True, channels_last: bool = False, compile: bool = False
    ) -> None:
        net, digest = builtin.load(builtin.network.FeatureNet, "features", device)
        self._net = tuned(net, channels_last, compile)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device, self.classifies = torch.device(device), classifies
        self.protocol = {"backbone": "builtin", "backbone_sha256": digest[:16], "resizer": "none"}

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, 32, 32] in [-1, 1] in 256 steps; UserError for another size."""
        height, width = images.shape[2:]
        if (height, width) != (builtin.network.IMAGE_SIZE,) * 2:
            raise UserError(f"--backbone builtin takes images of 32x32, found {width}x{height}: choose another")
        return (to_uint8(images.to(self.device)).float() / 127.5 - 1).contiguous(memory_format=self._layout)

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self._net(prepared)
        return features, logits

    def soft(self, images: Tensor) -> Tensor:
        """Features [B, D] of images in [-1, 1], with gradients."""
        features: Tensor = self._net(images.to(self.device).clamp(-1, 1))[0]
        return features


class TorchScript:
    """A TorchScript file as a Backbone; it resizes and normalises by itself."""

    classifies = False

    def __init__(self, path: Path, device: torch.device) -> None:
        self.device, self._path, digest = device, path, _sha256(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is deprecated; files of it will live on
                self._net: Any = torch.jit.load(str(path), map_location=device).eval()
                arguments = [argument.name for argument in self._net.forward.schema.arguments]
        except (RuntimeError, ValueError, AttributeError) as error:
            raise UserError(
                f"--backbone {path} is not a TorchScript module ({_line(error)}): save one there"
            ) from error
        self._options = {"return_features": True} if "return_features" in arguments else {}
        self.protocol = {"backbone": f"torchscript:{path.name}", "backbone_sha256": digest, "resizer": "own"}

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> uint8."""
        return to_uint8(images.to(self.device))

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            found = self._net(prepared, **self._options)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, torch.jit.Error) as error:  # what its interpreter makes of all others
            if "out of memory" in str(error):
                raise torch.OutOfMemoryError(str(error).strip().splitlines()[-1]) from error
            raise UserError(
                f"{self._path} failed on uint8 images {list(prepared.shape)} ({_line(error, -1)}): it must take them"
            ) from error
        features, logits = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        for value in (features, features if logits is None else logits):
            if not (isinstance(value, Tensor) and value.dim() == 2 and len(value) == len(prepared)):
                raise UserError(
                    f"{self._path} returned {_shape(found)} for {len(prepared)} images: it must return features "
                    "[B, D], or features and class logits [B, K]"
                )
        return features, logits


class DinoV2:
    """A DINOv2 ViT (Oquab et al. 2023, arXiv:2304.07193) as a Backbone: the normalised class token, no classes.

    Images are resized to 224 by Pillow's bicubic filter on float channels, as dgm-eval's ``clean_resize`` does
    (Stein et al. 2023, arXiv:2306.04675); position embeddings are interpolated as facebook's own code does.
    """

    classifies = False

    def __init__(
        self,
        path: Path,
        device: torch.device,
        resize_on: str = "cpu",
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        name, net = dinov2(path)
        mean, std = (torch.tensor(values) for values in IMAGENET)
        self._prepare = Preparation(DINOV2_SIZE, "bicubic", mean, std, device, resize_on, channels_last)
        self._net, self.device = tuned(net.to(device), channels_last, compile), device
        self.protocol = {"backbone": f"dinov2:{name}", "backbone_sha256": _sha256(path), "resizer": "clean"}
        if resize_on != "cpu":
            self.protocol["resize_on"] = resize_on

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
    try:
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn
    except ImportError as error:
        raise UserError(
            "--backbone dinov2 needs the package timm, which is missing: pip install 'studiogan-guidance[studiogan]'"
        ) from error
    state = _tensors(path)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    width, *patch = shapes.get("patch_embed.proj.weight", ())[:1] + shapes.get("patch_embed.proj.weight", ())[2:] or (
        0,
    )
    if width not in DINOV2 or patch != [DINOV2_PATCH] * 2 or "pos_embed" not in state:
        raise UserError(
            f"--backbone {path} holds no DINOv2 ViT in facebook's or timm's format: give dinov2_vit*14_pretrain.pth"
        )
    registers = bool({"register_tokens", "reg_token"} & set(state))
    name = f"vit_{DINOV2[width]}_patch14{'_reg4' if registers else ''}_dinov2"
    state.setdefault("mask_token", torch.zeros(1, width))  # by which timm knows facebook's names; it is dropped
    try:
        state["pos_embed"] = _positions(state["pos_embed"], DINOV2_SIZE // DINOV2_PATCH, registers)
        with torch.random.fork_rng(devices=[]):
            net: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, img_size=DINOV2_SIZE)
        net.load_state_dict(checkpoint_filter_fn(state, net))  # type: ignore[arg-type]
    except (RuntimeError, KeyError, IndexError) as error:
        raise UserError(f"--backbone {path} does not fit {name} ({_line(error)}): give the file as it came") from error
    return name, net.eval().requires_grad_(False)


def _positions(embedding: Tensor, side: int, registers: bool) -> Tensor:
    """Position embeddings [1, (1 +) n * n, D] for ``side * side`` patches, by the rule that facebook evaluates with."""
    prefix = int(math.isqrt(embedding.shape[1]) ** 2 != embedding.shape[1])  # the class token's, but for timm's reg4
    first, patches = embedding[:, :prefix], embedding[:, prefix:]
    found = math.isqrt(patches.shape[1])
    if found == side:
        return embedding
    grid = patches.reshape(1, found, found, -1).permute(0, 3, 1, 2)
    if registers:
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    else:
        grid = F.interpolate(grid, scale_factor=(side + 0.1) / found, mode="bicubic")
    return torch.cat([first, grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)], 1)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the readers raise anything
        raise UserError(f"cannot read the weights {path} ({_line(error)}): download them again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds more than a dictionary of tensors: give dinov2_vit*14_pretrain.pth as it came")
    return state


def tuned(network: nn.Module, channels_last: bool, compile: bool) -> Callable[[Tensor], Any]:
    """``network`` in another memory format, compiled, or as it is; values change by rounding only."""
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    return Compiled(network) if compile else network


class Compiled:
    """A network through torch.compile; batches smaller than the largest so far are filled up, not compiled for anew.

    Raises:
        UserError: it cannot be compiled here.
    """

    def __init__(self, network: nn.Module) -> None:
        self._net, self._size = torch.compile(network, dynamic=False), 0

    def __call__(self, prepared: Tensor) -> Any:
        count, self._size = len(prepared), max(self._size, len(prepared))
        if count < self._size:
            prepared = torch.cat([prepared, prepared[-1:].expand(self._size - count, *prepared.shape[1:])])
        try:
            found = self._net(prepared)
        except torch.OutOfMemoryError:
            self._size = 0
            raise
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise UserError(f"torch.compile failed ({_line(error)}): leave out --compile") from error
        return tuple(value[:count] for value in found) if isinstance(found, tuple) else found[:count]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read --backbone {path}: {error.strerror or error}; give an existing file") from error
    return digest.hexdigest()[:16]


def _line(error: BaseException, which: int = 0) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[which] if lines else type(error).__name__)[:160]


def _shape(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor {list(found.shape)}"
    return f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__
