"""The command line as a person at a terminal meets it: helps in sections, completion, progress, interruptions."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import http.server
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.shell_completion import BashComplete
from click.testing import CliRunner
from conftest import run
from rich.console import Console

from studiogan_guidance import progress
from studiogan_guidance.cli import SECTIONS, main, names
from studiogan_guidance.cli import group as groups
from studiogan_guidance.errors import Loudness, detail, loudness, notice
from studiogan_guidance.latents.joint import JOINTS
from studiogan_guidance.progress import Bar, bar, track
from studiogan_guidance.registry import Registry
from studiogan_guidance.samplers import SAMPLERS
from studiogan_guidance.training.stage import STAGES

COMMANDS = sorted(main.commands)


@pytest.fixture(autouse=True)
def _no_open_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback of another test that failed may hold a bar."""
    monkeypatch.setattr(progress, "DISPLAY", progress.Display())


def test_every_command_stands_in_a_section() -> None:
    placed = main.placed()
    assert placed.pop(groups.OTHERS) == []
    assert sorted(name for names in placed.values() for name in names) == COMMANDS


def test_a_command_of_no_section_is_listed_under_others() -> None:
    group = groups.Group("program", sections=SECTIONS)
    for name in ("eval", "new"):
        group.add_command(click.Command(name, short_help="Does something."))
    text = CliRunner().invoke(group, ["--help"]).output
    assert re.search(r"Start here:\n  eval  Does something\.\n\nOthers:\n  new  Does something\.\n", text)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_helps_fit_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(*filter(None, [name]), "--help").output.splitlines()
    assert [line for line in lines if len(line) > 80] == []


def test_options_of_a_big_command_are_in_sections() -> None:
    text = run("tune", "--help").output
    heads = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert heads == [title for title in groups.SECTIONS if title != groups.TRAINED]
    assert text.index("What is sampled:") < text.index("--sampler") < text.index("What is searched:")
    assert text.index("Speed:") < text.index("--batch-size") < text.index("Output:") < text.index("--json")


def test_no_command_prints_the_help_and_a_first_try() -> None:
    result = run()
    assert result.exit_code == 0
    text, _, first_try = result.output.partition("A first try")
    assert text.strip() == run("--help").output.strip()
    commands = [line.split() for line in first_try.splitlines()[1:]]
    assert [words[0] for words in commands] == ["studiogan-guidance"] * 2
    for _, name, *arguments in commands:
        main.commands[name].make_context(name, arguments)  # its options exist


def test_a_mistyped_command_is_answered_with_the_nearest() -> None:
    result = run("evla")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: no command is called 'evla': did you mean 'eval'?")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "registry"), [("SAMPLERS", SAMPLERS), ("JOINTS", JOINTS), ("STAGES", STAGES)])
def test_names_read_from_the_sources_are_those_of_the_registries(name: str, registry: Registry[Any]) -> None:
    known = list(registry)
    assert names.registered(name) == {entry.name: entry.description for entry in known}
    for entry in known:
        if dataclasses.is_dataclass(entry.target):
            fields = [field.name for field in dataclasses.fields(entry.target) if field.init]
            assert sorted(names.options(name, entry.name)) == sorted(fields), entry.name


def completed(*args: str) -> list[str]:
    """What bash is given for the last of these words."""
    complete = BashComplete(main, {}, "studiogan-guidance", "_STUDIOGAN_GUIDANCE_COMPLETE")
    return [item.value for item in complete.get_completions(list(args[:-1]), args[-1])]


def test_words_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("")
    (tmp_path / "builds").mkdir()
    assert set(completed("")) == set(COMMANDS)
    assert completed("eval", "--reference") == ["--reference", "--reference-stats"]
    assert completed("eval", "--sampler", "dd") == ["ddls"]
    assert "mala=" in completed("eval", "--sampler", "ddls", "-o", "")
    assert "mala=" not in completed("eval", "--sampler", "repgan", "-o", "")  # it has a fixed one
    assert completed("eval", "-o", "jo") == ["joint=", "joint_ckpt="]  # of gandance, by default
    assert completed("eval", "-o", "joint=class_s") == ["joint=class_shift", "joint=class_subset"]
    assert completed("sweep", "--grid", "sc") == ["scale="]
    assert completed("compare", "--with", "gandance:scale=1.1,jo") == [
        "gandance:scale=1.1,joint=",
        "gandance:scale=1.1,joint_ckpt=",
    ]
    assert completed("train", "--stage", "am") == ["amortised"]
    assert "parts=" in completed("train", "--stage", "frechet", "-o", "")
    assert completed("eval", "-c", "bui") == ["builtin-gandance.yaml", "builds/"]
    assert completed("eval", "-c", "my") == ["my.yaml"]
    assert completed("eval", "--metrics", "fid,k") == ["fid,kid"]


def test_bash_completes_by_the_script_without_torch(tmp_path: Path) -> None:
    program = tmp_path / "studiogan-guidance"
    code = "import sys; from studiogan_guidance.cli import main; sys.argv[0] = 'studiogan-guidance'\ntry:\n    main()\n"
    code += "finally:\n    sys.exit('torch' in sys.modules)"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    script = f"""
        eval "$({program} completion bash)"
        COMP_WORDS=(studiogan-guidance train --stage lat)
        COMP_CWORD=3
        _studiogan_guidance_completion {program} 2>/dev/null
        echo "${{COMPREPLY[@]}}"
        {program} completion zsh >zsh && {program} completion fish >fish
    """
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "latent_reweighting\n"
    for shell in ("zsh", "fish"):
        assert f"_STUDIOGAN_GUIDANCE_COMPLETE={shell}_complete" in (tmp_path / shell).read_text()


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_the_time_left_is_that_of_the_steps_so_far(clock: Clock) -> None:
    shown = Bar("point", total=12, numbered=True)
    shown.begin(2)
    clock.now += 5
    assert (shown.seconds_left, shown.count, shown.time) == (None, "3 of 12", "0:00:05")
    clock.now += 5
    shown.move(4)
    assert shown.seconds_left == 8 * 5  # two points took 10 seconds
    clock.now += 3
    assert shown.seconds_left == 8 * 5 - 3
    shown.move(12)
    assert (shown.seconds_left, shown.count, shown.reached) == (0, "12 of 12", "12 of 12 points")


def test_elsewhere_than_on_a_terminal_there_is_a_line_now_and_then(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PAUSE", 30.0)
    with bar("sweep"), bar("point", 3, numbered=True) as points:
        points.move(1, "scale=1.1")
        for _ in track(range(80), "images", 160, 2):
            clock.now += 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # 80 seconds
    assert lines[0] == "point 2 of 3 (0:00:00 left) scale=1.1; images 60 of 160 (0:00:50 left)"


def test_bars_are_nested_and_young_ones_are_not_shown(clock: Clock) -> None:
    with bar("sweep"), bar("point", 3, numbered=True):
        clock.now += 2
        with bar("images", 10) as images, bar("metric fid"):
            images.move(4)
            console = Console(width=80, record=True, file=io.StringIO())
            console.print(progress.DISPLAY._table())
            clock.now += 2
            console.print(progress.DISPLAY._table())
    words = [line.split()[:2] for line in console.export_text().splitlines()]
    assert words == [["point", "1"], ["point", "1"], ["images", "4"], ["metric", "fid"]]
    assert progress.DISPLAY.bars == []


def test_an_error_leaves_no_bar_behind() -> None:
    """The traceback keeps the loop over the images, and with it its bar, until it is printed."""
    with pytest.raises(KeyError) as error, bar("sweep"):
        for _ in track(range(3), "images"):
            raise KeyError
    assert error.value.__traceback__
    assert progress.DISPLAY.bars == []


def test_downloads_of_torch_have_a_bar_of_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights.pth").write_bytes(b"0" * 300_000)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/weights.pth"
        seen: list[Bar] = []
        with pytest.MonkeyPatch.context() as patch, progress.downloads("weights"):
            patch.setattr(progress.DISPLAY, "open", seen.append)
            torch.hub.download_url_to_file(address, str(tmp_path / "copy.pth"))
        server.shutdown()
    (shown,) = seen
    assert (shown.what, shown.count, shown.done) == ("weights", "0.3 of 0.3 MB", 300_000)
    assert "%" not in capsys.readouterr().err  # tqdm has shown nothing


def test_quiet_and_verbose_stand_before_or_after_the_command(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("stages: [joint]")  # there is a notice about it
    command = ("sample", "-c", file, "--num", 1, "--out", tmp_path / "o")
    assert run(*command).stderr.startswith("Note: stages (joint)")
    assert run("-q", *command).stderr == run(*command, "--quiet").stderr == ""
    for args in (("-q", *command, "-v"), ("-q", "--verbose", *command)):  # the last one counts
        assert re.search(r"^images of gandance: \d+\.\d\d s$", run(*args).stderr, re.MULTILINE)
    wrong = run("-q", "sample", "--num", 0)
    assert wrong.stderr == "Error: num must be a whole number from 1 up, found 0\n"


def test_details_are_said_by_the_first_process_where_they_are_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> str:
        notice("a")
        detail("b")
        return capsys.readouterr().err

    assert said() == "Note: a\n"
    with loudness(Loudness.VERBOSE):
        assert said() == "Note: a\nb\n"
        with loudness(Loudness.QUIET):
            assert said() == ""
        monkeypatch.setenv("RANK", "1")
        assert said() == ""


@pytest.mark.parametrize(
    ("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)], ids=["SIGINT", "SIGTERM"]
)
def test_what_cannot_be_resumed_says_so(stop: BaseException, code: int) -> None:
    def work() -> None:
        with bar("images of plain", 64) as images:
            images.move(16)
            raise stop

    result = CliRunner().invoke(groups.Verb("sample", callback=work), [])
    assert result.exit_code == code
    assert result.stderr == (
        "stopped after 16 of 64 images of plain: no result is written, and the same command starts anew; what is in "
        "the cache is not computed again\n"
    )


@pytest.mark.parametrize(("numbered", "after"), [(True, " after 3 of 12 points"), (False, "")])
def test_what_goes_on_says_where(numbered: bool, after: str) -> None:
    """A pass that is no point starts anew, but nothing that is finished is lost."""

    def work() -> None:
        with bar("point", 12, numbered=numbered) as points, bar("images", 10):
            points.move(3)
            raise KeyboardInterrupt

    result = CliRunner().invoke(groups.Verb("sweep", callback=work, resumes=True), [])
    assert result.exit_code == 130
    assert result.stderr == f"stopped{after}: {groups.THERE if numbered else groups.LATER}\n"


def on_a_terminal(args: list[str], awaited: str, number: int) -> tuple[int, str]:
    """The exit code of a command that gets a signal once its terminal shows a pattern, and all that it showed."""
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(number, signal.SIG_DFL)  # commands in the background of a shell are deaf to SIGINT
        os.execv(sys.executable, [sys.executable, "-m", "studiogan_guidance", *args])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    shown = b""
    is_sent = False
    with contextlib.suppress(OSError):  # the terminal is closed
        while part := os.read(terminal, 1 << 16):
            shown += part
            if not is_sent and re.search(awaited.encode(), shown):
                os.kill(process, number)
                is_sent = True
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), shown.decode()


def test_a_sweep_that_is_interrupted_on_a_terminal_says_how_to_go_on(tmp_path: Path) -> None:
    scales = ",".join(f"{1 + i / 100:g}" for i in range(60))
    args = ["sweep", "--num", "150", "--metrics", "fid", "--grid", f"scale={scales}", "--out", str(tmp_path)]
    code, shown = on_a_terminal(args, r"point \d+ of 60.*gandance", signal.SIGINT)
    assert code == 130
    points = re.findall(r"point (\d+) of 60 .* \d:\d\d:\d\d left gandance scale=(\d\.?\d*)", shown)
    assert points
    assert all(float(scale) == 1 + (int(number) - 1) / 100 for number, scale in points)

    # The bar is cleared, and one line is left.
    last = shown.rpartition("\x1b[2K")[2].replace("\x1b[?25h", "").strip()
    count = len((tmp_path / "results.jsonl").read_text().splitlines())
    assert last == f"stopped after {count} of 60 points: the same command goes on there"
