"""Names of samplers, joints and stages, and of their options, read from the sources, whose import takes seconds."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
FOLDERS = {"SAMPLERS": "samplers", "JOINTS": "latents", "STAGES": "training"}  # by registry
GROUPS = {"SAMPLERS": "studiogan_guidance.samplers"}  # entry points of other packages


def registered(registry: str) -> dict[str, str]:
    """The description of each name of a registry; of a name from another package, none."""
    found = {name: description for name, description, _ in _registrations(registry)}
    for point in entry_points(group=GROUPS[registry]) if registry in GROUPS else ():
        found.setdefault(point.name, "")
    return dict(sorted(found.items()))


def options(registry: str, name: str) -> list[str]:
    """The options of what a registry of this package has under ``name``, those of its base classes first."""
    for known, _, target in _registrations(registry):
        if known == name:
            return [field for field, is_option in _fields(FOLDERS[registry], target).items() if is_option]
    return []


@functools.cache
def _bodies(folder: str) -> list[ast.stmt]:
    """The statements of all modules of a folder."""
    sources = (path.read_text(encoding="utf-8") for path in sorted((PACKAGE / folder).glob("*.py")))
    return [statement for source in sources for statement in ast.parse(source).body]


def _registrations(registry: str) -> Iterator[tuple[str, str, str]]:
    """Name, description and target of each decorator ``@registry.register(name, description, ...)``."""
    for statement in _bodies(FOLDERS[registry]):
        if not isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
            continue
        for call in statement.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == f"{registry}.register":
                name, description = (ast.literal_eval(argument) for argument in call.args[:2])
                yield name, description, statement.name


def _fields(folder: str, name: str) -> dict[str, bool]:
    """Whether each field of a dataclass is an option; those of its base classes come first."""
    fields: dict[str, bool] = {}
    for statement in _bodies(folder):
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            for base in reversed(statement.bases):
                fields |= _fields(folder, ast.unparse(base))
            for line in statement.body:
                if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation):
                    fields[ast.unparse(line.target)] = "init=False" not in ast.unparse(line)
    return fields
