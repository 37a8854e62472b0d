"""What a configuration of the host points at: found once, opened when it is asked for."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from host_models import save

from studiogan_guidance import config
from studiogan_guidance.builtin.images import BuiltinImages
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.source import open_source
from studiogan_guidance.features.images import split_digest
from studiogan_guidance.host import networks, source
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.source import HostSource, companions

pytestmark = pytest.mark.studiogan
CPU = torch.device("cpu")


@pytest.fixture
def opened(tmp_path: Path, data: Path, checkout: Checkout) -> HostSource:
    yaml, folder = save("resnet", checkout, tmp_path)
    opened = open_source(config.load(str(yaml), {"ckpt": str(folder), "data": str(data)}))
    assert isinstance(opened, HostSource)
    return opened


def test_checkout_yaml_and_networks_are_opened_once(
    opened: HostSource, checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any) -> Any:
            calls.append(name)
            return function(*args)

        return call

    monkeypatch.setattr(source, "locate", counted("locate", source.locate))
    for name in ("host_yaml", "load", "load_discriminator"):
        monkeypatch.setattr(networks, name, counted(name, getattr(networks, name)))
    assert calls == []
    assert opened.networks(CPU) is opened.networks(CPU)
    assert opened.protocol == {"host_commit": checkout.commit}
    assert (opened.default_split, opened.validation_split, opened.held_out_split) == ("train", "valid", "valid")
    assert len(opened.model_digest) == 16
    built = opened.networks(CPU).companions
    assert built is not None
    real = opened.real("valid", 32)
    assert built.held_out_name() == split_digest(real)
    images, labels = built.held_out(4)
    assert (images.shape, labels.tolist()) == ((4, 3, 32, 32), [0, 1, 2, 3])
    assert not built.discriminator().training
    assert calls == ["locate", "host_yaml", "load", "load_discriminator"]


@pytest.mark.parametrize(("name", "expected"), [("CIFAR10", ("train", "test")), ("Baby_ImageNet", ("valid", "valid"))])
def test_splits_are_those_of_the_data(name: str, expected: tuple[str, str]) -> None:
    opened = HostSource(RunConfig(host={"DATA": {"name": name}}))
    assert (opened.validation_split, opened.held_out_split) == expected
    unnamed = HostSource(RunConfig(host={"MODEL": {}}))
    assert unnamed.data_name == "CIFAR10"  # the host's default


def test_a_model_is_what_its_sections_say() -> None:
    sections = {"DATA": {"name": "CIFAR10"}, "MODEL": {"backbone": "resnet"}, "RUN": {"a": 1}}
    digest = HostSource(RunConfig(host=sections)).model_digest
    assert digest == HostSource(RunConfig(host={**sections, "RUN": {"a": 2}})).model_digest
    assert digest != HostSource(RunConfig(host={**sections, "MODEL": {"backbone": "big_resnet"}})).model_digest


def test_held_out_images_have_a_folder_of_their_own(opened: HostSource, data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / "other"))
    (other / "valid" / "3" / "0.png").unlink()
    cfg = RunConfig(**{**vars(opened.cfg), "held_out": str(other)})
    built = HostSource(cfg).networks(CPU).companions
    assert built is not None
    assert len(built.held_out(100)[1]) == 11
    nowhere = HostSource(RunConfig(**{**vars(opened.cfg), "data": None})).networks(CPU).companions
    assert nowhere is not None
    with pytest.raises(UserError, match="add --held-out DIR"):
        nowhere.held_out_name()


def test_real_images_may_be_those_of_some_classes_with_their_labels(opened: HostSource) -> None:
    real, whole = opened.real("train", 32, (2, 1)), opened.real("train", 32)
    assert (len(real), real.default_count, real.labels()) == (8, 8, [1] * 4 + [2] * 4)
    images, labels = (torch.cat(parts) for parts in zip(*real.batches(3)))
    everything, _ = next(iter(whole.batches(16)))
    assert torch.equal(images, everything[4:12])
    assert labels.tolist() == real.labels()
    assert torch.equal(next(iter(real.batches(8, only=[0, 5])))[0], images[[0, 5]])
    assert real.fingerprint == {**whole.fingerprint, "classes": [1, 2]}
    assert real.cache_key == {**whole.cache_key, "classes": [1, 2]}
    assert real.class_names == whole.class_names == ("0", "1", "2", "3")
    with pytest.raises(UserError, match=r"class 4 \(of 4, counted from 0\) has no real images"):
        opened.real("train", 32, (4,))


def test_the_files_of_a_split_are_listed_once(opened: HostSource, data: Path, tmp_path: Path) -> None:
    copied = HostSource(dataclasses.replace(opened.cfg, data=str(shutil.copytree(data, tmp_path / "copy"))))
    whole = copied.real("train", 32)
    shutil.rmtree(tmp_path / "copy")
    assert copied.real("train", 32, (2,)).labels() == [2] * 4
    assert len(whole) == len(copied.real("train", 32)) == 16
    with pytest.raises(UserError, match="copy is not a folder"):
        copied.real("valid", 32)


def test_held_out_images_are_opened_when_they_are_first_asked_for() -> None:
    opened: list[str] = []

    def held_out() -> BuiltinImages:
        opened.append("valid")
        return BuiltinImages("valid")

    built = companions(torch.nn.Identity, held_out, lambda path: torch.nn.Identity())
    built.discriminator()
    assert opened == []
    assert built.held_out_name().startswith("valid split ")
    assert built.held_out(10)[1].tolist() == BuiltinImages("valid").labels()[::100]  # spread over the split
    assert opened == ["valid"]
