"""Pickles of weights as plain data: an interpreter that makes dictionaries, lists and numbers, and calls nothing.

A pickle names functions and classes to call. Here a name is looked up in the tables of ``makers``; one that is in none
ends the reading, so that nothing of a file runs. (``torch.load`` with ``weights_only`` reads no pickle of protocol 4 or
5, and makes tensors of whatever size a file says.)
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any

from studiogan_guidance.weights.makers import Damaged, Dictionary, Name, Refused, Thing, key_of, make, named

MEMORY = 60_000_000  # bytes that a pickle may come to beyond its own, at some 10 an operation and 200 an object
LINE = 65_536  # most characters of a name

_LITERALS = """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 FLOAT BINFLOAT
"""
LITERALS = frozenset(_LITERALS.split())
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def load(stream: IO[bytes], size: int, storage: Callable[[Any], Any]) -> Any:
    """The content of a pickle.

    Args:
        stream: stands at its start, and afterwards at its end.
        size: bytes of the whole stream.
        storage: what a persistent id means, a tuple that begins with "storage".

    Raises:
        Refused: a name that is in no table.
        Damaged: anything else.
    """
    machine = _Machine(storage, size + MEMORY)
    try:
        for operation, argument, _ in pickletools.genops(_Bounded(stream, size)):  # type: ignore[arg-type]
            machine.do(operation.name, argument)
        return machine.stack.pop()
    except (Refused, Damaged):
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise Damaged("its pickle cannot be followed") from error


class _Bounded:
    """A stream that allocates no more than there is left to read."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self.stream = stream
        self.size = size
        self.tell = stream.tell

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self.size - self.stream.tell():
            raise Damaged("it ends in the middle")
        return self.stream.read(count)

    def readline(self) -> bytes:
        return self.stream.readline(LINE)


class _Machine:
    """The stack of a pickle, operation by operation."""

    def __init__(self, storage: Callable[[Any], Any], memory: int) -> None:
        self.storage = storage
        self.memory = memory
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under the marks
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        """One operation."""
        self._spend(10)
        if name in LITERALS:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._spend(100)
            self.memo[int(argument)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif name not in ("PROTO", "FRAME", "STOP"):
            operation = getattr(self, f"_{name.lower()}", None)
            if operation is None:
                raise Damaged(f"its pickle has the operation {name}, which files of weights have not")
            operation(argument)

    # ------------------------------------------------------------------------ the stack

    def _mark(self, argument: Any) -> None:
        self._spend(100)
        self.below.append(self.stack)
        self.stack = []

    def _marked(self) -> list[Any]:
        """What was put since the last mark."""
        items = self.stack
        self.stack = self.below.pop()
        return items

    def _pop(self, argument: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._marked()

    def _pop_mark(self, argument: Any) -> None:
        self._marked()

    def _dup(self, argument: Any) -> None:
        self.stack.append(self.stack[-1])

    def _memoize(self, argument: Any) -> None:
        self._spend(100)
        self.memo[len(self.memo)] = self.stack[-1]

    # ------------------------------------------------------------------------ containers

    def _put(self, value: Any) -> None:
        """Put a new container."""
        self._spend(200)
        self.stack.append(value)

    def _spend(self, memory: int) -> None:
        self.memory -= memory
        if self.memory < 0:
            raise Damaged("its pickle makes more objects than a file of its size has reason to")

    def _empty_list(self, argument: Any) -> None:
        self._put([])

    def _empty_dict(self, argument: Any) -> None:
        self._put(Dictionary())

    def _empty_set(self, argument: Any) -> None:
        self._put(set())

    def _empty_tuple(self, argument: Any) -> None:
        self.stack.append(())

    def _list(self, argument: Any) -> None:
        self._put(self._marked())

    def _tuple(self, argument: Any) -> None:
        self._put(tuple(self._marked()))

    def _tuple1(self, argument: Any) -> None:
        self._short_tuple(1)

    def _tuple2(self, argument: Any) -> None:
        self._short_tuple(2)

    def _tuple3(self, argument: Any) -> None:
        self._short_tuple(3)

    def _short_tuple(self, length: int) -> None:
        items = tuple(self.stack[-length:])
        if len(items) < length:
            raise Damaged("its pickle cannot be followed")
        del self.stack[-length:]
        self._put(items)

    def _dict(self, argument: Any) -> None:
        items = self._marked()
        self._put(Dictionary())
        self._set(items)

    def _frozenset(self, argument: Any) -> None:
        self._put(frozenset(map(key_of, self._marked())))

    def _append(self, argument: Any) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _appends(self, argument: Any) -> None:
        self._extend(self._marked())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Thing):
            raise Damaged("its pickle cannot be followed")

    def _setitem(self, argument: Any) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._set([key, value])

    def _setitems(self, argument: Any) -> None:
        self._set(self._marked())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Dictionary) or len(items) % 2:
            raise Damaged("its pickle cannot be followed")
        for key, value in zip(items[::2], items[1::2]):
            target[key_of(key)] = value

    def _additems(self, argument: Any) -> None:
        items = self._marked()
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(key_of, items))
        elif not isinstance(target, Thing):
            raise Damaged("its pickle cannot be followed")

    # ------------------------------------------------------------------------ names, and what is made of them

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(named(module, name))

    def _stack_global(self, argument: Any) -> None:
        name = self.stack.pop()
        module = self.stack.pop()
        self.stack.append(named(module, name))

    def _reduce(self, argument: Any) -> None:
        args = self.stack.pop()
        self._make(self.stack.pop(), args)

    _newobj = _reduce

    def _newobj_ex(self, argument: Any) -> None:
        self.stack.pop()  # named arguments
        self._reduce(argument)

    def _inst(self, argument: str) -> None:
        args = tuple(self._marked())
        module, _, name = argument.partition(" ")
        self._make(named(module, name), args)

    def _obj(self, argument: Any) -> None:
        maker, *args = self._marked()
        self._make(maker, tuple(args))

    def _make(self, maker: Any, args: Any) -> None:
        if not isinstance(maker, Name) or not isinstance(args, tuple):
            raise Damaged("its pickle cannot be followed")
        for value in args:  # of which a maker may make a copy
            if isinstance(value, (str, bytes, bytearray, list, tuple, dict)):
                self._spend(len(value) * (1 if isinstance(value, (str, bytes, bytearray)) else 100))
        self._put(make(maker, args))

    def _build(self, argument: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Thing):
            target.state = state
        elif isinstance(target, Dictionary):
            metadata = state.get("_metadata") if isinstance(state, dict) else None
            if isinstance(metadata, dict):
                target._metadata = metadata  # type: ignore[attr-defined]
        else:
            raise Damaged("its pickle cannot be followed")

    def _binpersid(self, argument: Any) -> None:
        self.stack.append(self.storage(self.stack.pop()))
