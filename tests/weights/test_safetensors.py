"""Files of safetensors: their headers are checked before anything is allocated."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from studiogan_guidance.errors import UserError
from studiogan_guidance.weights import tables


def made(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


FOUR = bytes(4)
TABLE = [
    (made(tensor(), FOUR, length=2**63), "no file of safetensors, or damaged"),
    (made(tensor(), FOUR, length=2**64 - 1), "no file of safetensors, or damaged"),
    (made(tensor(), FOUR, length=10_000), "no file of safetensors, or damaged"),
    (made(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":1}', FOUR), "its header has a key twice"),
    (made(tensor(offsets=(0, 8)), FOUR), "does not fit the bytes"),
    (made(tensor(offsets=(4, 0)), FOUR), "does not fit the bytes"),
    (made(tensor(offsets=(0, 10**15)), FOUR), "does not fit the bytes"),
    (made(tensor(dtype="F33"), FOUR), "does not fit the bytes"),
    (made(tensor(shape=(-1,)), FOUR), "does not fit the bytes"),
    (made(tensor(shape=(2**40, 2**40)), FOUR), "does not fit the bytes"),
    (made(tensor(shape=(10**12,)), FOUR), "does not fit the bytes"),
    (made({"a": 3}, FOUR), "does not fit the bytes"),
    (made(b'{"a":' + b"[" * 100_000, FOUR), "its header is no JSON"),
    (made(b"{nonsense}", FOUR), "its header is no JSON"),
    (made(b"{" + b" " * 10_000_001 + b"}"), "its header is longer than 10,000,000 bytes"),
    (made(tensor(), b""), "does not fit the bytes"),
    (b"", "it is an empty file"),
    (b"no network", "it is a text (no network)"),
    (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
    (b"\x80\x02}.", "a file of torch.save, none of safetensors"),
]


@pytest.mark.parametrize(("content", "words"), TABLE, ids=range(len(TABLE)))
def test_wild_files_are_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read the weights {re.escape(str(path))}: .*") as caught:
        tables.read(path, "the weights")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_and_metadata_are_read(tmp_path: Path) -> None:
    values = {
        "a": torch.arange(4.0).reshape(2, 2),
        "b": torch.tensor(3, dtype=torch.int8),
        "c": torch.ones(2).bfloat16(),
    }
    save_file(values, tmp_path / "a.safetensors", {"k": "v"})
    metadata, found = tables.read(tmp_path / "a.safetensors", "the weights")
    assert metadata == {"k": "v"}
    assert found.keys() == values.keys()
    assert all(found[key].equal(value) and found[key].dtype == value.dtype for key, value in values.items())


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "link")
    for name, words in (
        ("pipe", "a pipe or a device"),
        ("link", "symbolic links"),
        ("none", "No such"),
        (".", "folder"),
    ):
        with pytest.raises(UserError, match=words):
            tables.read(tmp_path / name, "the weights")
