from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from studiogan_guidance import builtin, config, samplers
from studiogan_guidance.builtin import data, network
from studiogan_guidance.evaluation import evaluation
from studiogan_guidance.latents import LabelPlan, view_for


def test_splits_are_disjoint_balanced_and_scaled() -> None:
    seen: set[bytes] = set()
    for split, size in (("train", 3000), ("valid", 1000), ("test", 1000)):
        images, labels = data.digits(split)
        assert images.shape == (size, 3, 32, 32)
        assert (images.min(), images.max()) == (-1, 1)
        assert np.bincount(labels).tolist() == [size // 10] * 10
        keys = {image.numpy().tobytes() for image in images}
        assert not keys & seen
        seen |= keys


def test_weights_are_small_and_the_discriminator_prefers_real_images() -> None:
    shipped = [file for file in files(builtin).iterdir() if file.name.endswith(".safetensors")]
    assert len(shipped) == 3
    assert sum(len(file.read_bytes()) for file in shipped) < 4e6
    dis, _ = builtin.load(network.Discriminator, "discriminator")
    images, labels = data.digits("valid")
    noise = torch.rand(100, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        real, wrong = dis(images[:100], labels[:100]).mean(), dis(images[:100], (labels[:100] + 1) % 10).mean()
        assert real > wrong  # it looks at the label
        assert real > dis(noise, labels[:100]).mean()


def test_the_feature_net_reads_digits_that_it_never_saw() -> None:
    net, _ = builtin.load(network.FeatureNet, "features")
    images, labels = data.digits("valid")
    with torch.no_grad():
        assert (net(images)[1].argmax(1) == labels).float().mean() > 0.95


def test_the_generator_is_healthy(tmp_path: Path) -> None:
    """Every class is made and nearly always right; neither precision nor diversity has collapsed (validation split)."""
    rows = evaluation.evaluate(
        config.load(None, {"sampler": "plain", "reference": "valid", "num": 1000, "out": str(tmp_path)})
    )
    metrics = rows[0]["metrics"]
    assert metrics["accuracy"] > 0.9
    assert metrics["is"] > 8
    assert metrics["precision"] > 0.5
    assert metrics["recall"] > 0.1
    assert metrics["coverage"] > 0.3

    # Images of each class are read as that class, and differ.
    net, _ = builtin.load(network.FeatureNet, "features")
    gen, _ = builtin.load(network.Generator, "generator")
    labels = torch.arange(10).repeat_interleave(20)
    z = torch.randn(200, network.Z_DIM, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        images = gen(z, torch.nn.functional.one_hot(labels, 10).float())
        right = (net(images)[1].argmax(1) == labels).view(10, 20).float().mean(1)
    assert right.min() > 0.6
    spread = images.reshape(10, 20, -1).std(1).mean(1)  # over each class's samples
    assert spread.min() > 0.05


@pytest.mark.gpu
def test_a_gpu_makes_the_same_images() -> None:
    images = []
    for device in ("cpu", "cuda"):
        view = view_for(builtin.networks(device))
        images.append(next(samplers.create("gandance").stream(view, range(8), 8, LabelPlan())).images.cpu())
    torch.testing.assert_close(images[0], images[1], atol=1e-2, rtol=0)
