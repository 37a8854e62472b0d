"""Results as text and as a table for a spreadsheet."""

from __future__ import annotations

import csv
from pathlib import Path

from studiogan_guidance.evaluation import tables
from studiogan_guidance.options import dotted


def test_the_table_shows_each_row_and_the_protocol() -> None:
    row = {"sampler": "gandance", "options": {"scale": 1.5, "layers": None}, "metrics": {"fid": 3.25}, "seconds": 1.0}
    text = tables.table([{**row, "protocol": {"num": 10}}])
    assert "gandance" in text
    assert "scale=1.5" in text
    assert "3.250" in text
    assert "layers" not in text
    assert text.endswith("protocol: num=10")


def test_options_are_shown_that_guide_or_tell_rows_of_a_name_apart() -> None:
    default = {"scale": 1.2, "joint": "class_mean", "subset": 8, "psi": None, "tau": 1.0}
    assert tables.telling_options([{"sampler": "gandance", "options": default}]) == [{"scale": 1.2}]
    shifted = {"sampler": "gandance", "options": {**default, "scale": 1.0, "joint": "class_shift"}}
    first, second, other = tables.telling_options(
        [{"sampler": "gandance", "options": default}, shifted, {"sampler": "of_another_package", "options": {"a": 1}}]
    )
    assert first == {"scale": 1.2, "joint": "class_mean"}
    assert second == {"scale": 1.0, "joint": "class_shift"}
    assert other == {"a": 1}


BASE = {"name": "gandance", "scale": 1.1, "joint": "class_mean", "psi": None, "keep_norm": False}


def test_a_base_reads_as_one_word() -> None:
    options = {"steps": 0, "mala": False, "base": {**BASE, "base": {"name": "plain"}}}
    assert tables.format_options(options) == "steps=0 base=gandance(scale=1.1 joint=class_mean base=plain)"
    assert dotted(options)["base.base"] == "plain"


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


def test_distances_in_other_spaces_stand_behind_fid() -> None:
    metrics = {"fid": 12.0, "recall": 0.5, "fid@random": 0.0123456, "fid@a": 98765.4}
    rows = [{"sampler": "plain", "options": {}, "metrics": metrics, "protocol": {}, "seconds": 1.0}]
    heading, line, *_ = tables.table(rows).splitlines()
    assert heading.split() == ["sampler", "options", "FID", "FID@random", "FID@a", "recall", "s"]
    assert line.split() == ["plain", "12.000", "0.01235", "9.877e+04", "0.500", "1.0"]


def test_a_metric_without_a_heading_is_shown_under_its_own_name() -> None:
    row = {
        "sampler": "plain",
        "options": {},
        "metrics": {"mmd": 0.000123456, "fid": 2.0},
        "seconds": 1.0,
        "protocol": {},
    }
    heading, values, *_ = tables.table([row]).splitlines()
    assert heading.split() == ["sampler", "options", "FID", "mmd", "s"]
    assert values.split() == ["plain", "2.000", "0.000123456", "1.0"]
