"""A disk that is full, read-only or gone: one line, nothing half-written, and the command goes on later."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ok, run
from kill_points import OUT, VERBS, half_written, temporaries

from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import results
from studiogan_guidance.files import append_lines, read_arrays, replacing, write_arrays, write_bytes


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a given size in memory."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            pytest.skip(f"nothing can be mounted here: {error}")
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """A file that leaves about ``left`` bytes of a disk."""
    path = folder / "filling"
    stat = os.statvfs(folder)
    path.write_bytes(bytes(max(0, stat.f_bavail * stat.f_frsize - left)))
    return path


WORDS = "No space left on device"


def test_lines_that_find_no_space_are_taken_back(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("64k")
    path = disk / "results.jsonl"
    append_lines(path, ["first"])
    filling = fill(disk, 4096)
    with pytest.raises(UserError, match=WORDS):
        append_lines(path, ["x" * 20_000])
    assert path.read_text() == "first\n"
    filling.unlink()
    append_lines(path, ["second"])
    assert path.read_text() == "first\nsecond\n"


def test_a_limit_of_files_is_as_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_lines(path, ["first"])
    with limited(1000):
        with pytest.raises(UserError, match="File too large"):
            append_lines(path, ["x" * 5000])
        with pytest.raises(UserError, match="File too large"):
            write_bytes(tmp_path / "a.bin", bytes(5000))
        with pytest.raises(UserError, match="File too large"), replacing(tmp_path / "a.npz") as temporary:
            np.savez(temporary, values=np.arange(5000))
        write_arrays(tmp_path / "cache.npz", {"values": np.arange(5000)})
    assert path.read_text() == "first\n"
    assert [file.name for file in tmp_path.iterdir()] == ["results.jsonl"]
    assert read_arrays(tmp_path / "cache.npz") is None


@pytest.mark.parametrize(
    ("verb", "left"),
    [("sample", 40_000), ("eval", 1000), ("sweep", 12_000), ("tune", 6000), ("compare", 12_000), ("train", 12_000)],
)
def test_every_verb_ends_in_one_line_and_goes_on_when_there_is_space(
    verb: str, left: int, small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = small_disk("4m")
    filling = fill(disk, left)
    command = [*VERBS[verb].split(), "--out", disk / "out"]
    result = run(*command)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("Note: ")]
    assert line.startswith("Error: cannot write")
    assert WORDS in line
    assert half_written(disk / "out") == []
    assert temporaries(disk) == []

    # With space, it goes on as if nothing had been.
    filling.unlink()
    ok(*command)
    ok(*VERBS[verb].split(), "--out", tmp_path / "whole")
    assert half_written(disk / "out") == []
    rows, expected = (
        {results.identity(row): row["metrics"] for row in results.read(folder / results.FILE)}
        for folder in (disk / "out", tmp_path / "whole")
    )
    assert rows == expected
    for path in (tmp_path / "whole").glob("joint*.*s"):
        assert path.read_bytes() == (disk / "out" / path.name).read_bytes()
    if verb == "sample":
        with np.load(disk / "out/samples.npz") as one, np.load(tmp_path / "whole/samples.npz") as other:
            assert np.array_equal(one["images"], other["images"])


def test_a_cache_without_space_is_done_without(
    small_disk: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*VERBS["pool"].split(), "--out"]
    ok(*command, tmp_path / "whole")
    disk = small_disk("1m")
    fill(disk, 1000)
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(disk / "cache"))
    ok(*command, tmp_path / "full")
    assert (tmp_path / "full/grid.png").read_bytes() == (tmp_path / "whole/grid.png").read_bytes()
    assert not list((disk / "cache").rglob("*.npz"))
    assert temporaries(disk) == []


def test_damaged_caches_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(cache))
    commands = [[*VERBS[verb].split(), "--out", tmp_path / "out"] for verb in ("cache", "pool")]
    rows = [ok(*command) for command in commands]
    files = sorted(cache.rglob("*.npz"))
    assert len(files) >= 5
    for number, path in enumerate(files):
        content = path.read_bytes()
        damages = (
            b"",
            content[: len(content) // 2],
            content[:-1],
            b"text",
            b"PK\3\4" + bytes(200),
            bytes(len(content)),
        )
        path.write_bytes(damages[number % len(damages)])
    again = [ok(*command) for command in commands]
    assert again[0]["rows"][0]["metrics"] == rows[0]["rows"][0]["metrics"]
    assert all(read_arrays(path) for path in files)  # and they are whole again


def test_a_cache_that_is_no_folder_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("")
    for place in (tmp_path / "cache", tmp_path / "cache" / "below", Path("/proc/nowhere")):
        monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(place))
        ok("eval", "--num", 20, "--metrics", "fid", "--no-compare-plain", "--out", tmp_path / "out")
    assert (tmp_path / "cache").read_text() == ""


def test_a_read_only_disk_is_refused_before_any_work(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("1m")
    ok("sample", "--num", 1, "--out", disk / "out")
    before = (disk / "out/samples.npz").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for verb, command in VERBS.items():
        result = run(*command.split(), "--out", disk / OUT.get(verb, "out"))
        assert result.exit_code == 2
        (line,) = [line for line in result.stderr.splitlines() if not line.startswith("Note: ")]
        assert line.startswith(f"Error: cannot write into {disk}/out: Read-only file system")
    assert (disk / "out/samples.npz").read_bytes() == before


def test_a_folder_that_is_removed_in_the_middle_is_one_line_or_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studiogan_guidance.evaluation import evaluation

    folder = tmp_path / "out"
    for verb in ("sample", "eval", "sweep"):
        # The real pass over images, and then the folder is gone.
        generate = evaluation.Evaluation.generate

        def then_removed(*arguments: object, generate: Callable[..., object] = generate) -> object:
            found = generate(*arguments)
            shutil.rmtree(folder, ignore_errors=True)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(evaluation.Evaluation, "generate", then_removed)
            result = run(*VERBS[verb].split(), "--out", folder)
        if result.exit_code:
            assert result.exit_code == 2, result.output
            assert result.stderr.startswith("Error: cannot write ")
            assert "No such file or directory" in result.stderr
        ok(*VERBS[verb].split(), "--out", folder)
        assert half_written(folder) == []


def test_an_output_without_space_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "studiogan_guidance", "list", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert done.returncode == 2
    assert done.stderr == f"Error: cannot write the output: {WORDS}\n"


def test_rows_of_two_processes_do_not_mix(tmp_path: Path) -> None:
    """Two evaluations that end at once: each adds its lines whole."""
    command = [sys.executable, "-m", "studiogan_guidance", *VERBS["eval"].split(), "--out", str(tmp_path)]
    pair = [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(2)]
    assert [process.wait(240) for process in pair] == [0, 0]
    rows = [json.loads(line) for line in (tmp_path / results.FILE).read_text().splitlines()]
    assert len(rows) == 4
    assert len({results.identity(row) for row in rows}) == 2
