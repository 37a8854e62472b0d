"""The command line on the built-in GAN, as a user meets it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import ok, run
from PIL import Image

from studiogan_guidance.cli import main
from studiogan_guidance.evaluation.sample import DEFAULT_COUNT
from studiogan_guidance.registry import FAMILIES


def test_sample_writes_a_grid_and_arrays(tmp_path: Path) -> None:
    ok("sample", "--num", 6, "--seed", 40, "--classes", "3,5", "--out", tmp_path, "--png", "-o", "scale=1.5")
    with np.load(tmp_path / "samples.npz") as file:
        assert file["images"].shape == (6, 32, 32, 3)
        assert (file["images"].dtype, file["labels"].dtype, file["seeds"].dtype) == (np.uint8, np.int64, np.int64)
        assert file["labels"].tolist() == [3, 5, 3, 5, 3, 5]
        assert file["seeds"].tolist() == list(range(40, 46))
        single = np.asarray(Image.open(tmp_path / "images" / "000041-005.png"))
        assert np.array_equal(single, file["images"][1])
        sheet = np.asarray(Image.open(tmp_path / "grid.png"))
        assert np.array_equal(sheet[:128:4, 128:256:4], file["images"][1])  # 32 pixels, enlarged
    assert not [path for path in tmp_path.rglob(".*")]  # no temporary files


def test_scales_are_columns_with_the_same_seeds(tmp_path: Path) -> None:
    ok("sample", "--num", 3, "--scales", "1,2", "--out", tmp_path / "both")
    ok("sample", "--num", 3, "--sampler", "plain", "--out", tmp_path / "plain")
    both, plain = np.load(tmp_path / "both/samples.npz"), np.load(tmp_path / "plain/samples.npz")
    assert np.array_equal(both["images"][:3], plain["images"])  # scale 1 is plain
    assert not np.array_equal(both["images"][3:], plain["images"])
    assert both["seeds"].tolist() == [0, 1, 2, 0, 1, 2]
    assert both["scales"].tolist() == [1, 1, 1, 2, 2, 2]
    head, sheet = np.split(np.asarray(Image.open(tmp_path / "both/grid.png")), [-3 * 128])
    assert sheet.shape == (3 * 128, 2 * 128, 3)
    assert all((half < 128).any() for half in np.split(head, 2, 1))  # the scale above each column
    assert np.array_equal(sheet[128:256:4, 128::4], both["images"][4])


def test_eval_prints_rows_and_adds_them_to_the_results(tmp_path: Path) -> None:
    printed = ok("eval", "--num", 200, "--out", tmp_path, "-o", "scale=1.5", "--reference", "valid")["rows"]
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines == printed
    assert [row["sampler"] for row in printed] == ["plain", "gandance"]
    plain = printed[0]
    (guided,) = ok("eval", "--num", 200, "--out", tmp_path, "-o", "scale=1.0", "--reference", "valid")["rows"]
    assert set(plain["metrics"]) == {"fid", "is", "accuracy", "precision", "recall", "density", "coverage"}
    assert plain["metrics"] == guided["metrics"]  # scale 1, same seeds and labels
    assert guided["options"]["scale"] == 1.0
    for key in (
        "num",
        "num_real",
        "seed",
        "labels",
        "k",
        "splits",
        "backbone",
        "backbone_sha256",
        "resizer",
        "reference",
    ):
        assert key in plain["protocol"]
    assert plain["cost"]["synthesis"] == 1.0
    again = ok(
        "eval", "--num", 200, "--out", tmp_path, "--no-compare-plain", "--reference", "valid", "--batch-size", 50
    )
    assert [row["sampler"] for row in again["rows"]] == ["gandance"]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4


def test_metrics_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    args = ("eval", "--num", 150, "--out", tmp_path, "--no-compare-plain", "--batch-size")
    one, other = (ok(*args, size)["rows"][0]["metrics"] for size in (64, 37))
    assert one == pytest.approx(other, rel=1e-4, abs=1e-3)


def test_real_and_fake_are_not_swapped(tmp_path: Path) -> None:
    """Mean codes only: what is made looks real (precision), but most of the reals are missed (recall, coverage)."""
    args = ("--sampler", "truncation", "-o", "psi=0.1", "-o", "center=class", "--no-compare-plain")
    row = ok("eval", "--num", 300, "--out", tmp_path, *args)["rows"][0]["metrics"]
    assert row["precision"] > 0.8
    assert row["recall"] < 0.2
    assert row["coverage"] < 0.2
    assert row["accuracy"] > 0.8


def test_list_and_doctor() -> None:
    listed = ok("list")
    assert {"samplers", "joints", "views", "stages", "configs"} == set(listed)
    assert [row["name"] for row in listed["joints"]] == [
        "class_mean",
        "class_subset",
        "global_mean",
        "class_shift",
        "mean_embedding",
        "gaussian",
        "gaussian_shift",
        "learned",
        "frechet",
        "amortised",
    ]
    assert all(
        row["name"] and row["description"] and row["paper"]
        for kind in listed
        for row in listed[kind]
        if kind != "configs"
    )
    assert len(listed["views"]) == 8
    assert "gandance" in run("list").output
    assert all(check["status"] in ("ok", "warn") for check in ok("doctor")["checks"])


def test_a_folder_whose_name_is_no_text_is_printed(tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    result = run("sample", "--num", 1, "-o", "scale=1.5", "--out", folder)
    assert "sampler: gandance scale=1.5\n" in result.stdout
    assert result.exit_code == 0, result.output
    assert f"samples: {tmp_path}/\\udcff/samples.npz" in result.stdout
    assert Path(folder, "samples.npz").is_file()


def test_samplers_are_listed_by_family_with_what_they_need_and_where_they_are_plain() -> None:
    rows = {row["name"]: row for row in ok("list")["samplers"]}
    assert rows["gandance"]["family"] == "code"
    assert rows["gandance"]["neutral"] == {"scale": 1}
    assert rows["ddls"]["options"]["base"] == "plain"
    assert rows["ddls"]["needs"] == ["discriminator", "gradient"]
    families = [row["family"] for row in rows.values()]
    order = [family for family in FAMILIES if family in families]
    assert families == sorted(families, key=order.index)
    assert families[0] == "code"
    lines = run("list").output.splitlines()
    assert lines.index("  [change the code of an image]") < lines.index("  [follow the discriminator]")
    below = lines[lines.index("  gandance") :]
    assert "      plain sampling at: scale=1" in below[:6]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_lists_fit_the_terminal_and_lose_nothing(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run("list").output
    assert max(map(len, text.splitlines())) <= min(columns, 120)
    words = text.split()
    for row in ok("list")["samplers"]:
        assert {f"{key}=" for key in row["options"]} <= {word.partition("=")[0] + "=" for word in words}


def test_each_command_has_a_line_of_its_own_in_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = CliRunner().invoke(main, ["--help"]).output.partition("Start here:\n")[2].partition("Options:\n")[0]
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert sorted(line.split()[0] for line in lines) == sorted(main.commands)
    assert all(line.endswith(".") and not line.endswith("...") and len(line) <= 80 for line in lines)


@pytest.mark.parametrize("name", ["ddls", "mh", "class_shift", "stylegan2", "joint"])
def test_list_with_a_name_prints_its_documentation(name: str) -> None:
    result = run("list", name)
    assert result.exit_code == 0
    title, blank, *text = result.output.splitlines()
    assert title.startswith({"mh": "metropolis"}.get(name, name) + ": ")
    assert blank == ""
    assert len(" ".join(text)) > 40
    assert ok("list", name) == {"name": name, "documentation": result.output.rstrip("\n")}


def test_a_name_that_is_not_listed_is_answered_with_the_nearest() -> None:
    result = run("list", "ddl")
    assert result.exit_code == 2
    assert "nothing is called 'ddl': did you mean 'ddls'?" in result.stderr


def test_joints_and_stages_of_ours_are_not_ascribed_to_the_paper() -> None:
    listed = ok("list")
    papers = {row["name"]: row["paper"] for kind in ("joints", "stages") for row in listed[kind]}
    theirs = "Zhang et al., GANdance, ECCV 2024"
    assert papers.pop("class_mean") == theirs
    assert papers.pop("latent_reweighting") == "Issenhuth et al. 2022, arXiv:2110.09803"
    assert set(papers.values()) == {f"this package, after {theirs}"}


def test_defaults_of_helps_are_those_of_the_functions() -> None:
    text = " ".join(run("tune", "-h").output.split())
    for words in ("[64; on a GPU up to 256, as memory allows]", "[runs]", "[fid,is,prdc]", "torch.compile. [off]"):
        assert words in text
    assert "repeatable. [scale=0.8:2 with psi=0.7:1.8, or tau=0.8:1.25 where codes are no w]" in text
    assert "Evaluations in all. [24]" in text
    assert f"sample: {DEFAULT_COUNT}]" in text
    assert "comparison with plain; --auto: 4. [3]" in text
    assert "measure each sampler on. [1]" in " ".join(run("compare", "-h").output.split())
    assert "Also measure plain sampling. [on]" in " ".join(run("eval", "-h").output.split())


def test_examples_of_helps_stand_on_lines_of_their_own() -> None:
    for command in ("sample", "eval", "sweep", "tune", "compare", "train", "run", "list"):
        lines = run(command, "-h").output.splitlines()
        assert sum(line.startswith("  studiogan-guidance ") for line in lines) >= 2


def test_a_sampler_that_is_named_has_its_own_defaults(tmp_path: Path) -> None:
    def options(*args: str) -> dict[str, object]:
        sampled: dict[str, object] = ok("sample", "--num", 1, "--out", tmp_path, *args)["options"]
        return sampled

    own = options("--sampler", "gandance")
    assert (own["scale"], own["joint"]) == (1.2, "class_mean")
    assert options("-o", "scale=1.2") == own
    assert options("-c", "builtin-gandance.yaml", "-o", "scale=1.2") == {**own, "joint": "class_shift"}
    assert options() == own
    assert options("-c", "builtin-gandance.yaml") == {**own, "scale": 0.9, "joint": "class_shift"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("sample", "--num", 10, "--seed", 2**31 - 9), "choose a seed of at most 2147483638"),
        (("sample", "--seed", 2**31 - 9), "choose a seed of at most 2147483584"),
        (("tune", "--num", 100, "--seed", 2**31 - 399), "400 images from seed 2147483249 on need seeds up to"),
        (("compare", "--num", 100, "--seed", 2**31 - 299, "--repeats", 3, "--with", "plain"), "300 images from seed"),
        (("eval", "--seed", 2**31 - 9), "1000 images from seed 2147483639 on need seeds up to"),
        (("eval", "-o", "scale=nan"), "gandance.scale must be a finite number"),
        (("eval", "-o", "scale"), "-o takes key=value"),
        (("eval", "--num", 5), "need at least 7 images, found 5 generated"),
        (("eval", "--num", 0), "num must be a whole number from 1 up"),
        (("eval", "--metrics", "fit"), "did you mean 'fid'"),
        (("eval", "--ckpt", "x"), "add -c FILE"),
        (("eval", "-c", "builtin-gandance.yaml", "--ckpt", "x"), "add -c FILE"),
        (("eval", "--seed", "9223372036854775807"), "choose a seed of at most 2147483647"),
        (("eval", "-o", "subset=inf"), "gandance.subset must be a whole number"),
        (("sample", "-o", "scale=1", "-o", "scale=2"), "-o takes key=value, each option once, found 'scale=2'"),
        (("sample", "-o", "scale=1_000"), "gandance.scale must be a number, found '1_000'"),
        (("sample", "-o", "joint_ckpt="), "-o takes key=value"),
        (("sample", "-o", ".".join(["base"] * 5) + "=ddls"), "is about a stack of more than 4 things"),
        (
            ("sample", "--sampler", "hubness", "-o", "pool=1e12"),
            "hubness.pool must be at most 10000000, found 1000000000",
        ),
        (("sample", "--sampler", "cluster_truncation", "-o", "draws=1e14"), "cluster_truncation.draws must be at most"),
        (("sample", "--sampler", "simplicial", "-o", "cells=1e6"), "simplicial.cells must be at most 10000"),
        (("sample", "--sampler", "ddls", "-o", "steps=1e9"), "ddls.steps must be at most 1000000"),
        (("sample", "--num", 10**12), "num must be at most 2147483648"),
        (("sample", "--batch-size", 10**9), "batch_size must be at most 65536"),
        (("sample", "--seed", 2**31 - 1, "--num", 2), "choose a seed of at most 2147483646"),
        (("sample", "--reconstruct"), "a checkpoint of the host that was trained with glead: add -c FILE and --ckpt"),
        (("sample", "--reconstruct", "--sampler", "plain"), "with --reconstruct, --sampler has no meaning: drop it or"),
        (
            ("sample", "--reconstruct", "-o", "scale=2", "--scales", "1,2", "--noise-mode", "random"),
            "with --reconstruct, -o, --scales and --noise-mode have no meaning: drop them or --reconstruct",
        ),
        (
            ("sweep", "--grid", f"scale={','.join(['1'] * 400)}", "--grid", f"subset={','.join(['1'] * 400)}"),
            "160000 points",
        ),
        (("tune", "--over", "scale=-1e308:1e308"), "is no range"),
        (("tune", "--min-recall", "nan"), "--min-recall must be between 0 and 1, as recall is, found nan"),
        (("tune", "--min-recall", 2), "--min-recall must be between 0 and 1, as recall is, found 2"),
        (("tune", "--budget", 10**9), "--budget and --repeats are at most 10000"),
        (("tune", "--repeats", 10**9), "--budget and --repeats are at most 10000"),
        (("tune", "--per-layer", 10**9), "--per-layer must be at most 100"),
        (("compare", "--with", "plain", "--repeats", 10**9), "--repeats must be at most 1000"),
        (("compare", "--with", "ddls:steps=1,steps=2"), "--with takes a sampler such as"),
        (("sample", "--data", ""), "data is empty"),
        (("sample", "--labels", ""), "labels is empty"),
        (("eval", "--metrics", ""), "--metrics takes words"),
        (("eval", "-c", "no.yaml"), "no configuration no.yaml"),
        (("eval", "--reference", "tests"), "did you mean 'test'"),
        (("sample", "--classes", "3,10"), "class 10 is out of range: the 10 classes are 0 to 9"),
        (("list", "--classes", "--data", "x"), "add -c FILE"),
        (("list", "--classes", "ddls"), "list --classes lists classes only"),
        (
            ("list", "-c", "builtin-gandance.yaml"),
            "-c, --ckpt, --data and --studiogan are for the classes of real images",
        ),
        (("sample", "--classes", "3,x"), "no class is called 'x': there are '0', '1', '2' and 7 more, see list --cl"),
        (("sample", "--device", "tpu"), "--device is 'tpu'"),
        (("sample", "--device", "cuda:99"), "CUDA devices are visible"),
        (("sample", "--sampler", "truncation", "-o", "cutoff=99"), "has w rows"),
        (("sample", "--sampler", "plain", "--scales", "1,2"), "has no option 'scale'"),
        (("sample", "--sampler", "nothing"), "unknown sampler 'nothing'"),
        (("sample", "-c", "CIFAR10/BigGAN-gandance.yaml"), "add --ckpt DIR"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*args, *(() if args[0] == "list" else ("--out", "runs")))
    assert result.exit_code == 2
    if "add --ckpt DIR" in message and "checkout" in result.stderr:
        pytest.skip("no host checkout: it is asked for first")
    assert message in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert result.stdout == ""
    assert not (tmp_path / "runs" / "results.jsonl").exists()


@pytest.mark.parametrize("args", [("eval", "--sampler", "nothing"), ("sample", "--seed", 2**31 - 9)])
def test_mistakes_make_no_folder(tmp_path: Path, args: tuple[object, ...]) -> None:
    assert run(*args, "--out", tmp_path / "runs").exit_code == 2
    assert not (tmp_path / "runs").exists()


def test_an_unwritable_output_is_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "taken" / "results.jsonl").mkdir(parents=True)
    result = run("eval", "--out", tmp_path / "taken")
    assert result.exit_code == 2
    assert "cannot add lines to" in result.stderr
    (tmp_path / "file").write_text("")
    result = run("eval", "--out", tmp_path / "file" / "runs")
    assert result.exit_code == 2
    assert "cannot write into" in result.stderr


class Bright(torch.nn.Module):
    """Rows of pixels as features, nan for bright images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.float().mean((1, 3))[:, 8:24]
        return torch.where(rows.mean(1, keepdim=True) > 50, rows * torch.nan, rows)


@pytest.mark.parametrize(
    "args",
    [
        *(("eval", "--metrics", metric) for metric in ("fid", "prdc", "kid", "fid_infinity", "per_class")),
        ("sweep", "--grid", "scale=1.2", "--metrics", "kid"),
        ("tune", "--budget", 9, "--repeats", 2, "--metrics", "fid"),
        ("compare", "--with", "truncation", "--metrics", "prdc"),
        ("train", "-o", "steps=2", "-o", "eval_every=1"),
        ("stats",),
    ],
)
def test_features_that_are_not_finite_are_one_line_in_every_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[object, ...]
) -> None:
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "bright.pt"
    torch.jit.script(Bright()).save(str(path))
    out = ["--out", tmp_path / "file.npz"] if args == ("stats",) else ["--out", tmp_path / "runs", "--num", 60]
    result = run(*args, "--backbone", f"torchscript:{path}", *out)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    expected = (
        r"gives features that are not finite \(nan or inf\) for \d+ of \d+ real images \(number \d+ to number \d+\)"
    )
    assert re.search("feature network torchscript:bright.pt " + expected, line)
    assert not list((tmp_path / "cache" / "reference").glob("*.npz"))
    assert not (tmp_path / "file.npz").exists()


def test_importing_the_package_and_asking_for_help_import_no_torch() -> None:
    for help_of in ("['-h']", "['eval', '-h']"):
        code = f"import sys; from studiogan_guidance.cli import main; main({help_of}, standalone_mode=False); "
        code += "sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0
    code = "import sys, studiogan_guidance, studiogan_guidance.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys, studiogan_guidance.samplers, studiogan_guidance.latents; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_stages_outside_of_a_host_run_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("stages: [joint]")
    result = run("sample", "-c", file, "--num", 1, "--out", tmp_path / "o")
    assert result.exit_code == 0
    assert "Note: stages (joint) are trained by 'run' and 'train' only" in result.stderr
    file.write_text("stages: [jiont]")
    result = run("sample", "-c", file, "--num", 1, "--out", tmp_path / "o")
    assert result.exit_code == 2
    assert "did you mean 'joint'" in result.stderr
