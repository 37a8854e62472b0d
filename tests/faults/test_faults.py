"""Every row of the table of faults is refused in one line, with exit code 2; nothing is left behind, no code is run."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import CHECKOUT
from fault_files import MARKER, Maker, Place
from fault_table import FAULTS, Fault
from host_models import save

from studiogan_guidance.cli import main

PATIENCE = 20  # seconds, after which a row hangs
WITHOUT_OUT = (
    "list",
    "run",
    "doctor",
    "setup",
    "foo",
    "evl",
    "report",
    "models",
    "completion",
)  # commands that take no --out


class Hang(BaseException):
    """A row that does not end; no handler of the package may take it for an error of its own."""


@contextmanager
def guarded() -> Iterator[None]:
    """Raise Hang in whatever does not end."""

    def ring(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path] | None:
    return save("resnet", CHECKOUT, tmp_path_factory.mktemp("model")) if CHECKOUT else None


def _name(fault: Fault) -> str:
    words = [word if isinstance(word, str) else getattr(word, "__name__", "file") for word in fault.arguments]
    return f"{fault.kind}: {' '.join(words)}".encode("ascii", "backslashreplace").decode().replace("\0", "")[:80]


def _marked(fault: Fault) -> Any:
    return pytest.param(fault, id=_name(fault), marks=[pytest.mark.studiogan] if fault.needs_host else [])


@pytest.mark.parametrize("fault", map(_marked, FAULTS))
def test_a_fault_is_refused_in_one_line(
    fault: Fault, model: tuple[Path, Path] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Make the files, and the command line.
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path, model)

    def made(word: str | Maker) -> str:
        return word if isinstance(word, str) else word(place)

    arguments = [str(model[1]) if model and word == "@" else made(word) for word in fault.arguments]
    out = tmp_path / "out"
    if not fault.own_out and fault.verb not in WITHOUT_OUT:
        arguments += ["--out", str(out)]

    # Run it.
    environment = {name: made(value) for name, value in fault.environment.items()}
    with guarded():
        result = CliRunner().invoke(main, arguments, env=environment)
    assert isinstance(result.exception, SystemExit), (result.exception, result.output)
    assert result.exit_code == 2, result.output

    # One line, below the usage if it is about the words themselves.
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Note: ")]
    if lines[0].startswith("Usage: "):
        lines = lines[3:] if lines[2] == "" else lines[2:]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for words in fault.words:
        assert words in lines[0]

    # Nothing is left behind, and nothing hostile was run.
    left = [path.name for path in out.rglob("*") if path.is_file()]
    assert left in ([], list(fault.leaves))
    assert not (tmp_path / MARKER).exists()


def test_the_table_is_large_and_about_every_verb() -> None:
    assert len(FAULTS) >= 150
    verbs = Counter(fault.verb for fault in FAULTS)
    assert set(verbs) >= set(main.commands)
    assert len({_name(fault) for fault in FAULTS}) > 100
