"""One image file: the pixels of Pillow where nothing is guessed, else a sentence that names the file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from image_kinds import READ, REFUSED, noise, png
from PIL import Image, PngImagePlugin

from studiogan_guidance.errors import UserError
from studiogan_guidance.host.image_files import open_image


@pytest.mark.parametrize("kind", READ)
def test_pixels_are_those_of_pillow(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(READ[kind]())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a palette with transparent colours
        expected = Image.open(path).convert("RGB")
        found = open_image(path)
    assert (found.mode, found.size) == ("RGB", expected.size)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_guessed_or_is_damaged_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    content, words = REFUSED[kind]
    path = tmp_path / "a b.png"
    path.write_bytes(content())
    with pytest.raises(UserError) as error:
        open_image(path)
    assert f"the image {path}" in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_grey_of_16_bits_would_be_clipped(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    values = np.array([[0, 100 * 257, 65535]], np.uint16)
    Image.fromarray(values).save(path)
    clipped = np.asarray(Image.open(path).convert("RGB"))[..., 0]
    assert clipped.tolist() != [[0, 100, 255]]  # what the table above guards against
    with pytest.raises(UserError, match="more than 8 bits"):
        open_image(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: os.mkfifo(path), "a pipe or a device"),
        (lambda path: path.mkdir(), "it is a folder"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: path.symlink_to("/dev/zero"), "a pipe or a device"),
    ],
)
def test_what_is_no_file_is_never_waited_for(make: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(UserError, match=f"cannot read the image {path}: .*{words}"):
        open_image(path)


def test_a_file_without_the_right_to_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(READ["RGB"]())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    with pytest.raises(UserError, match=f"cannot read the image {path}: Permission denied"):
        open_image(path)


STARTS = [READ[name]() for name in ("RGB", "palette", "opaque RGBA", "JPEG", "TIFF", "WebP", "BMP", "PPM")]
depths = st.sampled_from((1, 2, 4, 8, 16, 3))
small_pngs = st.builds(png, depths, st.integers(0, 7), st.binary(max_size=20))  # with checksums that are right
changes = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8)
cuts = st.one_of(st.none(), st.integers(0, 400))


def mutated(start: bytes, changed: list[tuple[int, int]], cut: int | None) -> bytes:
    content = bytearray(start)
    for place, value in changed:
        content[place % len(content)] = value
    return bytes(content[:cut])


def opened_or_refused(path: Path) -> Image.Image | str:
    try:
        return open_image(path)
    except UserError as error:
        return str(error)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.one_of(st.binary(max_size=200), st.builds(mutated, st.sampled_from(STARTS), changes, cuts), small_pngs))
@example(b"II*\x00\x08\x00\x00\x00")
@example(b"\x89PNG\r\n\x1a\n")
@example(b"\xff\xd8\xff")
def test_any_bytes_are_pixels_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.png"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = opened_or_refused(path)
        if isinstance(image, str):
            assert str(path) in image
        else:
            assert image.tobytes() == Image.open(path).convert("RGB").tobytes()


def test_text_in_a_png_is_no_bomb(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "0" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    path = tmp_path / "a.png"
    noise().save(path, pnginfo=info)
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match=f"cannot read the image {path}: "):
        open_image(path)
