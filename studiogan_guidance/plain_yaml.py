"""YAML files of plain values, read within bounds: of bytes, of depth, and of nodes as if all aliases were written out.

The values are those of YAML 1.1, as the host reads them, except what nobody means: 4:8 is no number of sixties, a date
is text, and 010 (eight) is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.files import regular_file

BYTES = 50_000  # ten times the longest configuration that we know; a second's work for the reader
NODES = BYTES  # values; a file without aliases cannot hold more
DEPTH = 30  # mappings and lists inside each other
PREFIX = "tag:yaml.org,2002:"
PLAIN = {PREFIX + kind for kind in ("str", "int", "float", "bool", "null", "seq", "map")}
OCTAL = re.compile(r"[-+]?0[0-7_]+")
KINDS = {type(None): "nothing", list: "a list", str: "text"}


class _Refused(yaml.MarkedYAMLError):
    """What YAML allows and a configuration does not hold."""


def _refuse(problem: str, mark: Any) -> _Refused:
    return _Refused(None, None, problem, mark)


class _Loader(yaml.SafeLoader):
    """Plain values only; what is too large is refused while it is read, before anything is made of it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0
        self._sizes: dict[str, int] = {}  # nodes of each anchor, written out
        self._open: list[tuple[str | None, int]] = []  # anchors of what is being read, and the nodes before it

    def get_event(self) -> Any:
        """The next event, weighed."""
        event: Any = super().get_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self._add_alias(event)
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            self._add_node(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self._open.pop()
            self._sizes[anchor or ""] = self._nodes - before

        if self._nodes > NODES:
            raise _refuse(f"more than {NODES} values, with aliases written out", event.start_mark)
        return event

    def _add_alias(self, event: Any) -> None:
        if event.anchor in [anchor for anchor, _ in self._open]:
            raise _refuse(f"the alias *{event.anchor} stands inside of what it names", event.start_mark)
        self._nodes += self._sizes.get(event.anchor, 0)

    def _add_node(self, event: Any) -> None:
        if event.tag not in (None, "!", *PLAIN):
            raise _refuse(f"the tag {event.tag} is not taken, plain values only", event.start_mark)
        self._nodes += 1
        if isinstance(event, yaml.ScalarEvent):
            self._sizes[event.anchor or ""] = 1
            return
        self._open.append((event.anchor, self._nodes - 1))
        if len(self._open) > DEPTH:
            raise _refuse(f"mappings and lists more than {DEPTH} deep inside each other", event.start_mark)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a node: 4:8 and dates are text."""
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        sixties = tag in (PREFIX + "int", PREFIX + "float") and ":" in value
        return PREFIX + "str" if sixties or tag == PREFIX + "timestamp" else tag

    def compose_scalar_node(self, anchor: Any) -> Any:
        """A value; a whole number that begins with a zero is refused."""
        node = super().compose_scalar_node(anchor)
        if node.tag == PREFIX + "int" and OCTAL.fullmatch(node.value):
            raise _refuse(f"{node.value} is octal in YAML: write it without the zero, or as text", node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping whose keys are texts, each of them once."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag not in (PREFIX + "str", PREFIX + "merge"):
                name = key.value if isinstance(key.value, str) else "a list or a mapping"
                raise _refuse(f"the key {name} is no text: put it into quotes", key.start_mark)

            # Each once.
            if key.value in lines:
                first = lines[key.value]
                raise _refuse(f"the key '{key.value}' stands in line {first}, too: keep one of them", key.start_mark)
            lines[key.value] = line
        return node


def read(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping, as plain values.

    Raises:
        UserError: no such file, more than ``BYTES`` or ``NODES`` in it, no UTF-8, no YAML, a key twice, a key that is
            no text, a tag, or another top level.
    """
    text = _text(path)
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise _unreadable(path, _located(error)) from error
    except (ValueError, KeyError) as error:  # of 5,000 digits, or with a tag such as !!int
        raise _unreadable(path, f"a value is not of its kind ({one_line(error, 60)})") from error
    except yaml.YAMLError as error:
        raise _unreadable(path, one_line(error, 200)) from error

    # Look at the top level.
    if not isinstance(content, dict):
        kind = KINDS.get(type(content), type(content).__name__)
        raise UserError(f"the configuration {path} must be a mapping of keys (lines KEY: VALUE), found {kind}")
    return content


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"cannot read the configuration {path}: {reason}")


def _text(path: Path) -> str:
    try:
        with regular_file(path, "the configuration").open("rb") as file:
            content = file.read(BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error

    # Bytes that are no text of ours.
    if len(content) > BYTES:
        raise _unreadable(path, f"it has more than {BYTES} bytes, which no configuration has")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _unreadable(path, "it is UTF-16: save it as UTF-8")
    if b"\0" in content:
        raise _unreadable(path, "it is no text")

    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _unreadable(
            path, f"line {line}: byte 0x{content[error.start]:02x} is no UTF-8: save it as UTF-8"
        ) from error


def _located(error: yaml.MarkedYAMLError) -> str:
    """What the reader found, with its line."""
    problem = error.problem or error.context or "no YAML"
    if r"'\t'" in problem:
        problem = "a tab: YAML indents with spaces"
    if "another document" in problem or "expected a single document" in str(error.context):
        problem = "a second document (---): keep one"
    mark = error.problem_mark or error.context_mark
    return one_line(ValueError(f"line {mark.line + 1}: {problem}" if mark else problem), 200)
