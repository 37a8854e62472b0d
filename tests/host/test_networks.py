"""Loading host checkpoints: which file, which weights, and everything that must be refused."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
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


def test_best_comes_before_current_and_the_latest_step_wins(tmp_path: Path) -> None:
    for name in ("G-current-weights-step=900", "G_ema-current-weights-step=900", "G-best-weights-step=50"):
        (tmp_path / f"model={name}.pth").touch()
    assert networks.find(tmp_path, "G").name == "model=G-best-weights-step=50.pth"
    (tmp_path / "model=G_ema-best-weights-step=50.pth").touch()
    (tmp_path / "model=G_ema-best-weights-step=100.pth").touch()
    assert networks.find(tmp_path, "G").name == "model=G_ema-best-weights-step=100.pth"
    assert networks.find(tmp_path, "G", ("current",)).name == "model=G_ema-current-weights-step=900.pth"
    assert networks.find(tmp_path, "G", ("current", "raw")).name == "model=G-current-weights-step=900.pth"
    with pytest.raises(UserError, match=r"no checkpoint model=D-best.*it holds model=G"):
        networks.find(tmp_path, "D")


def test_real_host_checkpoints_with_numpy_scalars_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model=D-current-weights-step=1.pth"
    torch.save({"state_dict": {"w": torch.ones(2)}, "best_fid": np.float64(3.5), "run_name": "x"}, path)
    assert networks.read(path)["best_fid"] == 3.5
    torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=False)
    renamed = path.with_name("old.pth")  # numpy 1 had the scalar under another module name
    renamed.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert networks.read(renamed)["best_fid"] == 3.5
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # and the allow-list does not stay on


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    path, target = tmp_path / "model=G-best-weights-step=1.pth", tmp_path / "pwned"
    content = {"state_dict": {"w": Evil(target)}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"refused the checkpoint .*posix\.system"):
        networks.read(path)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="the checkpoint"):
        networks.read(path)
    assert not target.exists()


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path: Path) -> None:
    good = tmp_path / "good.pth"
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, good)
    bad = tmp_path / "bad.pth"
    for content in (
        good.read_bytes()[:-500],
        good.read_bytes()[:100],
        b"",
        b"<!DOCTYPE html><html>404</html>",
        b"\x80",
    ):
        bad.write_bytes(content)
        with pytest.raises(UserError, match="checkpoint") as error:
            networks.read(bad)
        assert "\n" not in str(error.value)
    bad.write_bytes(b"\n<!DOCTYPE html><html>404</html>")
    with pytest.raises(UserError, match="is a web page"):
        networks.read(bad)
    torch.save({"weights": 1}, bad)
    with pytest.raises(UserError, match="it has no state_dict"):
        networks.read(bad)
    torch.save({"state_dict": {1: torch.zeros(1)}}, bad)
    with pytest.raises(UserError, match="it has no state_dict"):
        networks.read(bad)
    generator = np.random.default_rng(0)
    for _ in range(300):  # flipped bytes anywhere: read or refused, never a traceback
        content = bytearray(good.read_bytes())
        for place in generator.integers(0, len(content), 8):
            content[place] = generator.integers(0, 256)
        bad.write_bytes(content)
        with contextlib.suppress(UserError):
            networks.read(bad)
    torch.save([1], bad)
    with pytest.raises(UserError, match="it has no state_dict"):
        networks.read(bad)


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
        ("MODEL: {backbon: resnet}", "MODEL.backbon"),
        ("MODL: {}\nMODEL: {}\nDATA: {a: 1}", "the host rejects"),
        ("DATA: {img_size: 33}\nMODEL: {backbone: resnet, g_cond_mtd: cBN}", "the host cannot build"),
        ("DATA: {num_classes: 0}\nMODEL: {backbone: resnet, g_cond_mtd: cBN, z_dim: -1}", "the host cannot build"),
        ("MODEL: {backbone: null}", "no view of backbone"),
        ("MODEL: {backbone: resnet, g_cond_mtd: cBN, z_prior: foo}", "z_prior"),
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
