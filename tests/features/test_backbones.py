from __future__ import annotations

import dataclasses
import functools
import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.builtin.backbone import BuiltinBackbone
from studiogan_guidance.builtin.images import BuiltinImages
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.source import open_backbone, open_source
from studiogan_guidance.features.dinov2 import dinov2
from studiogan_guidance.features.preparation import Compiled
from studiogan_guidance.features.stats import accumulate, to_uint8
from studiogan_guidance.features.torchscript import TorchScript

CPU = torch.device("cpu")


def opened(spec: str | None, **given: Any) -> Any:
    cfg = RunConfig(backbone=spec, **given)
    return open_backbone(cfg, open_source(cfg), CPU)


def images(size: int = 32, count: int = 5) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(size)) * 2.2 - 1.1


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_the_builtin_is_the_default_and_knows_digits() -> None:
    backbone = opened(None)
    assert isinstance(backbone, BuiltinBackbone)
    assert backbone.classifies
    assert backbone.protocol["backbone"] == "builtin"
    assert backbone.protocol == opened("builtin").protocol
    stats = accumulate(BuiltinImages("test").batches(100), backbone, ahead=2)
    assert stats.probabilities is not None
    assert (stats.probabilities.argmax(1) == stats.labels).mean() > 0.97
    with pytest.raises(UserError, match="takes images of 32x32, found 64x64: choose another"):
        backbone.prepare(images(64))
    other = opened("builtin", host={"DATA": {}})
    assert not other.classifies  # its classes are not those of a host's generator


def test_channels_last_changes_only_rounding() -> None:
    plain, other = opened("builtin"), opened("builtin", channels_last=True)
    assert other.prepare(images()).is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(plain(plain.prepare(images())), other(other.prepare(images()))):
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
    compiled, x = Compiled(Pair()), images()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        for count in (5, 2, 1, 5):
            for found, expected in zip(compiled(x[:count]), Pair()(x[:count])):
                torch.testing.assert_close(found, expected)


class Means(nn.Module):
    """Features are means of channels of uint8 images; with ``return_features`` unset, something else comes out."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert x.dtype == torch.uint8
        means = x.float().mean((2, 3))
        return means if return_features else means[:, :1] * 0


class Scores(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.float().mean((2, 3)), x.float().amax((2, 3))


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class Cramped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return x.float().mean((2, 3))


class Picky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().view(-1, 3, 64, 64).mean((2, 3))


def script(module: nn.Module, path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, as it may be
        torch.jit.save(torch.jit.script(module), str(path))
    return f"torchscript:{path}"


def test_torchscript(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    spec = script(Means(), tmp_path / "net.pt")
    recwarn.clear()
    backbone = opened(spec)
    assert len(recwarn) == 0
    means = to_uint8(images()).float().mean((2, 3))
    features, logits = backbone(backbone.prepare(images()))
    assert torch.equal(features, means)
    assert logits is None
    assert not backbone.classifies
    assert backbone.protocol == {
        "backbone": "torchscript:net.pt",
        "backbone_sha256": digest(tmp_path / "net.pt"),
        "resizer": "own",
    }
    for option in ({"resize_on": "device"}, {"channels_last": True}, {"compile": True}):
        with pytest.raises(UserError, match="runs as it was saved: leave out"):
            opened(spec, **option)
    both = opened(script(Scores(), tmp_path / "both.pt"))
    features, logits = both(both.prepare(images()))
    assert torch.equal(features, means)
    assert torch.equal(logits, to_uint8(images()).float().amax((2, 3)))
    stats = accumulate([(images(), torch.arange(5))], both)
    np.testing.assert_array_equal(stats.features, means.numpy())


def test_torchscript_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    def message(backbone: TorchScript, size: int = 32) -> str:
        with pytest.raises(UserError) as caught:
            backbone(backbone.prepare(images(size)))
        return str(caught.value)

    maps = opened(script(Maps(), tmp_path / "maps.pt"))
    assert "maps.pt returned a tensor [5, 3, 32, 32] for 5 images: it must return features [B, D]" in message(maps)
    picky = opened(script(Picky(), tmp_path / "picky.pt"))
    assert picky(picky.prepare(images(64)))[0].shape == (5, 3)
    assert "picky.pt failed on uint8 images [5, 3, 32, 32] (" in message(picky)
    assert "invalid for input of size" in message(picky)
    assert "\n" not in message(picky)
    cramped = opened(script(Cramped(), tmp_path / "cramped.pt"))  # its interpreter hides what kind of error it was
    stats = accumulate([(images(), torch.arange(5))], cramped, probabilities=False)
    np.testing.assert_array_equal(stats.features, to_uint8(images()).float().mean((2, 3)).numpy())


def test_names_and_files_that_are_wrong_are_one_line(tmp_path: Path) -> None:
    def message(spec: str) -> str:
        with pytest.raises(UserError) as caught:
            opened(spec)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "'host:InceptionV3': did you mean 'host:InceptionV3_tf'? known: builtin, dinov2:PATH" in message(
        "host:InceptionV3"
    )
    for spec in ("inception", "torchscript", "dinov2:", "torchscrip:x.pt", "host:", "net.pt", "builtin:x"):
        assert f"--backbone is '{spec}'" in message(spec)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no network")
    missing = tmp_path / "missing.pt"
    assert f"cannot read --backbone {missing}: No such file" in message(f"torchscript:{missing}")
    assert f"--backbone {broken} is not a TorchScript module" in message(f"torchscript:{broken}")
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pt")
    assert "weights.pt is not a TorchScript module" in message(f"torchscript:{tmp_path / 'weights.pt'}")
    pytest.importorskip("timm")
    assert f"cannot read the weights {missing}" in message(f"dinov2:{missing}")
    assert f"cannot read the weights {broken}" in message(f"dinov2:{broken}")
    (tmp_path / "broken.safetensors").write_bytes(b"no network")
    assert "cannot read the weights" in message(f"dinov2:{tmp_path / 'broken.safetensors'}")
    assert "weights.pt holds no DINOv2 ViT" in message(f"dinov2:{tmp_path / 'weights.pt'}")
    torch.save(Pair(), tmp_path / "code.pth")  # a pickled object, which reading would run
    assert "cannot read the weights" in message(f"dinov2:{tmp_path / 'code.pth'}")
    torch.save({"epoch": 3}, tmp_path / "more.pth")
    assert "more.pth holds more than a dictionary of tensors" in message(f"dinov2:{tmp_path / 'more.pth'}")


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """timm's small DINOv2 with random weights and the positions of images of 518x518."""
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0).eval()
        for value in made.parameters():
            value.data.add_(torch.randn_like(value) * 0.02)
    return made  # type: ignore[no-any-return]


def resized(x: Tensor) -> Tensor:
    """Pillow's bicubic filter on float channels, then ImageNet's mean and standard deviation."""
    channels = to_uint8(x).float().flatten(0, 1).numpy()
    pixels = np.stack([np.asarray(Image.fromarray(c).resize((224, 224), Image.Resampling.BICUBIC)) for c in channels])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (torch.from_numpy(pixels).view(len(x), 3, 224, 224) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def at_224(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Positions of 37x37 patches for 16x16, as in facebook's interpolate_pos_encoding (an offset of 0.1)."""
    first, grid = state["pos_embed"].split([1, 37 * 37], 1)
    grid = grid.view(1, 37, 37, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic", antialias=False)
    return {**state, "pos_embed": torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)}


def test_dinov2_is_timms_network_on_facebooks_positions(vit: nn.Module, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    state = vit.state_dict()
    own = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=224).eval()
    own.load_state_dict(at_224(state))
    x = images(48, 2)
    with torch.no_grad():
        expected = own.forward_features(resized(x))[:, 0]
    assert expected.std() > 0.5
    facebooks, timms = tmp_path / "dinov2_vits14_pretrain.pth", tmp_path / "timm.safetensors"
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, facebooks)
    save_file({key: value.contiguous() for key, value in at_224(state).items()}, timms)  # nothing to interpolate
    for path in (facebooks, timms):
        backbone = opened(f"dinov2:{path}", resizer="legacy")
        features, logits = backbone(backbone.prepare(x))
        assert logits is None
        assert torch.equal(features, expected)
        assert backbone.protocol == {
            "backbone": "dinov2:vit_small_patch14_dinov2",
            "backbone_sha256": digest(path),
            "resizer": "clean",
        }
    other = opened(f"dinov2:{timms}", resize_on="device", channels_last=True)
    assert other.protocol == {**backbone.protocol, "resize_on": "device"}
    torch.testing.assert_close(other(other.prepare(x))[0], expected, rtol=1e-4, atol=1e-4)


def test_dinov2_with_registers_in_facebooks_format(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        own = timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=False, num_classes=0, img_size=224).eval()
        for value in own.parameters():
            value.data.add_(torch.randn_like(value) * 0.02)
    state = own.state_dict()  # timm keeps the class token and its position as one
    theirs = {key: value for key, value in state.items() if key not in ("reg_token", "pos_embed", "cls_token")}
    theirs |= {
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - 0.5,
        "pos_embed": torch.cat([torch.full((1, 1, 384), 0.5), state["pos_embed"]], 1),
    }
    torch.save(theirs, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    name, net = dinov2(tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    assert name == "vit_small_patch14_reg4_dinov2"
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net(x), own(x), rtol=1e-5, atol=1e-5)
    torch.save({key: value for key, value in theirs.items() if "blocks.3" not in key}, tmp_path / "cut.pth")
    with pytest.raises(UserError, match="cut.pth does not fit vit_small_patch14_reg4_dinov2"):
        dinov2(tmp_path / "cut.pth")


@pytest.mark.gpu
def test_on_a_gpu_features_are_those_of_the_cpu() -> None:
    device = torch.device("cuda", 0)
    for resize_on in ("cpu", "device"):
        cfg = dataclasses.replace(RunConfig(), resize_on=resize_on)
        stats = [
            accumulate(BuiltinImages("valid").batches(50), open_backbone(cfg, open_source(cfg), place)).features
            for place in (CPU, device)
        ]
        np.testing.assert_allclose(stats[0], stats[1], rtol=1e-2, atol=1e-2)


def test_soft_features_of_the_built_in_are_its_features_with_gradients() -> None:
    backbone, images = BuiltinBackbone("cpu"), next(iter(BuiltinImages("test").batches(4)))[0].requires_grad_()
    found = backbone.soft(images)
    torch.testing.assert_close(found, backbone(backbone.prepare(images))[0], atol=1e-4, rtol=1e-4)
    (slope,) = torch.autograd.grad(found.sum(), images)
    assert slope.abs().sum(dim=(1, 2, 3)).min() > 0
