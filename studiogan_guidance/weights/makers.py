"""What a pickle of weights names, and what is made of it: tensors, dictionaries and numbers, and nothing that runs.

A name is looked up in two tables. Those of ``MAKERS`` (tensors, dictionaries, numpy's numbers) are made by functions of
this file from arguments that were checked. Those of ``HARMLESS``, which training scripts put beside their weights,
become a ``Thing`` that holds what was said about them. No class of a file is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


class Refused(Exception):
    """A pickle that names what is no data; its text is the name."""


class Damaged(Exception):
    """Content that makes no sense; its text says why."""


class Dictionary(dict[Any, Any]):
    """A dictionary of any class; ``_metadata`` are the versions that ``state_dict`` keeps beside the weights."""


class Thing(Dictionary):
    """What stands for an object that was not made: the name of its class, its arguments, its state and its items."""

    def __init__(self, name: str, args: Sequence[Any]) -> None:
        super().__init__()
        self.name = name
        self.args = args
        self.state: Any = None

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


@dataclass(frozen=True)
class Name:
    """A class or a function that a pickle names, such as collections.OrderedDict."""

    text: str


@dataclass(frozen=True)
class Storage:
    """Numbers in a file: ``count`` of them, of a type (None: bytes), from number ``start`` of the storage ``key``."""

    key: str
    dtype: torch.dtype | None
    count: int
    start: int = 0


@dataclass(frozen=True)
class Record:
    """A tensor in a file: its shape and strides in a storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.size)


@dataclass(frozen=True)
class Odd:
    """A tensor that is no plain one; ``kind`` says which, such as "a sparse tensor"."""

    kind: str


DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
STORAGES: dict[str, torch.dtype | None] = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
    "Untyped": None,
}

# Classes of which a stand-in is kept, and modules (with a dot at the end) all of whose classes are.
_HARMLESS = """
    builtins.set builtins.frozenset builtins.list builtins.tuple builtins.dict builtins.int builtins.float
    builtins.complex builtins.str builtins.bytes builtins.bytearray builtins.bool builtins.slice builtins.range
    builtins.object copyreg._reconstructor types.SimpleNamespace numpy.dtype numpy.ndarray torch.device torch.Tensor
    torch.torch_version.TorchVersion torch.serialization._get_layout torch.per_tensor_affine torch.per_channel_affine
    torch.per_tensor_symmetric torch.per_channel_symmetric torch.per_channel_affine_float_qparams
    builtins.long builtins.unicode builtins.xrange
"""
_HARMLESS_MODULES = """
    addict. argparse. attridict. collections. datetime. decimal. dotmap. easydict. enum. fractions. ml_collections.
    munch. numpy.dtypes. numpy.random. omegaconf. pathlib. torch.nn.parameter. torch.optim. typing. uuid. wandb.
    yacs. zoneinfo.
"""
HARMLESS = frozenset(_HARMLESS.split())
HARMLESS_MODULES = tuple(_HARMLESS_MODULES.split())
OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections", "numpy.core": "numpy._core"}


def key_of(value: Any) -> Any:
    """A key of a dictionary; nothing whose hash could take long."""
    parts = value if isinstance(value, tuple) else (value,)
    if all(isinstance(part, (str, bytes, int, float, Thing, Name, torch.dtype, type(None))) for part in parts):
        return value
    raise Damaged("its pickle has a key that is neither text nor number")


def named(module: Any, name: Any) -> Any:
    """What a pickle names; raises Refused for what is no data."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise Damaged("its pickle cannot be followed")
    for old, new in OLD_MODULES.items():
        if module == old or module.startswith(f"{old}."):
            module = new + module[len(old) :]
    text = f"{module}.{name}"
    if text in DTYPES:
        return DTYPES[text]
    if text in MAKERS or text in HARMLESS or text.startswith(HARMLESS_MODULES) or _storage_type(text) is not False:
        return Name(text)
    raise Refused(text)


def _storage_type(text: str) -> torch.dtype | bool | None:
    """The type of the numbers of a class such as torch.FloatStorage; None for bytes, false for another class."""
    module, _, name = text.rpartition(".")
    kind = name.removesuffix("Storage")
    is_one = module in ("torch", "torch.cuda", "torch.storage") and kind != name and kind in STORAGES
    return STORAGES[kind] if is_one else False


# ---------------------------------------------------------------------------- makers


def make(maker: Name, args: tuple[Any, ...]) -> Any:
    """What a pickle makes by a call of ``maker``."""
    function = MAKERS.get(maker.text)
    return Thing(maker.text, args) if function is None else function(*args)


def storage_of(saved: Any) -> Storage:
    """The storage of a persistent id: ("storage", class, key, device, count), and a view in files before torch 0.4."""
    if not isinstance(saved, tuple) or len(saved) < 5 or not isinstance(saved[1], Name):
        raise Damaged("its pickle cannot be followed")
    dtype = _storage_type(saved[1].text)
    key, _, count = saved[2:5]
    if isinstance(dtype, bool) or not isinstance(key, str):
        raise Damaged("its pickle cannot be followed")
    view = saved[5] if len(saved) > 5 else None
    if view is None:
        return Storage(key, dtype, _number(count))
    _, start, length = view
    if _number(start) + _number(length) > _number(count):
        raise Damaged("a tensor reaches beyond its storage")
    return Storage(key, dtype, length, start)


def _number(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**62:
        raise Damaged(f"a size of a tensor is {str(value)[:40]}")
    return value


def _numbers(values: Any) -> tuple[int, ...]:
    if isinstance(values, Thing):  # a list or tuple of another class
        values = values.args[0]
    return tuple(map(_number, values))


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, gradient: Any = False, hooks: Any = None, bits: Any = None
) -> Record | Odd:
    if bits:
        return Odd("a tensor whose sign is kept apart")
    if not isinstance(storage, Storage) or storage.dtype is None:
        raise Damaged("a tensor has no storage")
    return _record(storage, storage.dtype, offset, size, stride)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, gradient: Any, hooks: Any, dtype: Any, bits: Any = None
) -> Record | Odd:
    if bits:
        return Odd("a tensor whose sign is kept apart")
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise Damaged("a tensor has no storage")
    bytes_each = 1 if storage.dtype is None else storage.dtype.itemsize
    count = storage.count * bytes_each // dtype.itemsize
    return _record(Storage(storage.key, dtype, count, storage.start), dtype, offset, size, stride)


def _record(storage: Storage, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> Record | Odd:
    """A tensor that lies within its storage."""
    sizes = _numbers(size)
    strides = _numbers(stride)
    if len(sizes) != len(strides) or len(sizes) > 64:
        raise Damaged("a tensor has other strides than sizes")
    last = _number(offset) + sum((n - 1) * step for n, step in zip(sizes, strides))
    if 0 not in sizes and last >= storage.count:
        raise Damaged(f"a tensor of {list(sizes)} reaches beyond its {storage.count} numbers")
    return Record(storage, dtype, offset, sizes, strides)


def _parameter(data: Any, *more: Any) -> Any:
    return data


def _from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor with attributes, which are left out."""
    if not isinstance(function, Name) or not isinstance(args, tuple):
        raise Damaged("its pickle cannot be followed")
    return make(function, args)


def _odd(kind: str) -> Callable[..., Odd]:
    return lambda *args: Odd(kind)


def _dictionary(items: Iterable[Any] = ()) -> Dictionary:
    pairs = items.items() if isinstance(items, dict) else items
    return Dictionary((key_of(key), value) for key, value in pairs)


def _default_dictionary(factory: Any = None, items: Iterable[Any] = ()) -> Dictionary:
    return _dictionary(items)


def _size(values: Any = ()) -> tuple[int, ...]:
    return _numbers(values)


def _encoded(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise Damaged("its pickle cannot be followed")
    return text.encode(encoding)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """A number of numpy; a Thing if it is of a class that holds other objects."""
    array = _array(dtype, (), data)
    return Thing("numpy.generic", (dtype,)) if array is None else array[()]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Thing:
    thing = Thing("numpy.ndarray", ())
    thing.state = (1, shape, dtype, order == "F", data)
    return thing


MAKERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": _default_dictionary,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._utils._rebuild_sparse_tensor": _odd("a sparse tensor"),
    "torch._utils._rebuild_sparse_csr_tensor": _odd("a sparse tensor"),
    "torch._utils._rebuild_qtensor": _odd("a quantised tensor"),
    "torch._utils._rebuild_nested_tensor": _odd("a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _odd("a tensor without numbers (on the device meta)"),
    "torch._utils._rebuild_wrapper_subclass": _odd("a tensor of a class of its own"),
    "torch._utils._rebuild_device_tensor_from_numpy": _odd("a tensor of another device"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _parameter,
    "torch.Size": _size,
    "_codecs.encode": _encoded,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.multiarray._reconstruct": lambda *args: Thing("numpy.ndarray", args),
    "numpy._core.numeric._frombuffer": _from_buffer,
}


def array_of(value: Any) -> np.ndarray[Any, Any] | None:
    """The array of numpy that a Thing stands for; None for anything else."""
    if not isinstance(value, Thing) or value.name != "numpy.ndarray" or not isinstance(value.state, tuple):
        return None
    _, shape, dtype, is_fortran, data = value.state
    array = _array(dtype, _numbers(shape[::-1] if is_fortran else shape), data)
    return array.T if array is not None and is_fortran else array


def _array(dtype: Any, shape: tuple[int, ...], data: Any) -> np.ndarray[Any, Any] | None:
    """Numbers or texts of numpy from their bytes; None for other objects, or for other bytes than the shape wants."""
    if not isinstance(dtype, Thing) or not dtype.args or not isinstance(data, (bytes, bytearray, str)):
        return None
    code = dtype.args[0].decode() if isinstance(dtype.args[0], bytes) else str(dtype.args[0])
    order = dtype.state[1] if isinstance(dtype.state, tuple) else "|"
    raw = data.encode("latin-1") if isinstance(data, str) else bytes(data)
    if code[:1] not in tuple("biufcSU") or not code[1:].isdigit() or order not in ("<", ">", "|", "="):
        return None
    kind = np.dtype(f"{order}{code}")
    if kind.itemsize * math.prod(shape) != len(raw):
        return None
    return np.frombuffer(raw, kind).reshape(shape).copy()
