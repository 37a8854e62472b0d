"""What a configuration points at, for the built-in GAN; tests/host/test_host_source.py has the host's."""

from __future__ import annotations

import pytest
import torch

from studiogan_guidance import builtin, devices
from studiogan_guidance.builtin.source import BuiltinSource
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.source import current_device, device_of, known_backbones, open_backbone, open_source
from studiogan_guidance.latents.base import weights_digest

CPU = torch.device("cpu")


def test_the_builtin_is_the_source_of_a_configuration_without_a_host() -> None:
    source = open_source(RunConfig())
    assert isinstance(source, BuiltinSource)
    assert (source.checkout, source.protocol, source.model_digest) == (None, {}, "")
    assert (source.default_split, source.validation_split, source.held_out_split) == ("test", "valid", "valid")
    networks = source.networks(CPU)
    assert networks is source.networks(CPU)
    assert networks.digest == weights_digest(networks.generator)
    real = source.real("valid", 32)
    assert (len(real), real.default_count, real.cache_key["reference"]) == (1000, 1000, "valid")
    images, labels = networks.companions.held_out(5)  # type: ignore[union-attr]
    expected = next(iter(real.batches(5)))
    assert torch.equal(images, expected[0])
    assert torch.equal(labels, expected[1])
    mine, other = source.discriminator(CPU), networks.companions.discriminator()  # type: ignore[union-attr]
    assert isinstance(mine, builtin.network.Discriminator)
    assert weights_digest(mine) == weights_digest(other)


def test_real_images_may_be_those_of_some_classes_with_their_labels() -> None:
    source = open_source(RunConfig())
    real = source.real("valid", 32, (7, 3, 7))
    whole = source.real("valid", 32)
    kept = [i for i, label in enumerate(whole.labels()) if label in (3, 7)]
    assert (len(real), real.default_count, set(real.labels())) == (200, 200, {3, 7})
    images, labels = next(iter(real.batches(300)))
    expected, expected_labels = next(iter(whole.batches(300, only=kept)))
    assert torch.equal(images, expected)
    assert torch.equal(labels, expected_labels)
    assert real.labels() == labels.tolist()
    assert torch.equal(next(iter(real.batches(2, only=[5, 9])))[0], images[[5, 9]])  # numbers among those left
    assert real.fingerprint == {**whole.fingerprint, "classes": [3, 7]} == real.cache_key
    assert real.class_names == whole.class_names == tuple("0123456789")


@pytest.mark.parametrize("label", [10, -1])
def test_a_class_without_images_is_refused(label: int) -> None:
    with pytest.raises(UserError, match=rf"class {label} \(of 10, counted from 0\) has no real images"):
        open_source(RunConfig()).real("valid", 32, (3, label))


@pytest.mark.parametrize(
    "spec",
    ["builtn", "builtin:x", "host:Inception", "host:", "torchscript:", "torchscript", "torchscrip:x.pt", "dinov2",
     "dinov2:", "ResNet", "inception", "net.pt"],
)  # fmt: skip
def test_unknown_backbones_are_refused_with_the_known_ones(spec: str) -> None:
    cfg = RunConfig(backbone=spec)
    with pytest.raises(UserError, match=f"--backbone is '{spec}'") as error:
        open_backbone(cfg, open_source(cfg), CPU)
    assert all(name in str(error.value) for name in known_backbones())
    assert "\n" not in str(error.value)


def test_an_unknown_network_of_the_host_is_answered_with_the_nearest() -> None:
    cfg = RunConfig(backbone="host:InceptionV3")
    with pytest.raises(UserError, match="'host:InceptionV3': did you mean 'host:InceptionV3_tf'\\? known: builtin, "):
        open_backbone(cfg, open_source(cfg), CPU)


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", "cuda:99"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--device is '{name}'"):
        device_of(name)
    assert device_of("cpu") == CPU


@pytest.mark.parametrize(
    ("default", "local", "visible", "expected"),
    [
        (None, None, 0, "cpu"),
        (None, None, 1, "cuda:0"),
        (None, "1", 2, "cuda:1"),
        (None, "1", 0, "cpu"),
        ("auto", None, 1, "cuda:0"),
        ("cpu", "1", 2, "cpu"),
        ("cuda", "1", 2, "cuda:1"),
        ("cuda:1", None, 2, "cuda:1"),
    ],
)
def test_auto_is_what_the_environment_says_and_else_a_gpu(
    monkeypatch: pytest.MonkeyPatch, default: str | None, local: str | None, visible: int, expected: str
) -> None:
    visible_gpus(monkeypatch, visible)
    with devices.environment({devices.DEVICE: default, "LOCAL_RANK": local}):
        assert device_of("auto") == torch.device(expected)
        assert device_of("cpu") == CPU
        assert devices.cpu_only() == (expected == "cpu")
    if visible:
        with devices.environment({devices.DEVICE: "cpu"}):
            assert device_of("cuda:0") == torch.device("cuda:0")  # who asks for a GPU gets it


def visible_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize("word", ["auto", "cuda"])
def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    visible_gpus(monkeypatch, 2)
    monkeypatch.delenv(devices.DEVICE, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    message = "torchrun started 4 processes on this node, which has 2 GPUs: give --nproc-per-node 2, or --device cpu"
    with pytest.raises(UserError, match=message):
        device_of(word)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of(word) == torch.device("cuda:1")


def test_memory_is_pinned_by_the_gpu_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    visible_gpus(monkeypatch, 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert current_device("cpu") == CPU
    assert current_device("cuda:1") == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]


def test_a_default_that_is_not_here_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    visible_gpus(monkeypatch, 1)
    monkeypatch.setenv(devices.DEVICE, "cuda:7")
    with pytest.raises(UserError, match="STUDIOGAN_GUIDANCE_DEVICE is 'cuda:7', but 1 CUDA devices are visible"):
        device_of("auto")
    monkeypatch.setenv(devices.DEVICE, "tpu")
    with pytest.raises(UserError, match="STUDIOGAN_GUIDANCE_DEVICE is 'tpu': give auto, cpu, cuda or cuda:N"):
        device_of("auto")
    monkeypatch.setenv(devices.PROCESSES, "two")
    with pytest.raises(UserError, match="STUDIOGAN_GUIDANCE_PROCESSES is 'two': give a number"):
        devices.processes()
