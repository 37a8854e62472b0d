"""What a file is that is not what was asked for."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from studiogan_guidance.weights.forms import form


def tar(name: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return file.getvalue()


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"abc")
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(3))
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, mu=np.arange(3))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"
STYLEGAN3 = (
    b"\x80\x04\x95\x00\x01\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01G\x94\x8c\x17torch_utils.persistence\x94\x8c\x12"
)
TABLE = [
    (b"", "an empty file: download or copy it again"),
    (bytes(5000), "nothing but zeros at its start, as a download leaves it"),
    (LFS, "a Git LFS pointer, not the file itself: fetch it with 'git lfs pull'"),
    (b"# xet version 0\nfilesize = 1\nhash = 'a'\n", "a Xet pointer"),
    (b"/annex/objects/SHA256E-s1--a.pth\n", "a git-annex pointer"),
    (b"<!DOCTYPE html><html>404</html>", "a web page, such as a server's error"),
    (b"\n\n  <html lang='en'>", "a web page"),
    (b"\xef\xbb\xbf<HTML>", "a web page"),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML text, such as a server's error"),
    (json.dumps({"error": "Invalid username or password."}).encode(), 'a JSON text ({"error": "Invalid username or'),
    (b"Entry not found", "a text (Entry not found), not weights"),
    (
        b"Access to model a/b is restricted and you are not in the authorized list. Visit the page.",
        "you are not in the ...), not",
    ),
    (gzip.compress(b"abc"), "compressed by gzip: unpack it with 'gunzip'"),
    (b"BZh91AY", "compressed by bzip2"),
    (b"\xfd7zXZ\x00", "compressed by xz"),
    (b"\x28\xb5\x2f\xfd\x00", "compressed by zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (tar("model=G-best-weights-step=1.pth"), "a tar archive: unpack it with 'tar -xf'"),
    (
        zipped("run/model=G-best-weights-step=1.pth", "a.txt"),
        "a zip archive around run/model=G-best-weights-step=1.pth",
    ),
    (zipped("a.txt"), "a zip archive around a.txt: unpack it"),
    (zipped(), "a zip archive with nothing in it"),
    (zipped("a/data.pkl", "a/data/0")[:-30], "the beginning of a file that lacks its end"),
    (zipped("net/data.pkl", "net/constants.pkl", "net/code/x.py"), "a TorchScript archive, which is a program"),
    (zipped("net/archive_format", "net/models/model.json"), "an archive of torch.export"),
    (npz(), "arrays of numpy"),
    (npy(), "an array of numpy"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them"),
    (b"\x08\x07\x12\x07pytorch\x1a\x051.9", "an ONNX file"),
    (b"\x08\x01\x12\xb8\x02\n", "a file of TensorFlow"),
    (b"abc\0\0" * 50 + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "a file of TensorFlow"),
    (b"\x1c\x00\x00\x00TFL3", "a file of TensorFlow Lite"),
    (b"GGUF\x03", "a GGUF file"),
    (STYLEGAN3, "a network pickle in NVIDIA's format"),
    (b"\x80\x03cdnnlib.tflib.network\nNetwork\nq\x00)\x81", "a network pickle in NVIDIA's format"),
    (b"\x89PNG\r\n\x1a\n", "a picture"),
    (b"\xff\xd8\xff\xe0", "a picture"),
    (b"%PDF-1.4", "a PDF"),
]


@pytest.mark.parametrize(("content", "words"), TABLE, ids=[words[:40] for _, words in TABLE])
def test_what_a_file_is(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model=G-best-weights-step=1.pth"
    path.write_bytes(content)
    found = form(path)
    assert found is not None
    assert words in found
    assert "\n" not in found
    assert ":" in found  # and what to do


def test_weights_and_unknown_bytes_are_none_of_these(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"w": torch.zeros(3)}, path, **options)
        assert form(path) is None
    path.write_bytes(bytes(range(1, 200)))
    assert form(path) is None


def test_a_torchscript_of_torch_is_recognised(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "a.pt"))
    assert "TorchScript" in (form(tmp_path / "a.pt") or "")
