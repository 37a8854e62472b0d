"""LPIPS against its formula, the distance of pixels in closed form, and the choice between them."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance import errors
from studiogan_guidance.errors import UserError
from studiogan_guidance.training.perceptual import ALEXNET, Distance, distance

lpips = pytest.importorskip("lpips")
CPU = torch.device("cpu")
MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
CONVOLUTIONS = (0, 3, 6, 8, 10)  # numbers of AlexNet's convolutions in torchvision


@pytest.fixture(scope="module")
def alexnet() -> nn.Module:
    """AlexNet of torchvision with random weights."""
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.alexnet().eval()


@pytest.fixture(scope="module")
def file(alexnet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights, as torchvision's own file has them."""
    path = tmp_path_factory.mktemp("alexnet") / ALEXNET
    torch.save(alexnet.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def perceptual(file: Path) -> Distance:
    return distance("lpips", str(file), CPU)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch, on a machine without a network."""
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # a port that nothing answers at
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    errors.notice_once.cache_clear()
    return tmp_path / "checkpoints" / ALEXNET


def pair(side: int = 40, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(side)
    images, targets = spread * torch.randn(2, 2, 3, side, side, generator=generator)
    return images, targets


def formula(alexnet: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """LPIPS of each image, as the paper and its authors' file of linear weights have it, pixel by pixel."""
    linear = torch.load(
        Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth", map_location="cpu", weights_only=True
    )
    layers = list(alexnet.features)[:12]  # without the pooling after the last ReLU

    def outputs(x: Tensor) -> list[Tensor]:
        x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
        kept = []
        for number, layer in enumerate(layers):
            x = layer(x.clone())
            if number - 1 in CONVOLUTIONS:  # the ReLU after it
                kept.append(x.clone())
        return kept

    total = torch.zeros(len(images))
    for number, (a, b) in enumerate(zip(outputs(images), outputs(targets), strict=True)):
        weights = linear[f"lin{number}.model.1.weight"].flatten()
        height, width = a.shape[2:]
        for row in range(height):
            for column in range(width):
                left, right = a[:, :, row, column], b[:, :, row, column]
                left = left / (left.norm(dim=1, keepdim=True) + 1e-10)
                right = right / (right.norm(dim=1, keepdim=True) + 1e-10)
                total += (weights * (left - right) ** 2).sum(1) / (height * width)
    return total


@torch.no_grad()
def test_lpips_is_the_formula_and_the_library_with_random_weights(perceptual: Distance, alexnet: nn.Module) -> None:
    images, targets = pair(spread=3.0)  # far outside of [-1, 1], and not clamped
    value = perceptual(images, targets)
    assert value.shape == ()
    torch.testing.assert_close(value, formula(alexnet, images, targets).mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(value, perceptual._net(images, targets).mean(), rtol=1e-5, atol=0)
    assert abs(value - perceptual(images.clamp(-1, 1), targets.clamp(-1, 1))) > 0.01 * value
    assert perceptual(images, images) == 0


def test_gradients_reach_images_alone_and_training_mode_changes_nothing(perceptual: Distance) -> None:
    images, targets = (images.requires_grad_() for images in pair())
    value = perceptual.train()(images, targets)
    value.backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert targets.grad is None
    assert not any(parameter.requires_grad for parameter in perceptual.parameters())
    assert perceptual(images, targets) == value  # no dropout


def test_gradient_is_finite_where_a_layer_is_dead(alexnet: nn.Module, tmp_path: Path) -> None:
    state = dict(alexnet.state_dict())
    state["features.10.bias"] = torch.full_like(state["features.10.bias"], -100.0)
    torch.save({key: value for key, value in state.items() if key.startswith("features.")}, tmp_path / "dead.pth")
    perceptual = distance("lpips", str(tmp_path / "dead.pth"), CPU)
    images, targets = pair()
    (gradient,) = torch.autograd.grad(perceptual(images.requires_grad_(), targets), images)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_autocast_and_half_precision_change_nothing_but_the_input(perceptual: Distance) -> None:
    images, targets = pair()
    value = perceptual(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert perceptual(images, targets) == value
    half = perceptual(images.half(), targets.half())
    assert half.dtype == torch.float32
    assert half == perceptual(images.half().float(), targets.half().float())


def test_the_smallest_side_and_what_is_smaller_is_enlarged(perceptual: Distance) -> None:
    images, targets = pair(31)
    torch.testing.assert_close(perceptual(images, targets), perceptual._net(images, targets).mean(), rtol=1e-5, atol=0)
    with pytest.raises(RuntimeError, match="too small"):
        perceptual._net(*pair(30))

    images, targets = pair(8)
    large = [F.interpolate(small, (31, 31), mode="bilinear") for small in (images, targets)]
    assert perceptual(images, targets) == perceptual(*large) > 0


def test_random_numbers_are_left_as_they_are_and_nothing_warns(file: Path) -> None:
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distance("lpips", str(file), CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_pixels_in_closed_form() -> None:
    pixels = distance("pixels", "", CPU)
    assert (pixels.name, len(list(pixels.parameters()))) == ("pixels", 0)
    targets = pair(8)[0]
    torch.testing.assert_close(pixels(targets - 5, targets), torch.tensor(5.0))  # a constant, not clamped

    # Each image by itself, whatever its error is.
    offsets = torch.tensor([3.0, -1.0]).view(2, 1, 1, 1)
    images = (targets + offsets).requires_grad_()
    value = pixels(images, targets.requires_grad_())
    torch.testing.assert_close(value, torch.tensor(2.0))
    (gradient,) = torch.autograd.grad(value, images)
    torch.testing.assert_close(gradient, offsets.sign().expand_as(images) / images.numel())

    # One pixel, and none.
    spot = torch.zeros(3, 8, 8)
    spot[0, 0, 0] = 5
    torch.testing.assert_close(pixels(targets + spot, targets), torch.tensor(5 / math.sqrt(spot.numel())))
    (gradient,) = torch.autograd.grad(pixels(targets, targets), targets)
    assert not gradient.any()


def test_auto_takes_lpips_only_where_its_weights_are(
    cache: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert distance("auto", "", CPU).name == "pixels"
    (line,) = capsys.readouterr().err.splitlines()  # said once
    assert "differ from published" in line
    assert str(cache) in line
    assert "https://download.pytorch.org/models/" in line

    cache.parent.mkdir()
    cache.symlink_to(file)
    for chosen in (distance("auto", "", CPU), distance("lpips", "", CPU)):
        assert (chosen.name, chosen.weights) == ("lpips", (10.0, 3.0))
    assert capsys.readouterr().err == ""


def test_auto_without_the_library_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path, cache: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert distance("auto", "", CPU).name == "pixels"
    assert "pip install lpips" in capsys.readouterr().err
    with pytest.raises(UserError, match="pip install lpips"):
        distance("auto", str(file), CPU)  # a file was given, so it is meant


def test_lpips_by_name_without_a_network_says_which_file_to_put_where(cache: Path) -> None:
    with pytest.raises(UserError) as raised:
        distance("lpips", "", CPU)
    text = str(raised.value)
    assert "\n" not in text
    assert str(cache) in text
    assert "https://download.pytorch.org/models/" + ALEXNET in text
    assert not list(cache.parent.iterdir())


def test_what_is_refused(tmp_path: Path, alexnet: nn.Module) -> None:
    def refused(name: str, path: Path | str, match: str) -> None:
        with pytest.raises(UserError, match=match) as raised:
            distance(name, str(path), CPU)
        assert "\n" not in str(raised.value)

    refused("l2", "", "auto, lpips, pixels")
    refused("pixels", "a.pth", "leave one out")
    refused("auto", tmp_path / "none.pth", "No such file")

    # Files of something else.
    path = tmp_path / "other.pth"
    features = {key: value for key, value in alexnet.state_dict().items() if key.startswith("features.")}
    for content, match in (
        (features["features.0.weight"], "no dictionary"),
        ({}, "features.0.weight"),
        (features | {"features.8.weight": torch.zeros(2)}, r"features.8.weight of shape \[256, 384, 3, 3\]"),
        (features | {"features.8.bias": torch.full((256,), math.nan)}, "no finite features.8.bias"),
        (alexnet.features, "a whole module"),
    ):
        torch.save(content, path)
        refused("lpips", path, match)
    path.write_bytes(b"no weights")
    refused("lpips", path, "cannot read AlexNet's weights")


@pytest.mark.gpu
def test_on_a_gpu_it_is_that_of_the_cpu(perceptual: Distance, file: Path) -> None:
    images, targets = pair()
    device = torch.device("cuda")
    with torch.autocast("cuda"):
        value = distance("lpips", str(file), device)(images.to(device), targets.to(device))
    torch.testing.assert_close(value.cpu(), perceptual(images, targets), rtol=5e-3, atol=0)
