"""Charts and grids of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from studiogan_guidance.evaluation import pictures


def test_a_grid_reads_row_by_row_and_fills_with_white() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 2, 2, 3), np.uint8)
    sheet = pictures.grid(images, 2)
    assert sheet.shape == (4, 4, 3)
    assert sheet[::2, ::2, 0].tolist() == [[0, 1], [2, 255]]


@pytest.mark.parametrize(
    ("shape", "factor"),
    [
        ((32, 32, 3), 4),
        ((3, 32, 32, 3), 4),
        ((48, 48, 3), 3),
        ((2, 64, 64, 3), 2),
        ((127, 127, 3), 2),
        ((128, 128, 3), 1),
        ((256, 256, 3), 1),
        ((5_000, 32, 32, 3), 3),  # more would be over 2**26 pixels
    ],
)
def test_pixels_of_small_images_become_squares(shape: tuple[int, ...], factor: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    large = pictures.enlarged(image)
    assert large.shape == (*shape[:-3], shape[-3] * factor, shape[-2] * factor, 3)
    for row, column in ((0, 0), (factor - 1, factor - 1)):
        assert np.array_equal(large[..., row::factor, column::factor, :], image)


CAPTIONS = ["1.25 class_subset", "joint=class_subset, scale=1.25", "1", "threshold=None " + 40 * "w", "plain"]


@pytest.mark.parametrize("count", range(1, 17))
def test_captions_of_small_images_stay_in_their_columns(count: int) -> None:
    captions = [CAPTIONS[i % len(CAPTIONS)] for i in range(count)]
    sheet = np.random.default_rng(0).integers(0, 256, (64, count * 32, 3), np.uint8)
    picture = pictures.captioned(sheet, captions)

    # Each pixel is a square of pixels below the captions.
    width = picture.shape[1] // count
    factor = width // 32
    head, body = np.split(picture, [len(picture) - factor * 64])
    assert factor >= 3
    assert np.array_equal(body, np.kron(sheet, np.ones((factor, factor, 1), np.uint8)))

    # Black somewhere in each column, white all around the text.
    dark = (head < 128).all(2).reshape(len(head), count, width)
    assert dark.any((0, 2)).all()
    bright = (head == 255).all(2).reshape(len(head), count, width)
    assert bright[:, :, [0, 1, -2, -1]].all()
    assert bright[[0, 1, -2, -1]].all()
    for column in range(len(CAPTIONS), count):  # equal texts are equal ink
        assert np.array_equal(dark[:, column], dark[:, column - len(CAPTIONS)])


@pytest.mark.parametrize("height", [4, 16, 128])
def test_a_name_stands_left_of_its_row(height: int) -> None:
    names = ["real", "reconstructed", "real"]
    sheet = np.random.default_rng(0).integers(0, 256, (3 * height, 40, 3), np.uint8)
    picture = pictures.named_rows(sheet, names)

    # Each pixel is a square of pixels right of the names.
    factor = len(picture) // len(sheet)
    margin, body = np.split(picture, [picture.shape[1] - 40 * factor], 1)
    assert len(picture) >= 3 * pictures.LINE
    assert factor == 1 or height < pictures.LINE
    assert np.array_equal(body, np.kron(sheet, np.ones((factor, factor, 1), np.uint8)))

    # Equal names are equal ink, each within its row, and the longest within the margin.
    dark = (margin < 128).all(2).reshape(3, -1, margin.shape[1])
    assert np.array_equal(dark[0], dark[2])
    assert dark[1].sum() > dark[0].sum() > 0
    assert not dark[:, [0, -1]].any()
    assert not dark[:, :, [0, -1]].any()


def test_large_images_are_left_as_they_are_and_lines_lose_nothing() -> None:
    sheet = np.zeros((8, 300, 3), np.uint8)
    assert np.array_equal(pictures.captioned(sheet, ["1", "2"])[-8:], sheet)
    for text in CAPTIONS:
        for most in range(1, 30):
            lines = pictures.wrapped(text, lambda line, most=most: len(line) <= most)
            assert max(map(len, lines)) <= most
            assert "".join("".join(lines).split()) == "".join(text.split())


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


def test_names_of_points_cover_neither_each_other_nor_a_point() -> None:
    """As near scale 1, where precision and recall hardly change; and on the frame."""
    figure = Figure((5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    points = [(0.5 + 0.004 * i, 0.7 - 0.002 * i, f"{0.8 + i / 20:g}") for i in range(12)]
    points += [(0, 0, "metropolis steps=640"), (1, 1, "cluster_truncation")]
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o")
    pictures.name_points(figure, axes, points)

    names = [text for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in names]
    assert [text.get_text() for text in names] == [text for _, _, text in points]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*axes.transData.transform((x, y))) for x, y, _ in points)
        assert axes.get_window_extent().expanded(1.01, 1.01).containsx(box.x1)


def test_samplers_of_a_family_have_one_colour_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    names = ("plain", "gandance", "truncation", "ddls", "of_another_package")
    spread = {"mean": 0.5, "std": None}
    rows = [{"sampler": name, "label": name, "metrics": {"recall": spread, "precision": spread}} for name in names]
    pictures.save_scatter(tmp_path / "compare.png", {"rows": rows})

    (figure,) = figures
    (legend,) = figure.legends
    assert len(legend.texts) == len({pictures._style_of(name)[1] for name in names})
    assert [text.get_text() for text in figure.axes[0].texts if text.get_text()] == list(names)
