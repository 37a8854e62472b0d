"""Every command and every snippet of every page runs; links, options and file names are those that there are.

Each page is read from top to bottom in a folder of its own, which has what the pages name (``page_files``): ``my.yaml``
with ``checkpoint`` (a ResNet of BigGAN's kind, or StyleGAN2 where an option needs w), ``images``, and feature
networks. ``cheaper`` spares a reader's waiting: it adds ``--num``, steps and the like, a feature network in
TorchScript where a line would take Inception, and ``-metrics none`` inside the host. ``torchrun`` is left out: its
command runs alone. ``NOT_RUN`` says which commands only have their options and files checked, and why.
"""

from __future__ import annotations

import configparser
import importlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import page_files
import pages
import pytest
from conftest import CHECKOUT, WHY_NOT
from page_reader import NEEDS_HOST, NOT_RUN, Reader, read, text_of, why_not
from pages import ROOT, Block, Command
from PIL import ImageShow
from torch.distributed.run import get_args_parser

from studiogan_guidance import config, samplers
from studiogan_guidance.cli import main
from studiogan_guidance.options import Spec

PAGES = {page.name: page for page in map(read, pages.pages())}


def _cases(is_wanted: Any) -> list[Any]:
    """(page, number of the step) of the steps that are wanted, named after page and line."""
    found = []
    for page in PAGES.values():
        names: list[str] = []
        for number, step in enumerate(page.steps):
            names.append(step.name)
            marks = [pytest.mark.studiogan] if NEEDS_HOST.search(text_of(step)) else []
            again = names.count(step.name)
            if is_wanted(step):
                name = step.name + (f".{again}" if again > 1 else "")
                found.append(pytest.param(page.name, number, id=name, marks=marks))
    return found


@pytest.fixture(scope="module")
def page_material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all pages name, made once."""
    folder = tmp_path_factory.mktemp("material")
    page_files.networks(folder)
    page_files.images(folder / "images")
    if CHECKOUT:
        for name in ("big_resnet", "stylegan2"):
            page_files.checkpoint(folder / f".{name}", name, folder / "images", CHECKOUT)
    return folder


@pytest.fixture(scope="module")
def readers(page_material: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reader]]:
    """A reader of each page in a folder of its own, which sees no screen and no W&B."""
    found: dict[str, Reader] = {}
    for page in PAGES.values():
        folder = tmp_path_factory.mktemp("page")
        for path in page_material.iterdir():
            if path.name.startswith("."):
                shutil.copytree(path, folder / path.name)
            else:
                (folder / path.name).symlink_to(path)
        found[page.name] = Reader(page, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr(ImageShow, "_viewers", [])
        yield found


@pytest.mark.parametrize(
    ("name", "number"),
    _cases(lambda step: isinstance(step, Command) and pages.ours(step.words) is not None and not why_not(step)),
)
def test_a_command_of_a_page_runs(name: str, number: int, readers: dict[str, Reader]) -> None:
    readers[name].output(number)


@pytest.mark.parametrize(("name", "number"), _cases(lambda step: isinstance(step, Block) and not why_not(step)))
def test_a_snippet_of_a_page_runs(name: str, number: int, readers: dict[str, Reader]) -> None:
    readers[name].output(number)


def _shape(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the headings of a table, or the keys of lines such as ``grid: FILE``; the keys of the protocol line)."""
    keys = [line.partition(": ")[0] for line in lines if re.match(r"\w+: ", line)]
    protocol = [key for line in lines if line.startswith("protocol:") for key in re.findall(r"(\w+)=", line)]
    return keys if re.match(r"\w+: ", lines[0]) else lines[0].split(), protocol


@pytest.mark.parametrize(
    ("name", "line"),
    [
        pytest.param(page.name, block.line, id=block.name)
        for page in PAGES.values()
        for before, block in zip(page.blocks, page.blocks[1:])
        if block.language == "text" and before.language in pages.SHELL
    ],
)
def test_output_in_a_page_has_the_headings_of_a_real_one(name: str, line: int, readers: dict[str, Reader]) -> None:
    page = PAGES[name]
    number = max(i for i, step in enumerate(page.steps) if step.line < line)
    step = page.steps[number]
    assert isinstance(step, Command)
    if CHECKOUT is None and NEEDS_HOST.search(step.text):
        pytest.skip(WHY_NOT)
    shown = next(block for block in page.blocks if block.line == line)
    headings, protocol = _shape(shown.lines)
    real_headings, real_protocol = _shape(readers[name].output(number).splitlines())
    assert headings == real_headings
    assert protocol in ([], real_protocol)


# ------------------------------------------------------------------------------------------- options and files


def _own_examples() -> list[Command]:
    """The commands in the helps of this package, in the docstrings of the benchmarks, and in sentences of pages."""
    found = [example for name, command in main.commands.items() for example in pages.examples(name, command.help or "")]
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        found += pages.examples(f"benchmarks/{path.name}", path.read_text().split('"""')[1].replace("\\\\\n", "\\\n"))
    for page in PAGES.values():
        found += [command for number, line in page.prose for command in pages.inline_commands(number, line, page.name)]
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        lines = [line[1:] for line in path.read_text().splitlines() if line.startswith("#")]
        found += pages.examples(str(path.relative_to(ROOT)), "\n".join(lines))
    return found


WRITTEN = [step for page in PAGES.values() for step in page.steps if isinstance(step, Command)] + _own_examples()


def _parsed(words: Sequence[str]) -> dict[str, Any]:
    """The options of a command of this package; click raises what is wrong with them."""
    context = main.make_context("studiogan-guidance", list(words))
    arguments = [*context._protected_args, *context.args]
    if not arguments:
        return {}
    name, command, rest = main.resolve_command(context, arguments)
    assert command is not None
    assert name is not None
    return command.make_context(name, rest, parent=context).params


def _check_ours(words: Sequence[str]) -> None:
    """Options, configuration and samplers of a command of this package are there."""
    try:
        options = _parsed([word for word in words if word != "..."])
    except click.exceptions.Exit:
        return  # --help, --version
    if path := options.get("config"):
        assert path in config.packaged() or Path(path).parts[0] == "runs" or "/" not in path, path
    for spec in options.get("compare") or ():
        options_of_sampler = {key: value for key, value in spec.items() if key != "name"}
        samplers.create(Spec(spec["name"], options_of_sampler))
    if options.get("sampler"):
        assert samplers.SAMPLERS[options["sampler"]]
    if CHECKOUT and "arguments" in options:
        text = (CHECKOUT.path / "src" / f"{options['script']}.py").read_text()
        for word in options["arguments"]:
            assert not word.startswith("-") or word == "--" or f'"{word}"' in text, f"the host has no option {word}"


@pytest.fixture(scope="module")
def _benchmarks_can_be_imported() -> Iterator[None]:
    """The folder of the benchmarks on the path; what they import from each other is forgotten afterwards."""
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    kept = {name: sys.modules.pop(name) for name in names & set(sys.modules)}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield
    for name in names & set(sys.modules):
        del sys.modules[name]
    sys.modules.update(kept)


def _check_python(words: Sequence[str]) -> None:
    """A benchmark with its options; of one that takes no options of its own, what it starts."""
    path = Path(words[1])
    if path.parts[0] != "benchmarks":
        assert words[1] in ("-m", "src/main.py"), words[1]
        return
    assert (ROOT / path).is_file(), f"there is no {path}"
    if path.stem in ("narrow", "step_time"):
        start = next(i for i, word in enumerate(words) if word in main.commands)
        _check_ours(words[start:])
        return
    command = getattr(importlib.import_module(path.stem), "main", None)
    if isinstance(command, click.Command):
        _check_click(command, ["1" if word == "N" else word for word in words[2:]])


def _check_click(command: click.Command, words: list[str]) -> None:
    """The options of a command of click, and of the commands in it; files that it names need not be there."""
    try:
        context = command.make_context("", words)
        if isinstance(command, click.Group):
            name, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert inner is not None
            assert name is not None
            _check_click(inner, rest)
    except click.exceptions.Exit:
        pass  # --help
    except click.BadParameter as error:
        if "does not exist" not in str(error):
            raise


def _check_pip(words: Sequence[str]) -> None:
    """The extras of ``pip install ".[one,two]"`` are there."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for word in words:
        for extras in re.findall(r"^(?:\.|studiogan-guidance)\[(.*)\]", word):
            assert set(extras.split(",")) <= set(setup["options.extras_require"]), word


def _check(command: Command) -> None:
    words = command.words
    if "blend" in command.text:
        return  # a sampler that a page explains
    if "torchrun" in words:
        get_args_parser().parse_args(list(words[words.index("torchrun") + 1 :]))
    inner = pages.ours(words)
    if inner is not None:
        _check_ours(inner)
    elif words[0] == "python":
        _check_python(words)
    elif words[0] in ("pip", "pipx"):
        _check_pip(words)
    else:
        assert words[0] in ("git", "bash", "pytest", "cd", "pre-commit"), words[0]

    # Files of the repository that it names.
    for word in words:
        if found := re.search(r"(?:^|/)((?:patches|tests|benchmarks|configs)/[\w./-]+)$", word):
            assert (ROOT / found[1]).exists(), f"there is no {found[1]}"


@pytest.mark.parametrize("command", [pytest.param(c, id=f"{c.name}-{i}") for i, c in enumerate(WRITTEN)])
@pytest.mark.usefixtures("_benchmarks_can_be_imported")
def test_options_and_files_of_a_command_are_there(command: Command) -> None:
    _check(command)


def test_every_command_runs_or_has_a_reason_not_to() -> None:
    steps = [step for page in PAGES.values() for step in page.steps if isinstance(step, Command)]
    assert [step.name for step in steps if pages.ours(step.words) is None and not why_not(step)] == []
    texts = [f"{text_of(step)} " for step in steps]
    assert [part for part in NOT_RUN if not any(part in text for text in texts)] == []


# ------------------------------------------------------------------------------------------- the pages themselves


@pytest.mark.parametrize("name", PAGES)
def test_blocks_of_a_page_are_fenced_and_say_their_language(name: str) -> None:
    page = PAGES[name]
    assert [block.name for block in page.blocks if block.language not in pages.LANGUAGES] == []
    indented = re.compile(rf" {{4,}}(\$ )?({'|'.join(pages.PROGRAMS)}) ")
    assert [number for number, line in page.prose if indented.match(line)] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_lead_somewhere(name: str) -> None:
    path = ROOT / name
    for number, target in pages.links(PAGES[name].prose):
        if re.match(r"(https?|mailto):", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{name}:{number}: there is no {target}"
        assert not anchor or anchor in pages.anchors(found), f"{name}:{number}: {file} has no heading #{anchor}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 165
