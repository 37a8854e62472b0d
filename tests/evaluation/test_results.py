"""The lines of results.jsonl: whole, identified, and shared by processes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import results
from studiogan_guidance.files import locked


def test_lines_are_added_and_nan_is_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results.append(path, [{"metrics": {"is": float("nan")}, "classes": (1, 2)}])
    results.append(path, [{"metrics": {"is": 2.5}}])
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {"metrics": {"is": None}, "classes": [1, 2]}
    assert second["metrics"]["is"] == 2.5


def test_an_unwritable_folder_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        results.writable(tmp_path / "file" / "runs")


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


def test_a_paired_difference_has_no_noise_that_both_share() -> None:
    noise = [3.0, -5.0, 40.0]
    assert results.paired([n + 2 for n in noise], noise) == {"mean": 2, "se": 0}
    assert results.paired([1.0, 3.0, 8.0], [0.0, 1.0, 2.0]) == pytest.approx({"mean": 3, "se": (7 / 3) ** 0.5})
    assert results.paired([1.0, None], [0.0, 1.0]) == {"mean": None, "se": None}
    with pytest.raises(ValueError, match="shorter"):
        results.paired([1.0, 2.0], [0.0])


def test_rows_of_other_maths_are_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    facts: dict[str, Any] = {"sampler": "plain", "options": {}, "protocol": {"num": 10}, "generator": {"sha256": "a"}}
    row = results.row(**facts, metrics={}, cost={}, seconds=1.0, config={}, device="cpu")
    assert results.identity(row) == results.identity(facts)  # as it is asked for before it is measured
    monkeypatch.setattr(results, "__version__", "9.9")
    assert results.identity({**row, "environment": {**row["environment"], results.PACKAGE: "9.9"}}) == (
        results.identity(facts)
    )
    monkeypatch.setattr(results, "MATHS", results.MATHS + 1)
    assert results.identity(row) != results.identity(facts)
    before = {**row, "environment": {results.PACKAGE: "0.1.0"}}  # from before there was the constant
    assert results.identity(before) != results.identity(row)


APPEND = """
import sys
from pathlib import Path
from studiogan_guidance.evaluation import results
for i in range(100):
    results.append(Path(sys.argv[1]), [{"process": sys.argv[2], "i": i, "text": "x" * 20_000}])
"""


def test_processes_share_a_file_and_leave_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"cut": ')  # by a process that was killed
    command = [sys.executable, "-c", APPEND, str(path)]
    pair = [subprocess.Popen([*command, name]) for name in "ab"]
    assert [process.wait(timeout=120) for process in pair] == [0, 0]
    rows = results.read(path)
    assert sorted((row["process"], row["i"]) for row in rows) == [(name, i) for name in "ab" for i in range(100)]
    assert len(path.read_bytes().splitlines()) == 201
    assert [file.name for file in tmp_path.iterdir()] == ["results.jsonl"]


@pytest.mark.skipif(sys.platform == "win32", reason="locks of another kind")
def test_a_file_system_without_locks_is_told_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    for number in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
        folder = tmp_path / str(number)
        folder.mkdir()
        for _ in range(2):
            lock = results.claim(folder, "a")
            assert lock is not None  # the point is free to be measured
            assert not lock.is_locked  # and nothing is left that would outlive this process
        assert len(capsys.readouterr().err.splitlines()) == 1
        with locked(folder / "table.npz") as held:
            assert not held


def test_a_point_has_one_owner_and_its_lock_goes_with_it(tmp_path: Path) -> None:
    lock = results.claim(tmp_path, "a")
    assert lock is not None
    assert results.claim(tmp_path, "a") is None
    other = results.claim(tmp_path, "b")
    assert other is not None
    lock.release()
    results.remove_locks(tmp_path, ["a"])
    assert (tmp_path / results.LOCKS / "b").exists()  # another grid's
    other.release()
    results.remove_locks(tmp_path, ["b", "c"])
    assert not list(tmp_path.iterdir())
    (tmp_path / results.LOCKS).mkdir()
    with FileLock(tmp_path / results.LOCKS / "a"):
        assert results.claim(tmp_path, "a") is None
