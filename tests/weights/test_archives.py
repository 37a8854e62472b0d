"""Files of torch.save: the content that torch itself reads, nothing run, and no more memory than there is file."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import pickletools
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studiogan_guidance.errors import UserError
from studiogan_guidance.weights import archives
from studiogan_guidance.weights.makers import Odd, Record, Thing

FORMATS: dict[str, dict[str, Any]] = {
    "zip": {},
    "zip, protocol 4": {"pickle_protocol": 4},
    "zip, protocol 5": {"pickle_protocol": 5},
    "old": {"_use_new_zipfile_serialization": False},
    "old, protocol 3": {"_use_new_zipfile_serialization": False, "pickle_protocol": 3},
    "old, protocol 5": {"_use_new_zipfile_serialization": False, "pickle_protocol": 5},
}
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16),
    *(torch.int32, torch.int64, torch.complex64, torch.float8_e4m3fn, torch.uint16, torch.uint32, torch.uint64),
]
OLD = -4  # up to here, the older format has them


def read(path: Path) -> Any:
    return archives.read(path, "the checkpoint")


def refusal(path: Path) -> str:
    """The one line with which a file is refused; it names the file."""
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def content(zipped: bool) -> dict[str, Any]:
    """A state of every kind of tensor, optimiser included."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, 5, 5)).sum().backward()
    optimiser.step()
    base = torch.arange(24.0)
    return {
        "state_dict": net.state_dict(),
        "optimizer": optimiser.state_dict(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "view": base[3:9],
        "transposed": base.reshape(4, 6).t(),
        "shared": [base, base],
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "expanded": torch.ones(1).expand(5),
        "numbers": (1, 2**80, -3, 1.5, True, None, "text", "naïve"),
        **{str(dtype): (torch.arange(3) % 2).to(dtype) for dtype in DTYPES[: None if zipped else OLD]},
    }


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_content_is_what_torch_itself_reads(
    tmp_path: Path, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    torch.manual_seed(0)
    path = tmp_path / "a.pth"
    torch.save(content("zip" in request.node.name), path, **options)
    expected = torch.load(path, weights_only=False)
    found = read(path)

    def same(a: Any, b: Any) -> None:
        if isinstance(b, torch.Tensor):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert a.stride() == b.stride()
            assert a.contiguous().view(-1).view(torch.uint8).equal(b.detach().contiguous().view(-1).view(torch.uint8))
        elif isinstance(b, dict):
            assert list(a) == list(b)
            for key in b:
                same(a[key], b[key])
        elif isinstance(b, (list, tuple)):
            assert type(a) is type(b)
            assert len(a) == len(b)
            for left, right in zip(a, b):
                same(left, right)
        else:
            assert a == b
            assert type(a) is type(b)

    same(found, expected)
    assert found["shared"][0].data_ptr() == found["shared"][1].data_ptr()
    assert found["state_dict"]._metadata == expected["state_dict"]._metadata  # of which torch takes the versions


def test_other_tensors_than_those_asked_for_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {"w": torch.ones(2)}, "optimizer": {"m": torch.ones(3)}}, path)
    found = archives.read(path, "the checkpoint", only="state_dict")
    assert found["state_dict"]["w"].equal(torch.ones(2))
    assert isinstance(found["optimizer"]["m"], Record)


def test_the_other_byte_order_is_turned(tmp_path: Path) -> None:
    torch.save({"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([True])}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as source, zipfile.ZipFile(tmp_path / "b.pth", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "a/byteorder":
                data = b"big"
            if name == "a/data/0":
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            target.writestr(name, data)
    assert read(tmp_path / "b.pth")["w"].tolist() == [1, 2]
    assert read(tmp_path / "b.pth")["b"].tolist() == [True]


def test_checksums_may_be_off_but_not_wrong(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(100.0)}, tmp_path / "off.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read(tmp_path / "off.pth")["w"].equal(torch.arange(100.0))
    torch.save({"w": torch.arange(100.0)}, tmp_path / "on.pth")
    data = (tmp_path / "on.pth").read_bytes()
    place = data.index(torch.arange(100.0).numpy().tobytes()) + 41
    (tmp_path / "on.pth").write_bytes(data[:place] + b"\xff" + data[place + 1 :])
    assert "a checksum is wrong" in refusal(tmp_path / "on.pth")


# ---------------------------------------------------------------------------- beside the weights


class EasyDict(dict):  # type: ignore[type-arg]
    """As easydict's: a dictionary whose items are attributes, too."""


EasyDict.__module__ = "easydict"
HARMLESS = [
    np.float32(1.5),
    np.float64(-2),
    np.float16(3),
    np.int64(7),
    np.int8(-1),
    np.uint16(9),
    np.bool_(True),
    np.complex64(1j),
    np.str_("text"),
]
STAND_INS = [
    argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("a")),
    types.SimpleNamespace(a=1),
    pathlib.PosixPath("a/b"),
    datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
    datetime.timedelta(1),
    collections.deque([1, 2]),
    {1, 2},
    frozenset({1}),
    torch.device("cuda:0"),
    torch.strided,
    np.dtype("f4"),
    np.array(["a", None], dtype=object),
    np.random.default_rng(0).bit_generator.state,
    [argparse.Namespace, int],
    slice(1, 2),
    complex(1, 2),
    bytearray(b"x"),
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1),
]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("value", HARMLESS, ids=lambda value: type(value).__name__)
def test_numbers_of_numpy_beside_the_weights_are_read(tmp_path: Path, value: Any, protocol: int) -> None:
    path = tmp_path / "a.pth"
    torch.save({"x": value, "old": [value]}, path, pickle_protocol=protocol)
    found = read(path)
    assert found["x"] == value
    assert type(found["x"]) is type(value)
    torch.save({"x": value}, path, pickle_protocol=2, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read(path)["x"] == value  # as numpy 1 wrote it


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("code", ["f4", "f8", "f2", "i8", "u1", "?", "c8", ">i4", "U3", "S2"])
def test_arrays_of_numpy_beside_the_weights_are_read(tmp_path: Path, code: str, protocol: int) -> None:
    for array in (np.arange(6).reshape(2, 3).astype(code), np.asfortranarray(np.arange(6).reshape(2, 3).astype(code))):
        torch.save({"x": array}, tmp_path / "a.pth", pickle_protocol=protocol)
        found = read(tmp_path / "a.pth")["x"]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("value", STAND_INS, ids=lambda value: type(value).__name__)
def test_what_scripts_save_beside_the_weights_does_not_stand_in_the_way(
    tmp_path: Path, value: Any, protocol: int
) -> None:
    torch.save({"w": torch.ones(2), "x": value}, tmp_path / "a.pth", pickle_protocol=protocol)
    assert read(tmp_path / "a.pth")["w"].equal(torch.ones(2))


def test_dictionaries_of_other_classes_are_read_as_dictionaries(tmp_path: Path, monkeypatch: Any) -> None:
    module = types.ModuleType("easydict")
    module.EasyDict = EasyDict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "easydict", module)
    value = EasyDict(a=1)
    value.attribute = 2
    for found in (value, collections.defaultdict(list, a=1), collections.Counter("a")):
        torch.save({"x": found}, tmp_path / "a.pth")
        assert dict(read(tmp_path / "a.pth")["x"]) == {"a": 1}


class Kind:
    """A class of a training script."""


def test_another_class_is_named_with_what_to_do(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "x": Kind()}, tmp_path / "a.pth")
    assert f"it holds more than weights, {Kind.__module__}.Kind, of which nothing was run" in refusal(
        tmp_path / "a.pth"
    )
    torch.save(torch.nn.Linear(1, 1), tmp_path / "a.pth")
    assert "a whole module (torch.nn.modules.linear.Linear)" in refusal(tmp_path / "a.pth")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert "cannot be followed" in refusal(tmp_path / "a.pth") or "whole module" in refusal(tmp_path / "a.pth")


def test_tensors_of_other_kinds_are_named(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    values = {"sparse": torch.eye(2).to_sparse(), "quantised": quantised, "meta": torch.zeros(2, device="meta")}
    values["sign"] = torch.tensor([1j, 2j]).conj().imag
    torch.save(values, tmp_path / "a.pth")
    found = read(tmp_path / "a.pth")
    assert all(isinstance(value, Odd) for value in found.values())
    assert found["sparse"].kind == "a sparse tensor"
    assert found["quantised"].kind == "a quantised tensor"


# ---------------------------------------------------------------------------- code


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class Built:
    """Pickles as an object whose state is set by a call."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __reduce__(self) -> Any:
        return collections.OrderedDict, (), None, None, iter([("a", self.inner)])


def gadgets(folder: Path) -> dict[str, tuple[Any, str]]:
    """Objects whose pickles run code, and the name that a refusal must say; those of ``run`` make the file marker."""
    import builtins
    import functools
    import importlib
    import operator
    import runpy
    import timeit

    marker = folder / "marker"
    code = f"open({str(marker)!r}, 'w').close()"
    (folder / "script.py").write_text(code)
    nested = folder / "nested.pth"
    nested.write_bytes(pickle.dumps(Call(os.system, f"touch {marker}"), protocol=2))
    array = folder / "nested.npy"
    np.save(array, np.array([Call(os.system, f"touch {marker}")], dtype=object), allow_pickle=True)
    spawn = subprocess.Popen
    return {
        "os.system": (Call(os.system, f"touch {marker}"), "posix.system"),
        "os.popen": (Call(os.popen, f"touch {marker}"), "os.popen"),
        "subprocess.check_output": (Call(subprocess.check_output, ["touch", str(marker)]), "check_output"),
        "subprocess.Popen": (Call(spawn, ["touch", str(marker)]), ".Popen"),
        "builtins.eval": (Call(builtins.eval, code), "builtins.eval"),
        "builtins.exec": (Call(builtins.exec, code), "builtins.exec"),
        "builtins.open": (Call(builtins.open, str(marker), "w"), ".open"),
        "builtins.getattr": (
            Call(getattr, 1, "real"),
            "getattr",
        ),
        "builtins.__import__": (Call(builtins.__import__, "antigravity"), "builtins.__import__"),
        "builtins.compile": (Call(builtins.compile, code, "x", "exec"), "builtins.compile"),
        "builtins.setattr": (Call(builtins.setattr, Kind, "a", 1), "builtins.setattr"),
        "builtins.map": (Call(builtins.map, os.system, [f"touch {marker}"]), "map"),
        "runpy.run_path": (Call(runpy.run_path, str(folder / "script.py")), "runpy.run_path"),
        "timeit.timeit": (Call(timeit.timeit, code), "timeit.timeit"),
        "importlib": (Call(importlib.import_module, "this"), "importlib.import_module"),
        "operator": (Call(operator.methodcaller("touch"), marker), "operator.methodcaller"),
        "operator.attrgetter": (operator.attrgetter("system"), "operator.attrgetter"),
        "functools.partial": (functools.partial(os.system, f"touch {marker}"), "functools.partial"),
        "torch.load": (Call(torch.load, str(nested), None, None), "torch.serialization.load"),
        "torch.hub.load": (Call(torch.hub.load, "a/b", "c"), "torch.hub.load"),
        "torch.ops": (Call(torch.save, 1, str(marker)), "torch.serialization.save"),
        "numpy.load": (Call(np.load, str(array), None, True), "numpy.load"),
        "pickle.loads": (Call(pickle.loads, nested.read_bytes()), "pickle.loads"),
        "in a dictionary": (Built(Call(os.system, f"touch {marker}")), "posix.system"),
        "in a key": ({Call(os.system, f"touch {marker}"): 1}, "posix.system"),
    }


@pytest.mark.parametrize("form", ["zip", "zip, protocol 4", "old", "old, protocol 5", "plain"])
def test_no_pickle_runs_and_what_it_would_run_is_named(tmp_path: Path, form: str) -> None:
    table = gadgets(tmp_path)
    assert len(table) >= 12
    path = tmp_path / "a.pth"
    ran = 0
    for name, (value, words) in table.items():
        with open(path, "wb") as file:
            if form == "plain":
                pickle.dump({"state_dict": {"w": value}}, file, protocol=4)
            else:
                torch.save({"state_dict": {"w": value}}, file, **FORMATS[form])
        text = refusal(path)
        assert words in text, name
        assert "nothing was run" in text
        assert not (tmp_path / "marker").exists(), name

        # That it would have run.
        if form == "plain" and name in (
            "os.system",
            "builtins.eval",
            "builtins.exec",
            "runpy.run_path",
            "pickle.loads",
            "in a key",
        ):
            pickle.loads(path.read_bytes())
            assert (tmp_path / "marker").exists(), name
            (tmp_path / "marker").unlink()
            ran += 1
    assert form != "plain" or ran == 6


def raw(path: Path, code: bytes, **entries: bytes) -> Path:
    """A zip archive as torch.save writes it, around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", code)
        archive.writestr("a/version", b"3\n")
        for name, data in entries.items():
            archive.writestr(f"a/data/{name.removeprefix('s')}", data)
    return path


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (b"cos\nsystem\n(S'touch x'\ntR.", "os.system"),
        (b"(S'touch x'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'touch x'\no.", "os.system"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.", "os.system"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x20OrderedDict.__init__.__globals__\x93.", ""),
        (b"\x80\x02ctypes\nCodeType\n)R.", "types.CodeType"),
        (b"\x80\x02ctypes\nFunctionType\n)R.", "types.FunctionType"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x02cos\nsystem\n.", "os.system"),
        (b"\x80\x02c__main__\nx\n.", "__main__.x"),
        (b"\x80\x02c\xc3\xa4\nx\n.", ""),
    ],
)
def test_pickles_by_hand_are_refused(tmp_path: Path, code: bytes, words: str) -> None:
    if b"__globals__" in code:  # a stand-in, of which nothing is looked up
        assert isinstance(read_tree(tmp_path, code), object)
        return
    assert words in refusal(raw(tmp_path / "a.pth", code))


def read_tree(folder: Path, code: bytes) -> Any:
    return read(raw(folder / "a.pth", code))


def test_a_name_below_a_class_is_not_looked_up(tmp_path: Path) -> None:
    code = b"\x80\x02ccollections\nOrderedDict.__init__.__globals__\n(X\x01\x00\x00\x00atR."
    assert isinstance(read_tree(tmp_path, code), Thing)


def test_a_method_of_a_harmless_class_does_not_run(tmp_path: Path) -> None:
    value = Call(pathlib.Path.touch, tmp_path / "marker")
    torch.save({"w": torch.ones(1), "x": value}, tmp_path / "a.pth", pickle_protocol=4)
    assert isinstance(read(tmp_path / "a.pth")["x"], Thing)
    assert not (tmp_path / "marker").exists()


def test_a_state_does_not_reach_the_makers(tmp_path: Path) -> None:
    code = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__K\x01s\x86b."
    assert "cannot be followed" in refusal(raw(tmp_path / "a.pth", code))
    code = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb."
    found = read(raw(tmp_path / "b.pth", code))
    assert list(found.items()) == []


# ---------------------------------------------------------------------------- damaged


def test_every_half_of_a_file_is_refused(tmp_path: Path) -> None:
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"state_dict": {"w": torch.arange(64.0)}}, tmp_path / "good.pth", **options)
        data = (tmp_path / "good.pth").read_bytes()
        for length in range(0, len(data) - 1, 7):
            (tmp_path / "a.pth").write_bytes(data[:length])
            assert len(refusal(tmp_path / "a.pth")) < 300


def tensor_code(count: int, size: int, stride: int = 1, offset: int = 0) -> bytes:
    """The pickle of a tensor [size] in a storage of ``count`` numbers, under the key 0."""
    file = io.BytesIO()

    def number(value: int) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]

    file.write(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n")
    file.write(b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(count) + b"tQ" + number(offset))
    file.write(number(size) + b"\x85" + number(stride) + b"\x85\x89ccollections\nOrderedDict\n)RtR.")
    return file.getvalue()


@pytest.mark.parametrize(
    ("count", "size", "stride", "offset", "words"),
    [
        (4, 5, 1, 0, "a tensor of [5] reaches beyond its 4 numbers"),
        (4, 4, 1, 1, "reaches beyond"),
        (4, 2, 4, 0, "reaches beyond"),
        (5, 5, 1, 0, "the storage 0 has fewer numbers than it should"),
        (10**12, 10**12, 1, 0, "fewer numbers"),
        (4, 10**12, 0, 0, "larger than its file has reason to"),
        (4, -1, 1, 0, "a size of a tensor is -1"),
        (4, 2, -1, 0, "a size of a tensor is -1"),
        (4, 2, 1, -1, "a size of a tensor is -1"),
        (-1, 2, 1, 0, "a size of a tensor is -1"),
        (2**70, 2, 1, 0, "a size of a tensor is 1180591620717411303424"),
    ],
)
def test_sizes_that_do_not_fit(tmp_path: Path, count: int, size: int, stride: int, offset: int, words: str) -> None:
    good = raw(tmp_path / "good.pth", tensor_code(4, 4), s0=np.arange(4, dtype="f4").tobytes())
    assert read(good).tolist() == [0, 1, 2, 3]
    path = raw(tmp_path / "a.pth", tensor_code(count, size, stride, offset), s0=np.zeros(4, "f4").tobytes())
    assert words in refusal(path)
    assert "lacks the storage 0" in refusal(raw(tmp_path / "b.pth", tensor_code(4, 4)))


def bombs(folder: Path) -> list[Path]:
    """Small files that would take much memory or time of a reader that believes them."""

    def zipped(name: str, code: bytes, **entries: bytes) -> Path:
        path = folder / f"{name}.pth"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", code)
            archive.writestr("a/version", b"3\n")
            for key, data in entries.items():
                archive.writestr(f"a/data/{key.removeprefix('s')}", data)
        return path

    # What grows when it is unpacked, truly or by its own word.
    paths = [zipped("inflated", tensor_code(1 << 26, 1 << 26), s0=bytes(1 << 28))]
    path = raw(folder / "declared.pth", tensor_code(10**9, 10**9), s0=bytes(1000))
    data = path.read_bytes()
    place = data.rindex(b"PK\x01\x02", 0, data.rindex(b"a/data/0"))
    path.write_bytes(data[: place + 24] + (4 * 10**9).to_bytes(4, "little") + data[place + 28 :])
    paths.append(path)

    # Pickles of a few bytes, or of a few bytes again and again.
    text = b"X" + (10**6).to_bytes(4, "little") + b"a" * 10**6
    latin = b"X\x06\x00\x00\x00latin1"
    codes = {
        "tensor": tensor_code(10**12, 10**12),
        "expanded": tensor_code(1, 10**12, 0),
        "bytearray": b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
        "constructor": b"\x80\x02ctorch\nFloatTensor\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
        "list of a range": b"\x80\x02cbuiltins\nlist\ncbuiltins\nrange\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R\x85R.",
        "bytes": b"\x80\x04\x8e" + (10**12).to_bytes(8, "little") + b"x.",
        "buffer": b"\x80\x05\x96" + (10**12).to_bytes(8, "little") + b"x.",
        "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
        "power": b"\x80\x02coperator\npow\n.",
        "objects": b"\x80\x02(" + b"\x8f" * 10**6 + b"l.",
        "tuples": b"\x80\x02(" + b")\x85" * 10**6 + b"l.",
        "marks": b"\x80\x02" + b"(" * 10**6 + b".",
        "nested": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        "copies": b"\x80\x02c_codecs\nencode\nq\x00"
        + text
        + b"q\x01"
        + latin
        + b"q\x02"
        + b"h\x00h\x01h\x02\x86R" * 10**5
        + b".",
        "hash": b"\x80\x02)" + b"\x85q\x002h\x00h\x00\x86" * 60 + b"q\x01}h\x01K\x01s.",
        "array": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x8a\x06"
        + bytes(5)
        + b"\x01\x85N\x87R.",
    }
    paths += [raw(folder / f"{name}.pth", code, s0=bytes(4)) for name, code in codes.items()]
    paths.append(zipped("pickle", b"\x80\x02(" + b"}" * 30_000_000 + b"l."))

    # The older format, and a wild header of safetensors.
    torch.save({"w": torch.zeros(4)}, folder / "old.pth", _use_new_zipfile_serialization=False)
    old = (folder / "old.pth").read_bytes()
    (folder / "old.pth").write_bytes(old[:-24] + (10**12).to_bytes(8, "little") + bytes(16))
    paths.append(folder / "old.pth")
    return paths


MEASURE = """
import resource, sys, time
import numpy, torch
from studiogan_guidance.errors import UserError
from studiogan_guidance.weights import archives
from pathlib import Path
torch.ones(2).sum()
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, resource.RLIM_INFINITY))
for name in sys.argv[1:]:
    started = time.perf_counter()
    try:
        archives.read(Path(name), "the checkpoint")
        words = "read"
    except UserError as error:
        words = str(error)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
    print(f"{time.perf_counter() - started:.2f} s, {peak} MB: {words}")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured as Linux does")
def test_bombs_are_refused_within_200_megabytes(tmp_path: Path) -> None:
    paths = bombs(tmp_path)
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    print(done.stdout)
    assert len(lines) == len(paths)
    harmless = {"bytearray", "list of a range", "memo", "array", "nested"}
    for path, line in zip(paths, lines):
        assert str(path) in line or path.stem in harmless, line


def test_the_pickle_of_a_tensor_by_hand_is_one(tmp_path: Path) -> None:
    names = [operation.name for operation, _, _ in pickletools.genops(tensor_code(4, 4))]
    assert names[-1] == "STOP"
    assert "BINPERSID" in names
