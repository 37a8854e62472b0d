"""A package of somebody else's: installed beside this one, its sampler is listed, measured and compared by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

MODULE = """
from dataclasses import dataclass, replace

from studiogan_guidance import UserError
from studiogan_guidance.samplers import SAMPLERS, Sampled, Sampler


@SAMPLERS.register("negative", "dark becomes light", "none")
@dataclass(frozen=True)
class Negative(Sampler):
    strength: float = 1.0
    limit: int = 2**40

    def images(self, view, inputs):
        if int(inputs.seeds.max()) >= self.limit:
            raise UserError(f"no seed from {self.limit} up")
        view.ledger.cost["proposed"] += 2 * len(inputs.seeds)
        view.ledger.cost["accepted"] += len(inputs.seeds)
        return -self.strength * view.images(inputs)

    def sampled(self, view, inputs):
        return Sampled(self.images(view, inputs), {"seed": inputs.seeds.float()})
"""
SETUP = """
[metadata]
name = negative-sampler
version = 1.0
[options]
py_modules = negative_sampler
[options.entry_points]
studiogan_guidance.samplers =
    negative = negative_sampler
"""
BUILD = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
SMALL = ("--num-images", 60, "--batch-size", 30, "--metrics", "fid,prdc")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it, as pip leaves it there."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "negative_sampler.py").write_text(MODULE)
    able = [sys.executable, "-c", "import setuptools.command.bdist_wheel, pip"]  # in this order
    if subprocess.run(able, check=False, capture_output=True).returncode == 0:
        (source / "setup.cfg").write_text(SETUP)
        (source / "pyproject.toml").write_text(BUILD)
        flags = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
        subprocess.run([sys.executable, "-m", "pip", "install", *flags, str(source)], check=True)
    else:  # an environment that cannot build packages: what pip would have written
        (target / "negative_sampler.py").write_text(MODULE)
        info = target / "negative_sampler-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: negative-sampler\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[studiogan_guidance.samplers]\nnegative = negative_sampler\n")
    return target


def call(site: Path, *args: object, torchrun: int = 0) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, which finds the package."""
    head = ["-m", "torch.distributed.run", "--nproc-per-node", torchrun] if torchrun else []
    command = [sys.executable, *head, "-m", "studiogan_guidance", *args]
    env = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=300)


def test_it_is_listed_with_its_options(site: Path) -> None:
    done = call(site, "list", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in json.loads(done.stdout)["samplers"] if row["name"] == "negative"]
    assert row == {
        "name": "negative",
        "description": "dark becomes light",
        "paper": "none",
        "family": "",
        "needs": [],
        "neutral": None,
        "options": {"strength": 1.0, "limit": 2**40},
    }


def test_it_is_measured_from_a_yaml_and_compared(site: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"sampler": "negative", "k": 3}))
    done = call(site, "eval", "-c", tmp_path / "my.yaml", *SMALL, "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    plain, negative = json.loads(done.stdout)["rows"]
    assert (negative["sampler"], negative["protocol"]["k"]) == ("negative", 3)
    assert plain["metrics"]["precision"] > 0.8
    assert negative["metrics"]["precision"] < 0.2  # white digits have become black ones on white
    assert negative["metrics"]["fid"] > 2 * plain["metrics"]["fid"]
    assert negative["notes"] == {"seed": 29.5}  # the mean of 0 to 59
    assert negative["cost"]["acceptance"] == 0.5
    flags = ["-c", tmp_path / "my.yaml", *SMALL, "--with", "negative", "--with", "plain", "--out", tmp_path]
    done = call(site, "compare", *flags)
    assert done.returncode == 0, done.stderr
    heading, first, second, *_ = (line.split() for line in done.stdout.splitlines())
    assert (first[0], second[0]) == ("plain", "negative")
    assert float(second[heading.index("FID") - 1]) == pytest.approx(negative["metrics"]["fid"], abs=1e-3)  # no options
    assert second[heading.index("accepted") - 1] == "0.5"
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2  # both were there from eval
    done = call(Path(), "compare", tmp_path, "--out", tmp_path / "read", "--json")  # rows of a package that is gone
    assert done.returncode == 0, done.stderr
    assert [row["sampler"] for row in json.loads(done.stdout)["rows"]] == ["plain", "negative"]


def test_two_processes_merge_its_notes_and_refuse_together(site: Path, tmp_path: Path) -> None:
    flags = [*SMALL, "--with", "negative", "--with", "negative:limit=45", "--out", tmp_path]
    done = call(site, "compare", *flags, torchrun=2)
    assert done.returncode == 1  # torchrun's own
    assert done.stderr.count("Error: negative: no seed from 45 up") == 1  # one speaks; only rank 1 has such seeds
    _, negative = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert negative["notes"] == {"seed": 29.5}
    assert negative["cost"]["acceptance"] == 0.5
    assert negative["environment"]["device"] == "cpu, 2 processes"
    assert not list(tmp_path.glob("compare.*"))


def test_a_package_that_cannot_be_imported_is_named_and_the_rest_works(site: Path, tmp_path: Path) -> None:
    broken = tmp_path / "site"
    shutil.copytree(site, broken)
    (broken / "negative_sampler.py").write_text("import no_such_module")
    reason = "cannot import sampler 'negative' of negative-sampler 1.0 (entry point negative_sampler: "
    done = call(broken, "sample", "--num", 2, "--out", tmp_path / "runs")
    assert (done.returncode, done.stderr) == (0, "")
    done = call(broken, "sample", "--sampler", "negative", "--out", tmp_path / "runs")
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {reason}")
    assert done.stderr.count("\n") == 1
    done = call(broken, "list")
    assert (done.returncode, done.stderr.startswith(reason)) == (0, True)
    assert "gandance" in done.stdout
    done = call(broken, "doctor", "--json")
    (check,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "other packages"]
    assert check["status"] == "warn"
    assert check["found"].startswith(reason)
