"""What a search of options starts from, and what it is refused: ranges, budgets, samplers without plain sampling."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Any

from studiogan_guidance import samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, nearest, notice
from studiogan_guidance.evaluation import tables
from studiogan_guidance.evaluation.search import STEPS, Line, Options
from studiogan_guidance.latents import LatentView, Networks, view_for
from studiogan_guidance.options import nested
from studiogan_guidance.samplers import SAMPLERS, GANdance
from studiogan_guidance.samplers.base import AUTO
from studiogan_guidance.samplers.gandance import spread_option

OBJECTIVES = {  # each with the metric that gives it
    "fid": "fid",
    "fid_infinity": "fid_infinity",
    "kid": "kid",
    "class_fid": "per_class",
}
RANGES = {"scale": (0.8, 2.0), "psi": (0.7, 1.8), "tau": (0.8, 1.25)}  # of the options that are searched by default
GRID = {  # of a sweep, by default
    "scale": (0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0),
    "psi": (0.8, 1.0, 1.2, 1.4, 1.6),
    "tau": (0.85, 1.0, 1.1, 1.2),
}
FARTHEST = 1e6  # end of a range
MOST = 10_000  # evaluations
MOST_GROUPS = 100  # of layers


def default_ranges(cfg: RunConfig, view: LatentView | None = None) -> dict[str, tuple[float, float]]:
    """The options that are searched where the command names none, with their ranges.

    These are the scale and, where the view is known, the spread within the classes: psi for codes with rows of w, the
    temperature tau for others, unless the run gives it a value or the generator refuses it.
    """
    ranges = {"scale": RANGES["scale"]}
    if view is None or SAMPLERS[cfg.sampler].target is not GANdance:
        return ranges

    spread = spread_option(view)
    try:
        samplers.checked(samplers.create(cfg.sampler, {spread: RANGES[spread][1]}), view)
    except UserError:
        return ranges
    return ranges if spread in cfg.options else {**ranges, spread: RANGES[spread]}


def default_grid(cfg: RunConfig, networks: Networks) -> dict[str, tuple[float, ...]]:
    """The values of the options that a sweep of gandance tries where the command names none; of others, none.

    Raises:
        UserError: the generator has no classes.
    """
    if SAMPLERS[cfg.sampler].target is not GANdance:
        return {}
    samplers.check_classes(samplers.create(cfg.sampler, cfg.options), networks)
    return {key: GRID[key] for key in default_ranges(cfg, view_for(networks))}


def affordable(ranges: Mapping[str, tuple[float, float]], budget: int, repeats: int, groups: int) -> dict[str, Any]:
    """``ranges``, or the first of them where a budget is too small for more, with a notice."""
    if len(ranges) > 1 and budget < least(repeats, len(ranges) + groups):
        name, *others = ranges
        notice(
            f"a budget of {budget} is too small to search {name} and {' and '.join(others)} together: only {name} is "
            f"searched, give --budget {least(repeats, len(ranges) + groups)} for all"
        )
        return {name: ranges[name]}
    return dict(ranges)


def check_request(cfg: RunConfig, over: Mapping[str, tuple[float, float]] | None, objective: str, groups: int) -> None:
    """Raise UserError for an unknown objective, no range or an empty one, a wrong option, useless groups."""
    if objective not in OBJECTIVES:
        raise UserError(f"the objective is '{objective}': {nearest(objective, OBJECTIVES)}")

    if cfg.options.get("scale") == AUTO:
        raise UserError("tune searches for what auto stands for: leave out scale=auto")
    if over is not None and not over:
        raise UserError("no option to search: add --over with an option and its range, such as scale=0.8:2")
    kinds = typing.get_type_hints(SAMPLERS[cfg.sampler].target)
    if over is None and "scale" not in kinds:
        numbers = [name for name, kind in kinds.items() if _takes_fractions(kind)]
        one_of = f"with one of {', '.join(numbers)}" if numbers else "with a number of its base"
        raise UserError(f"'{cfg.sampler}' has no scale to search: add --over OPTION=LOW:HIGH, {one_of}")
    over = default_ranges(cfg) if over is None else over
    for name, (low, high) in over.items():
        if not -FARTHEST <= low < high <= FARTHEST:
            raise UserError(
                f"--over {name}={low:g}:{high:g} is no range: give a lower and a higher number, within {FARTHEST:g}"
            )
        if name in kinds and not _takes_fractions(kinds[name]):
            raise UserError(f"--over {name} is no option to search: only numbers with a fraction are, such as scale")

    if groups > MOST_GROUPS:
        raise UserError(f"--per-layer must be at most {MOST_GROUPS}, found {groups}: no generator has more layers")
    if groups < 0 or (groups and "scale" not in over):
        raise UserError(f"--per-layer {groups} shares out the scale among groups of layers: add --over scale=0.8:2")
    if groups and cfg.options.get("profile"):
        raise UserError("--per-layer searches a profile, and one is given: drop one of the two")


def _takes_fractions(kind: Any) -> bool:
    """Whether an option's type is float, or float or None."""
    return float in (kind, *typing.get_args(kind)) and typing.get_origin(kind) is not tuple


def check_budget(budget: int, repeats: int, lines: int) -> None:
    """Raise UserError unless each of ``lines`` line searches can take its first look."""
    fewest = least(repeats, lines)
    if max(budget, repeats) > MOST:
        raise UserError(
            f"--budget and --repeats are at most {MOST}, found {budget} and {repeats}: each is a measurement of "
            "seconds to hours, and a search ends long before"
        )
    if repeats < 2 or budget < fewest:
        raise UserError(
            f"a budget of {budget} with {repeats} repeats is too small for a search along {lines} "
            f"line{'s' * (lines > 1)}: give at least 2 repeats and --budget {max(fewest, 5 + STEPS * lines)}"
        )


def least(repeats: int, lines: int) -> int:
    """The evaluations of plain sampling, of the first look along each line, and of the comparison at the end."""
    return 2 * repeats + 1 + STEPS * lines


def starts(cfg: RunConfig, lines: Iterable[Line]) -> tuple[Options, Options]:
    """The options of plain sampling, and those from which the search starts."""
    entry = SAMPLERS[cfg.sampler]
    if entry.neutral is None:
        raise UserError(
            f"'{entry.name}' is plain sampling with no options, and tune compares with that: use sweep or compare"
        )
    values = samplers.options(samplers.create(entry.name, cfg.options))
    options: Options = {key: values[key] for key in nested(cfg.options)}
    start: Options = {**options, **entry.neutral}

    # Plain sampling: without options such as a base or psi, which have an effect of their own.
    effective = [key for key, value in start.items() if _has_effect(entry.name, {**entry.neutral, key: value})]
    plain = {key: value for key, value in start.items() if key not in effective}
    if not _is_plain(entry.name, plain):
        raise UserError(
            f"'{entry.name}' is not plain sampling at {tables.format_options(plain)}: tune cannot start there"
        )

    # An option without an effect at plain sampling is searched from the options of the run.
    if is_idle(entry.name, lines, start):
        start = options
    if is_idle(entry.name, lines, start):
        raise UserError(f"the options of --over have no effect on '{entry.name}': switch it on by -o")
    return plain, start


def ends(lines: Iterable[Line], options: Options) -> list[Options]:
    """``options`` with the lowest and the highest value of each line."""
    return [line.put(options, x) for line in lines for x in (line.low, line.high)]


def is_idle(sampler: str, lines: Iterable[Line], options: Options) -> bool:
    """Whether the sampler is plain sampling all along every line through ``options``."""
    return all(_is_plain(sampler, end) for end in ends(lines, options))


def _is_plain(sampler: str, options: Options) -> bool:
    """Whether the images of a sampler are those of the generator, by its name or by its options."""
    created = samplers.create(sampler, options)
    return SAMPLERS[sampler].name == "plain" or created.neutral


def _has_effect(sampler: str, options: Options) -> bool:
    """Whether options are not plain sampling; those that are refused without another option are no effect."""
    try:
        return not _is_plain(sampler, options)
    except UserError:  # such as the file of a learned joint without joint=learned
        return False
