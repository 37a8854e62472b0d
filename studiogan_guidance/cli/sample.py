"""The command that makes images."""

from __future__ import annotations

from typing import Any

import click

from studiogan_guidance.cli import flags
from studiogan_guidance.cli.flags import CHOSEN, SAMPLED, SHARED, shared
from studiogan_guidance.cli.group import Verb
from studiogan_guidance.cli.output import emit, load_config
from studiogan_guidance.errors import UserError


@click.command(cls=Verb, short_help="Sample images: a grid to look at, and an archive.")
@shared(CHOSEN, SHARED, SAMPLED)
def sample(config: str | None, as_json: bool, reconstruct: bool, **settings: Any) -> None:
    """Sample images: DIR/grid.png and DIR/samples.npz (images, labels, seeds).

    \b
    studiogan-guidance sample --classes 3,5 --num 16 -o scale=1.5
    studiogan-guidance sample --num 8 --scales 1,1.5,2,3 --out strip
    studiogan-guidance sample --seeds 3,17,40-45 --classes 7 --png
    studiogan-guidance sample -c my.yaml --ckpt checkpoint/ --png
    studiogan-guidance sample -c my.yaml --ckpt checkpoint/ --data images/ \\
      --num 16 --reconstruct

    With --reconstruct, of a checkpoint trained with the stage glead: DIR/reconstructions.png and .npz, real images and
    generated ones beside what the generator makes of the discriminator's features of them, and the losses.
    """
    if reconstruct:
        flags.refuse(settings, "--reconstruct", flags.WITHOUT_RECONSTRUCTION)
    scales, png, seeds = (settings.pop(key) for key in ("scales", "png", "seeds"))
    if reconstruct:
        from studiogan_guidance.training import reconstruct as module

        return emit(module.reconstruct(load_config(config, settings, trained=True)), as_json)
    if seeds and (settings["num"] is not None or settings["seed"] is not None):
        raise UserError("--seeds names every image, so --seed and --num have no meaning: drop them, or --seeds")
    cfg = load_config(config, settings)
    from studiogan_guidance.evaluation import tables
    from studiogan_guidance.evaluation.sample import sample as function

    emit(function(cfg, scales, png, seeds), as_json, tables.sampled)
