from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from studiogan_guidance.errors import UserError
from studiogan_guidance.host import locate as module
from studiogan_guidance.host.locate import LANDMARKS, Checkout, host_configuration, locate


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("STUDIOGAN_ROOT", raising=False)
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "deep")
    return tmp_path


def checkout_at(path: Path) -> Path:
    for mark in LANDMARKS:
        (path / mark).parent.mkdir(parents=True, exist_ok=True)
        (path / mark).write_text("# a landmark\n")
    return path


def test_the_order_of_places(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = checkout_at(nowhere / "work")
    assert locate() == Checkout(parent, None)
    cached = checkout_at(nowhere / "cache" / "PyTorch-StudioGAN")
    assert locate().path == cached
    named = checkout_at(nowhere / "named")
    monkeypatch.setenv("STUDIOGAN_ROOT", str(named))
    assert locate().path == named
    option = checkout_at(nowhere / "option")
    assert locate(str(option)).path == option


def test_the_error_lists_all_that_was_tried(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="run 'studiogan-guidance setup'") as error:
        locate()
    for place in (nowhere / "cache" / "PyTorch-StudioGAN", nowhere / "work" / "deep", nowhere / "work"):
        assert str(place) in str(error.value)
    with pytest.raises(UserError, match="--studiogan is .*no PyTorch-StudioGAN checkout is there"):
        locate(str(nowhere))
    monkeypatch.setenv("STUDIOGAN_ROOT", str(nowhere))
    with pytest.raises(UserError, match=r"\$STUDIOGAN_ROOT is"):
        locate()


def test_setup_into_an_unwritable_cache_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", "/dev/null/x")
    with pytest.raises(UserError, match="cannot write into"):
        module.setup()


def test_setup_clones_whole_or_not_at_all(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkout_at(nowhere / "source")
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@b"]
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *args], check=True)
    with pytest.raises(UserError, match="cannot set up .* at 947b35e"):  # no such commit there
        module.setup(str(source))
    assert list((nowhere / "cache").iterdir()) == []
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setattr(module, "COMMIT", head)
    made = module.setup(str(source))
    assert made == Checkout(nowhere / "cache" / "PyTorch-StudioGAN", head)
    assert module.setup("ignored: it is there already") == made
    assert [path.name for path in (nowhere / "cache").iterdir()] == ["PyTorch-StudioGAN"]


def test_a_configuration_of_the_host_is_found_by_its_name_after_our_own(nowhere: Path) -> None:
    name = "CIFAR10/BigGAN.yaml"
    assert host_configuration(name) == name  # without a host, as it is
    host = checkout_at(nowhere / "cache" / "PyTorch-StudioGAN") / "src" / "configs" / name
    host.parent.mkdir(parents=True)
    host.write_text("MODEL: {z_dim: 8}")
    assert host_configuration(name) == str(host)
    assert host_configuration("CIFAR10/BigGAN-gandance.yaml") == "CIFAR10/BigGAN-gandance.yaml"  # packaged
    with pytest.raises(UserError, match="no configuration CIFAR10/BigGANs.yaml here, .* did you mean 'CIFAR10/BigGAN"):
        host_configuration("CIFAR10/BigGANs.yaml")
    own = nowhere / "work" / "deep" / name
    own.parent.mkdir()
    own.write_text("MODEL: {z_dim: 9}")
    assert host_configuration(name) == name
    (nowhere / "named").mkdir()
    other = checkout_at(nowhere / "named") / "src" / "configs" / "a.yaml"
    other.parent.mkdir()
    other.touch()
    assert host_configuration("a.yaml", str(nowhere / "named")) == str(other)
