import json
from pathlib import Path

import numpy as np
import pytest

from studiogan_guidance.common import UserError
from studiogan_guidance.evaluation import report


def test_lines_are_added_and_nan_is_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    report.append(path, [{"metrics": {"is": float("nan")}, "classes": (1, 2)}])
    report.append(path, [{"metrics": {"is": 2.5}}])
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {"metrics": {"is": None}, "classes": [1, 2]}
    assert second["metrics"]["is"] == 2.5


def test_a_grid_reads_row_by_row_and_fills_with_white() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 2, 2, 3), np.uint8)
    sheet = report.grid(images, 2)
    assert sheet.shape == (4, 4, 3)
    assert sheet[::2, ::2, 0].tolist() == [[0, 1], [2, 255]]


def test_an_unwritable_folder_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        report.writable(tmp_path / "file" / "runs")


def test_the_table_shows_each_row_and_the_protocol() -> None:
    row = {"sampler": "gandance", "options": {"scale": 1.5, "layers": None}, "metrics": {"fid": 3.25}, "seconds": 1.0}
    text = report.table([{**row, "protocol": {"num": 10}}])
    assert "gandance" in text
    assert "scale=1.5" in text
    assert "3.250" in text
    assert "layers" not in text
    assert text.endswith("protocol: num=10")
