"""``tune --auto --train``: the ways that learn, each trained from the best free setting, among the candidates."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, one_line, say, torchrun_number
from studiogan_guidance.evaluation import auto as free
from studiogan_guidance.evaluation.auto import Start
from studiogan_guidance.evaluation.halving import Family
from studiogan_guidance.training.run import train
from studiogan_guidance.training.stage import STAGES

SCALES = {"scale": (1.2, 2.6)}  # of learned moves, whose target is at the scale of their training, 2 by default


@dataclass(frozen=True)
class Way:
    """A way to learn: a stage, and the sampler that uses what it wrote.

    Attributes:
        stage: its registered name.
        options: of the stage.
        sampler: the sampler.
        file_option: the option of the sampler that takes the file of the stage.
        base_option: the option, of both, that takes the best free setting; None where there is none.
        fixed: other options of the sampler.
        ranges: numbers of the sampler to search.
    """

    stage: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sampler: str = "gandance"
    file_option: str = "joint_ckpt"
    base_option: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=lambda: SCALES)


WAYS = (
    Way("frechet", fixed={"joint": "frechet"}),
    Way("amortised", fixed={"joint": "amortised"}),
    Way("joint", {"adversarial": 1.0, "latent": 0.0}, fixed={"joint": "learned"}, ranges={"scale": (0.8, 2.0)}),
    Way("latent_reweighting", sampler="latent_reweighting", file_option="weights_ckpt", base_option="base", ranges={}),
)


def auto(
    cfg: RunConfig,
    with_training: bool = False,
    over: Mapping[str, tuple[float, float]] | None = None,
    objective: str = "fid",
    budget: int = 24,
    repeats: int = 4,
    ways: Sequence[Way] = WAYS,
) -> dict[str, Any]:
    """Choose among the settings of ``evaluation.auto`` and, ``with_training``, what the stages of ``ways`` learn.

    The first half of the search is for free settings. Each stage then starts from the best of these, with its options
    in the configuration's ``stages`` if it is there, in a folder of its name in ``cfg.out``; the second half is for
    what they wrote. A stage that is refused is left out, with a line on stderr. What the trainings cost is not counted
    as evaluations; like these, they go on where they stopped.

    Args:
        cfg: see ``evaluation.auto.auto``.
        with_training: train the stages.
        over: see there.
        objective: see there.
        budget: see there.
        repeats: see there.
        ways: what to train.

    Returns:
        See there; in processes above rank 0, nothing.

    Raises:
        UserError: see there.
    """
    if not with_training:
        return free.auto(cfg, over, objective, budget, repeats)
    start = free.best_start(cfg, over, objective, budget, repeats, searches=2)
    learned = [family for way in ways if (family := _trained(cfg, way, start)) is not None]
    return free.auto(cfg, over, objective, budget, repeats, groups=[learned], searches=2)


def _trained(cfg: RunConfig, way: Way, start: Start) -> Family | None:
    """What a stage learns, as settings to try; None where it is refused."""
    folder = Path(cfg.out) / way.stage
    base = {way.base_option: start.sampler} if way.base_option else {}
    unjudged = dataclasses.replace(cfg, out=str(folder), options={}, judges=())  # spaces that training never sees
    try:
        train(unjudged, way.stage, {**way.options, **base, **_starts(way, start)})
    except UserError as error:
        if torchrun_number("RANK", 0) == 0:
            say(f"{way.stage} is left out: {one_line(error, limit=1000)}")
        return None

    # The sampler with its file.
    file = folder / f"{way.stage}.safetensors"
    fixed = {**way.fixed, **base, way.file_option: str(file.resolve())}
    return Family(way.stage, way.sampler, fixed, way.ranges, is_plain_at_one=bool(way.ranges))


def _starts(way: Way, start: Start) -> dict[str, float]:
    """The options of a stage that say where it starts, if it has them."""
    kinds = typing.get_type_hints(STAGES[way.stage].target)
    values = {"start_scale": start.scale, "start_spread": start.spread}
    return {key: value for key, value in values.items() if key in kinds}
