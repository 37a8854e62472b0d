"""The pages of the repository: their blocks, and the commands that stand in these, in docstrings and in the helps."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHELL = ("bash", "console")
LANGUAGES = (*SHELL, "python", "yaml", "toml", "text", "bibtex")
FENCE = re.compile(r" *(`{3,}|~{3,}) *(.*?) *")
COMMENT = re.compile(r"(^|\s)#(\s.*)?$")
ASSIGNED = re.compile(r"[A-Z_]+=")
PROGRAMS = ("studiogan-guidance", "torchrun", "python", "pip", "pipx", "git", "bash", "sbatch", "pytest", "cd")


@dataclass(frozen=True)
class Block:
    """Lines between two fences; ``line`` is the number of the first one."""

    page: str
    line: int
    language: str
    lines: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_script(self) -> bool:
        """Whether it is a file of its own, whose commands a shell understands only as a whole."""
        return self.language in SHELL and self.lines[0].startswith("#!")


@dataclass(frozen=True)
class Command:
    """One command of a page, without prompt, comment and redirection; ``environment`` stands before it."""

    page: str
    line: int
    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def text(self) -> str:
        return " ".join(self.words)


def pages() -> list[Path]:
    """Every page that a reader of the repository can come to, but the log of changes."""
    folders = ("studiogan_guidance", "configs", "benchmarks", "patches", "tests")
    below = (path for folder in folders for path in (ROOT / folder).rglob("*.md"))
    return sorted({*ROOT.glob("*.md"), *below} - {ROOT / "CHANGELOG.md"})


def blocks(path: Path, name: str = "") -> tuple[list[Block], list[tuple[int, str]]]:
    """(blocks, the numbered lines outside of them) of a page.

    Raises:
        ValueError: a fence that is never closed.
    """
    name = name or str(path.relative_to(ROOT))
    found: list[Block] = []
    prose: list[tuple[int, str]] = []
    inside: list[str] = []
    fence, language, first = "", "", 0

    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = FENCE.fullmatch(line)
        if fence and match and match[1].startswith(fence) and not match[2]:
            found.append(Block(name, first, language, tuple(inside)))
            fence = ""
        elif fence:
            inside.append(line)
        elif match:
            fence, language = match.groups()
            inside, first = [], number + 1
        else:
            prose.append((number, line))

    if fence:
        raise ValueError(f"{name}:{first - 1}: this block has no end")
    return found, prose


def commands(name: str, first: int, lines: Sequence[str]) -> Iterator[Command]:
    """The commands of numbered lines, joined at backslashes and split at ``&&`` and ``;``."""
    text, start = "", first
    for number, line in enumerate(lines, first):
        start = start if text else number
        text += COMMENT.sub("", line.removeprefix("$ ")) if not text else COMMENT.sub("", line)
        if text.endswith("\\"):
            text = text[:-1] + " "
            continue
        yield from _split(name, start, text)
        text = ""


def _split(name: str, line: int, text: str) -> Iterator[Command]:
    """The commands of one line, each without what its output is written to."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&;<>|")
    lexer.whitespace_split = True
    lexer.commenters = ""
    parts: list[list[str]] = [[]]
    for word in lexer:
        if word in ("&&", ";"):
            parts.append([])
        else:
            parts[-1].append(word)

    for words in filter(None, parts):
        if ">" in words or ">>" in words:
            words = words[: next(i for i, word in enumerate(words) if word in (">", ">>"))]
        environment = {}
        while words and ASSIGNED.match(words[0]):
            key, _, environment[key] = words.pop(0).partition("=")
        if words:
            yield Command(name, line, tuple(words), environment)


def commands_of(block: Block) -> list[Command]:
    """The commands of a block of a shell, in order; of a script, those that start this package."""
    found = list(commands(block.page, block.line, block.lines))
    if not block.is_script:
        return found
    return [command for command in found if ours(command.words)]


def examples(name: str, text: str) -> list[Command]:
    """The commands of a docstring or a help: indented lines that begin with a program, without brackets."""
    lines = text.splitlines()
    found: list[Command] = []
    for number, line in enumerate(lines):
        if line.startswith(" ") and line.split()[:1] and line.split()[0] in PROGRAMS:
            end = number
            while lines[end].endswith("\\") or _goes_on(lines, end):
                end += 1
            joined = " ".join(part.strip().removesuffix("\\") for part in lines[number : end + 1])
            found += commands(name, number + 1, [re.sub(r"[\[\]]", " ", joined)])
    return found


def _goes_on(lines: Sequence[str], number: int) -> bool:
    """Whether the next line is more deeply indented, as the second line of a list of options in brackets."""
    if number + 1 == len(lines) or not lines[number + 1].strip().startswith("["):
        return False
    indents = [len(line) - len(line.lstrip()) for line in lines[number : number + 2]]
    return indents[1] > indents[0]


def ours(words: Sequence[str]) -> tuple[str, ...] | None:
    """The words after ``studiogan-guidance``, by whichever way it is started; None if something else is started."""
    if words[0] == "studiogan-guidance":
        return tuple(words[1:])
    for start in (("-m", "--", "studiogan_guidance"), ("-m", "studiogan_guidance")):
        for i in range(len(words) - len(start) + 1):
            if tuple(words[i : i + len(start)]) == start:
                return tuple(words[i + len(start) :])
    return None


def inline_commands(number: int, line: str, name: str) -> Iterator[Command]:
    """Commands of this package within a sentence, between backticks."""
    for text in re.findall(r"`(studiogan-guidance [^`]+)`", line):
        yield from commands(name, number, [text])


def links(prose: Sequence[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """(line, target) of the links and pictures of a page, in Markdown and in HTML."""
    for number, line in prose:
        text = re.sub(r"`[^`]*`", "", line)
        for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text):
            yield number, target


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for _, line in blocks(path, path.name)[1]:
        if match := re.fullmatch(r"#+ (.*)", line):
            text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", match[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
            count = sum(
                anchor == slug or re.fullmatch(re.escape(slug) + r"-\d+", anchor) is not None for anchor in found
            )
            found.add(f"{slug}-{count}" if count else slug)
    return found
