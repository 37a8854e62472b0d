import importlib.metadata
from pathlib import Path

import pytest
import torch

from studiogan_guidance import doctor
from studiogan_guidance.host import inception
from studiogan_guidance.latents.joint import JOINTS
from studiogan_guidance.training import STAGES


def test_everything_that_can_be_missing_is_checked_with_a_fix(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("STUDIOGAN_ROOT", str(tmp_path))
    requires = ['torch ; extra == "studiogan"', 'no-such-package>=2 ; extra == "studiogan"', 'pytest ; extra == "dev"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: requires)
    checks = {check.name: check for check in doctor.run()}
    assert checks["python"].status == checks["built-in GAN"].status == "ok"
    assert checks["cache folder"].status == "fail"
    assert checks["host checkout"].status == "warn"
    assert checks["host packages"].found == "missing: no-such-package"
    assert all(check.fix for check in checks.values() if check.status != "ok")
    assert checks["host packages"].fix == "pip install no-such-package"


def test_weights_of_lpips_are_looked_for_in_the_cache_of_torch(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    path = tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"
    (check,) = [check for check in doctor.run() if check.name == "LPIPS weights"]
    assert (check.status, check.found) == ("warn", f"{path} is missing")
    assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth" in check.fix

    path.parent.mkdir()
    path.touch()
    (check,) = [check for check in doctor.run() if check.name == "LPIPS weights"]
    assert (check.status, check.found, check.fix) == ("ok", str(path), "")


def test_weights_of_inception_are_looked_for_and_their_address_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (check,) = [check for check in doctor.run() if check.name == "Inception weights"]
    assert (check.status, check.found) == ("warn", f"{tmp_path / 'checkpoints' / doctor.INCEPTION} is missing")
    assert inception.URL in check.fix
    assert "--inception FILE" in check.fix


def test_joints_and_stages_of_other_packages_are_checked_as_samplers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (JOINTS, STAGES):
        monkeypatch.setattr(registry, "_broken", {"x": f"cannot import {registry.kind} 'x'"})
    (check,) = [check for check in doctor.run() if check.name == "other packages"]
    assert (check.status, check.found) == ("warn", "cannot import joint 'x'; cannot import stage 'x'")


def test_a_clone_that_is_not_installed_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", requires)
    monkeypatch.setattr(doctor.importlib.metadata, "distributions", lambda: [])
    missing = doctor.missing_host_packages()
    assert {"torchvision", "timm", "wandb", "tqdm"} <= set(missing)
    assert "mypy" not in missing
