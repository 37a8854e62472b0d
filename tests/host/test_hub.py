"""Checkpoints on the hub, against a server on this machine that speaks its protocol."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ok, run
from host_models import save
from hub_server import COMMIT, HubServer
from PIL import Image

from studiogan_guidance.config import read_yaml
from studiogan_guidance.errors import UserError
from studiogan_guidance.host import hub, stored
from studiogan_guidance.host.checkpoints import read
from studiogan_guidance.host.configuration import configuration, configuration_of
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.progress import DISPLAY, Bar

huggingface_hub = pytest.importorskip("huggingface_hub")
FOLDER = "ckpt/Tiny_tailored/Tiny-resnet-train-2022_01_11_20_32_07"
AT = f"hf://owner/gans@{COMMIT}/{FOLDER}"
G_EMA = "model=G_ema-current-weights-step=7.pth"
RAW = "model=G-current-weights-step=7.pth"
D = "model=D-current-weights-step=7.pth"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """An empty repository; the client knows no other, and has an empty cache."""
    constants = hub.client().constants
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / "cache"))
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def folder(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the host with its YAML."""
    return save("resnet", checkout, tmp_path_factory.mktemp("local"))[1]


def publish(server: HubServer, folder: Path, under: str = FOLDER) -> None:
    for path in folder.iterdir():
        server.files[f"{under}/{path.name}"] = path.read_bytes()


@pytest.mark.studiogan
def test_images_are_those_of_the_local_checkpoint_and_only_its_generator_is_loaded(
    server: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, folder)

    def images(ckpt: str | Path) -> tuple[np.ndarray, list[str]]:
        server.asked()
        out = tmp_path / "out"
        ok("sample", "--ckpt", ckpt, "--num", 5, "-o", "scale=1.3", "--out", out)
        return np.load(out / "samples.npz")["images"], server.asked()

    expected, asked = images(folder)
    assert not asked

    # The first time: the YAML, the generator, and no discriminator.
    first, asked = images(f"hf://owner/gans/{FOLDER}")
    np.testing.assert_array_equal(first, expected)
    loaded = [line.rpartition("/")[2] for line in asked if line.startswith("GET /owner/")]
    assert loaded == ["resnet.yaml", G_EMA]

    # The second time only the commit is asked; of a commit, or offline, nothing.
    again, asked = images(f"hf://owner/gans/{FOLDER}")
    np.testing.assert_array_equal(again, expected)
    assert asked == ["GET /api/models/owner/gans/revision/main"]
    assert images(AT)[1] == []
    monkeypatch.setattr(hub.client().constants, "HF_HUB_OFFLINE", True)
    offline, asked = images(f"hf://owner/gans/{FOLDER}")
    np.testing.assert_array_equal(offline, expected)
    assert asked == []


@pytest.mark.studiogan
def test_a_configuration_names_the_commit(server: HubServer, folder: Path, tmp_path: Path) -> None:
    publish(server, folder)
    cfg = configuration(None, {"ckpt": f"hf://owner/gans@v1/{FOLDER}"})
    assert (cfg.ckpt, cfg.host["MODEL"]["backbone"]) == (AT, "resnet")
    path = tmp_path / "my.yaml"
    path.write_text((folder / "resnet.yaml").read_text() + f"ckpt: hf://owner/gans/{FOLDER}\n")
    assert configuration(str(path), {}).ckpt == AT


def test_the_choice_is_that_of_a_folder(server: HubServer, tmp_path: Path) -> None:
    names = [G_EMA, RAW, D, "model=G-best-weights-step=3.pth", "model=D-best-weights-step=3.pth", "losses.npy"]
    for name in names:
        server.files[f"{FOLDER}/{name}"] = name.encode()
        (tmp_path / name).write_bytes(name.encode())
    for which in ((), ("ema",), ("current",), ("current", "raw"), ("best",)):
        for choose in (stored.generator_file, stored.discriminator_file):
            assert choose(AT, which).read_bytes() == choose(str(tmp_path), which).read_bytes(), (choose, which)
    assert stored.generator_file(f"{AT}/{RAW}").read_bytes() == RAW.encode()
    with pytest.raises(UserError, match="is one file, and not ema by its name"):
        stored.generator_file(f"{AT}/{RAW}", ("ema",))


def test_a_connection_that_breaks_is_resumed_where_it_broke(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    content = bytes(range(256)) * 40
    server.files[f"{FOLDER}/{G_EMA}"] = content
    server.breaks = 2
    shown: list[Bar] = []
    monkeypatch.setattr(DISPLAY, "open", shown.append)
    assert stored.generator_file(AT).read_bytes() == content
    assert [(bar.what, bar.done, bar.total) for bar in shown] == [(f"download of {G_EMA}", len(content), len(content))]
    assert server.ranges == ["bytes=5000-", "bytes=7000-"]  # in whole pieces of 1000 bytes


def test_a_damaged_file_is_thrown_away(server: HubServer, tmp_path: Path) -> None:
    server.files[f"{FOLDER}/{G_EMA}"] = b"weights"
    server.damage = True
    with pytest.raises(UserError, match="arrived damaged"):
        stored.generator_file(AT)
    server.damage = False
    assert stored.generator_file(AT).read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("owner/gans/ckpt/Tiny_tailored/Tiny-resnet", "ckpt/Tiny_tailored has the folders: known: Tiny-resnet-train-"),
        ("owner/gans/nowhere/at/all", "no folder nowhere/at/all in .*: it has the folders: known: ckpt"),
        ("owner/gans/ckpt", "no checkpoint model=G_ema-best.*it has the folders Tiny_tailored: give one of them"),
        ("owner/gans@v2/ckpt", "owner/gans has no revision v2"),
        ("owner/other/ckpt", "no repository owner/other, or it is private"),
        (f"owner/gans/{FOLDER}/model=G-best-weights-step=9.pth", "no file model=G-best-weights-step=9.pth in hf://"),
        ("owner/gans/../../secret", "is no address on the hub: write hf://OWNER/REPO"),
        ("owner", "is no address on the hub"),
    ],
)
def test_what_is_not_there_is_one_line(server: HubServer, address: str, message: str) -> None:
    server.files[f"{FOLDER}/{G_EMA}"] = b"weights"
    with pytest.raises(UserError, match=message) as caught:
        stored.generator_file(f"hf://{address}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "word", "message"),
    [
        (401, "", "the hub refuses .*401.*HF_TOKEN"),
        (403, "GatedRepo", "owner/gans is gated: ask for access at"),
        (403, "", "the hub refuses .*403"),
        (500, "", "cannot load hf://owner/gans@main/ckpt from http://127.0.0.1"),
    ],
)
def test_a_refusal_is_one_line(server: HubServer, status: int, word: str, message: str) -> None:
    server.refusal = status, word
    result = run("sample", "--ckpt", "hf://owner/gans/ckpt")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    with pytest.raises(UserError, match=message):
        stored.generator_file("hf://owner/gans/ckpt")


def test_offline_without_a_cache_is_one_line(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.client().constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="is not in the cache, and HF_HUB_OFFLINE is set"):
        stored.generator_file(AT)
    assert server.asked() == []


def test_names_that_leave_the_folder_are_not_there(server: HubServer, tmp_path: Path) -> None:
    server.files[f"{FOLDER}/{RAW}"] = b"weights"
    server.listed = [
        f"{FOLDER}/{name}"
        for name in (
            "model=G_ema-best-weights-step=1/../../../../../../evil.pth",
            "model=G_ema-best-weights-step=..\\..\\evil.pth",
            "model=G_ema-best-weights-step=\x1b[2J.pth",
            "model=G_ema-best-weights-step=\n.pth",
        )
    ]
    server.listed.append(f"{FOLDER}-other/model=G_ema-best-weights-step=1.pth")
    server.listed.append("/etc/model=G_ema-best-weights-step=1.pth")
    assert hub.listing(hub.Address.parse(AT)).files == (RAW,)
    assert stored.generator_file(AT).read_bytes() == b"weights"


def test_a_pointer_of_git_lfs_is_refused_as_in_a_folder(server: HubServer) -> None:
    server.files[f"{FOLDER}/{RAW}"] = (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    )
    with pytest.raises(UserError, match="Git LFS pointer"):
        read(stored.generator_file(AT))


def test_the_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'studiogan-guidance\[hub\]'"):
        stored.generator_file("hf://owner/gans/ckpt")


# ---------------------------------------------------------------------------- the configuration of a checkpoint


@pytest.mark.studiogan
def test_the_name_of_a_run_is_that_of_a_yaml_of_the_host(server: HubServer, checkout: Checkout, tmp_path: Path) -> None:
    configs = checkout.path / "src" / "configs"
    server.files[f"ckpt/CIFAR10-BigGAN-DiffAug-train-2022_01_11_20_32_07/{G_EMA}"] = b"weights"
    address = f"hf://owner/gans@{COMMIT}/ckpt/CIFAR10-BigGAN-DiffAug-train-2022_01_11_20_32_07"
    assert configuration_of(address, None) == str(configs / "CIFAR10" / "BigGAN-DiffAug.yaml")
    local = tmp_path / "ImageNet-SNGAN-256-train-2022_03_06_03_53_44"
    local.mkdir()
    (local / G_EMA).touch()
    for ckpt in (local, local / G_EMA):
        assert configuration_of(str(ckpt), None) == str(configs / "ImageNet" / "SNGAN-256.yaml")

    # Other data, and no name at all.
    with pytest.raises(UserError, match=r"says MINE-BigGAN-Deep, .*only .*CIFAR10/BigGAN-Deep\.yaml.*add -c"):
        configuration_of(str(local.rename(tmp_path / "MINE-BigGAN-Deep-train-2022_03_06_03_53_44")), None)
    with pytest.raises(UserError, match="no YAML, and its name says none of the host's: add -c"):
        configuration_of(f"hf://owner/gans@{COMMIT}/ckpt", None)
    assert configuration_of(str(tmp_path), None) is None


@pytest.mark.studiogan
def test_a_folder_with_one_yaml_needs_no_configuration(folder: Path, tmp_path: Path) -> None:
    expected = ok("sample", "-c", folder / "resnet.yaml", "--ckpt", folder, "--num", 2, "--out", tmp_path / "a")
    assert ok("sample", "--ckpt", folder, "--num", 2, "--out", tmp_path / "b").keys() == expected.keys()
    a, b = (np.load(tmp_path / name / "samples.npz")["images"] for name in "ab")
    np.testing.assert_array_equal(a, b)

    for name in "xyz":
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / "train" / name / "0.png")
    classes = ["list", "--classes", "--data", tmp_path / "images"]
    assert ok(*classes, "--ckpt", folder) == ok(*classes, "-c", folder / "resnet.yaml")

    shutil.copytree(folder, tmp_path / "two")
    (tmp_path / "two" / "other.yaml").write_text(json.dumps({"MODEL": {}}))
    result = run("sample", "--ckpt", tmp_path / "two", "--num", 2)
    assert result.exit_code == 2
    assert "has 2 configurations, other.yaml, resnet.yaml: say -c with one of them" in result.stderr


@pytest.mark.studiogan
def test_known_models_have_the_configuration_that_their_folder_says(server: HubServer, checkout: Checkout) -> None:
    text = run("models").stdout
    table = run("models", "--markdown").stdout
    for model in ok("models")["models"]:
        assert model["tried"].startswith("not tried" if model["address"] else "tried")
        if not model["address"]:
            continue
        path = hub.Address.parse(model["address"]).folder
        server.files[f"{path}/{G_EMA}"] = b""
        yaml = configuration_of(f"hf://owner/gans@{COMMIT}/{path}", None)
        assert yaml == str(checkout.path / "src" / "configs" / model["configuration"])
        sections = read_yaml(Path(yaml))
        assert sections["MODEL"].get("backbone", "resnet") == model["backbone"]  # resnet is the host's default
        assert sections["DATA"]["name"] == model["data"]
        assert model["address"] in text
        assert f"| `{model['address']}` | `{model['configuration']}` |" in table
