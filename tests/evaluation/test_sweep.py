"""Sweeps on the built-in GAN: same values as eval, nothing lost, nothing twice, whoever is killed."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ok, run
from filelock import FileLock
from PIL import Image

from studiogan_guidance.evaluation import charts, pictures, results

SMALL = ["--num", 60, "--batch-size", 30]


def lines(folder: Path) -> list[dict[str, Any]]:
    return results.read(folder / "results.jsonl")


def scales(rows: list[dict[str, Any]]) -> list[tuple[str, float | None]]:
    return [(row["sampler"], row["options"].get("scale")) for row in rows]


def test_points_equal_eval_and_come_with_table_and_pictures(tmp_path: Path) -> None:
    grid = ["--grid", "scale=0.8,1.5", "--grid", "joint=class_mean,global_mean"]
    rows = ok("sweep", *SMALL, *grid, "--out", tmp_path)["rows"]
    assert [(row["options"]["scale"], row["options"]["joint"]) for row in rows[1:]] == [
        (scale, joint) for scale in (0.8, 1.5) for joint in ("class_mean", "global_mean")
    ]
    assert rows[0]["sampler"] == "plain"
    one = ["-o", "scale=1.5", "-o", "joint=global_mean", "--no-compare-plain"]
    by_eval = ok("eval", *SMALL, *one, "--out", tmp_path / "eval")["rows"]
    for key in ("metrics", "protocol", "options", "generator"):
        assert by_eval[0][key] == rows[4][key]
    with (tmp_path / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["sampler"] for row in table] == ["plain", *["gandance"] * 4]
    assert float(table[4]["fid"]) == rows[4]["metrics"]["fid"]
    for name in ("fid.png", "precision_recall.png"):
        assert np.asarray(Image.open(tmp_path / name)).std() > 10
    images = ok("sample", "--num", 8, *one[:4], "--out", tmp_path / "sample")
    with np.load(images["samples"]) as file:
        picture = np.asarray(Image.open(tmp_path / "strip.png"))
        head, body = np.split(picture, [-8 * 96])  # each pixel is a square of 3x3
        assert head.min() == 0  # the values of the options
        strip = body[::3, ::3]
        assert strip.shape == (8 * 32, 5 * 32, 3)
        last = np.concatenate(file["images"])  # seeds from top to bottom
        assert np.abs(strip[:, -32:].astype(int) - last.astype(int)).max() <= 1


@pytest.mark.parametrize(("grid", "name"), [("scale=0.8,1.5", "plain"), ("scale=1.5,1", "gandance")])
def test_charts_show_plain_sampling(grid: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(charts, "save_charts", lambda folder, rows, axis, plain: shown.append((axis, plain)))
    ok("sweep", *SMALL, "--metrics", "fid", "--grid", grid, "--out", tmp_path)
    ((axis, plain),) = shown
    assert axis == "scale"
    assert (plain["sampler"], plain["options"].get("scale", 1)) == (name, 1)


def test_options_of_a_base_are_swept_under_names_with_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    save_charts, strips = charts.save_charts, pictures.captioned
    monkeypatch.setattr(charts, "save_charts", lambda *args: (shown.append(args[2]), save_charts(*args)))
    monkeypatch.setattr(pictures, "captioned", lambda sheet, words: (shown.append(words), strips(sheet, words))[1])
    options = {"steps": 1, "step": 0.05, "calibration": "none", "base": "gandance"}
    flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    grid = ["--grid", "base.scale=1.3,1.6"]
    rows = ok("sweep", *SMALL, "--metrics", "fid", "--sampler", "ddls", *flags, *grid, "--out", tmp_path)["rows"]
    assert shown == ["base.scale", ["plain", "base.scale=1.3", "base.scale=1.6"]]
    assert [row["options"]["base"]["scale"] for row in rows[1:]] == [1.3, 1.6]
    assert rows[1]["metrics"] != rows[2]["metrics"]
    assert (tmp_path / "fid.png").exists()
    with (tmp_path / "table.csv").open() as file:
        assert [row["base"][:18] for row in csv.DictReader(file)] == ["", "gandance(scale=1.3", "gandance(scale=1.6"]


def test_a_second_sweep_measures_only_what_is_new(tmp_path: Path) -> None:
    ok("sweep", *SMALL, "--metrics", "fid", "--grid", "scale=1,1.5", "--out", tmp_path)
    before = lines(tmp_path)
    assert scales(before) == [("gandance", 1), ("gandance", 1.5)]  # scale 1 is plain already
    rows = ok("sweep", *SMALL, "--metrics", "fid", "--grid", "scale=1.5,2,1", "--out", tmp_path)["rows"]
    assert scales(rows) == [("gandance", 1.5), ("gandance", 2), ("gandance", 1)]
    assert lines(tmp_path) == [*before, rows[1]]
    ok("sweep", *SMALL, "--metrics", "fid", "--grid", "scale=1.5", "--seed", 7, "--no-compare-plain", "--out", tmp_path)
    assert len(lines(tmp_path)) == 4  # other seeds are another point


def test_a_cut_line_is_measured_again_and_harms_no_other(tmp_path: Path) -> None:
    command = ["sweep", *SMALL, "--metrics", "fid", "--grid", "scale=1,1.5", "--out", tmp_path]
    rows = ok(*command)["rows"]
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])  # as if killed while writing
    again = ok(*command)["rows"]
    assert [row["metrics"] for row in again] == [row["metrics"] for row in rows]
    assert scales(lines(tmp_path)) == [("gandance", 1), ("gandance", 1.5)]
    assert len(path.read_bytes().splitlines()) == 3  # the cut one stands between them


def test_killed_sweeps_go_on_and_two_at_once_share_the_points(tmp_path: Path) -> None:
    wanted = [0.8 + 0.1 * i for i in range(9)]
    grid = "scale=" + ",".join(f"{scale:.1f}" for scale in wanted)
    command = [sys.executable, "-m", "studiogan_guidance", "sweep", "--num", "40", "--metrics", "fid", "--grid", grid,
               "--out", str(tmp_path)]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    pick, deadline = random.Random(0), time.monotonic() + 240
    for kills in range(2):  # wait for a further point, then kill in the middle of the next ones
        process = start()
        while len(lines(tmp_path)) <= kills and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(pick.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    pair = [start(), start()]
    for process in pair:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert out.count("gandance") == 9
    rows = lines(tmp_path)
    assert sorted(row["options"]["scale"] for row in rows) == pytest.approx(wanted)
    assert not [line for line in (tmp_path / "results.jsonl").read_text().splitlines() if not json.loads(line)]
    assert not list(tmp_path.glob(".*"))  # no locks are left


def test_a_point_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    rows = ok("sweep", *SMALL, "--metrics", "fid", "--grid", "scale=1.5", "--out", tmp_path / "a")["rows"]
    row = rows[1]
    key = results.identity(row)
    (tmp_path / "b" / ".locks").mkdir(parents=True)
    command = [sys.executable, "-m", "studiogan_guidance", "sweep", *map(str, SMALL), "--metrics", "fid", "--grid",
               "scale=1.5", "--out", str(tmp_path / "b")]  # fmt: skip
    with FileLock(tmp_path / "b" / ".locks" / key):
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while len(lines(tmp_path / "b")) < 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        assert process.poll() is None
        assert [found["sampler"] for found in lines(tmp_path / "b")] == ["plain"]
        results.append(tmp_path / "b" / "results.jsonl", [row])  # the other one is done
    assert process.wait(timeout=120) == 0
    assert [found["sampler"] for found in lines(tmp_path / "b")] == ["plain", "gandance"]
    assert not (tmp_path / "b" / ".locks").exists()


def test_mistakes_are_found_before_any_work(tmp_path: Path) -> None:
    for grid, message in (
        (["--sampler", "drs"], "a sweep needs a grid"),
        (["--grid", "scal=1"], "did you mean 'scale'"),
        (["--grid", "scale=1,x"], "gandance.scale must be a number"),
        (["--grid", "scale="], "--grid takes an option and its values"),
        (["--grid", "scale=1", "--grid", "scale=2"], "each option once"),
    ):
        result = run("sweep", *grid, "--out", tmp_path / "o")
        assert result.exit_code == 2
        assert message in result.stderr
        assert not (tmp_path / "o").exists()
