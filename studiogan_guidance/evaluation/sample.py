"""Images without metrics: a grid and an archive of samples."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studiogan_guidance import samplers
from studiogan_guidance.batches import progress
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import pictures, results
from studiogan_guidance.evaluation.generation import label_plan, norm_statistics
from studiogan_guidance.evaluation.source import device_of, open_source
from studiogan_guidance.features.stats import to_uint8
from studiogan_guidance.files import replacing
from studiogan_guidance.latents import view_for
from studiogan_guidance.rng import check_images
from studiogan_guidance.samplers import SAMPLERS, restat

Array = NDArray[Any]


def sample(cfg: RunConfig, scales: Sequence[float] = (), png: bool = False) -> dict[str, Any]:
    """Write DIR/grid.png and DIR/samples.npz: images uint8 [N, H, W, 3], labels int64 [N], seeds int64 [N].

    Args:
        cfg: the run; ``num`` defaults to 64.
        scales: guidance scales to sample the same seeds at: a column of the grid for each, and in the npz one block of
            N images after the other with ``scales`` float64 [N * len(scales)] beside them.
        png: also write every image as DIR/images/<seed>-<class>[-<scale>].png.

    Returns:
        The files written, the sampler with its options, and the number of images.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("sample runs in one process, found WORLD_SIZE > 1: start it without torchrun")
    variants = [{**cfg.options, "scale": scale} for scale in scales] or [dict(cfg.options)]
    chosen = [samplers.create(cfg.sampler, options) for options in variants]
    source = open_source(cfg)
    view = view_for(source.networks(device_of(cfg.device)))
    for sampler in chosen:
        sampler.check(view)
    split = cfg.reference or source.default_split
    real = source.real(split, view.networks.image_size) if cfg.labels == "data" else None
    plan = label_plan(cfg, view.num_classes, real)
    folder = results.writable(Path(cfg.out))
    num = cfg.num or 64
    check_images(cfg.seed, num)
    parts: list[tuple[Array, Array, Array]] = []
    for sampler in chosen:
        with restat.applied(norm_statistics(cfg, view, sampler)):
            stream = sampler.stream(view, range(cfg.seed, cfg.seed + num), cfg.batch_size, plan, cfg.noise_mode)
            for batch in progress(stream, cfg.sampler, total=math.ceil(num / cfg.batch_size)):
                pixels = to_uint8(batch.images).permute(0, 2, 3, 1).cpu().numpy()
                parts.append((pixels, batch.labels.cpu().numpy(), batch.seeds.numpy()))
    images, labels, seeds = (np.concatenate(arrays) for arrays in zip(*parts))
    columns = len(scales) or min(num, 8)
    sheet = (
        images.reshape(len(chosen), num, *images.shape[1:]).swapaxes(0, 1).reshape(images.shape) if scales else images
    )
    column: dict[str, Any] = {"scales": np.repeat(np.asarray(scales, np.float64), num)} if scales else {}
    with replacing(folder / "samples.npz") as beside:
        np.savez(beside, images=images, labels=labels, seeds=seeds, **column)
        pictures.save_png(folder / "grid.png", pictures.grid(sheet, columns))
    if png:
        for i, image in enumerate(images):
            tail = f"-{column['scales'][i]:g}" if scales else ""
            pictures.save_png(folder / "images" / f"{seeds[i]:06d}-{labels[i]:03d}{tail}.png", image)
    options = samplers.options(chosen[0]) | ({"scale": list(scales)} if scales else {})
    written = {"grid": str(folder / "grid.png"), "samples": str(folder / "samples.npz")}
    return {**written, "sampler": SAMPLERS[cfg.sampler].name, "options": options, "images": len(images)}
