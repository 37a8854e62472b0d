"""Loading host checkpoints: which file, which weights, and everything that must be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from host_models import save

from studiogan_guidance import config
from studiogan_guidance.errors import UserError
from studiogan_guidance.host import networks
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.source import HostSource

CPU = torch.device("cpu")


def load(yaml: Path, ckpt: Path, checkout: Checkout, *which: str) -> Any:
    return HostSource(config.load(str(yaml), {"ckpt": str(ckpt), "which": which})).networks(CPU)


@pytest.mark.studiogan
def test_the_moving_average_is_preferred_and_raw_can_be_asked_for(tmp_path: Path, checkout: Checkout) -> None:
    yaml, folder = save("big_resnet", checkout, tmp_path)
    ema, raw = load(yaml, folder, checkout), load(yaml, folder, checkout, "raw")
    assert Path(ema.source).name == "model=G_ema-current-weights-step=7.pth"
    assert Path(raw.source).name == "model=G-current-weights-step=7.pth"
    assert ema.digest != raw.digest
    torch.testing.assert_close(ema.generator.shared.weight * 0.9, raw.generator.shared.weight)
    with pytest.raises(UserError, match=r"no checkpoint model=G_ema-best-weights-step\*.pth or"):
        load(yaml, folder, checkout, "best")


@pytest.mark.studiogan
def test_one_file_and_names_of_wrappers_give_the_same_generator(tmp_path: Path, checkout: Checkout) -> None:
    yaml, folder = save("big_resnet", checkout, tmp_path)
    expected = load(yaml, folder, checkout)
    file = folder / "model=G_ema-current-weights-step=7.pth"
    state = torch.load(file)["state_dict"]
    other = tmp_path / "biggan.pth"
    torch.save({f"module.{key}": value for key, value in state.items()}, other, pickle_protocol=5)
    for path in (file, other):
        found = load(yaml, path, checkout)
        assert found.digest == expected.digest  # that of rows of eval and run
        assert found.source == str(path)
    source = HostSource(config.load(str(yaml), {"ckpt": str(file)}))
    assert source.discriminator(CPU).linear1.bias.shape == (1,)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="give the files these names"):
        HostSource(config.load(str(yaml), {"ckpt": str(other)})).discriminator(CPU)


@pytest.mark.studiogan
def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path, checkout: Checkout) -> None:
    yaml, _ = save("resnet", checkout, tmp_path / "a")
    _, other = save("big_resnet", checkout, tmp_path / "b")
    with pytest.raises(UserError, match="does not fit"):
        load(yaml, other, checkout)


@pytest.mark.studiogan
def test_configurations_that_the_host_rejects_are_one_line(tmp_path: Path, checkout: Checkout) -> None:
    yaml, folder = save("resnet", checkout, tmp_path)
    for text, message in (
        ("MODEL: {backbon: resnet}", r"no key MODEL.backbon: did you mean 'backbone'"),
        ("DATA: {img_size: 32}\nMODEL: {backbone: resnet, g_init: 3}", "MODEL.g_init must be a word, found 3"),
        ("MODEL: {backbone: big_resnet, z_dim: 80, g_shared_dim: 8, aux_cls_type: TAC}", "the host cannot build"),
    ):
        yaml.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            load(yaml, folder, checkout)
        assert "\n" not in str(error.value)


@pytest.mark.studiogan
def test_host_config_is_found_in_the_checkout(checkout: Checkout) -> None:
    for name in config.packaged():
        cfg = config.load(name, {})
        if cfg.uses_host:
            assert networks.host_yaml(cfg, checkout)["MODEL"]["g_cond_mtd"] in ("cBN", "cAdaIN")
    with pytest.raises(UserError, match=r"did you mean 'CIFAR10/BigGAN.yaml'"):
        networks.host_yaml(config.RunConfig(host_config="CIFAR10/BigGANN.yaml"), checkout)


@pytest.mark.studiogan
def test_host_config_is_looked_for_beside_the_file_then_in_the_host_and_never_in_the_current_folder(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backbone(file: Path) -> str:
        sections = networks.host_yaml(config.load(str(file), {}), checkout)
        return str(sections["MODEL"]["backbone"])

    for folder, name in (("here", "resnet"), ("there", "deep_conv")):
        decoy = tmp_path / folder / "CIFAR10" / "BigGAN.yaml"
        decoy.parent.mkdir(parents=True)
        decoy.write_text(f"MODEL: {{backbone: {name}}}")
    (tmp_path / "a.yaml").write_text("host_config: CIFAR10/BigGAN.yaml")
    (tmp_path / "there" / "b.yaml").write_text("host_config: CIFAR10/BigGAN.yaml")
    (tmp_path / "c.yaml").write_text("host_config: ./there/CIFAR10/BigGAN.yaml")

    monkeypatch.chdir(tmp_path / "here")
    assert backbone(tmp_path / "a.yaml") == "big_resnet"
    assert backbone(Path("..") / "there" / "b.yaml") == "deep_conv"
    assert backbone(Path("..") / "c.yaml") == "deep_conv"
    with pytest.raises(UserError, match="no host_config CIFAR10/other.yaml beside the file that names it or in"):
        networks.host_yaml(config.RunConfig(host_config="CIFAR10/other.yaml"), checkout)
