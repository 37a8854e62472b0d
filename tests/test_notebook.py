"""The notebook runs, and each of its cells gives what it shows."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pandas")
shells = pytest.importorskip("IPython.core.interactiveshell")
capture = pytest.importorskip("IPython.utils.capture")

FEWER = ("NUM = 1000", "NUM = 40")


def size_of_png(png: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_the_notebook_gives_what_it_shows(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process: a kernel of its own would import torch anew."""
    cells = json.loads((root / "benchmarks" / "tour.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    saved = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    assert sum(FEWER[0] in source for source in sources) == 1
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = shells.InteractiveShell()
    try:
        for source, outputs in zip(sources, saved, strict=True):
            with capture.capture_output():
                done = shell.run_cell(source.replace(*FEWER))
            done.raise_error()
            shown: dict[str, Any] = {} if done.result is None else shell.display_formatter.format(done.result)[0]

            # The same kinds of output, and pictures of the same size; numbers depend on the number of images.
            before = outputs[0]["data"] if outputs else {}
            assert sorted(shown) == sorted(before), source
            assert len(outputs) <= 1
            if "image/png" in shown:
                assert size_of_png(shown["image/png"]) == size_of_png(base64.b64decode(before["image/png"]))
            if "NUM" not in source and "frame" not in source and shown:
                assert shown["text/plain"] == "".join(before["text/plain"])
    finally:
        shell.history_manager.end_session()
