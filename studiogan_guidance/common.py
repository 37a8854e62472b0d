"""What every part may use and nobody owns: the user's error, the cache folder, whole files or none, near names."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")
S = TypeVar("S", bound="Sliceable")


class UserError(ValueError):
    """A mistake that the user can mend: one line that names what was asked, what was found and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def cache_dir() -> Path:
    """``$STUDIOGAN_GUIDANCE_CACHE``, else ``studiogan-guidance`` in ``$XDG_CACHE_HOME``, else in ``~/.cache``."""
    if chosen := os.environ.get("STUDIOGAN_GUIDANCE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "studiogan-guidance"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is renamed into place, on failure it is removed."""
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        beside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            beside.unlink()


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest known one, and all of them."""
    names = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known: {', '.join(names)}"


def progress(items: Iterable[T], what: str, total: float | None = None) -> Iterable[T]:
    """Pass ``items`` through with a progress bar on stderr, if that is a terminal and this process is rank 0."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    quiet = not console.is_terminal or os.environ.get("RANK", "0") != "0"
    return track(items, what, total=total, console=console, transient=True, disable=quiet)


class Sliceable(Protocol):
    """A tensor, a range, a list: what can be cut into batches."""

    def __len__(self) -> int: ...
    def __getitem__(self: S, part: slice, /) -> S: ...


class Halving:
    """Calls a function on whole batches and, once memory runs out, on halves; the size that fits is remembered.

    Example:
        >>> halving = Halving()
        >>> list(halving(sum, range(4)))
        [6]
    """

    def __init__(self) -> None:
        self.size = sys.maxsize

    def __call__(self, function: Callable[[S], T], batch: S) -> Iterator[T]:
        """Yield what ``function`` returns for ``batch``, or for its parts in turn.

        Raises:
            UserError: a single item does not fit.
        """
        import torch

        start = 0
        while start < len(batch):
            part, fits = batch[start : start + self.size], True
            try:
                result = function(part)
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise UserError(
                        f"out of memory with one image at a time ({' '.join(str(error).split())[:120]}): end what else "
                        "uses the GPU, or use --device cpu"
                    ) from error
                fits = False
            if not fits:  # outside of the except clause, where the traceback would keep the tensors alive
                self.size = (len(part) + 1) // 2
                torch.cuda.empty_cache()
                print(f"out of memory with {len(part)} images at a time: going on with {self.size}", file=sys.stderr)
                continue
            yield result
            start += len(part)
