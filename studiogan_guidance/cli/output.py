"""What commands have in common: the configuration that they read, and how they print what they return."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from studiogan_guidance import progress
from studiogan_guidance.cli.group import ARGUMENTS
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import notice


def emit(result: Mapping[str, Any], as_json: bool, text: Callable[[Any], str] | None = None) -> None:
    """Print a result; processes of torchrun above rank 0 have none. Without ``text``, a line for each key."""
    if not result:
        return
    if as_json:
        from studiogan_guidance.evaluation.results import plain_data

        show(json.dumps(plain_data(result)))
        return

    # Names of files may hold bytes that are no text, which terminals refuse.
    lines = text(result) if text else "\n".join(f"{key}: {value}" for key, value in result.items())
    show(lines.encode(errors="backslashreplace").decode())


def show(text: str) -> None:
    """Print a result on stdout, below no bar."""
    progress.clear()
    click.echo(text)


def emit_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    from studiogan_guidance.evaluation.tables import table

    emit({"rows": rows} if rows else {}, as_json, lambda result: table(result["rows"]))


def load_config(path: str | None, settings: Mapping[str, Any], trained: bool = False) -> RunConfig:
    """The configuration of a command; ``path`` may also be a name inside the host's ``src/configs``.

    Without one, it is that of the checkpoint, where this says it.

    A notice says that its stages are not trained here, unless the command is about what they ``trained``.
    """
    from studiogan_guidance.host.configuration import configuration

    cfg = configuration(path, settings)
    if cfg.stages and not trained:
        from studiogan_guidance.training.stage import STAGES

        names = [STAGES[stage["name"]].name for stage in cfg.stages]
        notice(f"stages ({', '.join(names)}) are trained by 'run' and 'train' only: nothing of them happens here")
    return cfg


def keep_command(folder: str, result: Any) -> None:
    """Write the command that made a result into its folder, as command.txt; processes above rank 0 have no result."""
    if not result:
        return
    from studiogan_guidance.files import replacing

    context = click.get_current_context()
    words = ["studiogan-guidance", str(context.info_name), *map(portable, context.meta[ARGUMENTS])]
    with replacing(Path(folder) / "command.txt") as temporary:
        temporary.write_text(" ".join(words) + "\n", encoding="utf-8", errors="backslashreplace")


def portable(word: str) -> str:
    """A word of a command line, quoted for a shell; paths in the current folder and at home say nothing of the machine.

    Example:
        >>> portable(f"{Path.cwd()}/my runs"), portable(f"{Path.home()}/a b"), portable("--grid=scale=1,2")
        ("'my runs'", "~/'a b'", '--grid=scale=1,2')
    """
    option, equals, value = word.partition("=")
    if not (equals and option.startswith("--")):
        option, equals, value = "", "", word
    here = os.getcwd()
    home = os.path.expanduser("~")
    if value == here or value.startswith(f"{here}{os.sep}"):
        value = shlex.quote(os.path.relpath(value, here))
    elif value.startswith(f"{home}{os.sep}") and not option:  # a shell expands ~ at the beginning of a word only
        value = f"~/{shlex.quote(os.path.relpath(value, home))}"
    else:
        value = shlex.quote(value)
    return f"{option and shlex.quote(option)}{equals}{value}"
