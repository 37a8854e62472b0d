"""Completion in the shell: what each option may be given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from studiogan_guidance.cli import names
from studiogan_guidance.config import METRICS, RunConfig, packaged

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _starting(found: Mapping[str, str] | Iterable[str], incomplete: str, before: str = "") -> list[CompletionItem]:
    """The names, with their descriptions, that start as the last word does; ``before`` it is what is kept."""
    texts = found if isinstance(found, Mapping) else dict.fromkeys(found, "")
    return [
        CompletionItem(before + name, help=text or None) for name, text in texts.items() if name.startswith(incomplete)
    ]


def of(registry: str) -> Complete:
    """Completes the names of a registry."""
    return lambda ctx, param, incomplete: _starting(names.registered(registry), incomplete)


def words(*known: str) -> Complete:
    """Completes the last of some words with commas between them."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        return _starting(known, last, before + comma)

    return complete


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leaves files to the shell."""
    return [CompletionItem(incomplete, type="file")]


def folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leaves folders to the shell."""
    return [CompletionItem(incomplete, type="dir")]


def configurations(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes configurations of the package, and YAML files and folders from the current one on."""
    start = Path(incomplete if incomplete.endswith("/") else incomplete.rpartition("/")[0] or ".")
    found = [path for path in sorted(start.expanduser().glob("*")) if path.is_dir() or path.suffix in (".yaml", ".yml")]
    local = [f"{path}/" if path.is_dir() else str(path) for path in found if not path.name.startswith(".")]
    return _starting([*packaged(), *local], incomplete)


def _options(registry: str, name: str, incomplete: str, before: str = "") -> list[CompletionItem]:
    """Completes ``key=``; of the joint, its name, too."""
    key, equals, value = incomplete.partition("=")
    if equals:
        return _starting(names.registered("JOINTS"), value, f"{before}{key}=") if key == "joint" else []
    return _starting([f"{option}=" for option in names.options(registry, name)], incomplete, before)


def options_of_sampler(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes ``key=`` for the sampler that the line names."""
    return _options("SAMPLERS", ctx.params.get("sampler") or RunConfig.sampler, incomplete)


def options_of_stage(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes ``key=`` for the stage that the line names."""
    return _options("STAGES", ctx.params.get("stage") or "joint", incomplete)


def specs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes a sampler, and after a colon its options."""
    name, colon, text = incomplete.partition(":")
    if not colon:
        return _starting(names.registered("SAMPLERS"), incomplete)
    before, comma, last = text.rpartition(",")
    return _options("SAMPLERS", name, last, f"{name}:{before}{comma}")


metrics = words(*METRICS)
