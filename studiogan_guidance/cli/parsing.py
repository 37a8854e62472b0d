"""What the texts of options are parsed into: callbacks of click."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import click

from studiogan_guidance.errors import UserError
from studiogan_guidance.options import Spec, convert, dotted, parse_pairs, whole_numbers

MOST_SEEDS = 2**20
Callback = Callable[[click.Context, click.Parameter, Any], Any]


def list_of(member: type, what: str) -> Callback:
    """Callback of an option that takes words or numbers separated by commas; ``what`` it takes stands in the error."""
    kind = types.GenericAlias(tuple, (member, ...))

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[Any, ...]:
        if value is None:
            return ()
        try:
            return tuple(convert("", value, kind))
        except UserError:
            raise UserError(f"{param.opts[-1]} takes {what} separated by commas, found '{value}'") from None

    return callback


def seeds(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Callback of ``--seeds``: seeds and ranges of them; the ends are checked before any list is made."""
    if value is None:
        return ()
    from studiogan_guidance.rng import IMAGES

    # The ranges, each within the seeds of images.
    parts = [whole_numbers(word.strip()) for word in value.split(",")]
    ranges = [part for part in parts if part is not None]
    if len(ranges) < len(parts) or any(part[0] < 0 or part[-1] >= IMAGES for part in ranges):
        raise UserError(f"--seeds takes whole numbers from 0 to {IMAGES - 1}, such as 3,40-45, found '{value[:60]}'")

    # All of them.
    count = sum(map(len, ranges))
    if count > MOST_SEEDS:
        raise UserError(f"--seeds has {count} images, which sample keeps in memory: give at most {MOST_SEEDS}")
    return tuple(seed for part in ranges for seed in part)


def specs(ctx: click.Context, param: click.Parameter, items: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    """Callback of ``--with NAME[:KEY=VALUE,...]``: mappings as YAML would have them, with the dots left in."""
    mappings = []
    for item in items:
        try:
            spec = Spec.parse(item)
        except UserError:
            example = "a sampler such as plain or gandance:scale=1.1,joint=class_mean"
            raise UserError(f"{param.opts[-1]} takes {example}, found '{item}'") from None
        mappings.append({"name": spec.name, **dotted(spec.options)})
    return tuple(mappings)


def key_values(ctx: click.Context, param: click.Parameter, items: tuple[str, ...]) -> dict[str, str]:
    """Callback of ``-o KEY=VALUE``."""
    return parse_pairs(items, "-o", "key=value")


def grid(ctx: click.Context, param: click.Parameter, items: tuple[str, ...]) -> dict[str, list[str]]:
    """Callback of ``--grid KEY=VALUE,VALUE``."""
    example = "an option and its values such as scale=1,1.2"
    values = {}
    for key, text in parse_pairs(items, "--grid", example).items():
        values[key] = text.split(",")
        if not all(values[key]):
            raise UserError(f"--grid takes {example}, each option once, found '{key}={text}'")
    return values


def ranges(ctx: click.Context, param: click.Parameter, items: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Callback of ``--over KEY=LOW:HIGH``."""
    example = "a range such as scale=0.8:2"
    bounds: dict[str, tuple[float, float]] = {}
    for key, text in parse_pairs(items, "--over", example).items():
        try:
            low, high = convert(key, text, tuple[float, ...])
        except ValueError:
            raise UserError(f"--over takes {example}, found '{key}={text}'") from None
        bounds[key] = (low, high)
    return bounds


WORDS = list_of(str, "words")
NUMBERS = list_of(float, "numbers")
