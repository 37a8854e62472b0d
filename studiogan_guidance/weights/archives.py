"""Files of torch.save, in its zip format and the one before PyTorch 1.6, as plain data and tensors on the CPU."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.errors import UserError
from studiogan_guidance.files import BLOCK, regular_file
from studiogan_guidance.weights import forms
from studiogan_guidance.weights.makers import Damaged, Record, Refused, Storage, array_of, storage_of
from studiogan_guidance.weights.pickles import load

MAGIC = 0x1950A86A20F9469CFC6C  # the first number of the older format
PROTOCOL = 1001  # the second
GROWTH = 20  # most times that a file may grow when it is unpacked
SLACK = 1 << 26  # bytes that it may grow beyond that
DEPTH = 100  # most levels of lists and dictionaries
WHOLE_MODULE = (b"_parameters", b"_modules")

Open = Callable[[Storage], Tensor]


def read(path: Path, what: str, only: str | None = None) -> Any:
    """What torch.save wrote, as dictionaries, lists, numbers, texts and tensors on the CPU; nothing of it runs.

    Objects of classes that training scripts save beside their weights are ``Thing``s.

    Args:
        path: of the file.
        what: the file is, for errors, such as "the checkpoint".
        only: of a dictionary, this item's tensors are read, and others stay ``Record``s; by default all are.

    Raises:
        UserError: one line that names the file, what is wrong with it, and what to do.
    """
    regular_file(path, what)
    try:
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(0)
            if head == b"PK\x03\x04" and forms.form(path) is None:
                return _read_zip(file, only)
            if head[:1] == b"\x80" and forms.form(path) is None:
                return _read_old(file, only)
    except Refused as error:
        raise UserError(_refusal(path, what, str(error))) from error
    except Damaged as error:
        raise UserError(f"cannot read {what} {path}: {error}: {forms.AGAIN}") from error
    except zipfile.BadZipFile as error:
        words = "a checksum is wrong" if "CRC" in str(error) else "its zip archive is damaged"
        raise UserError(f"cannot read {what} {path}: {words}: {forms.AGAIN}") from error
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror or 'it is damaged'}: {forms.AGAIN}") from error
    except (ValueError, LookupError, TypeError, RuntimeError, EOFError, zlib.error, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"cannot read {what} {path}: its content makes no sense: {forms.AGAIN}") from error

    words = forms.form(path) or f"no file of torch.save: {forms.AGAIN}"
    raise UserError(f"cannot read {what} {path}: it is {words}")


def _refusal(path: Path, what: str, name: str) -> str:
    """The error about a file that names something that is no data."""
    shown = name if name.isprintable() and len(name) <= 100 else repr(name[:100])
    with path.open("rb") as file:
        start = file.read(SLACK)
    if all(word in start for word in WHOLE_MODULE):
        return (
            f"refused {what} {path}: it holds a whole module ({shown}), which is read by running code; nothing was "
            "run: save module.state_dict() instead"
        )
    if shown.startswith(("torch_utils.", "dnnlib.", "legacy.")):
        return f"refused {what} {path}: it is {forms.NVIDIA}"
    return (
        f"refused {what} {path}: it holds more than weights, {shown}, of which nothing was run: if you trust it, load "
        "it in Python and save {'state_dict': ...} of tensors alone"
    )


# ---------------------------------------------------------------------------- the zip format


def _read_zip(file: IO[bytes], only: str | None) -> Any:
    with zipfile.ZipFile(file) as archive:
        # Look at the sizes before anything is unpacked.
        entries = {entry.filename: entry for entry in archive.infolist()}
        check_sizes(archive)
        if not any(entry.CRC for entry in entries.values()):  # torch can be told not to compute them
            for entry in entries.values():
                del entry.CRC

        # Read the pickle.
        (name,) = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        folder = name.removesuffix("data.pkl")
        content = archive.read(entries[name])
        tree = load(io.BytesIO(content), len(content), storage_of)
        order = archive.read(entries[f"{folder}byteorder"]) if f"{folder}byteorder" in entries else b"little"

        # Read the tensors.
        def open_storage(storage: Storage) -> Tensor:
            entry = entries.get(f"{folder}data/{storage.key}")
            if entry is None:
                raise Damaged(f"it lacks the storage {storage.key[:40]}")
            with archive.open(entry) as stream:
                numbers = _filled(stream, entry.file_size)
            width = _width(storage)
            return numbers.view(-1, width).flip(1).flatten() if order == b"big" and width > 1 else numbers

        return _resolved(tree, only, open_storage)


def check_sizes(archive: zipfile.ZipFile) -> None:
    """Raise Damaged for a zip archive that grows to much more than its own size."""
    entries = archive.infolist()
    packed = sum(entry.compress_size for entry in entries)
    for entry in entries:
        if entry.file_size > GROWTH * entry.compress_size + (1 << 20):
            raise Damaged(f"{entry.filename[:80]} would grow from {entry.compress_size:,} to {entry.file_size:,} bytes")
    if sum(entry.file_size for entry in entries) > GROWTH * packed + SLACK:
        raise Damaged(f"it would grow to more than {GROWTH} times its size")


# ---------------------------------------------------------------------------- the older format


def _read_old(file: IO[bytes], only: str | None) -> Any:
    """Five pickles (two numbers, facts about the machine, the content, the storages' keys), and the storages."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if load(file, size, storage_of) != MAGIC:
        raise Damaged("it is a pickle, but none of torch.save")
    if load(file, size, storage_of) != PROTOCOL:
        raise Damaged("it is of a version that is not known")
    machine = load(file, size, storage_of)
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise Damaged("it was written on a machine of the other byte order")

    # The content names storages, whose places follow from their sizes.
    storages: dict[str, Storage] = {}

    def remember(saved: Any) -> Storage:
        storage = storage_of(saved)
        storages[storage.key] = storage
        return storage

    tree = load(file, size, remember)
    keys = load(file, size, storage_of)
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        length = count * _width(storages[key])
        start = file.tell()
        if count >= 1 << 62 or start + length > size:
            raise Damaged("it ends in the middle")
        places[key] = (start, length)
        file.seek(start + length)

    def open_storage(storage: Storage) -> Tensor:
        if storage.key not in places:
            raise Damaged(f"it lacks the storage {storage.key[:40]}")
        start, length = places[storage.key]
        file.seek(start)
        return _filled(file, length)

    return _resolved(tree, only, open_storage)


def _width(storage: Storage) -> int:
    """Bytes of a number."""
    return 1 if storage.dtype is None else storage.dtype.itemsize


# ---------------------------------------------------------------------------- tensors


def _filled(stream: IO[bytes], length: int) -> Tensor:
    """The next ``length`` bytes of a stream."""
    numbers = torch.empty(length, dtype=torch.uint8)
    array: Any = numbers.numpy()
    view = memoryview(array)
    place = 0
    while place < length:
        read = stream.readinto(view[place : place + BLOCK])  # type: ignore[attr-defined]
        if not read:
            raise Damaged("it ends in the middle")
        place += read
    stream.read(1)  # at the end of an entry of a zip archive its checksum is compared
    return numbers


def _resolved(tree: Any, only: str | None, open_storage: Open) -> Any:
    """A tree with tensors in place of its records, changed where it stands."""
    storages: dict[str, Tensor] = {}
    seen: dict[int, tuple[Any, Any]] = {}  # with the value itself, whose number would be used again if it went

    def tensor(record: Record) -> Tensor:
        storage = record.storage
        if storage.key not in storages:
            storages[storage.key] = open_storage(storage)
        numbers = storages[storage.key]
        width = record.dtype.itemsize
        if (storage.start + storage.count) * width > numbers.numel():
            raise Damaged(f"the storage {storage.key[:40]} has fewer numbers than it should")
        if record.numel * width > GROWTH * numbers.numel() + SLACK:
            raise Damaged(f"a tensor of {list(record.size)} is larger than its file has reason to")
        typed = numbers[: numbers.numel() // width * width].view(record.dtype)
        return typed.as_strided(record.size, record.stride, storage.start + record.offset)

    def resolve(value: Any, depth: int) -> Any:
        if isinstance(value, Record):
            return tensor(value)
        if not isinstance(value, (dict, list, tuple)):
            return value
        if id(value) in seen:
            return seen[id(value)][1]
        if depth > DEPTH:
            raise Damaged(f"it is nested more than {DEPTH} levels deep")

        # What becomes another object.
        other = tuple(resolve(item, depth + 1) for item in value) if isinstance(value, tuple) else array_of(value)
        if other is not None:
            seen[id(value)] = (value, other)
            return other

        # What is changed where it stands; it may hold itself.
        container: Any = value
        seen[id(value)] = (container, container)
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            container[key] = resolve(item, depth + 1)
        return container

    if only is not None and isinstance(tree, dict) and only in tree:
        tree[only] = resolve(tree[only], 0)
    else:
        tree = resolve(tree, 0)

    # Both functions refer to themselves, so they would keep the numbers until the next collection of garbage.
    storages.clear()
    seen.clear()
    return tree


def is_finite(value: Tensor) -> bool:
    """Whether no number is NaN or infinite; in one pass, without a copy.

    Example:
        >>> is_finite(torch.zeros(3)), is_finite(torch.tensor([1.0, float("nan")]))
        (True, False)
    """
    if value.numel() == 0 or not value.is_floating_point():
        return True
    least, most = torch.aminmax(value if value.dtype.itemsize > 1 else value.float())
    return bool(torch.isfinite(least) & torch.isfinite(most))
