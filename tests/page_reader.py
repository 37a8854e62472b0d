"""Reads a page from top to bottom: runs its commands and snippets, made cheaper, in a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import page_files
import pages
import pytest
import yaml
from conftest import CHECKOUT, run
from host_models import narrow_networks
from pages import ROOT, Block, Command

from studiogan_guidance import config
from studiogan_guidance.cli import main

NOT_RUN = {  # what a command has in it, and why it does not run here
    "pip ": "needs the network",
    "git ": "needs the network, or changes a checkout of the host",
    "cd ": "a shell's",
    "studiogan-guidance setup": "needs the network",
    "hf://": "needs the network",
    "--inception": "needs the trained weights",
    "src/main.py": "needs a patched host: tests/plugin/test_run.py",
    "--script evaluate": "needs Inception for minutes: tests/plugin/test_run.py",
    "pytest": "is what runs this",
    "pre-commit": "needs the network",
    "blend": "needs an installation: tests/test_contributing.py",
}
W_ONLY = re.compile(r"(?<!\w)(psi|center|layers|strengths)=|conditional_truncation|cluster_truncation")
NEEDS_HOST = re.compile(r"\b(my|tuned)\.yaml|\bstudiogan-guidance (run|setup)\b|hf://|src/main\.py")
CHAINS = ("isir", "ddls", "ex2mcmc", "repgan", "dgflow", "dot", "collaborative")
STAGES = {
    "joint": ("steps=2", "batch=16", "eval_every=0"),
    "strengths": ("steps=2", "batch=16"),
    "frechet": ("steps=2", "batch=16", "num_real=40", "eval_every=0"),
    "amortised": ("steps=2", "batch=16", "eval_every=0"),
    "latent_reweighting": ("steps=2", "batch=16", "pool=40", "eval_every=0"),
}


@dataclasses.dataclass(frozen=True)
class Page:
    """A page with its blocks, its sentences, and its commands and snippets in order."""

    name: str
    blocks: list[Block]
    prose: list[tuple[int, str]]
    steps: list[Command | Block]


def read(path: Path) -> Page:
    name = str(path.relative_to(ROOT))
    blocks, prose = pages.blocks(path)
    steps: list[Command | Block] = []
    for block in blocks:
        if block.language in pages.SHELL:
            steps += pages.commands_of(block)
        if block.language in ("python", "yaml"):
            steps.append(block)
    return Page(name, blocks, prose, steps)


def text_of(step: Command | Block) -> str:
    """The words of a command, or the lines of a block."""
    return step.text if isinstance(step, Command) else "\n".join(step.lines)


def why_not(step: Command | Block) -> str:
    """Why a command or a snippet does not run here; nothing if it does."""
    return next((reason for part, reason in NOT_RUN.items() if part in f"{text_of(step)} "), "")


class Reader:
    """Reads a page from its first line on, in a folder; what was run once does not run again."""

    def __init__(self, page: Page, folder: Path) -> None:
        self.page = page
        self.folder = folder
        self.namespace: dict[str, Any] = {"__name__": page.name}
        self.results: dict[int, str | Exception] = {}

    def output(self, number: int) -> str:
        """What the step with this number prints, after all that stands above it; its exception, if it has one."""
        for i in range(number + 1):
            if i not in self.results and not self._is_left_out(self.page.steps[i]):
                self.results[i] = self._result(self.page.steps[i])
        result = self.results[number]
        if isinstance(result, Exception):
            raise result
        return result

    def _is_left_out(self, step: Command | Block) -> bool:
        return bool(why_not(step)) or (CHECKOUT is None and NEEDS_HOST.search(text_of(step)) is not None)

    def _result(self, step: Command | Block) -> str | Exception:
        with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            if CHECKOUT:
                stack.enter_context(narrow_networks(CHECKOUT))
            try:
                if isinstance(step, Command):
                    for key, value in step.environment.items():
                        patch.setenv(key, value)
                    return self._command(step)
                return self._snippet(step) if step.language == "python" else self._configuration(step)
            except (Exception, SystemExit) as error:
                return error if isinstance(error, Exception) else RuntimeError(f"exit {error.code}")

    def _command(self, command: Command) -> str:
        words = pages.ours(command.words)
        assert words is not None, f"nobody says how to run '{command.words[0]}', or in NOT_RUN why it does not run"
        self._take("stylegan2" if W_ONLY.search(command.text) else "big_resnet", "--reconstruct" in words)
        arguments = cheaper(words)
        result = run(*arguments)
        assert result.exit_code == 0, f"{' '.join(arguments)}\n{result.stderr[-2000:]}\n{result.exception!r}"
        return result.stdout

    def _take(self, name: str, trained: bool) -> None:
        """Let ``my.yaml`` and ``checkpoint`` be those of a host generator; ``trained``: that of a run of this page."""
        source = self.folder / f".{name}"
        if not source.exists():
            return
        saved = sorted((self.folder / "runs").glob("*/checkpoints/*"), key=lambda path: path.stat().st_mtime)
        for link, target in (("my.yaml", source / "my.yaml"), ("checkpoint", source / "checkpoint")):
            (self.folder / link).unlink(missing_ok=True)
            (self.folder / link).symlink_to(saved[-1] if trained and link == "checkpoint" else target)

    def _snippet(self, block: Block) -> str:
        code = "\n" * (block.line - 1) + "\n".join(block.lines)
        exec(compile(code, block.page, "exec"), self.namespace)
        return ""

    def _configuration(self, block: Block) -> str:
        """Write a YAML block: a file of the name that it begins with, or lines that are added to ``my.yaml``."""
        keys = yaml.safe_load("\n".join(block.lines))
        title = re.fullmatch(r"# (\S+\.yaml)", block.lines[0])
        self._take("big_resnet", trained=False)
        for source in self.folder.glob(".*/my.yaml"):
            if title:
                shutil.copy(source, source.with_name("host.yaml"))
                keys |= {"host_config": str(source.with_name("host.yaml"))} if "host_config" in keys else {}
                source.with_name(title[1]).write_text(yaml.safe_dump(keys))
            else:
                source.write_text(yaml.safe_dump({**yaml.safe_load(source.read_text()), **keys}))
            config.load(str(source), {})
        return ""


def cheaper(words: Sequence[str]) -> list[str]:
    """The words of a command of this package with options, added or in place of others, that make it quick."""
    found = list(words)
    name = next((word for word in words if not word.startswith("-")), "")
    if name == "run":
        return _in_host(found)
    if name not in main.commands or "--help" in words or "-h" in words:
        return found
    flags = {flag for option in main.commands[name].params for flag in option.opts}
    text = " ".join(words)

    # Few images.
    if "--num" in flags and "--seeds" not in words and "RESULTS" not in words and name != "compare":
        found += ["--num", _images(name, text)]
    if name == "compare" and "--with" in words:
        found += ["--num", "20", *(("--repeats", "2") if "--repeats" in words else ())]
    if name == "tune":
        found += ["--budget", "12", "--repeats", "2"]
    if "--restat" in words:
        found += ["--restat", "1"]

    # A feature network that is quick.
    is_host = NEEDS_HOST.search(text) is not None
    if is_host and "--backbone" in flags and "--backbone" not in words and "tuned.yaml" not in text:
        found += ["--backbone", "torchscript:inception.pt"]

    # Few steps of trainings and chains.
    chosen = words[words.index("--sampler") + 1] if "--sampler" in words else ""
    if name == "train":
        stage = words[words.index("--stage") + 1] if "--stage" in words else "joint"
        found = _with_options(found, STAGES[stage])
    elif chosen in CHAINS:
        found = _with_options(found, ("calibration_images=20", "steps=1"))
    return [_short_chain(word) for word in found]


def _images(name: str, text: str) -> str:
    if name == "sample":
        return "8"
    return "200" if "fid_infinity" in text else "100" if "per_class" in text else "20"


def _with_options(words: list[str], pairs: Sequence[str]) -> list[str]:
    """``words`` with these pairs of ``-o``, in place of those of the same keys."""
    keys = tuple(pair.partition("=")[0] + "=" for pair in pairs)
    kept = list(words)
    for i in reversed(range(1, len(words))):
        if words[i - 1] == "-o" and words[i].startswith(keys):
            del kept[i - 1 : i + 1]
    return [*kept, *(word for pair in pairs for word in ("-o", pair))]


def _short_chain(word: str) -> str:
    """A sampler such as ``ddls:steps=5,step=0.1`` with one step, and few images for its calibration."""
    name = word.partition(":")[0]
    if name not in CHAINS or ":" not in word:
        return word
    shorter, count = re.subn(r"\bsteps=\d+", "steps=1", word)
    return f"{shorter},calibration_images=20" + ("" if count else ",steps=1")


def _in_host(words: list[str]) -> list[str]:
    """A run of the host without metrics, and a training of two steps; without metrics it has to do something."""
    more = ["-metrics", "none", "-ref", "valid", "--num_workers", "0"]
    if "-t" in words:
        return [*words, *more, *page_files.TRAINING_FLAGS]
    return [*words, *more, *(() if "-v" in words else ("-v",))]
