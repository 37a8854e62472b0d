"""The host's feature networks behind our own resizing, against the host's get_outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.source import HOST_NETWORKS, open_backbone, open_source
from studiogan_guidance.features.preparation import Preparation
from studiogan_guidance.features.resize import filter_of, resize
from studiogan_guidance.files import file_digest
from studiogan_guidance.host import inception
from studiogan_guidance.host.backbone import HostBackbone
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.latents.base import weights_digest

pytestmark = pytest.mark.studiogan
CPU = torch.device("cpu")
IMAGENET = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def opened(cfg: RunConfig) -> Any:
    return open_backbone(cfg, open_source(cfg), CPU)


def images(size: int, count: int = 3) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(size)) * 2.2 - 1.1


@pytest.mark.parametrize("mode", ["legacy", "clean", "friendly"])
@pytest.mark.parametrize(("network", "side"), [("InceptionV3_tf", 299), ("InceptionV3_torch", 299),
                                               ("ResNet50_torch", 224), ("Swin-T_torch", 224)])  # fmt: skip
def test_resizing_and_normalising_are_the_hosts_bit_for_bit(
    mode: str, network: str, side: int, checkout: Checkout
) -> None:
    from torchvision.transforms import ToTensor

    mean, std = IMAGENET
    prepare = Preparation(side, filter_of(mode, network), mean, std, CPU)
    on_device = Preparation(side, filter_of(mode, network), mean, std, CPU, resize_on="device")
    for size in (32, 64, 200, 512):
        x = images(size, 2)
        with inside(checkout):
            ops = module("utils.ops")
            resizer = module("utils.resize").build_resizer(mode, network, side)
            pixels = ops.quantize_images(x)
            hosts = ops.resize_images(pixels, resizer, ToTensor(), *(v.view(1, 3, 1, 1) for v in IMAGENET), CPU)
            raw = torch.stack([ToTensor()(resizer(image)) for image in pixels.transpose((0, 2, 3, 1))])
        assert torch.equal(resize(torch.from_numpy(pixels), side, filter_of(mode, network)), raw)
        assert torch.equal(prepare(x), hosts)
        if mode == "legacy":  # torch's own sums depend on the number of its threads
            assert (on_device(x) - hosts).abs().max() * 255 * 0.22 < 1e-4
        else:
            assert torch.equal(on_device(x), hosts)


@pytest.mark.parametrize("mode", ["legacy", "clean"])
def test_inception_is_the_hosts_get_outputs_bit_for_bit(mode: str, hub: None, checkout: Checkout) -> None:
    backbone = opened(RunConfig(resizer=mode, host={"DATA": {}}))  # the default of a host's checkpoint
    with inside(checkout):
        host = module("metrics.preparation").LoadEvalModel("InceptionV3_tf", mode, 1, False, CPU)
        host.eval()
        with torch.no_grad():
            expected = host.get_outputs(images(32), quantize=True)
    with torch.no_grad():
        found = backbone(backbone.prepare(images(32)))
    for ours, hosts in zip(found, expected):
        assert ours.abs().max() > 0
        assert torch.equal(ours, hosts)
    assert backbone.protocol == {
        "backbone": "InceptionV3_tf",
        "backbone_sha256": weights_digest(host.model)[:16],
        "resizer": mode,
    }
    assert backbone.classifies  # a generator of 1000 classes, if they are ImageNet's


def test_inception_is_taken_from_a_file_that_its_hash_names(
    hub: None, checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / inception.FILE
    digest = file_digest(cached)

    def link(name: str) -> Path:
        (tmp_path / name).symlink_to(cached)
        return tmp_path / name

    # Weights of another hash are refused, whatever their name says of the host's.
    for path in (link("inception.pth"), link(inception.FILE)):
        with pytest.raises(UserError, match=f"SHA-256 begins with {digest[:8]}, not with 6726825d: download https"):
            opened(RunConfig(inception=str(path), host={"DATA": {}}))

    # Under their own hash they are taken, and called by it; with the known one they are the host's.
    usual = opened(RunConfig(host={"DATA": {}}))
    mine = link(f"mine-{digest[:8]}.pth")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "empty"))
    found = opened(RunConfig(inception=str(mine), host={"DATA": {}}))
    assert found.protocol == {**usual.protocol, "backbone": f"InceptionV3_tf:{mine.name}"}
    with torch.no_grad():
        prepared = usual.prepare(images(32, 1))
        assert torch.equal(found(prepared)[0], usual(prepared)[0])
    monkeypatch.setattr(inception, "SHA256", digest[:8])
    assert inception.named(mine) == "InceptionV3_tf"


def test_an_inception_of_other_shapes_is_refused(checkout: Checkout, tmp_path: Path) -> None:
    for content, message in (({"fc.weight": torch.zeros(1)}, "does not fit the host's Inception"), ([1], "no weights")):
        torch.save(content, tmp_path / "x.pth")
        path = tmp_path / f"x-{file_digest(tmp_path / 'x.pth')[:8]}.pth"
        (tmp_path / "x.pth").rename(path)
        with pytest.raises(UserError, match=message):
            opened(RunConfig(inception=str(path), host={"DATA": {}}))


def test_options_change_only_rounding(hub: None, checkout: Checkout) -> None:
    plain = HostBackbone("InceptionV3_tf", checkout, CPU, "friendly")
    with torch.no_grad():
        expected = plain(plain.prepare(images(64)))
        for options in {"channels_last": True}, {"resize_on": "device"}:
            other = HostBackbone("InceptionV3_tf", checkout, CPU, "friendly", **options)
            assert other.protocol == plain.protocol
            for a, b in zip(other(other.prepare(images(64))), expected):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * b.abs().max().item())


def test_networks_with_a_hook_are_the_hosts_get_outputs_bit_for_bit(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch.hub repository of our own, where the trained one would be: torchvision's ResNet50 with random weights."""
    repository = tmp_path / "hub" / "pytorch_vision_v0.10.0"
    repository.mkdir(parents=True)
    (repository / "hubconf.py").write_text(
        "import torch, torchvision\n"
        "def resnet50(pretrained):\n"
        "    with torch.random.fork_rng(devices=[]):\n"
        "        torch.manual_seed(0)\n"
        "        return torchvision.models.resnet50()\n"
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    backbone = opened(RunConfig(backbone="ResNet50_torch", resizer="friendly"))  # a bare name
    assert backbone.protocol["backbone"] == "ResNet50_torch"
    with inside(checkout):
        preparation = module("metrics.preparation")
        assert "ResNet50_torch" not in preparation.model_versions  # which our backbone fixes for itself
        monkeypatch.setitem(preparation.model_versions, "ResNet50_torch", "pytorch/vision:v0.10.0")
        host = preparation.LoadEvalModel("ResNet50_torch", "friendly", 1, False, CPU)
        host.eval()
        with torch.no_grad():
            expected = host.get_outputs(images(64), quantize=True)
    with torch.no_grad():
        prepared = backbone.prepare(images(64))
        for _ in range(2):  # nothing is left of the pass before
            features, logits = backbone(prepared)
            assert features.shape == (3, 2048)
            assert torch.equal(features, expected[0])
            assert torch.equal(logits, expected[1])
        backbone._inputs.outputs.append((torch.zeros(1),))  # what a pass that ran out of memory leaves
        assert torch.equal(backbone(prepared)[0], expected[0])


def test_names_are_those_that_the_host_knows(checkout: Checkout) -> None:
    source = (checkout.path / "src" / "config.py").read_text() + (checkout.path / "src" / "main.py").read_text()
    assert all(name in source for name in HOST_NETWORKS)
    with pytest.raises(UserError, match="the host has no backbone 'VGG'"):
        HostBackbone("VGG", checkout, CPU)


@pytest.mark.parametrize("resizer", ["legacy", "clean"])
def test_soft_features_are_those_of_the_metric_with_gradients(resizer: str, hub: None, checkout: Checkout) -> None:
    """On images in 256 steps there is nothing to round, so only gradients are new."""
    backbone = HostBackbone("InceptionV3_tf", checkout, CPU, resizer, "device")
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = (pixels / 127.5 - 1).requires_grad_()
    with torch.no_grad():
        expected = backbone(backbone.prepare(images))[0]
    found = backbone.soft(images)
    torch.testing.assert_close(found, expected, atol=1e-3 * expected.abs().max().item(), rtol=0)
    (slope,) = torch.autograd.grad(found.sum(), images)
    assert slope.abs().sum(dim=(1, 2, 3)).min() > 0
