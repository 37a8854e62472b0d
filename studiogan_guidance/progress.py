"""Progress on stderr, in one style: bars with the time left on a terminal, a plain line now and then elsewhere.

Bars may be nested: a sweep has one for its points, and below it one for the images of the present point. Nothing is
shown for what ends within a second, under ``--quiet``, and by the processes of torchrun but the first.
"""

from __future__ import annotations

import datetime
import functools
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from studiogan_guidance.errors import detail, is_said, say

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

T = TypeVar("T")

DELAY = 1.0  # seconds until a bar is shown
PAUSE = 30.0  # seconds between two lines, where stderr is no terminal
WIDTH = 24  # characters of a bar
PER_SECOND = 4  # pictures of the bars


class Bar:
    """Work of which ``done`` of ``total`` steps are done.

    Args:
        what: a few words for the work; of numbered steps, the word for one of them.
        total: number of steps; None where nobody knows it.
        done: steps that were done before.
        numbered: count the present step, as in "point 3 of 12", not those that are done.
        in_bytes: steps are bytes.
    """

    def __init__(
        self, what: str, total: float | None = None, done: float = 0, numbered: bool = False, in_bytes: bool = False
    ) -> None:
        self.what = what
        self.total = total
        self.done = done
        self.text = ""
        self.numbered = numbered
        self.in_bytes = in_bytes
        self.started = time.monotonic()
        self._before = done
        self._moved = self.started

    def advance(self, steps: float = 1, text: str | None = None) -> None:
        """Do some more steps."""
        self.move(self.done + steps, text)

    def move(self, done: float, text: str | None = None) -> None:
        """Have ``done`` steps done; ``text`` is shown behind the bar."""
        self.done = done if self.total is None else min(done, self.total)
        self.text = self.text if text is None else text
        self._moved = time.monotonic()
        DISPLAY.speak()

    def begin(self, done: float) -> None:
        """Start where ``done`` steps are done already."""
        self.done = done
        self._before = done
        self.started = time.monotonic()
        self._moved = self.started

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """Until the end, if the steps to come take as long as those so far; None before the first of them.

        Example:
            >>> bar = Bar("images", total=4)
            >>> bar.seconds_left is None
            True
        """
        steps = self.done - self._before
        if self.total is None or steps <= 0:
            return None
        each = (self._moved - self.started) / steps
        waited = time.monotonic() - self._moved
        return max(0.0, each * (self.total - self.done) - waited)

    @property
    def count(self) -> str:
        """How far it is.

        Example:
            >>> Bar("images", total=64, done=16).count, Bar("point", total=12, done=2, numbered=True).count
            ('16 of 64', '3 of 12')
        """
        if self.total is None:
            return ""
        if self.in_bytes:
            return f"{self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB"
        number = min(self.done + 1, self.total) if self.numbered else self.done
        return f"{number:.0f} of {self.total:.0f}"

    @property
    def time(self) -> str:
        """The time left; where it is not known, the time so far."""
        left = self.seconds_left
        if left is None:
            return clock(self.seconds)
        return f"{clock(left)} left"

    @property
    def reached(self) -> str:
        """What is done, such as "3 of 12 points"."""
        if self.numbered:
            return f"{self.done:.0f} of {self.total or 0:.0f} {self.what}s"
        return f"{self.count} {self.what}".strip()

    def __str__(self) -> str:
        return " ".join(filter(None, (self.what, self.count, f"({self.time})", self.text)))


def clock(seconds: float) -> str:
    """A number of seconds as hours, minutes and seconds.

    Example:
        >>> clock(75.6)
        '0:01:15'
    """
    return str(datetime.timedelta(seconds=int(seconds)))


class Display:
    """The bars that are open, the outer ones first, and what stderr shows of them."""

    def __init__(self) -> None:
        self.bars: list[Bar] = []
        self.stopped: Bar | None = None  # the outermost that a signal ended
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._live: Live | None = None
        self._next_line = 0.0

    def open(self, bar: Bar) -> None:
        """Add a bar; it is shown after a while."""
        with self._lock:
            if not self.bars:
                self._next_line = time.monotonic() + PAUSE
                self.stopped = None
            self.bars.append(bar)
            if self._timer is None and self._live is None and is_said() and on_terminal():
                self._timer = threading.Timer(DELAY, self._show)
                self._timer.daemon = True
                self._timer.start()

    def close(self, bar: Bar) -> None:
        """Remove a bar and those inside it, which an error has left open; with the last one, all that is shown."""
        with self._lock:
            if bar in self.bars:
                del self.bars[self.bars.index(bar) :]
                detail(f"{bar.what}: {bar.seconds:.2f} s")
            if not self.bars:
                self.clear()

    def clear(self) -> None:
        """Show nothing until the next bar is opened."""
        with self._lock:
            timer, live = self._timer, self._live
            self._timer = None
            self._live = None
        if timer:
            timer.cancel()
        if live:
            live.stop()

    def speak(self) -> None:
        """Say a line where stderr is no terminal and it is time for one."""
        now = time.monotonic()
        if now >= self._next_line and self.bars and not on_terminal():
            self._next_line = now + PAUSE
            say("; ".join(map(str, self.shown())))

    def shown(self) -> list[Bar]:
        """The bars that are older than a moment; without a total, only the innermost."""
        bars = [bar for bar in self.bars if bar.seconds >= DELAY]
        return [bar for bar in bars if bar.total is not None or bar is bars[-1]]

    def _show(self) -> None:
        """Start to draw the bars, in a thread of their own."""
        from rich.console import Console
        from rich.live import Live

        with self._lock:
            if self._timer is None or not self.bars:
                return
            self._timer = None
            self._live = Live(
                get_renderable=self._table,
                console=Console(stderr=True),
                refresh_per_second=PER_SECOND,
                redirect_stdout=False,  # it may be a file
                transient=True,
            )
            self._live.start()

    def _table(self) -> Table:
        """A row for each bar."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 1))
        for _ in range(4):
            table.add_column(no_wrap=True, overflow="ellipsis")
        for bar in self.shown():
            line = ProgressBar(bar.total, bar.done, WIDTH, pulse=bar.total is None)
            table.add_row(f"{bar.what} {bar.count}", line, bar.time, bar.text)
        return table


DISPLAY = Display()


def on_terminal() -> bool:
    """Whether stderr is a terminal that can draw."""
    try:
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # it is closed
        return False


@contextmanager
def bar(what: str, total: float | None = None, done: float = 0, **more: Any) -> Iterator[Bar]:
    """A bar for the time of a with-block, which moves it; see Bar for the arguments."""
    opened = Bar(what, total, done, **more)
    DISPLAY.open(opened)
    try:
        yield opened
    except (KeyboardInterrupt, SystemExit):
        if opened.total is not None:
            DISPLAY.stopped = opened
        raise
    finally:
        DISPLAY.close(opened)


def track(items: Iterable[T], what: str, total: float | None = None, step: float = 1) -> Iterator[T]:
    """Pass ``items`` through with a bar, each of them ``step`` of ``total`` steps; by default all items have one each.

    Example:
        >>> list(track(range(3), "numbers"))
        [0, 1, 2]
    """
    if total is None and isinstance(items, Sized):
        total = len(items) * step
    with bar(what, total) as opened:
        for item in items:
            yield item
            opened.advance(step)


def clear() -> None:
    """Take bars off the terminal, before something else is printed there."""
    DISPLAY.clear()


def reached() -> Bar | None:
    """The outermost work that a signal has stopped, if its number of steps is known."""
    known = [bar for bar in (DISPLAY.stopped, *DISPLAY.bars) if bar and bar.total is not None]
    return known[0] if known else None


class Download:
    """A bar of bytes in place of tqdm's, for torch.hub and huggingface_hub; it has what these use of tqdm.

    Args:
        what: a few words for the file.
        total: bytes of it, if they are known.
        initial: bytes that are there already.
    """

    def __init__(self, what: str, *, total: float | None = None, initial: float = 0, **more: Any) -> None:
        self.bar = Bar(what, total, initial, in_bytes=True)
        DISPLAY.open(self.bar)

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End."""
        DISPLAY.close(self.bar)

    def update(self, steps: float = 1) -> None:
        """Have that many more bytes."""
        self.bar.advance(steps)

    @property
    def total(self) -> float | None:
        """Bytes of the file."""
        return self.bar.total

    @total.setter
    def total(self, total: float | None) -> None:
        self.bar.total = total

    def update_transfer(self, *numbers: Any, **more: Any) -> None:
        """Nothing: what is on its way is not shown beside what is there."""

    set_postfix_str = set_transfer_postfix_str = update_transfer


@contextmanager
def downloads(what: str) -> Iterator[None]:
    """In a with-block, what torch.hub downloads has a bar in our style."""
    import torch

    hub: Any = torch.hub
    before = hub.tqdm
    hub.tqdm = functools.partial(Download, what)
    try:
        yield
    finally:
        hub.tqdm = before
