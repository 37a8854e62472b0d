"""Grids and strips of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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


@pytest.mark.parametrize("columns", [1, 2, 7, 15])
def test_a_strip_comes_back_from_its_file(columns: int, tmp_path: Path) -> None:
    sheet = np.random.default_rng(0).integers(0, 256, (64, columns * 32, 3), np.uint8)
    strip = pictures.Strip(sheet, [f"scale={column} <b>\u00e9" for column in range(columns)])
    pictures.save_strip(tmp_path / "strip.png", strip)
    again = pictures.read_strip(tmp_path / "strip.png")
    assert again is not None
    assert again.captions == strip.captions
    assert np.array_equal(np.concatenate(again.columns, 1), sheet)


def test_a_picture_that_is_no_strip_is_none(tmp_path: Path) -> None:
    path = tmp_path / "strip.png"
    sheet = np.zeros((40, 64, 3), np.uint8)
    assert pictures.read_strip(path) is None
    pictures.save_png(path, sheet)
    assert pictures.read_strip(path) is None
    for facts in ({"captions": [], "shape": [40, 64]}, {"captions": ["a"], "shape": [99, 0]}, ["a"], "a"):
        pictures.save_png(path, sheet, facts=facts)
        assert pictures.read_strip(path) is None
    path.write_bytes(path.read_bytes()[:60])
    assert pictures.read_strip(path) is None
