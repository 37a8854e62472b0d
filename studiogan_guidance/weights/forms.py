"""What a file is that is not what was asked for, and what to do about it."""

from __future__ import annotations

import os
import string
import struct
import zipfile
from pathlib import Path

HEAD = 1024  # bytes that are looked at
AGAIN = "download or copy it again"

# First bytes, and what they say. What is not for people to unpack or to fetch is no checkpoint at all.
MAGIC = (
    (
        b"version https://git-lfs.github.com/spec",
        "a Git LFS pointer, not the file itself: fetch it with 'git lfs pull'",
    ),
    (b"# xet version", "a Xet pointer, not the file itself: fetch it with 'git xet checkout' or 'hf download'"),
    (b"/annex/objects/", "a git-annex pointer, not the file itself: fetch it with 'git annex get'"),
    (b"\x1f\x8b", "compressed by gzip: unpack it with 'gunzip', or 'tar -xzf' if it is a .tar.gz"),
    (b"BZh", "compressed by bzip2: unpack it with 'bunzip2', or 'tar -xjf' if it is a .tar.bz2"),
    (b"\xfd7zXZ", "compressed by xz: unpack it with 'unxz', or 'tar -xJf' if it is a .tar.xz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it with 'unzstd'"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"PK\x05\x06", "a zip archive with nothing in it: " + AGAIN),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes them: give a checkpoint of PyTorch"),
    (b"\x93NUMPY", "an array of numpy: give a checkpoint of PyTorch"),
    (b"GGUF", "a GGUF file: give a checkpoint of PyTorch"),
    (b"\x89PNG", "a picture: give a checkpoint"),
    (b"\xff\xd8\xff", "a picture: give a checkpoint"),
    (b"%PDF", "a PDF: give a checkpoint"),
    (b"\x7fELF", "a program: give a checkpoint"),
)
NVIDIA = "a network pickle in NVIDIA's format, which runs code of its own: give a checkpoint of the host, or convert it"
NVIDIA_WORDS = (b"torch_utils.persistence", b"torch_utils\x94", b"dnnlib.tflib", b"dnnlib")
TABLE_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # of a table of LevelDB
TORCHSCRIPT = "a TorchScript archive, which is a program"


def form(path: Path) -> str | None:
    """What a regular file is and what to do with it, such as "an empty file: ..."; None where nothing says so.

    Files of torch.save and of safetensors are not recognised here, but for zip archives without weights.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(TABLE_END)))
        tail = file.read()
    if not head:
        return f"an empty file: {AGAIN}"
    if not head.strip(b"\0"):
        return f"nothing but zeros at its start, as a download leaves it that did not finish: {AGAIN}"
    for magic, words in MAGIC:
        if head.startswith(magic):
            return words
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    return _binary(head, tail) or _text(head)


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes begins as one of safetensors does: the length of a header, and a brace."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] <= size - 8


def _binary(head: bytes, tail: bytes) -> str | None:
    """What bytes are that have no magic word at their very start."""
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it with 'tar -xf'"
    if head[4:8] == b"TFL3":
        return "a file of TensorFlow Lite: give a checkpoint of PyTorch"
    if head[:1] == b"\x08" and (b"pytorch" in head[:64] or b"onnx" in head[:64] or b"tf2onnx" in head[:64]):
        return "an ONNX file: give a checkpoint of PyTorch"
    if tail == TABLE_END or head[:3] == b"\x08\x01\x12":
        return "a file of TensorFlow: give a checkpoint of PyTorch"
    if head[:1] == b"\x80" and any(word in head for word in NVIDIA_WORDS):
        return NVIDIA
    return None


def _text(head: bytes) -> str | None:
    """What a file of readable text is."""
    start = head.lstrip(b"\xef\xbb\xbf" + string.whitespace.encode())[:64].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<!--", b"<?php")):
        return f"a web page, such as a server's error: {AGAIN}"
    if start.startswith(b"<"):
        return f"an XML text, such as a server's error: {AGAIN}"

    # Any other text, by its first words.
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < HEAD else "ignore")
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character.isspace() for character in text):
        return None
    words = " ".join(text.split())
    if len(words) > 60:
        words = f"{words[:60].rpartition(' ')[0] or words[:60]} ..."
    kind = "a JSON text" if start.startswith((b"{", b"[")) else "a text"
    return f"{kind} ({words}), not weights: {AGAIN}"


def _zip(path: Path) -> str | None:
    """What a zip archive without weights is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, struct.error):
        return f"the beginning of a file that lacks its end, or is damaged: {AGAIN}"

    # Programs.
    if any(name.endswith("/constants.pkl") for name in names):
        return f"{TORCHSCRIPT}: give the checkpoint that torch.save wrote"
    if any(name.endswith(("archive_format", "models/model.json")) for name in names):
        return "an archive of torch.export, which is a program: give the checkpoint that torch.save wrote"

    # Weights, or an archive around something.
    if sum(name.endswith("/data.pkl") and name.count("/") == 1 for name in names) == 1:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "arrays of numpy: give a checkpoint of PyTorch"
    inside = [name for name in names if name.endswith((".pth", ".pt", ".pkl", ".safetensors"))] or names
    holds = f" around {inside[0][:80]}" if inside else ""
    return f"a zip archive{holds}: unpack it with 'unzip'"
