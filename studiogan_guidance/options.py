"""Options: one grammar for a named thing with options, and one converter of values.

``Spec`` is a name with options, whoever wrote it: ``ddls:steps=5,base=gandance,base.scale=1.1`` on a command line,
``{name: ddls, steps: 5, base: {name: gandance, scale: 1.1}}`` in YAML, or ``ddls`` in either.
"""

from __future__ import annotations

import math
import os
import re
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studiogan_guidance.errors import UserError

WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple[int, int]: "two whole numbers such as 0-4",
    tuple[float, ...]: "numbers such as 1:0.5:0",
    tuple[int, ...]: "a list of whole numbers such as [3, 5]",
    tuple[int | str, ...]: "a list of whole numbers, ranges and names such as [0-9, 12, dog]",
    tuple[str, ...]: "a list of words",
    tuple[Any, ...]: "a list",
    Mapping[str, Any]: "a mapping",
}
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)  # no 1_000, no 0x10
NOT_FINITE = re.compile(r"[-+]?(nan|inf|infinity)", re.IGNORECASE)
STACK = 4  # things with names inside each other: a sampler, its base, the base of that, and one more
TRUTH: dict[Any, bool] = {True: True, False: False, "true": True, "false": False}


@dataclass(frozen=True)
class Spec:
    """A name with options: a sampler, its base, a stage.

    Args:
        name: as it is registered.
        options: values by name; those of a base are a mapping of their own, with its ``name``.

    Example:
        >>> Spec.parse("ddls:steps=5,base=gandance,base.scale=1.1")
        Spec(name='ddls', options={'steps': '5', 'base': {'name': 'gandance', 'scale': '1.1'}})
        >>> Spec.parse({"name": "gandance", "scale": 1.1}).to_dict()
        {'name': 'gandance', 'scale': 1.1}
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, spec: Any, what: str = "it") -> Spec:
        """A Spec from its text, its mapping, or itself; ``what`` it is about stands in the error.

        Raises:
            UserError: ``spec`` is neither of these, or a text that breaks the grammar ``name:key=value,key=value``,
                each key once; or a stack of more than ``STACK`` things.
        """
        if isinstance(spec, Spec):
            return spec

        if isinstance(spec, str):
            name, colon, text = spec.partition(":")
            items = [item.partition("=") for item in text.split(",")] if colon else []
            pairs = {key: value for key, _, value in items}
            if name and all(key and equals for key, equals, _ in items) and len(pairs) == len(items):
                return cls(name, nested(pairs))
        elif isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
            options = dict(spec)
            return cls(options.pop("name"), nested(options))

        raise UserError(
            f"{what} must be a name or a mapping with a name, or text such as gandance:scale=1.1, found {shown(spec)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """``{"name": ..., option: value}``, as YAML and results hold it."""
        return {"name": self.name, **self.options}


def shown(value: Any) -> str:
    """A value as an error quotes it, in some 40 characters for each text in it.

    Example:
        >>> shown("a" * 1000)
        "'aaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaa'"
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = 40
    return short.repr(value)


def expanded(path: str) -> str:
    """A path with ``~`` and variables such as ``$HOME`` written out; no shell does that behind an equals sign.

    Example:
        >>> expanded("~/a.pt") == os.path.join(os.environ["HOME"], "a.pt")
        True
    """
    return os.path.expandvars(os.path.expanduser(path))


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which those with a dot have become part of the thing before the dot.

    Example:
        >>> nested({"base": "gandance", "base.scale": 1.1})
        {'base': {'name': 'gandance', 'scale': 1.1}}

    Raises:
        UserError: what stands before the dot is neither a name nor a mapping; more than ``STACK`` things in each other.
    """
    _check_stack(options, STACK)
    named = {str(key): value for key, value in options.items()}  # in YAML, a key may be a number
    whole = {key: value for key, value in named.items() if "." not in key}

    # Move each option with a dot into its mapping.
    for key, value in named.items():
        head, dot, tail = key.partition(".")
        if not dot:
            continue
        outer = whole.get(head, {})
        if not isinstance(outer, Mapping):
            outer = Spec.parse(outer, head).to_dict()
        whole[head] = {**outer, tail: value}
    return whole


def _check_stack(options: Mapping[Any, Any], most: int) -> None:
    """Raise UserError if things with names stand more than ``most`` deep inside each other."""
    for key, value in options.items():
        left = most - str(key).count(".")
        if left < 1:
            raise UserError(f"{shown(str(key))} is about a stack of more than {STACK} things: nothing works on so many")
        if isinstance(value, Mapping):
            _check_stack(value, left - 1)


def dotted(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which those of a base stand beside it under names with a dot, as a command line takes them.

    Example:
        >>> dotted({"steps": 5, "base": {"name": "gandance", "scale": 1.1}})
        {'steps': 5, 'base': 'gandance', 'base.scale': 1.1}
    """
    flat: dict[str, Any] = {}
    for key, value in options.items():
        if not isinstance(value, Mapping):
            flat[key] = value
            continue
        for name, item in dotted(value).items():
            flat[key if name == "name" else f"{key}.{name}"] = item
    return flat


def convert(name: str, value: Any, kind: Any) -> Any:
    """``value`` as a ``kind``, a type as the annotation of an option has it; text comes from a command line.

    Known are bool, int, float, str, tuples of them, ``None`` beside any of these (``none`` and ``null`` in text), and
    any other class: a thing with a name, whose ``Spec`` is returned, or an instance of the class as it is.

    Raises:
        UserError: a value that does not fit; the message calls it ``name``.
    """
    # Nothing, where that is allowed.
    required = _without_none(kind)
    if required != kind and (value is None or (isinstance(value, str) and value in ("none", "null"))):
        return None

    # A thing with a name.
    if not _is_plain(required):
        is_one = required is Any or (isinstance(required, type) and isinstance(value, required))
        return value if is_one else Spec.parse(value, name)

    # Anything else.
    try:
        return _converted(value, required)
    except (TypeError, ValueError, KeyError, OverflowError):
        is_infinite = required is float and isinstance(value, (str, float)) and NOT_FINITE.fullmatch(str(value))
        what = "a finite number" if is_infinite else WORDS.get(required, required)
        raise UserError(f"{name} must be {what}, found {shown(value)}") from None


def _without_none(kind: Any) -> Any:
    """``kind`` of an annotation ``kind | None``; any other annotation as it is."""
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return kind
    kinds = [member for member in typing.get_args(kind) if member is not types.NoneType]
    return kinds[0] if len(kinds) == 1 else kind


def _is_plain(kind: Any) -> bool:
    return kind in (bool, int, float, str) or typing.get_origin(kind) is tuple


def _converted(value: Any, kind: Any) -> Any:
    """``value`` as one of the types in WORDS; KeyError, TypeError, ValueError or OverflowError if it does not fit."""
    if kind is bool:
        return TRUTH[value]

    # Tuples: items of one kind, or two ends.
    if isinstance(value, Mapping):
        raise ValueError
    if kind == tuple[int, int]:
        low, high = re.split("[-:,]", value) if isinstance(value, str) else value
        return _converted(low, int), _converted(high, int)
    if typing.get_origin(kind) is tuple:
        member = typing.get_args(kind)[0]
        separators = "[:,]" if member is float else ","
        items = re.split(separators, value) if isinstance(value, str) else value
        return tuple(_converted(item.strip() if isinstance(item, str) else item, member) for item in items)

    # Numbers and text; a bool is neither.
    if isinstance(value, (bool, list, tuple)) or value is None or value == "":
        raise ValueError
    if kind is str:
        return expanded(value) if isinstance(value, str) and value[0] in "~$" else str(value)
    if isinstance(value, str) and not NUMBER.fullmatch(value.strip()):
        raise ValueError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    if kind is float:
        return number
    if number != int(number):
        raise ValueError
    return value if isinstance(value, int) else int(number)


def whole_numbers(word: int | str) -> range | None:
    """The whole numbers that a word means: itself, or all of a range from the first to the last; None for other text.

    Example:
        >>> whole_numbers("12"), whole_numbers("0-9"), whole_numbers("dog")
        (range(12, 13), range(0, 10), None)

    Raises:
        UserError: a range whose last number is below its first.
    """
    match = re.fullmatch("(-?[0-9]{1,18})(?:-([0-9]{1,18}))?", str(word))
    if match is None:
        return None

    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first:
        raise UserError(f"the range {word} ends below its start: give the lower number first")
    return range(first, last + 1)


def check_type(name: str, value: Any, kind: Any) -> None:
    """Raise UserError unless ``value`` is of the type ``kind`` as it is, without conversion."""
    required = _without_none(kind)
    if required != kind and value is None:
        return
    origin = typing.get_origin(required) or required
    fits = _is_instance(value, origin)
    if fits and origin is tuple:
        member = typing.get_args(required)[0]
        fits = member is Any or all(_is_instance(item, member) for item in value)
    if not fits:
        raise UserError(f"{name} must be {WORDS.get(required, required)}, found {shown(value)}")


def _is_instance(value: Any, kind: type) -> bool:
    """As isinstance, but a bool is no int."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def parse_pairs(items: Sequence[str], flag: str, example: str) -> dict[str, str]:
    """Texts KEY=VALUE as a mapping.

    Raises:
        UserError: a text without a key or a value, or a key twice, which the message answers with ``flag`` and an
            ``example``.
    """
    pairs: dict[str, str] = {}
    for item in items:
        key, _, value = item.partition("=")
        if not key or not value or key in pairs:
            raise UserError(f"{flag} takes {example}, each option once, found {shown(item)}")
        pairs[key] = value
    return pairs
