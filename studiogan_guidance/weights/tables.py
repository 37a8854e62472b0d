"""Files of safetensors: their header is checked before anything is allocated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from studiogan_guidance.errors import UserError
from studiogan_guidance.files import regular_file
from studiogan_guidance.weights import forms

HEADER = 10_000_000  # most bytes of a header; those of files of weights have some 100 for each tensor


def read(path: Path, what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a file of safetensors, on the CPU.

    Args:
        path: of the file.
        what: the file is, for errors, such as "the learned joint".

    Raises:
        UserError: one line that names the file, what is wrong with it, and what to do.
    """
    regular_file(path, what)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        if not forms.is_safetensors(start, size):
            raise UserError(f"cannot read {what} {path}: it is {_other(path, start)}")
        length = int.from_bytes(start[:8], "little")
        file.seek(8)
        header = file.read(min(length, HEADER + 1))

    # Check the header, and let the library check what it says about the tensors.
    if reason := _wrong(header):
        raise UserError(f"cannot read {what} {path}: its header {reason}: {forms.AGAIN}")
    try:
        with safe_open(path, "pt") as opened:
            return opened.metadata() or {}, {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"cannot read {what} {path}: its header does not fit the bytes that follow: {forms.AGAIN}"
        ) from error


def _other(path: Path, start: bytes) -> str:
    """What a file is that is none of safetensors."""
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return forms.form(path) or "a file of torch.save, none of safetensors: give that one"
    return forms.form(path) or f"no file of safetensors, or damaged: {forms.AGAIN}"


def _wrong(header: bytes) -> str | None:
    """What is wrong with a header; None if nothing is."""
    if len(header) > HEADER:
        return f"is longer than {HEADER:,} bytes"

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise LookupError
        return dict(pairs)

    try:
        content = json.loads(header, object_pairs_hook=unique)
    except LookupError:
        return "has a key twice"
    except (ValueError, RecursionError):
        return "is no JSON"
    return None if isinstance(content, dict) else "is no mapping"
