"""How a command ends: a mistake in one line with exit code 2, and SIGTERM as Ctrl-C does."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.errors import UserError, one_line, torchrun_number

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors of a disk that takes no more


class Mistake(click.ClickException):
    """A user's mistake: one line on stderr, exit code 2, no traceback."""

    exit_code = 2


class Verb(click.Command):
    """A command that SIGTERM ends as Ctrl-C does, so that nothing half-written stays."""

    def invoke(self, ctx: click.Context) -> Any:
        with _stopped_by_sigterm():
            return super().invoke(ctx)


class Group(click.Group):
    """Reports a user's mistake in one line; of the processes of torchrun, only the first that finds one reports it."""

    command_class = Verb

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _mistakes():
                return super().invoke(ctx)
        except click.ClickException as error:
            from studiogan_guidance.evaluation.distributed import is_first_to_fail

            if is_first_to_fail():
                raise
            raise click.exceptions.Exit(error.exit_code) from error


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
