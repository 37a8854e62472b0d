"""Files that are broken, hostile or not what they are taken for, each made by a function of its folder."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml as yaml_package
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from studiogan_guidance.builtin.source import BuiltinSource
from studiogan_guidance.latents import learned, view_for

MARKER = "code-was-run"  # the file that a hostile pickle makes in the current folder
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"
HTML = b"<!DOCTYPE html><html><body>Sign in to download</body></html>"


@dataclass
class Place:
    """Where a row of the table makes its files, and the whole files of the host beside which it may make them.

    Attributes:
        folder: an empty folder of this row.
        model: configuration and checkpoint folder of a small network of the host; None without a checkout.
        data: an ImageFolder of real images.
    """

    folder: Path
    model: tuple[Path, Path] | None = None
    data: Path | None = None
    counts: dict[str, int] = field(default_factory=dict)


Maker = Callable[[Place], str]


def fixed(name: str, content: bytes) -> Maker:
    """A file of a given name and content."""

    def make(place: Place) -> str:
        path = place.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    return make


def yaml(text: str | bytes) -> Maker:
    """A configuration."""
    return fixed("a.yaml", text.encode() if isinstance(text, str) else text)


def at(name: str) -> Maker:
    """A path in the folder of the row, where nothing is."""
    return lambda place: str(place.folder / name)


def folder(name: str) -> Maker:
    """An empty folder."""

    def make(place: Place) -> str:
        (place.folder / name).mkdir(parents=True, exist_ok=True)
        return str(place.folder / name)

    return make


def pipe(name: str) -> Maker:
    """A named pipe, from which nothing ever comes."""

    def make(place: Place) -> str:
        path = place.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        return str(path)

    return make


def loop(name: str) -> Maker:
    """A symbolic link to itself."""

    def make(place: Place) -> str:
        (place.folder / name).symlink_to(place.folder / name)
        return str(place.folder / name)

    return make


def within(outer: str, *inner: Maker) -> Maker:
    """The folder ``outer``, with files in it."""

    def make(place: Place) -> str:
        (place.folder / outer).mkdir(parents=True, exist_ok=True)
        for maker in inner:
            maker(Place(place.folder / outer, place.model, place.data))
        return str(place.folder / outer)

    return make


def prefixed(prefix: str, maker: Maker) -> Maker:
    """The path of a file behind some text, such as ``torchscript:``."""
    return lambda place: prefix + maker(place)


# YAML

BOMB = "b0: &b0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"b{i}: &b{i} [{','.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


def bomb(key: str) -> Maker:
    """Nine levels of nine aliases under a known key: 3.5 billion words."""
    levels = "&b0 [x,x,x,x,x,x,x,x,x]"
    for i in range(1, 9):
        levels = f"&b{i} [{levels}{f',*b{i - 1}' * 8}]"
    return yaml(f"{key}: {levels}\n")


# Pickles, archives


class Gadget:
    """What a pickle runs when it is loaded without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {MARKER}",)


def gadget() -> bytes:
    """A pickle that makes a file when it is loaded without care."""
    return pickle.dumps({"state_dict": Gadget()})


def torch_gadget() -> bytes:
    """The same inside a file of torch."""
    buffer = io.BytesIO()
    torch.save({"state_dict": Gadget()}, buffer)
    return buffer.getvalue()


def torch_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@functools.cache
def zip_bomb(name: str = "value.npy", megabytes: int = 4096) -> bytes:
    """An archive of some megabytes with one array of zeros, of ``megabytes`` when it is unpacked."""
    shape = (megabytes << 17,)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})

    # One block of zeros, deflated once, stands there again and again.
    import zlib

    block = bytes(1 << 24)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(header.getvalue()) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    body = head + zeros * (megabytes >> 4) + b"\x03\x00"

    # The checksum does not matter: whoever compares it has unpacked everything.
    size = len(header.getvalue()) + (megabytes << 20)
    stem = name.encode()
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 8, 0, 33, 0, len(body), min(size, 2**32 - 1), len(stem), 0)
    central = struct.pack(
        "<IHHHHHHIIIHHHHHII",
        0x02014B50, 20, 20, 0, 8, 0, 33, 0, len(body), min(size, 2**32 - 1), len(stem), 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    start = len(local) + len(stem) + len(body)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(central) + len(stem), start, 0)
    return local + stem + body + central + stem + end


def npz(**arrays: Any) -> bytes:
    """An archive of arrays, those of objects as pickles."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


# Learned joints


@functools.cache
def joint_bytes() -> bytes:
    """A whole learned joint of the built-in GAN."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        view = view_for(BuiltinSource().networks(torch.device("cpu")))
        path = Path(name) / learned.FILE
        learned.save(path, learned.create(view, None, 8, 1), view, {})
        return path.read_bytes()


def joint(
    metadata: Mapping[str, Any] | None = None, tensors: Callable[[dict[str, Tensor]], None] | None = None
) -> Maker:
    """A learned joint with other metadata, or other tensors."""

    def make(place: Place) -> str:
        path = place.folder / "whole.safetensors"
        path.write_bytes(joint_bytes())
        state = load_file(path)
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()[learned.KEY])
        if tensors:
            tensors(state)
        facts.update(metadata or {})
        return fixed("joint.safetensors", save(state, {learned.KEY: json.dumps(facts)}))(place)

    return make


def header(text: bytes, size: int | None = None) -> bytes:
    """The beginning of a safetensors file, of any header."""
    return struct.pack("<Q", len(text) if size is None else size) + text


# Feature networks


class Net(nn.Module):
    """Features and logits of images; ``kind`` says what is wrong with them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.nn.functional.adaptive_avg_pool2d(x.float(), (2, 2)).flatten(1)
        if self.kind == "nan":
            features = features / torch.zeros(1)
        if self.kind == "nan for bright images":
            features = torch.where(features.mean() > 20, features.log() * float("nan"), features)
        if self.kind == "one number":
            features = features.sum()
        if self.kind == "half the images":
            features = features[: len(features) // 2]
        if self.kind == "raises":
            features = features.view(7, 7, 7)
        return features, features


def torchscript(kind: str) -> Maker:
    """A feature network in TorchScript."""

    def make(place: Place) -> str:
        path = place.folder / "net.pt"
        torch.jit.script(Net(kind)).save(str(path))
        return f"torchscript:{path}"

    return make


# Checkpoints of the host


def configuration(place: Place) -> str:
    """The configuration of the host's network."""
    assert place.model
    return str(place.model[0])


def changed(**sections: Mapping[str, Any]) -> Maker:
    """The configuration of the host's network, with other keys in its sections."""

    def make(place: Place) -> str:
        content = yaml_package.safe_load(Path(configuration(place)).read_text())
        for name, values in sections.items():
            content[name] = {**content.get(name, {}), **values} if isinstance(values, Mapping) else values
        return yaml(yaml_package.safe_dump(content))(place)

    return make


def checkpoint(change: Callable[[bytes], bytes], of: str = "G") -> Maker:
    """The host's checkpoint, with other bytes in the files of one network."""

    def make(place: Place) -> str:
        assert place.model
        new = place.folder / "ckpt"
        new.mkdir()
        for path in place.model[1].glob("*.pth"):
            content = path.read_bytes()
            (new / path.name).write_bytes(change(content) if path.name.startswith(f"model={of}") else content)
        return str(new)

    return make


def state(change: Callable[[dict[str, Any]], Any]) -> Maker:
    """The host's checkpoint, with another state in it."""

    def rewrite(content: bytes) -> bytes:
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
        return torch_bytes(change(checkpoint))

    return checkpoint(rewrite)


def checkpoint_of_pipes(place: Place) -> str:
    """The host's checkpoint, with named pipes in place of its files."""
    assert place.model
    (place.folder / "ckpt").mkdir()
    for path in place.model[1].glob("*.pth"):
        os.mkfifo(place.folder / "ckpt" / path.name)
    return str(place.folder / "ckpt")


def above_the_checkpoint(place: Place) -> str:
    """The folder above one that holds a checkpoint."""
    checkpoint(lambda content: content)(place)
    return str(place.folder)


# Images


def png(image: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).save(buffer, "PNG", **options)
    return buffer.getvalue()


GREY = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
RGB = np.tile((GREY % 256).astype(np.uint8)[..., None], (1, 1, 3))


def images(**others: bytes) -> Maker:
    """An ImageFolder of four classes with 4 images to train and to validate, and other files in its first class.

    ``_`` in a name stands for a dot, and a trailing ``_folder`` for a class of its own.
    """

    def make(place: Place) -> str:
        for split in ("train", "valid"):
            for label in range(4):
                for i in range(4):
                    fixed(f"data/{split}/{label}/{i}.png", png(RGB + np.uint8(20 * label + i)))(place)
            for name, content in others.items():
                fixed(f"data/{split}/0/{name.replace('_', '.')}", content)(place)
        return str(place.folder / "data")

    return make


def renamed(before: str, after: str) -> Maker:
    """An ImageFolder with a folder of another name."""

    def make(place: Place) -> str:
        data = Path(images()(place))
        (data / before).rename(data / after)
        return str(data)

    return make


def image_pipe(place: Place) -> str:
    """An ImageFolder with a named pipe among its images."""
    data = images()(place)
    for split in ("train", "valid"):
        os.mkfifo(Path(data) / split / "0" / "9.png")
    return data


# Results

ROW = {
    "sampler": "plain",
    "options": {},
    "metrics": {"fid": 1.0},
    "protocol": {"num": 10, "seed": 0},
    "generator": {"sha256": "a"},
    "cost": {"synthesis": 1.0},
    "seconds": 1.0,
}


def rows(*lines: Any) -> Maker:
    """A results.jsonl; lines that are no bytes are written as JSON, on top of a whole row."""
    content = [
        line if isinstance(line, bytes) else json.dumps({**ROW, **line} if isinstance(line, dict) else line).encode()
        for line in lines
    ]
    return fixed("results.jsonl", b"\n".join(content) + b"\n")


def archive(**members: bytes) -> bytes:
    """A ZIP file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()
