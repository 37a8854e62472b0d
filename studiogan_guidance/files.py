"""The cache folder, digests of values and files, and files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from studiogan_guidance.errors import UserError, detail
from studiogan_guidance.progress import bar

Arrays = dict[str, NDArray[Any]]
BLOCK = 1 << 20  # bytes of a file that are hashed at a time
TEMPORARY = re.compile(r"\..*\.\d+-[0-9a-f]{8}(\..*)?")  # the name of a file that is being written
STALE = 3600.0  # seconds after its last byte in which a temporary file is that of a running process


def cache_dir() -> Path:
    """``$STUDIOGAN_GUIDANCE_CACHE``, else ``studiogan-guidance`` in ``$XDG_CACHE_HOME``, else in ``~/.cache``."""
    if chosen := os.environ.get("STUDIOGAN_GUIDANCE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "studiogan-guidance"


def regular_file(path: Path, what: str) -> Path:
    """``path``, if it is a file with a content; to open a named pipe or a device would wait for ever.

    Args:
        path: of the file; links are followed.
        what: the file is, for the error, such as "the checkpoint".

    Raises:
        UserError: no such file, a folder, a pipe, a device, a link to itself, or no right to read it.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # a ValueError for a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {what} {path}: {reason}") from error

    # What would not end, or may not be read.
    if stat.S_ISDIR(mode):
        raise UserError(f"cannot read {what} {path}: it is a folder, give a file")
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot read {what} {path}: it is a pipe or a device, give a file")
    if not os.access(path, os.R_OK):
        raise UserError(f"cannot read {what} {path}: you have no right to read it")
    return path


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is renamed into place, on failure it is removed.

    Compute before the with-block, so that nothing but writing happens inside. A process that is killed by SIGKILL
    leaves the temporary file, which nothing reads: see ``remove_stale``.

    Args:
        path: of the file.
        sync: wait until the disk has the content, so that a machine that loses power has a whole file, too.

    Raises:
        UserError: the folder cannot be made, the temporary file cannot be written, or it cannot be renamed. An OSError
            about any other file is passed on as it is.
    """
    # Make the folder.
    token = secrets.token_hex(4)  # processes of several nodes may have the same number
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{token}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error

    # Write, then rename.
    try:
        yield temporary
        if sync:
            _synchronise(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.filename not in (None, str(temporary), temporary):
            raise
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, content: bytes, sync: bool = True) -> None:
    """Write a file as ``replacing`` does; for libraries that have errors of their own for a full disk."""
    with replacing(path, sync) as temporary:
        temporary.write_bytes(content)


def _synchronise(path: Path) -> None:
    """Wait until the disk has the content of a file; some file systems find only then that it has no space."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def remove_stale(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder, those without a change for an hour."""
    with suppress(OSError):
        for path in folder.iterdir():
            if TEMPORARY.fullmatch(path.name):
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > STALE:
                        path.unlink()


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}")


def append_lines(path: Path, lines: Sequence[str], sync: bool = True) -> None:
    """Add whole lines to a file that processes may share; ``sync`` as in ``replacing``.

    A killed process damages no line but its own, and a line that is refused by a full disk is taken back.

    Raises:
        UserError: the lines cannot be written.
    """
    try:
        with path.open("a+b", buffering=0) as file:
            is_locked = _lock(file)
            size = file.seek(0, os.SEEK_END)
            text = "".join(f"{line}\n" for line in lines).encode()
            if _is_cut_off(file, size):
                text = b"\n" + text

            # Write them, or nothing.
            try:
                _write_all(file, text)
                if sync:
                    os.fsync(file.fileno())
            except BaseException:
                if is_locked:  # else the end may be another process's line
                    file.truncate(size)
                raise
    except OSError as error:
        raise _unwritable(path, error) from error


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed. Without locks, each process still adds lines by one write."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    return False


def _is_cut_off(file: IO[bytes], size: int) -> bool:
    """Whether the last line lacks its end, because the process that wrote it was killed."""
    if size == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _write_all(file: IO[bytes], text: bytes) -> None:
    """Write all of ``text``; a disk that is nearly full takes a part of it first."""
    while text:
        text = text[file.write(text) :]


def json_lines(path: Path) -> list[dict[str, Any] | None]:
    """The mapping in each line of a file; None for a line that was cut off or holds anything else.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return [_mapping(line) for line in lines if line.strip()]


def _mapping(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def json_digest(value: Any, length: int = 32) -> str:
    """The first ``length`` digits of the SHA-256 of a value as JSON with sorted keys; what JSON lacks becomes text.

    Example:
        >>> json_digest({"a": 1, "b": 2}) == json_digest({"b": 2, "a": 1})
        True
    """
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, 64 digits; an OSError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def cache_path(kind: str, key: Mapping[str, Any]) -> Path:
    """Where the cache keeps the arrays of a ``key``; any change of the key is another file.

    Args:
        kind: a folder of the cache, such as "reference".
        key: all that the arrays depend on, with ``"version": N``, which is raised when the maths behind them change.
    """
    return cache_dir() / kind / f"{json_digest(key)}.npz"


def file_lock(path: Path, wait: bool) -> FileLock:
    """A lock that the system ends with the process that holds it, even a killed one.

    To acquire it raises filelock.Timeout where another process has it and ``wait`` is off; OSError or (older releases)
    NotImplementedError on a file system without such locks: what newer releases do there outlives a killed process.
    """
    timeout = -1 if wait else 0
    try:
        return FileLock(path, timeout=timeout, fallback_to_soft=False)
    except TypeError:  # an older release, which knows no other kind
        return FileLock(path, timeout=timeout)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of ``path``, so that no other process computes the same; yields whether it is held.

    It is not held where another process has it and ``wait`` is off, and in a folder that may only be read or that has
    no locks.
    """
    lock = file_lock(path.with_suffix(".lock"), wait)
    with suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield lock.is_locked
    finally:
        lock.release()


def read_arrays(path: Path) -> Arrays | None:
    """The arrays that ``write_arrays`` left in a file; None if it is missing or damaged."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except Exception:  # a damaged file can make numpy and zipfile raise anything
        return None


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Keep arrays in a file, whole or not at all; in a cache that cannot be written, nothing is kept."""
    named: dict[str, Any] = dict(arrays)
    with suppress(UserError), replacing(path, sync=False) as temporary:  # a file that is cut off is computed again
        np.savez(temporary, **named)


def cached(kind: str, key: Mapping[str, Any], compute: Callable[[], Arrays], enabled: bool = True) -> Arrays:
    """The arrays of a ``key`` from the cache, or those that ``compute`` returns, which one process computes for all.

    Args:
        kind: see ``cache_path``.
        key: see ``cache_path``.
        compute: called where the cache has no such arrays; its errors are passed on as they are.
        enabled: off computes without a look at the cache.
    """
    if not enabled:
        return compute()
    path = cache_path(kind, key)
    arrays = read_arrays(path)
    if arrays is not None:
        detail(f"{key.get('derived', kind)}: from the cache, {path}")
        return arrays

    # Another process may finish the same arrays while this one waits.
    with bar(kind.replace("-", " ")), locked(path):
        arrays = read_arrays(path)
        if arrays is None:
            arrays = compute()
            write_arrays(path, arrays)
    return arrays
