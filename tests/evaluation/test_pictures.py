"""Charts and grids of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from studiogan_guidance.evaluation import pictures


def test_a_grid_reads_row_by_row_and_fills_with_white() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 2, 2, 3), np.uint8)
    sheet = pictures.grid(images, 2)
    assert sheet.shape == (4, 4, 3)
    assert sheet[::2, ::2, 0].tolist() == [[0, 1], [2, 255]]


def a_row(scale: float, joint: str, fid: float | None = 1.0) -> dict[str, Any]:
    options = {"scale": scale, "joint": joint, "base": {"name": "plain"}}
    return {"sampler": "gandance", "options": options, "metrics": {"fid": fid, "precision": 0.5, "recall": 0.5}}


def test_lines_of_a_chart_are_called_by_what_differs(tmp_path: Path) -> None:
    rows = [a_row(scale, joint) for scale in (1.5, 0.8) for joint in ("class_mean", "global_mean")]
    lines = pictures._chart_lines(rows, "scale")
    assert [label for label, _ in lines] == ["joint=class_mean", "joint=global_mean"]
    assert [[value for value, _ in points] for _, points in lines] == [[0.8, 1.5]] * 2
    assert [label for label, _ in pictures._chart_lines(rows[::2], "scale")] == ["gandance"]
    pictures.save_charts(tmp_path, [*rows, a_row(2, "class_mean", fid=None)], "scale", None)
    assert [file.name for file in tmp_path.iterdir()] == ["precision_recall.png"]  # one row has no FID
