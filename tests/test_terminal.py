"""The command line as a person at a terminal meets it: helps in sections, completion, progress, interruptions."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import run

from studiogan_guidance.cli import SECTIONS, main, names
from studiogan_guidance.cli import group as groups
from studiogan_guidance.latents.joint import JOINTS
from studiogan_guidance.registry import Registry
from studiogan_guidance.samplers import SAMPLERS
from studiogan_guidance.training.stage import STAGES

COMMANDS = sorted(main.commands)


def test_every_command_stands_in_a_section() -> None:
    placed = main.placed()
    assert placed.pop(groups.OTHERS) == []
    assert sorted(name for names in placed.values() for name in names) == COMMANDS


def test_a_command_of_no_section_is_listed_under_others() -> None:
    group = groups.Group("program", sections=SECTIONS)
    for name in ("eval", "new"):
        group.add_command(click.Command(name, short_help="Does something."))
    text = CliRunner().invoke(group, ["--help"]).output
    assert re.search(r"Start here:\n  eval  Does something\.\n\nOthers:\n  new  Does something\.\n", text)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_helps_fit_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(*filter(None, [name]), "--help").output.splitlines()
    assert [line for line in lines if len(line) > 80] == []


def test_options_of_a_big_command_are_in_sections() -> None:
    text = run("tune", "--help").output
    heads = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert heads == [title for title in groups.SECTIONS if title != groups.TRAINED]
    assert text.index("What is sampled:") < text.index("--sampler") < text.index("What is searched:")
    assert text.index("Speed:") < text.index("--batch-size") < text.index("Output:") < text.index("--json")


def test_no_command_prints_the_help_and_a_first_try() -> None:
    result = run()
    assert result.exit_code == 0
    text, _, first_try = result.output.partition("A first try")
    assert text.strip() == run("--help").output.strip()
    commands = [line.split() for line in first_try.splitlines()[1:]]
    assert [words[0] for words in commands] == ["studiogan-guidance"] * 2
    for _, name, *arguments in commands:
        main.commands[name].make_context(name, arguments)  # its options exist


def test_a_mistyped_command_is_answered_with_the_nearest() -> None:
    result = run("evla")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: no command is called 'evla': did you mean 'eval'?")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "registry"), [("SAMPLERS", SAMPLERS), ("JOINTS", JOINTS), ("STAGES", STAGES)])
def test_names_read_from_the_sources_are_those_of_the_registries(name: str, registry: Registry[Any]) -> None:
    known = list(registry)
    assert names.registered(name) == {entry.name: entry.description for entry in known}
    for entry in known:
        if dataclasses.is_dataclass(entry.target):
            fields = [field.name for field in dataclasses.fields(entry.target) if field.init]
            assert sorted(names.options(name, entry.name)) == sorted(fields), entry.name
