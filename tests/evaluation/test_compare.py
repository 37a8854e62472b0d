"""Samplers beside each other on the built-in GAN: the numbers of eval, equal seeds, and nothing that is not alike."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ok, run
from PIL import Image
from torch import Tensor

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import results, tables
from studiogan_guidance.evaluation.compare import summary
from studiogan_guidance.evaluation.tables import non_default_options
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.registry import Entry
from studiogan_guidance.samplers import SAMPLERS, Plain

SMALL = ["--num", 50, "--metrics", "fid,prdc", "--batch-size", 25]
STACKED = "ddls:steps=1,step=0.05,calibration=none,base=gandance,base.scale=1.5"


def test_rows_are_those_of_eval_with_cost_time_table_and_picture(tmp_path: Path) -> None:
    command = [
        "compare",
        *SMALL,
        "--with",
        STACKED,
        "--with",
        "plain",
        "--with",
        "gandance:scale=1.5",
        "--out",
        tmp_path,
    ]
    result = ok(*command)
    assert [row["label"] for row in result["rows"]] == ["plain", "ddls", "gandance"]  # plain first, and once
    plain, stacked, guided = result["rows"]
    by_eval = ok("eval", *SMALL, "-o", "scale=1.5", "-o", "joint=class_mean", "--out", tmp_path / "eval")["rows"]
    for row, other in zip((plain, guided), by_eval):
        assert {key: value["mean"] for key, value in row["metrics"].items()} == other["metrics"]
        assert {value["std"] for value in row["metrics"].values()} == {None}
        assert result["protocol"] == other["protocol"]
    assert (plain["cost"]["synthesis"], plain["time"]) == (1, 1)
    assert stacked["cost"]["synthesis"] == stacked["cost"]["discriminator"] == 2  # on the way, and at the end
    assert (stacked["cost"]["backward"], stacked["cost"]["mapping"]) == (1, 2 * 10)  # class_mean maps for 10 classes
    seconds = [row["cost"]["sampling_seconds"] for row in (stacked, plain)]
    assert stacked["time"] == pytest.approx(seconds[0] / seconds[1])
    assert stacked["differs"]["base"] == {"name": "gandance", "scale": 1.5}
    text = (tmp_path / "compare.txt").read_text()
    assert "ddls      base=gandance(scale=1.5) calibration=none steps=1 step=0.05" in text
    assert text.splitlines()[0].split()[-6:] == ["accuracy", "mapping", "G", "D", "backward", "time"]
    assert json.loads((tmp_path / "compare.json").read_text()) == result
    with (tmp_path / "compare.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["sampler"] for row in table] == ["plain", "ddls", "gandance"]
    assert float(table[1]["fid"]) == stacked["metrics"]["fid"]["mean"]
    assert table[1]["base"].startswith("gandance(scale=1.5 joint=class_mean")
    assert float(table[1]["notes.score"]) == stacked["notes"]["score"]
    assert np.asarray(Image.open(tmp_path / "compare.png")).std() > 10
    before = (tmp_path / "results.jsonl").read_bytes()
    assert ok(*command) == result  # nothing is measured again
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert ok("compare", tmp_path, "--out", tmp_path / "again") == result
    assert not (tmp_path / "again" / "results.jsonl").exists()
    (printed,) = (run("compare", tmp_path / "results.jsonl", "--out", tmp_path / "again").stdout,)
    assert printed == text


def test_several_seed_ranges_give_mean_and_deviation(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("compare: [plain, {name: gandance, scale: 1.5}]")
    common = ["--num", 50, "--metrics", "fid", "-c", tmp_path / "c.yaml", "--seed", 7]
    result = ok("compare", *common, "--repeats", 3, "--out", tmp_path)
    assert result["protocol"]["seed"] == [7, 57, 107]
    lines = results.read(tmp_path / "results.jsonl")
    for row in result["rows"]:
        found = {line["protocol"]["seed"]: line for line in lines if line["sampler"] == row["sampler"]}
        fids = [found[seed]["metrics"]["fid"] for seed in (7, 57, 107)]
        assert row["metrics"]["fid"]["values"] == fids
        assert row["metrics"]["fid"]["mean"] == pytest.approx(np.mean(fids))
        assert row["metrics"]["fid"]["std"] == pytest.approx(np.std(fids, ddof=1))
        seconds = [found[seed]["cost"]["sampling_seconds"] for seed in (7, 57, 107)]
        assert row["cost"]["sampling_seconds"] == pytest.approx(statistics.mean(seconds))
    fid = result["rows"][1]["metrics"]["fid"]
    text = (tmp_path / "compare.txt").read_text()
    assert f"{fid['mean']:.3f} ± {fid['std']:.3f}" in text

    # The difference to plain, over equal seeds, whose noise cancels in part.
    plain, guided = result["rows"]
    differences = np.subtract(fid["values"], plain["metrics"]["fid"]["values"])
    paired = guided["paired"]["fid"]
    assert paired == pytest.approx({"mean": differences.mean(), "se": differences.std(ddof=1) / 3**0.5})
    assert paired["se"] < np.hypot(fid["std"], plain["metrics"]["fid"]["std"]) / 3**0.5
    assert plain["paired"] == {}
    assert f"{paired['mean']:+.3f} ± {paired['se']:.3f}" in text
    assert "dFID, daccuracy: difference to plain" in text.splitlines()[-2]
    with (tmp_path / "compare.csv").open() as file:
        line = list(csv.DictReader(file))[1]
    assert (float(line["fid_paired"]), float(line["fid_paired_se"])) == (paired["mean"], paired["se"])
    assert not (tmp_path / "compare.png").exists()  # neither precision nor density
    one = ok("compare", *common, "--with", "gandance:scale=2", "--out", tmp_path)["rows"]  # instead of the list
    assert [(row["sampler"], row["options"].get("scale")) for row in one] == [("plain", None), ("gandance", 2)]
    added = results.read(tmp_path / "results.jsonl")[len(lines) :]
    assert [row["options"].get("scale") for row in added] == [2]  # plain was there


def a_row(sampler: str = "plain", seed: int = 0, fid: float = 1.0, **other: Any) -> dict[str, Any]:
    return {
        "sampler": sampler,
        "options": {"scale": 1.5} if sampler == "gandance" else {},
        "metrics": {"fid": fid},
        "protocol": {"num": 10, "labels": "uniform", **other.pop("protocol", {}), "seed": seed},
        "cost": {"synthesis": 1.0},
        "seconds": 1.0,
        "generator": {"sha256": "a", **other.pop("generator", {})},
        **other,
    }


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"protocol": {"num": 20}}, r"different num cannot be compared: found 10 \(plain\) and 20 \(gandance\)"),
        ({"protocol": {"labels": "data"}}, r"different labels .* uniform \(plain\) and data \(gandance\)"),
        ({"protocol": {"resizer": "clean"}}, r"different resizer .* None \(plain\) and clean \(gandance\)"),
        ({"seed": 5}, r"different seed .* found 0 \(plain\) and 5 \(gandance\)"),
        ({"generator": {"sha256": "b"}}, r"different generator .* found a \(plain\) and b \(gandance\)"),
    ],
)
def test_rows_that_are_not_alike_are_refused_by_the_first_difference(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        summary([a_row(), a_row("gandance", **other)])
    results.append(tmp_path / "results.jsonl", [a_row(), a_row("gandance", **other)])
    result = run("compare", tmp_path, "--out", tmp_path / "o")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()


def evaluated(sampler: str, **protocol: Any) -> dict[str, Any]:
    """A row as ``eval`` writes it."""
    return results.row(
        sampler,
        {"scale": 1.5} if sampler == "gandance" else {},
        metrics={"is": 2.0},
        protocol={"num": 12, "seed": 11, "files": [["a.png", 10]], **protocol},
        cost={"synthesis": 1.0, "sampling_seconds": 0.5},
        seconds=1.0,
        generator={"backbone": "big_resnet", "source": "model=G.pth", "sha256": "weights", "model_sha256": "model"},
        config=RunConfig().to_dict(),
        device="cpu",
    )


def in_a_run(sampler: str, **protocol: Any) -> dict[str, Any]:
    """A row as the host's own run writes it, of the same weights and data."""
    row = evaluated(sampler, **protocol)
    generator = {**row["generator"], "source": "checkpoints", "step": 2}
    sections = {"run_name": "r", "DATA": {"name": "Tiny"}, "MODEL": {}, "RUN": {"ref_dataset": "valid"}}
    return {**row, "generator": generator, "config": sections, "cost": {"synthesis": 1.0}, "time": "later"}


def test_rows_of_a_host_run_stand_beside_rows_of_eval() -> None:
    rows = summary([evaluated("plain"), in_a_run("gandance")])["rows"]
    assert [row["sampler"] for row in rows] == ["plain", "gandance"]
    assert [row["time"] for row in rows] == [1, None]  # timed elsewhere
    (row,) = summary([evaluated("gandance"), in_a_run("gandance")])["rows"]  # one sampler, one seed: the last one
    assert row["generator"]["step"] == 2
    for key, other in (("files", [["a.png", 11]]), ("num_real", 3)):
        with pytest.raises(UserError, match=f"rows of different {key}"):
            summary([evaluated("plain"), in_a_run("gandance", **{key: other})])
    other = in_a_run("gandance")
    other["generator"] = {**other["generator"], "sha256": "later weights"}
    with pytest.raises(UserError, match=r"different generator .* weights \(plain\) and later weights \(gandance\)"):
        summary([evaluated("plain"), other])


def test_unguided_runs_of_the_host_have_seeds_of_their_own() -> None:
    rows = [evaluated("gandance"), evaluated("plain"), in_a_run("plain", seed="the host's 11")]
    with pytest.raises(UserError, match=r"seed .* 11, the host's 11 \(plain\) and 11 \(gandance\)"):
        summary(rows)


def test_rows_of_other_maths_are_refused() -> None:
    row = evaluated("gandance")
    row["environment"] = {**row["environment"], "maths": 0}
    with pytest.raises(UserError, match="different maths"):
        summary([evaluated("plain"), row])


def test_all_samplers_need_the_same_seeds_and_the_last_of_equal_rows_counts() -> None:
    rows = [a_row(seed=seed, fid=seed) for seed in (0, 10, 20)]
    with pytest.raises(UserError, match=r"seed .* found 0, 10, 20 \(plain\) and 0, 10 \(gandance\)"):
        summary([*rows, a_row("gandance", 0), a_row("gandance", 10)])
    guided = [a_row("gandance", seed, fid=2) for seed in (20, 0, 10)]
    result = summary([*guided, *rows, a_row(seed=10, fid=40)])
    assert [row["sampler"] for row in result["rows"]] == ["plain", "gandance"]  # whatever their order
    assert result["rows"][0]["metrics"]["fid"]["values"] == [0, 40, 20]
    learned = [a_row("gandance", generator={"joint_sha256": word}) for word in "xy"]  # the same options, other files
    assert len(summary([a_row(), *learned])["rows"]) == 3


def test_differences_need_plain_and_several_ranges() -> None:
    rows = [a_row(seed=seed, fid=seed) for seed in (0, 10)]
    guided = [a_row("gandance", seed, fid=seed / 2 + 4) for seed in (0, 10)]
    (_, several) = summary([*rows, *guided])["rows"]
    assert several["paired"]["fid"] == {"mean": 1.5, "se": 2.5}  # of 4 and -1
    once = summary([rows[0], guided[0]])
    assert once["rows"][1]["paired"]["fid"] == {"mean": 4, "se": None}
    assert "dFID" not in tables.compared(once)
    assert summary(guided)["rows"][0]["paired"] == {}


def test_without_plain_there_is_no_ratio_of_times_and_names_are_told_apart() -> None:
    rows = [a_row("gandance"), {**a_row("gandance"), "options": {"scale": 2.0}}]
    found = summary(rows)["rows"]
    assert [row["time"] for row in found] == [None, None]
    assert [row["label"] for row in found] == ["gandance scale=1.5", "gandance scale=2.0"]


def test_only_what_differs_from_the_defaults_is_told() -> None:
    assert non_default_options("gandance", {"scale": 1.2, "joint": "class_shift", "subset": 8, "psi": None}) == {
        "joint": "class_shift"
    }
    base = {"name": "gandance", "scale": 1.2, "keep_norm": True}
    assert non_default_options("ddls", {"base": base, "steps": 1000, "mala": False}) == {
        "base": {"name": "gandance", "keep_norm": True}
    }
    assert non_default_options("of_another_package", {"a": 1, "b": None}) == {"a": 1, "b": "none"}


@dataclass(frozen=True)
class Unfit(Plain):
    """Refused before anything is measured."""

    def check(self, view: LatentView) -> None:
        raise UserError("this generator will\nnot do")


@dataclass(frozen=True)
class Late(Plain):
    """Refused by what it finds on its way."""

    def images(self, view: LatentView, inputs: Inputs) -> Tensor:
        raise UserError("nothing to calibrate on")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of four samplers, two of which are refused."""
    kept = {name: SAMPLERS[name] for name in ("gandance", "plain")}
    odd = {name: Entry(name, cls, "", "") for name, cls in (("unfit", Unfit), ("late", Late))}
    monkeypatch.setattr(SAMPLERS, "_entries", odd | kept)


@pytest.mark.usefixtures("few")
def test_with_all_every_sampler_is_measured_that_is_not_refused(tmp_path: Path) -> None:
    result = run("compare", "--all", "--num", 40, "--metrics", "fid", "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    assert [row["sampler"] for row in json.loads(result.stdout)["rows"]] == ["plain", "gandance"]
    assert result.stderr.splitlines() == [
        "unfit is left out: this generator will not do",
        "late is left out: nothing to calibrate on",
    ]
    assert [row["sampler"] for row in results.read(tmp_path / "results.jsonl")] == ["plain", "gandance"]
    for name, message in (("unfit", "unfit: this generator will not do"), ("late", "late: nothing to calibrate on")):
        result = run("compare", "--num", 40, "--metrics", "fid", "--with", name, "--out", tmp_path / name)
        assert result.exit_code == 2  # what was asked for by name is not passed over
        assert result.stderr == f"Error: {message}\n"
        assert not list((tmp_path / name).glob("compare.*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--with", "gandanc"), "did you mean 'gandance'"),
        (("--with", "gandance:scal=1"), "did you mean 'scale'"),
        (("--with", "gandance:scale"), "--with takes a sampler such as"),
        (("--with", "gandance:"), "--with takes a sampler such as"),
        (("--with", "ddls:base.scale=1.1"), "ddls.base must be a name or a mapping with a name"),
        ((), "no samplers to compare: add --with NAME[:KEY=VALUE,...] for each of them, or --all for every one"),
        (("--all", "--with", "plain"), "--all is for every sampler, and a list of samplers is given"),
        (("-c", "CIFAR10/BigGAN-compare.yaml", "--all"), "--all is for every sampler, and a list of samplers is given"),
        (("--repeats", "0"), "--repeats must be a whole number from 1 up, found 0"),
        (("nowhere",), "no results in nowhere"),
        (("nowhere", "--with", "plain"), "RESULTS are only read"),
        (("nowhere", "--all"), "RESULTS are only read"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("compare", *args, "--out", "o")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("o").exists()


def test_ranges_of_seeds_end_where_those_of_images_do(tmp_path: Path) -> None:
    common = ["--num", 100, "--seed", 2**31 - 250, "--out", tmp_path]
    for command, count in ((["compare", "--repeats", 3, "--with", "plain"], 300), (["tune"], 400)):
        result = run(*command, *common)
        assert result.exit_code == 2
        assert f"{count} images from seed" in result.stderr
        assert not list(tmp_path.iterdir())
