"""What is registered, as ``list`` prints it: samplers by family, joints, views, training stages, configurations."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from studiogan_guidance import samplers
from studiogan_guidance.config import RunConfig, packaged
from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.latents import VIEWS
from studiogan_guidance.latents.joint import JOINTS
from studiogan_guidance.registry import FAMILIES, Entry, Registry
from studiogan_guidance.samplers import SAMPLERS
from studiogan_guidance.training import STAGES

KINDS: dict[str, Registry[Any]] = {"samplers": SAMPLERS, "joints": JOINTS, "views": VIEWS, "stages": STAGES}
INDENT = 6  # of what stands below a name
NOT_KEYS = ("host", "options")  # of RunConfig: a file has sections in capitals, and options beside the sampler's name
NARROWEST = 40  # columns that lines are wrapped to at least
WIDEST = 120


def as_data() -> dict[str, Any]:
    """Everything as plain data, by kind; samplers in the order of their families."""
    rows = {kind: [_row(kind, entry) for entry in registry] for kind, registry in KINDS.items()}
    return {**rows, "configs": list(packaged())}


def _row(kind: str, entry: Entry[Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "description": entry.description, "paper": entry.paper}
    if kind == "samplers":
        row |= {"family": entry.family, "needs": list(entry.needs), "neutral": entry.neutral}
        row["options"] = samplers.options(samplers.create(entry.name))
    if kind == "stages":
        row["options"] = {field.name: field.default for field in dataclasses.fields(entry.target)}
    return row


def as_text() -> str:
    """Everything as text, in lines that fit the terminal."""
    lines = []
    family = None
    for kind, registry in KINDS.items():
        lines.append(f"{kind}:")
        for entry in registry:
            if kind == "samplers" and entry.family != family:
                family = entry.family
                lines.append(f"  [{FAMILIES[family]}]")
            lines += _lines(_row(kind, entry))
    return "\n".join([*lines, "configurations:", *(f"  {name}" for name in packaged())])


def _lines(row: Mapping[str, Any]) -> list[str]:
    lines = [f"  {row['name']}", *_wrapped(row["description"]), *_wrapped(row["paper"], "paper: ")]

    # What it needs, where it is plain sampling, and its options.
    if row.get("needs"):
        lines += _wrapped(", ".join(row["needs"]), "needs: ")
    if row.get("neutral") is not None:
        lines += _wrapped(_neutral(row["neutral"]), "plain sampling at: ")
    if row.get("options"):
        lines += _wrapped(_pairs(row["options"]), "options: ")
    return lines


def _wrapped(text: str, heading: str = "") -> list[str]:
    """A text below a name, in lines that fit the terminal and begin beside the end of the heading."""
    width = min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)
    indent = " " * INDENT
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent + heading,
        subsequent_indent=indent + " " * len(heading),
        break_on_hyphens=False,
    )


def as_markdown(table: str = "samplers") -> str:
    """One of the tables that pages show.

    Args:
        table: samplers, with papers; summary, the samplers without them; keys, those of a YAML file; or shims, the
            fixes that let the host run on current libraries.
    """
    if table in ("keys", "shims"):
        return _keys() if table == "keys" else _shims()
    headings = ["name", "what it does", "paper", "needs", "plain sampling at"]
    rows = []
    for entry in SAMPLERS:
        needs = ", ".join(entry.needs) or "-"
        neutral = "-" if entry.neutral is None else _neutral(entry.neutral, quote="`")
        rows.append([f"`{entry.name}`", entry.description, entry.paper, needs, neutral])

    # The summary has no papers.
    if table == "summary":
        column = headings.index("paper")
        headings, *rows = [line[:column] + line[column + 1 :] for line in (headings, *rows)]
    return _table(headings, rows)


def _keys() -> str:
    """The keys of a YAML file: name, default, and what the documentation of ``RunConfig`` says about them."""
    defaults = {field.name: _default(field) for field in dataclasses.fields(RunConfig)}
    attributes = inspect.cleandoc(RunConfig.__doc__ or "").partition("Attributes:\n")[2]
    rows = []
    for attribute in re.split(r"\n {4}(?=\S)", f"\n{attributes}")[1:]:
        key, _, text = attribute.partition(": ")
        if key in NOT_KEYS:
            continue
        words = " ".join(text.replace("``", "`").split())
        rows.append([f"`{key}`", defaults[key], words])
    return _table(["key", "default", "what it is"], rows)


def _shims() -> str:
    """What the host does without each shim, and the versions that need it."""
    from studiogan_guidance.host.compat import RUN_SHIMS, SHIMS

    rows = [(f"`{shim.name}`", shim.symptom, shim.since, shim.until) for shim in [*SHIMS, *RUN_SHIMS]]
    return _table(["name", "what the host does without it", "since", "until"], rows)


def _default(field: dataclasses.Field[Any]) -> str:
    """The default of a key as a YAML file would have it; a dash where it is found otherwise or is empty."""
    if field.default is dataclasses.MISSING or field.default in (None, ()):
        return "-"
    return f"`{_text(field.default)}`"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    first, *others = [f"| {' | '.join(cells)} |" for cells in (headings, *rows)]
    return "\n".join([first, "|---" * len(headings) + "|", *others])


def _neutral(options: Mapping[str, Any], quote: str = "") -> str:
    return f"{quote}{_pairs(options)}{quote}" if options else "its defaults"


def _pairs(options: Mapping[str, Any]) -> str:
    """Options with their values, as a command line takes them."""
    return " ".join(f"{key}={_text(value)}" for key, value in options.items())


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def documentation(name: str) -> str:
    """What a sampler, joint, view or stage says about itself; all of them where several have that name.

    Raises:
        UserError: nothing has that name; the nearest name is in the message.
    """
    known: list[str] = []
    texts = []
    for registry in KINDS.values():
        names = [entry.name for entry in registry]
        if name in names or registry.is_alias(name):
            entry = registry[name]
            texts.append(f"{entry.name}: {entry.description} [{entry.paper}]\n\n{entry.documentation}")
        known += names
    if not texts:
        raise UserError(f"nothing is called '{name}': {nearest(name, known)}")
    return "\n\n".join(texts)


def broken() -> tuple[str, ...]:
    """A line for each sampler, joint or stage of another package that cannot be imported."""
    return tuple(reason for registry in KINDS.values() for reason in registry.broken())
