"""DINOv2 from files of weights, with timm's networks for twins."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import backbone_of, random_images
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.errors import UserError
from studiogan_guidance.features.dinov2 import dinov2
from studiogan_guidance.features.stats import to_uint8
from studiogan_guidance.files import file_digest


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
    network = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=224).eval()
    network.load_state_dict(at_224(state))
    x = random_images(48, 2)
    with torch.no_grad():
        expected = network.forward_features(resized(x))[:, 0]
    assert expected.std() > 0.5
    facebooks, timms = tmp_path / "dinov2_vits14_pretrain.pth", tmp_path / "timm.safetensors"
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, facebooks)
    save_file({key: value.contiguous() for key, value in at_224(state).items()}, timms)  # nothing to interpolate
    for path in (facebooks, timms):
        backbone = backbone_of(f"dinov2:{path}", resizer="legacy")
        features, logits = backbone(backbone.prepare(x))
        assert logits is None
        assert torch.equal(features, expected)
        assert backbone.protocol == {
            "backbone": "dinov2:vit_small_patch14_dinov2",
            "backbone_sha256": file_digest(path)[:16],
            "resizer": "clean",
        }
    other = backbone_of(f"dinov2:{timms}", resize_on="device", channels_last=True)
    assert other.protocol == backbone.protocol
    torch.testing.assert_close(other(other.prepare(x))[0], expected, rtol=1e-4, atol=1e-4)


def test_dinov2_with_registers_in_facebooks_format(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(
            "vit_small_patch14_reg4_dinov2", pretrained=False, num_classes=0, img_size=224
        ).eval()
        for value in network.parameters():
            value.data.add_(torch.randn_like(value) * 0.02)
    state = network.state_dict()  # timm keeps the class token and its position as one
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
        torch.testing.assert_close(net(x), network(x), rtol=1e-5, atol=1e-5)
    torch.save({key: value for key, value in theirs.items() if "blocks.3" not in key}, tmp_path / "cut.pth")
    with pytest.raises(UserError, match="cut.pth does not fit vit_small_patch14_reg4_dinov2"):
        dinov2(tmp_path / "cut.pth")


def test_files_that_hold_no_dinov2_are_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("timm")

    def message(name: str) -> str:
        with pytest.raises(UserError) as caught:
            backbone_of(f"dinov2:{tmp_path / name}")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert f"cannot read the weights {tmp_path / 'missing.pt'}" in message("missing.pt")
    for name in ("broken.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"no network")
        assert f"cannot read the weights {tmp_path / name}" in message(name)
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pt")
    assert "weights.pt holds no DINOv2 ViT" in message("weights.pt")
    torch.save(nn.Linear(1, 1), tmp_path / "code.pth")  # a pickled object, which reading would run
    assert "it holds a whole module (torch.nn.modules.linear.Linear)" in message("code.pth")
    torch.save({"epoch": 3}, tmp_path / "more.pth")
    assert "more.pth holds more than a dictionary of tensors" in message("more.pth")
    torch.save({"a": torch.tensor([math.nan])}, tmp_path / "nan.pth")
    assert "have numbers in a that are not finite" in message("nan.pth")
    (tmp_path / "lfs.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in message("lfs.pth")
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "it is a pipe or a device" in message("pipe.safetensors")
