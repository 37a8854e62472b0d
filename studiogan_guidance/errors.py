"""The user's error, what is said on stderr beside it, and the words that both are made of."""

from __future__ import annotations

import difflib
import enum
import functools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake that the user can correct: one line that names what was asked, what was found and what to do.

    The command line prints it without a traceback and exits with code 2.

    Example:
        >>> str(UserError("Caught UserError in a process.\\nTraceback of it\\nUserError: the file"))
        'the file'
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(text.rpartition(f"{UserError.__name__}: ")[2].strip())  # torch puts a traceback before it


class Stopped(SystemExit):
    """An end by a signal, of which the user has been told; its code is 128 and the number of the signal."""


class Loudness(enum.IntEnum):
    """How much is said on stderr beside errors."""

    QUIET = 0  # nothing
    NORMAL = 1  # progress and notices
    VERBOSE = 2  # also the seconds of each step, and what a cache had


_levels = [Loudness.NORMAL]  # the last one counts


@contextmanager
def loudness(level: Loudness) -> Iterator[None]:
    """Say as much as ``level`` in a with-block."""
    _levels.append(level)
    try:
        yield
    finally:
        _levels.pop()


def is_said(level: Loudness = Loudness.NORMAL) -> bool:
    """Whether this process says what needs ``level``; of the processes of torchrun, the first one speaks."""
    return _levels[-1] >= level and torchrun_number("RANK", 0) == 0


def say(text: str, level: Loudness = Loudness.NORMAL) -> None:
    """Print a line on stderr, where that much is said."""
    if is_said(level):
        print(text, file=sys.stderr)


def nearest(name: str, known: Iterable[str], most: int = 40) -> str:
    """The tail of an error about an unknown name: the nearest known one, and the first ``most`` of all."""
    names = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known: {listed(names, most)}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first ``most`` names, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(error: BaseException, limit: int = 160) -> str:
    """The text of an error as one line of at most ``limit`` characters; the name of its type if it has no text.

    Example:
        >>> one_line(ValueError("first  line\\nsecond line"), limit=14)
        'first line sec'
    """
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:limit]


def typed(error: BaseException, limit: int = 200) -> str:
    """The type and the text of an error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:limit]


def torchrun_number(name: str, default: int, least: int = 0) -> int:
    """A variable of the environment that torchrun sets, such as RANK; ``default`` in a process that it did not start.

    Raises:
        UserError: the variable is no whole number from ``least`` up.
    """
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise UserError(f"the environment variable {name} is '{text}', and torchrun sets a whole number: unset it")
    return int(text)


def notice(text: str) -> None:
    """Say in one line what a value depends on that the user may not expect."""
    say(f"Note: {' '.join(text.split())}")


notice_once = functools.cache(notice)  # the same line is said once


def detail(text: str) -> None:
    """Say, where the user wants details, what a step did and how long it took."""
    say(text, Loudness.VERBOSE)
