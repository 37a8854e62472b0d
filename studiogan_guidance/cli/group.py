"""How commands look and end: helps in sections, a mistake in one line with exit code 2, SIGTERM as Ctrl-C does."""

from __future__ import annotations

import errno
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from studiogan_guidance import progress
from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.errors import Loudness, Stopped, UserError, loudness, nearest, one_line, torchrun_number

ARGUMENTS = "studiogan_guidance.arguments"  # of the command that runs, in the context of click
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors of a disk that takes no more
LEVEL = "studiogan_guidance.loudness"  # in the context of click
OTHERS = "Others"

# The sections of helps, in their order.
SAMPLED = "What is sampled"
SEARCHED = "What is searched"
TRAINED = "What is trained"
FILES = "Which checkpoint and images"
MEASURED = "What is measured"
SPEED = "Speed"
OUTPUT = "Output"
SECTIONS = (SAMPLED, SEARCHED, TRAINED, FILES, MEASURED, SPEED, OUTPUT)

# How to go on after a command that was stopped.
THERE = "the same command goes on there"
LATER = "what is finished is kept, and the same command goes on"
ANEW = "no result is written, and the same command starts anew; what is in the cache is not computed again"


class Mistake(click.ClickException):
    """A user's mistake: one line on stderr, exit code 2, no traceback."""

    exit_code = 2


class Option(click.Option):
    """An option with the name of its section of the help."""

    def __init__(self, *args: Any, section: str = "", **more: Any) -> None:
        super().__init__(*args, **more)
        self.section = section


def _remember_level(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[LEVEL] = Loudness[str(param.name).upper()]


def loudness_options() -> list[click.Parameter]:
    """``-v`` and ``-q``; the last one on the command line counts, whether before or after the command."""
    texts = {"verbose": "Say also what each step took, and what came from the cache.", "quiet": "Say errors only."}
    return [
        Option(
            [f"-{name[0]}", f"--{name}"],
            is_flag=True,
            expose_value=False,
            callback=_remember_level,
            help=text,
            section=OUTPUT,
        )
        for name, text in texts.items()
    ]


class Verb(click.Command):
    """A command that takes ``-v`` and ``-q``, shows progress, and says how to go on after Ctrl-C and SIGTERM.

    Args:
        resumes: the same command goes on where it was stopped.
    """

    def __init__(self, *args: Any, resumes: bool = False, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params += loudness_options()
        self.resumes = resumes

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = list(args)  # for what keeps the command beside its results
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        level = ctx.meta.get(LEVEL, Loudness.NORMAL)
        with loudness(level), _warnings(level), self._stopped(), _stopped_by_sigterm(), progress.bar(str(self.name)):
            return super().invoke(ctx)

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        """Say how to go on, where a signal ends the with-block and nobody has said it; the exit code tells of it."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as stop:
            number = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
            is_signal = isinstance(stop, KeyboardInterrupt) or stop.code == 128 + number
            line = self._line(progress.reached())
            progress.clear()
            if isinstance(stop, Stopped) or not is_signal:
                raise
            if torchrun_number("RANK", 0) == 0:
                click.echo(line, err=True)
            raise Stopped(128 + number) from None

    def _line(self, reached: progress.Bar | None) -> str:
        """How far the command came, and how to go on."""
        is_there = self.resumes and reached is not None and reached.numbered
        after = f" after {reached.reached}" if reached and (is_there or not self.resumes) else ""
        return f"stopped{after}: {THERE if is_there else LATER if self.resumes else ANEW}"

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options section by section; those without one come first."""
        rows: dict[str, list[tuple[str, str]]] = {name: [] for name in ("", *SECTIONS)}
        for parameter in self.get_params(ctx):
            record = None if isinstance(parameter, click.Argument) else parameter.get_help_record(ctx)
            section = OUTPUT if "--help" in parameter.opts else getattr(parameter, "section", "")
            if record:
                rows[section].append(record)

        # In a small help, sections would be longer than what they hold.
        if not any(rows[name] for name in SECTIONS if name != OUTPUT):
            rows = {"": rows[""] + rows[OUTPUT]}
        _write_sections(formatter, {name or "Options": records for name, records in rows.items()})


class Group(click.Group):
    """Commands in sections; a user's mistake is reported in one line, under torchrun by the first that finds one.

    Args:
        sections: the commands of each section of the help; those of no section come last, under "Others".
    """

    command_class = Verb

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params += loudness_options()
        self.sections = dict(sections or {})

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with loudness(ctx.meta.get(LEVEL, Loudness.NORMAL)), _mistakes():
                return super().invoke(ctx)
        except click.ClickException as error:
            from studiogan_guidance.evaluation.distributed import is_first_to_fail

            if is_first_to_fail():
                raise
            raise click.exceptions.Exit(error.exit_code) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; an unknown command is answered with the nearest one."""
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            raise UserError(f"no command is called '{name}': {nearest(name, self.commands)}")
        return super().resolve_command(ctx, args)

    def placed(self) -> dict[str, list[str]]:
        """The names of the commands by section."""
        known = {name for names in self.sections.values() for name in names}
        others = [name for name in self.commands if name not in known]
        placed = {title: [name for name in names if name in self.commands] for title, names in self.sections.items()}
        return {**placed, OTHERS: others}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in self.placed().values() for name in names]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections = {
            title: [(name, self.commands[name].get_short_help_str(limit=80)) for name in names]
            for title, names in self.placed().items()
        }
        _write_sections(formatter, sections)


def _write_sections(formatter: click.HelpFormatter, sections: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


@contextmanager
def _warnings(level: Loudness) -> Iterator[None]:
    """Warnings of libraries, but for ``-q``."""
    with warnings.catch_warnings():
        if level == Loudness.QUIET:
            warnings.simplefilter("ignore")
        yield


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Raise SystemExit on SIGTERM, where it would end the process at once.

    Processes of torchrun end at once: they wait for each other where Python hears no signals.
    """
    # Leave alone what hears no signals, or answers them by itself.
    is_alone = torchrun_number("WORLD_SIZE", 1) == 1
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_alone and is_main) or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    # End by an exception, and by the same exit code whatever Python makes of it.
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Exception:
        if received:  # Python makes another error of a SystemExit in some places, such as the body of a class
            raise SystemExit(128 + received[0]) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _mistakes() -> Iterator[None]:
    """Turn every UserError, a full disk, and memory that ran out, into a Mistake."""
    try:
        yield
    except UserError as error:
        raise Mistake(one_line(error, limit=10_000)) from error

    # A disk.
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise Mistake(f"cannot write {error.filename or 'the output'}: {error.strerror}") from error

    # Memory.
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = one_line(error, limit=120)
        raise Mistake(
            f"out of memory ({reason}): use smaller batches (--batch-size), end what else uses the GPU, or use "
            "--device cpu"
        ) from error
