import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import pictures, results, tables


def test_lines_are_added_and_nan_is_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results.append(path, [{"metrics": {"is": float("nan")}, "classes": (1, 2)}])
    results.append(path, [{"metrics": {"is": 2.5}}])
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {"metrics": {"is": None}, "classes": [1, 2]}
    assert second["metrics"]["is"] == 2.5


def test_a_grid_reads_row_by_row_and_fills_with_white() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 2, 2, 3), np.uint8)
    sheet = pictures.grid(images, 2)
    assert sheet.shape == (4, 4, 3)
    assert sheet[::2, ::2, 0].tolist() == [[0, 1], [2, 255]]


def test_an_unwritable_folder_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        results.writable(tmp_path / "file" / "runs")


def test_the_table_shows_each_row_and_the_protocol() -> None:
    row = {"sampler": "gandance", "options": {"scale": 1.5, "layers": None}, "metrics": {"fid": 3.25}, "seconds": 1.0}
    text = tables.table([{**row, "protocol": {"num": 10}}])
    assert "gandance" in text
    assert "scale=1.5" in text
    assert "3.250" in text
    assert "layers" not in text
    assert text.endswith("protocol: num=10")


BASE = {"name": "gandance", "scale": 1.1, "joint": "class_mean", "psi": None, "keep_norm": False}


def test_a_base_reads_as_one_word() -> None:
    options = {"steps": 0, "mala": False, "base": {**BASE, "base": {"name": "plain"}}}
    assert tables.format_options(options) == "steps=0 base=gandance(scale=1.1 joint=class_mean base=plain)"
    assert tables.dotted(options)["base.base"] == "plain"


def test_the_csv_has_a_column_for_each_thing_and_loses_none_of_equal_names(tmp_path: Path) -> None:
    row = {
        "sampler": "ddls",
        "seconds": 1.0,
        "options": {"k": 3, "base": BASE},
        "metrics": {"fid": 2.0},
        "cost": {"synthesis": 5.0, "acceptance": 0.5},
        "setup": {"synthesis": 64},
        "notes": {"acceptance": 0.25},
        "protocol": {"k": 5},
    }
    plain = {**row, "sampler": "plain", "options": {}, "notes": {}, "setup": {}}
    tables.save_csv(tmp_path / "t.csv", [plain, row])
    with (tmp_path / "t.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["k"], first["options.k"], first["setup.synthesis"]) == ("5", "", "")
    assert second == {
        "sampler": "ddls",
        "seconds": "1.0",
        "options.k": "3",
        "base": "gandance(scale=1.1 joint=class_mean)",
        "fid": "2.0",
        "synthesis": "5.0",
        "acceptance": "0.5",
        "setup.synthesis": "64",
        "notes.acceptance": "0.25",
        "k": "5",
    }


def test_rows_of_other_files_are_other_rows() -> None:
    row: dict[str, Any] = {
        "sampler": "plain",
        "options": {},
        "protocol": {"num": 10},
        "generator": {"backbone": "b", "sha256": "a", "model_sha256": "m"},
        "config": {"metrics": ["fid"]},
        "environment": {"studiogan_guidance": "0.1.0"},
    }

    def identity(**more: str) -> str:
        return results.identity({**row, "generator": {**row["generator"], **more}})

    assert identity() == "f953c3f5713363b8c1445520caebd04d"  # as before there were such files
    assert identity(joint_sha256="j") == "f8790d88c1512b3c3d26a3b9e92d4299"
    others = [{}, {"discriminator_sha256": "d"}, {"discriminator_sha256": "e"}, {"calibrated_on": "valid split"}]
    others += [{"discriminator_sha256": "d", "calibrated_on": "valid split"}, {"joint_sha256": "j"}]
    assert len({identity(**other) for other in others}) == len(others)
    assert identity(source="elsewhere") == identity()
