"""``tune --auto`` on the built-in GAN, and what ``scale: auto`` stands for afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ToyGAN, ok, run, toy_networks

from studiogan_guidance import samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import auto as free
from studiogan_guidance.evaluation import results
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.options import Spec
from studiogan_guidance.samplers import choices
from studiogan_guidance.training.auto import Way, auto

SMALL = ["--num", 240, "--metrics", "fid", "--judge", "random"]
BUDGET = ["--auto", "--budget", 8, "--repeats", 2]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("auto")
    return folder, ok("tune", *SMALL, *BUDGET, "--out", folder)


def test_a_budget_is_spent_on_parts_of_the_images_and_everything_is_written(chosen: tuple[Path, Any]) -> None:
    folder, result = chosen
    assert result["evaluations"] <= 8
    rows = results.read(folder / "results.jsonl")
    assert sum(row["protocol"]["num"] / 240 for row in rows) == pytest.approx(result["evaluations"], abs=1e-6)
    parts = [row for row in rows if row["protocol"]["num"] < 240]
    assert {row["protocol"]["num"] for row in parts} == {120}  # smaller ones have too few images
    assert {row["protocol"]["labels"] for row in parts} == {"in turn"}
    assert not any("fid@random" in row["metrics"] for row in parts)
    whole = [row for row in rows if row["protocol"]["num"] == 240]
    assert all("fid@random" in row["metrics"] for row in whole)
    kinds = {trial["kind"] for trial in result["trials"]}
    assert {"scale and spread", "gaussian"} <= kinds

    # The comparison on fresh seeds, recomputed from the rows.
    fresh = [row for row in whole if row["protocol"]["seed"] > 0]
    by_plain: dict[bool, list[float]] = {True: [], False: []}
    for row in fresh:
        by_plain[row["sampler"] == "plain"].append(row["metrics"]["fid"])
    differences = [a - b for a, b in zip(by_plain[False], by_plain[True], strict=True)]
    assert len(differences) == 2
    assert result["paired"]["fid"]["mean"] == pytest.approx(sum(differences) / 2)
    interval = result["interval"]
    assert (interval["low"] + interval["high"]) / 2 == pytest.approx(sum(differences) / 2)
    assert result["is_plain"] == (interval["high"] >= 0 or result["judges"]["fid@random"]["low"] > 0)
    assert json.loads((folder / "tuned.json").read_text())["choice"] == result["choice"]


def test_the_same_command_measures_nothing_again(chosen: tuple[Path, Any]) -> None:
    folder, result = chosen
    before = (folder / "results.jsonl").read_bytes()
    again = ok("tune", *SMALL, *BUDGET, "--out", folder)
    assert (folder / "results.jsonl").read_bytes() == before
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    text = run("tune", *SMALL, *BUDGET, "--out", folder).stdout
    assert result["reason"] in text
    assert "-o scale=auto" in text


def test_auto_stands_for_the_choice(chosen: tuple[Path, Any], tmp_path: Path) -> None:
    _, result = chosen
    choice = dict(result["choice"])
    small = ["--num", 60, "--metrics", "fid", "--no-compare-plain"]
    (row,) = ok("eval", *small, "-o", "scale=auto", "--out", tmp_path)["rows"]
    assert row["sampler"] == choice.pop("name")
    assert {key: row["options"][key] for key in choice} == choice
    file = tmp_path / "auto.yaml"
    file.write_text("sampler: {name: gandance, scale: auto}\n")
    sampled = ok("sample", "-c", file, "--num", 4, "--out", tmp_path / "s")
    assert {key: sampled["options"][key] for key in choice} == choice
    (same,) = ok("eval", *small, "-c", result["config"], "--out", tmp_path / "e")["rows"]
    assert same["metrics"] == row["metrics"]
    compared = ok("compare", *small[:4], "--with", "gandance:scale=auto", "--out", tmp_path / "c")["rows"]
    assert compared[-1]["metrics"]["fid"]["mean"] == row["metrics"]["fid"]
    written = yaml.safe_load(Path(result["config"]).read_text())
    assert written["sampler"] == result["choice"]


@pytest.fixture
def view() -> LatentView:
    return view_for(toy_networks(ToyGAN(between=1.234), "a toy of its own"))


def test_a_choice_belongs_to_the_weights(view: LatentView) -> None:
    asked = samplers.create("gandance", {"scale": "auto"})
    with pytest.raises(UserError, match="make it with 'studiogan-guidance tune --auto'"):
        samplers.checked(asked, view)
    choices.keep(choices.facts(view, Spec("gandance", {"scale": 1.4, "joint": "class_shift", "psi": 1.2})))
    images = [
        next(sampler.stream(view, range(5), 5, LabelPlan())).images
        for sampler in (asked, samplers.create("gandance:scale=1.4,joint=class_shift,psi=1.2"))
    ]
    assert torch.equal(*images)
    with torch.no_grad():
        view.generator.scale.add_(1)  # another step of the training
    with pytest.raises(UserError, match="needs an earlier choice"):
        samplers.checked(asked, view_for(view.networks))


def test_a_choice_beside_the_checkpoint_comes_first(view: LatentView, tmp_path: Path) -> None:
    choices.keep(choices.facts(view, Spec("gandance", {"scale": 1.4})))
    beside = tmp_path / choices.FILE
    view.networks.__dict__["source"] = str(tmp_path)
    assert choices._find(view).options["scale"] == 1.4
    beside.write_text(json.dumps(choices.facts(view, Spec("plain"))))
    assert choices._find(view) == Spec("plain")
    beside.write_text("{")  # damaged, as if there were none
    assert choices._find(view).options["scale"] == 1.4


def test_what_is_learned_is_tried_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stage of a few steps, and one whose options are refused."""
    few = {"steps": 2, "pool": 100, "batch": 20, "eval_every": 0, "save_every": 1, "hidden": 8, "depth": 1}
    ways = [
        Way("latent_reweighting", few, "latent_reweighting", "weights_ckpt", "base", {"proposals": 4}, ranges={}),
        Way("joint", {"steps": -1}, fixed={"joint": "learned"}),
    ]
    cfg = RunConfig(out=str(tmp_path), num=100, metrics=("fid",), judges=("random",))
    result = auto(cfg, True, budget=12, repeats=2, ways=ways)
    assert "joint is left out: " in capsys.readouterr().err
    kinds = {trial["kind"] for trial in result["trials"]}
    assert "latent_reweighting" in kinds
    assert "joint" not in kinds
    start = free.best_start(cfg, budget=12, repeats=2)
    (learned,) = [trial for trial in result["trials"] if trial["kind"] == "latent_reweighting"]
    assert learned["options"]["base"] == start.sampler
    assert Path(learned["options"]["weights_ckpt"]).exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--auto", "--sampler", "drs"], "--auto chooses among settings of gandance, found 'drs'"),
        (["--auto", "--budget", 5], "give 2 repeats or more and a --budget from 12"),
        (["--auto", "--per-layer", 2], "--auto searches without"),
        (["--auto", "--objective", "fidd"], "did you mean 'fid'"),
        (["--auto", "-o", "threshold=0.5"], "leave out what has an effect at scale 1"),
        (["--train"], "add --auto"),
        (["-o", "scale=auto"], "tune searches for what auto stands for"),
    ],
)
def test_mistakes_are_found_before_any_work(tmp_path: Path, args: list[object], message: str) -> None:
    result = run("tune", *args, "--out", tmp_path / "o")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "o").exists()


def test_auto_takes_no_other_options() -> None:
    with pytest.raises(UserError, match="leave out psi"):
        samplers.create("gandance", {"scale": "auto", "psi": 0.9})
