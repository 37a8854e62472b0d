from __future__ import annotations

import multiprocessing
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studiogan_guidance import files
from studiogan_guidance.errors import UserError, notice
from studiogan_guidance.files import replacing

KEY = {"version": 1, "of": "numbers"}


def one() -> files.Arrays:
    return {"value": np.arange(3)}


def never() -> files.Arrays:
    raise AssertionError("computed again")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_unwritable_place_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), replacing(tmp_path / "file" / "a.txt") as temporary:
        temporary.write_text("x")
    (tmp_path / "folder" / "in the way").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write"), replacing(tmp_path / "folder") as temporary:
        temporary.write_text("x")  # the rename fails
    with pytest.raises(UserError, match="No space left"), replacing(tmp_path / "b.txt") as temporary:
        raise OSError(28, "No space left on device")
    with pytest.raises(UserError, match="cannot write"), replacing(tmp_path / "c.txt") as temporary:
        temporary.open("r")  # about the temporary file


def test_an_error_about_another_file_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing.txt"), replacing(tmp_path / "a.txt"):
        (tmp_path / "missing.txt").read_text()
    assert not list(tmp_path.iterdir())


def test_digests_are_those_of_the_content(tmp_path: Path) -> None:
    assert files.json_digest({"b": 1, "a": (2, Path("x"))}) == files.json_digest({"a": [2, "x"], "b": 1})
    assert files.json_digest({}) == "44136fa355b3678a1146ad16f7e8649e"
    assert len(files.json_digest({}, 64)) == 64
    (tmp_path / "empty").write_bytes(b"")
    assert files.file_digest(tmp_path / "empty").startswith("e3b0c44298fc1c14")
    with pytest.raises(FileNotFoundError):
        files.file_digest(tmp_path / "missing")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_arrays_are_computed_once_for_each_key(cache: Path) -> None:
    assert files.cached("tables", KEY, one)["value"].tolist() == [0, 1, 2]
    assert files.cached("tables", KEY, never)["value"].tolist() == [0, 1, 2]
    assert files.cache_path("tables", KEY) == cache / "tables" / f"{files.json_digest(KEY)}.npz"
    with pytest.raises(AssertionError):
        files.cached("tables", {**KEY, "version": 2}, never)
    with pytest.raises(AssertionError):
        files.cached("tables", KEY, never, enabled=False)


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_file_is_computed_again(cache: Path, damage: bytes | None) -> None:
    files.cached("tables", KEY, one)
    path = files.cache_path("tables", KEY)
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    assert files.read_arrays(path) is None
    assert files.cached("tables", KEY, one)["value"].tolist() == [0, 1, 2]
    assert files.cached("tables", KEY, never)["value"].tolist() == [0, 1, 2]


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / "file" / "cache"))
    with files.locked(files.cache_path("tables", KEY)) as held:
        assert not held
    assert files.cached("tables", KEY, one)["value"].tolist() == [0, 1, 2]


def test_an_error_of_the_computation_is_its_own(cache: Path) -> None:
    def compute() -> files.Arrays:
        raise OSError(5, "Input/output error", "/data/images.hdf5")

    with pytest.raises(OSError, match="Input/output error") as error:
        files.cached("tables", KEY, compute)
    assert not isinstance(error.value, UserError)
    assert not list(cache.rglob("*.npz"))


def test_a_lock_that_another_has_is_waited_for_or_not_held(cache: Path) -> None:
    path = files.cache_path("tables", KEY)
    with files.locked(path) as first, files.locked(path, wait=False) as second:
        assert first
        assert not second
    with files.locked(path, wait=False) as held:
        assert held


def _ask(ready: Any, answers: Any) -> None:
    path = files.cache_path("tables", KEY)
    assert files.read_arrays(path) is None
    ready.wait(20)
    answers.put((os.getpid(), int(files.cached("tables", KEY, lambda: {"value": np.array([os.getpid()])})["value"][0])))


def test_two_processes_compute_once(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, answers = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_ask, args=(ready, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    pairs = [answers.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    assert len({asked for asked, _ in pairs}) == 2
    assert len({answer for _, answer in pairs}) == 1  # both have the arrays of one of them


def test_only_files_are_opened(tmp_path: Path) -> None:
    """A named pipe would be waited for; broken links and links to themselves end in the sentence of the system."""
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "broken").symlink_to(tmp_path / "missing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")

    for name in ("file", "link"):
        assert files.regular_file(tmp_path / name, "the checkpoint") == tmp_path / name
    refused = {
        "": "folder",
        "pipe": "pipe",
        "missing": "No such",
        "broken": "No such",
        "loop": "Too many",
        "\0": "null",
    }
    for name, reason in refused.items():
        path = tmp_path / name
        with pytest.raises(UserError, match=f"cannot read the checkpoint {re.escape(str(path))}: .*{reason}"):
            files.regular_file(path, "the checkpoint")
    with pytest.raises(UserError, match="device"):
        files.regular_file(Path("/dev/null"), "the checkpoint")


def test_a_notice_is_one_line_of_the_first_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notice("two\nlines")
    monkeypatch.setenv("RANK", "1")
    notice("not here")
    assert capsys.readouterr() == ("", "Note: two lines\n")
