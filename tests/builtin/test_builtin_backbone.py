"""The built-in's feature network."""

from __future__ import annotations

import pytest
import torch
from conftest import backbone_of, random_images

from studiogan_guidance.builtin.backbone import BuiltinBackbone
from studiogan_guidance.builtin.images import BuiltinImages
from studiogan_guidance.errors import UserError
from studiogan_guidance.features.stats import accumulate


def test_the_builtin_is_the_default_and_knows_digits() -> None:
    backbone = backbone_of(None)
    assert isinstance(backbone, BuiltinBackbone)
    assert backbone.classifies
    assert backbone.protocol["backbone"] == "builtin"
    assert backbone.protocol == backbone_of("builtin").protocol
    stats = accumulate(BuiltinImages("test").batches(100), backbone, ahead=2)
    assert stats.probabilities is not None
    assert (stats.probabilities.argmax(1) == stats.labels).mean() > 0.97
    with pytest.raises(UserError, match="takes images of 32x32, found 64x64: choose another"):
        backbone.prepare(random_images(64))
    other = backbone_of("builtin", host={"DATA": {}})
    assert not other.classifies  # its classes are not those of a host's generator


def test_soft_features_of_the_built_in_are_its_features_with_gradients() -> None:
    backbone = BuiltinBackbone("cpu")
    images = next(iter(BuiltinImages("test").batches(4)))[0].requires_grad_()
    features = backbone.soft(images)
    torch.testing.assert_close(features, backbone(backbone.prepare(images))[0], atol=1e-4, rtol=1e-4)
    (slope,) = torch.autograd.grad(features.sum(), images)
    assert slope.abs().sum(dim=(1, 2, 3)).min() > 0
