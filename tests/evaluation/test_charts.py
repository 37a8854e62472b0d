"""Charts of results: what their lines are called, and names that cover nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from studiogan_guidance.evaluation import charts


def a_row(scale: float, joint: str, fid: float | None = 1.0) -> dict[str, Any]:
    options = {"scale": scale, "joint": joint, "base": {"name": "plain"}}
    return {"sampler": "gandance", "options": options, "metrics": {"fid": fid, "precision": 0.5, "recall": 0.5}}


def test_lines_of_a_chart_are_called_by_what_differs(tmp_path: Path) -> None:
    rows = [a_row(scale, joint) for scale in (1.5, 0.8) for joint in ("class_mean", "global_mean")]
    lines = charts.chart_lines(rows, "scale")
    assert [label for label, _ in lines] == ["joint=class_mean", "joint=global_mean"]
    assert [[value for value, _ in points] for _, points in lines] == [[0.8, 1.5]] * 2
    assert [label for label, _ in charts.chart_lines(rows[::2], "scale")] == ["gandance"]
    charts.save_charts(tmp_path, [*rows, a_row(2, "class_mean", fid=None)], "scale", None)
    assert [file.name for file in tmp_path.iterdir()] == ["precision_recall.png"]  # one row has no FID


def test_names_of_points_cover_neither_each_other_nor_a_point() -> None:
    """As near scale 1, where precision and recall hardly change; and on the frame."""
    figure = Figure((5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    points = [(0.5 + 0.004 * i, 0.7 - 0.002 * i, f"{0.8 + i / 20:g}") for i in range(12)]
    points += [(0, 0, "metropolis steps=640"), (1, 1, "cluster_truncation")]
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o")
    charts.name_points(figure, axes, points)

    names = [text for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in names]
    assert [text.get_text() for text in names] == [text for _, _, text in points]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*axes.transData.transform((x, y))) for x, y, _ in points)
        assert axes.get_window_extent().expanded(1.01, 1.01).containsx(box.x1)


def test_samplers_of_a_family_have_one_colour_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(charts, "save", lambda chart, path: figures.append(chart.figure))
    names = ("plain", "gandance", "truncation", "ddls", "of_another_package")
    spread = {"mean": 0.5, "std": None}
    rows = [{"sampler": name, "label": name, "metrics": {"recall": spread, "precision": spread}} for name in names]
    charts.save_scatter(tmp_path / "compare.png", {"rows": rows})

    (figure,) = figures
    (legend,) = figure.legends
    assert len(legend.texts) == len({charts._style_of(name)[2] for name in names})
    assert [text.get_text() for text in figure.axes[0].texts if text.get_text()] == list(names)
