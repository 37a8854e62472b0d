"""sample and eval on host checkpoints through the command line, with the host's own Inception code."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import digit_images, ok, run
from host_models import BACKBONES, save
from PIL import Image

from studiogan_guidance import config
from studiogan_guidance.files import cache_dir
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.source import HostSource
from studiogan_guidance.latents.base import weights_digest

pytestmark = pytest.mark.studiogan


@pytest.fixture(scope="module", params=BACKBONES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, checkout: Checkout) -> list[str]:
    yaml, folder = save(request.param, checkout, tmp_path_factory.mktemp("ckpt"))
    return ["-c", str(yaml), "--ckpt", str(folder)]


def test_sample_and_eval_on_every_backbone(model: list[str], data: Path, hub: None, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path), "--num", "8", "--batch-size", "4"]
    size = [16 if "stylegan" in model[1] else 32][0]
    ok("sample", *model, *out, "--scales", "1,2", "--num", 2)
    with np.load(tmp_path / "samples.npz") as file:
        assert file["images"].shape == (4, size, size, 3)
        assert not np.array_equal(file["images"][:2], file["images"][2:])
    sized = ["--pre-resizer", "lanczos"] if size != 32 else []
    rows = ok("eval", *model, *out, *sized, "--data", data, "--metrics", "is,prdc", "-o", "scale=1.5")["rows"]
    assert [row["sampler"] for row in rows] == ["plain", "gandance"]
    for row in rows:
        assert set(row["metrics"]) == {"is", "precision", "recall", "density", "coverage"}
        assert all(np.isfinite(value) for value in row["metrics"].values())
        assert row["protocol"]["num_real"] == 16
        assert row["protocol"]["host_commit"].startswith("947b35e")
    assert rows[0]["metrics"] != rows[1]["metrics"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, checkout: Checkout) -> list[str]:
    yaml, folder = save("resnet", checkout, tmp_path_factory.mktemp("small"))
    return ["-c", str(yaml), "--ckpt", str(folder)]


def test_fid_is_the_hosts_own_end_to_end(
    small: list[str], data: Path, hub: None, tmp_path: Path, checkout: Checkout
) -> None:
    """eval's FID against the host's moments and FID of the very images that sample wrote.

    The host's square root of 2048 x 2048 numbers takes a minute; rotated into the 21 dimensions in which any of these
    images has a feature, which changes no distance, it is one of 21 x 21.
    """
    common = [*small, "--num", "9", "--out", str(tmp_path), "--sampler", "plain"]
    value = ok("eval", *common, "--data", data, "--metrics", "fid", "--reference", "valid")["rows"][0]["metrics"]["fid"]
    ok("sample", *common)
    with inside(checkout):
        model = module("metrics.preparation").LoadEvalModel("InceptionV3_tf", "legacy", 1, False, torch.device("cpu"))
        model.eval()
        fid = module("metrics.fid")
        with torch.no_grad():
            fake = model.get_outputs(torch.from_numpy(np.load(tmp_path / "samples.npz")["images"]).permute(0, 3, 1, 2))[
                0
            ]
            stack = torch.stack([torch.from_numpy(image) for _, _, image in digit_images("valid", 3)]).permute(
                0, 3, 1, 2
            )
            real = model.get_outputs(stack)[0]
        rotation = torch.linalg.qr(torch.cat([real, fake]).double().T).Q
        real, fake = (features.double() @ rotation for features in (real, fake))
        moments = [fid.calculate_moments(None, model, len(x), 4, True, 1, False, True, x) for x in (real, fake)]
        assert value == pytest.approx(fid.frechet_inception_distance(*moments[0], *moments[1]), rel=1e-6)


def test_real_statistics_are_computed_once_per_data(
    small: list[str], averages: str, data: Path, hub: None, tmp_path: Path
) -> None:
    """The host's Inception, which is slow, for what only its images go through: a resizer."""
    data = Path(shutil.copytree(data, tmp_path / "data", copy_function=shutil.copyfile))  # with times of their own
    common = ["--num", 8, "--out", tmp_path, "--metrics", "prdc", "--data", data, "--reference", "valid"]

    def stored() -> set[Path]:
        return set((cache_dir() / "reference").glob("*.npz"))

    def measure(*more: str) -> None:
        ok("eval", *small, *common, "--no-compare-plain", *more)

    # Statistics, and radii.
    before = stored()
    measure("--backbone", averages)
    one = stored() - before
    assert len(one) == 2
    measure("--backbone", averages)
    assert stored() - before == one

    # Another size of a file is another fingerprint.
    image = data / "valid" / "0" / "0.png"
    image.write_bytes(image.read_bytes() + b"\0")
    measure("--backbone", averages)
    assert len(stored() - before) == 4

    # So is another feature network, and another resizer.
    measure()
    assert len(stored() - before) == 6
    measure("--resizer", "clean")
    assert len(stored() - before) == 8


def test_labels_as_in_the_data(small: list[str], data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(data, tmp_path / "data"))
    for path in (data / "train" / "0").iterdir():
        if path.stem != "0":
            path.rename(data / "train" / "1" / f"moved{path.stem}.png")
    ok("sample", *small, "--data", data, "--labels", "data", "--num", "300", "--out", tmp_path)
    counts = np.bincount(np.load(tmp_path / "samples.npz")["labels"], minlength=4) / 300
    np.testing.assert_allclose(counts, np.array([1, 7, 4, 4]) / 16, atol=0.08)


def test_bad_data_is_one_line_and_exit_2(small: list[str], tmp_path: Path, hub: None) -> None:
    def message(folder: Path, *more: str) -> str:
        result = run(
            "eval", *small, "--data", folder, "--num", "8", "--metrics", "prdc", "--out", tmp_path / "o", *more
        )
        assert result.exit_code == 2, result.output
        assert not (tmp_path / "o" / "results.jsonl").exists()
        lines = [line for line in result.stderr.splitlines() if line.startswith("Error")]
        assert result.stderr.strip().splitlines()[-1:] == lines
        return lines[0]

    folder = tmp_path / "data" / "train" / "a"
    assert "is not a folder" in message(tmp_path / "data")
    assert "no folder test in" in message(tmp_path, "--reference", "test")
    (tmp_path / "data").mkdir()
    assert "no folder train in" in message(tmp_path / "data")
    folder.mkdir(parents=True)
    assert "the class folder 'a' holds no image" in message(tmp_path / "data")
    for i in range(9):
        Image.new("RGB", (20, 20)).save(folder / f"{i}.png")
    assert "0.png is 20x20, the configuration wants 32x32: set --pre-resizer" in message(tmp_path / "data")
    (folder / "9.png").write_bytes(b"not a picture")
    assert "9.png: it is no image" in message(tmp_path / "data", "--pre-resizer", "lanczos")


class Averages(torch.nn.Module):
    """Pixels of a small copy as features, and some of them as class logits."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)
        return h, h[:, :4]


@pytest.fixture(scope="module")
def averages(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("features") / "averages.pt"
    torch.jit.script(Averages()).save(str(path))
    return f"torchscript:{path}"


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory, checkout: Checkout) -> list[str]:
    yaml, folder = save("deep_conv+unconditional", checkout, tmp_path_factory.mktemp("unconditional"))
    return ["-c", str(yaml), "--ckpt", str(folder)]


def test_generators_without_labels_in_every_verb(
    unconditional: list[str], averages: str, data: Path, tmp_path: Path
) -> None:
    """On data of four classes, which is nothing to them."""
    drawn = [*unconditional, "--data", data, "--out", tmp_path]
    common = [*drawn, "--num", 8, "--batch-size", 8, "--backbone", averages]
    drs = ["--sampler", "drs", "-o", "burn_in=16", "-o", "calibration=head", "-o", "calibration_images=12"]

    # Images, with labels 0.
    ok("sample", *drawn, "--num", 6, "--sampler", "plain")
    with np.load(tmp_path / "samples.npz") as file:
        assert file["images"].shape == (6, 32, 32, 3)
        assert file["labels"].tolist() == [0] * 6

    # Metrics that need no label.
    rows = ok("eval", *common, *drs, "--metrics", "fid,is,prdc,kid")["rows"]
    assert [row["sampler"] for row in rows] == ["plain", "drs"]
    assert all(np.isfinite(value) for row in rows for value in row["metrics"].values())
    assert len(rows[0]["metrics"]) == 7

    # Comparisons and searches.
    chains = {"metropolis": "proposals=2", "ddls": "steps=1"}
    wanted = [word for name, option in chains.items() for word in ("--with", f"{name}:{option},calibration=none")]
    compared = ok("compare", *common, *wanted, "--metrics", "fid")["rows"]
    assert [row["sampler"] for row in compared] == ["plain", *chains]
    points = ok("sweep", *common, "--sampler", "truncation", "--grid", "threshold=0.5,1", "--metrics", "fid")["rows"]
    assert [row["sampler"] for row in points] == ["plain", "truncation", "truncation"]
    search = ["--over", "threshold=0.5:2", "--budget", 9, "--repeats", 2, "--metrics", "fid"]
    tuned = ok("tune", *common, "--sampler", "truncation", *search)
    assert tuned["evaluations"] <= 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval"], "sampler 'gandance' needs a conditional generator, but "),
        (["eval"], " is unconditional (MODEL.g_cond_mtd 'W/O'): use plain, truncation, simplicial, drs, metropolis"),
        (["tune"], "sampler 'gandance' needs a conditional generator"),
        (["tune", "--sampler", "drs"], "'drs' has no scale to search: add --over OPTION=LOW:HIGH, with one of percent"),
        (["compare", "--with", "ddls:base=gandance"], "sampler 'gandance' needs a conditional generator"),
        (["eval", "--sampler", "plain", "--classes", "3"], "--classes needs a conditional generator"),
        (["sample", "--sampler", "plain", "--classes", "0"], "--classes needs a conditional generator"),
        (["eval", "--sampler", "plain", "--labels", "data"], "labels: data needs a conditional generator"),
        (["eval", "--sampler", "plain", "--metrics", "per_class"], "per_class needs a conditional generator"),
        (["train"], "stage 'joint' needs a conditional generator"),
        (["train", "--stage", "strengths"], "stage 'strengths' needs a conditional generator"),
    ],
)
def test_what_needs_labels_is_refused_by_name(
    arguments: list[str], message: str, unconditional: list[str], averages: str, data: Path, tmp_path: Path
) -> None:
    measured = [] if arguments[0] == "sample" else ["--backbone", averages]
    result = run(*arguments, *unconditional, *measured, "--data", data, "--out", tmp_path)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error")]) == 1
    assert not (tmp_path / "results.jsonl").exists()


def test_missing_inception_weights_name_the_folder(
    small: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    result = run("eval", *small, "--data", data, "--num", "8", "--out", tmp_path / "o")
    assert result.exit_code == 2
    assert "cannot load the weights of InceptionV3_tf" in result.stderr
    assert str(tmp_path / "hub" / "checkpoints") in result.stderr


def test_a_malicious_checkpoint_is_refused_by_the_command(small: list[str], tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "pwned",)

    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "model=G-best-weights-step=1.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
    result = run("sample", *small[:2], "--ckpt", tmp_path / "ckpt", "--out", tmp_path / "o")
    assert result.exit_code == 2
    assert "checkpoint" in result.stderr
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "o" / "samples.npz").exists()


def test_one_process_of_git_serves_a_command(
    small: list[str], averages: str, data: Path, hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkout is looked for once, also for the calibration of a discriminator and for many points."""
    calls = tmp_path / "calls"
    wrapper = tmp_path / "bin" / "git"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec {shutil.which("git")} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}")

    def count(*args: object) -> int:
        calls.write_text("")
        rows = ok(*args, "--num", 8, "--batch-size", 8, "--metrics", "prdc", "--out", tmp_path / "out")["rows"]
        assert rows
        return len(calls.read_text().splitlines())

    host = [*small, "--data", data, "--device", "cpu"]
    assert count("eval", *host, "-o", "scale=1.5") == 1
    assert count("eval", *host, "--sampler", "drs", "-o", "calibration_images=12", "--backbone", averages) == 1
    assert count("sweep", *host, "--grid", "scale=1.1,1.2", "--backbone", averages) == 1
    assert count("eval", "-o", "scale=1.5") == 0
    assert count("sweep", "--grid", "scale=1.1") == 0


def test_a_row_has_the_hash_of_the_weights(small: list[str], data: Path, hub: None, tmp_path: Path) -> None:
    cfg = config.load(small[1], {"ckpt": small[3]})
    generator = HostSource(cfg).networks(torch.device("cpu")).generator
    args = ["eval", *small, "--num", 8, "--metrics", "is", "--data", data, "--out", tmp_path, "--no-compare-plain"]
    (row,) = ok(*args)["rows"]
    assert row["generator"]["sha256"] == weights_digest(generator)
