"""Images without metrics: a grid and an archive of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studiogan_guidance import samplers
from studiogan_guidance.batches import progress
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, torchrun_number
from studiogan_guidance.evaluation import pictures, results
from studiogan_guidance.evaluation.generation import CPU_BATCH, check_labels, label_plan, norm_statistics
from studiogan_guidance.evaluation.source import current_device, open_source
from studiogan_guidance.features.stats import to_uint8
from studiogan_guidance.files import Arrays, replacing
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.rng import check_images
from studiogan_guidance.samplers import SAMPLERS, Sampler, restat

Array = NDArray[Any]
DEFAULT_COUNT = 64  # images
COLUMNS = 8  # of a grid without scales


def sample(cfg: RunConfig, scales: Sequence[float] = (), png: bool = False) -> dict[str, Any]:
    """Write DIR/grid.png and DIR/samples.npz: images uint8 [N, H, W, 3], labels int64 [N], seeds int64 [N].

    In the grid, each pixel of a small image is a square of pixels; in the npz, images are as they were made.

    Args:
        cfg: the run; ``num`` defaults to 64.
        scales: guidance scales to sample the same seeds at: a column of the grid for each, and in the npz one block of
            N images after the other with ``scales`` float64 [N * len(scales)] beside them.
        png: also write every image as DIR/images/<seed>-<class>[-<scale>].png.

    Returns:
        The files written, the sampler with its options, and the number of images.

    Raises:
        UserError: several processes, what the configuration lacks, or a folder that cannot be written.
    """
    if torchrun_number("WORLD_SIZE", 1) > 1:
        raise UserError("sample runs in one process, found WORLD_SIZE > 1: start it without torchrun")
    variants = [{**cfg.options, "scale": scale} for scale in scales] or [dict(cfg.options)]
    chosen = [samplers.create(cfg.sampler, options) for options in variants]

    # Open the generator, and the real images where labels are as in the data.
    source = open_source(cfg)
    networks = source.networks(current_device(cfg.device))
    check_labels(cfg, networks)
    view = view_for(networks)
    for sampler in chosen:
        samplers.checked(sampler, view)
    split = cfg.reference or source.default_split
    real = source.real(split, view.networks.image_size) if cfg.labels == "data" else None
    plan = label_plan(cfg, view.num_classes, real)
    check_images(cfg.seed, cfg.num or DEFAULT_COUNT)
    folder = results.writable(Path(cfg.out))

    # Sample the same seeds with each variant.
    blocks = [_sampled(cfg, view, sampler, plan) for sampler in chosen]
    arrays = {name: np.concatenate([block[name] for block in blocks]) for name in ("images", "labels", "seeds")}
    if scales:
        arrays["scales"] = np.repeat(np.asarray(scales, np.float64), cfg.num or DEFAULT_COUNT)

    # Write the files.
    _write(folder, arrays, len(scales))
    if png:
        _write_each(folder / "images", arrays)
    options = samplers.options(chosen[0])
    if scales:
        options["scale"] = list(scales)
    return {
        "grid": str(folder / "grid.png"),
        "samples": str(folder / "samples.npz"),
        "sampler": SAMPLERS[cfg.sampler].name,
        "options": options,
        "images": len(arrays["images"]),
    }


def _sampled(cfg: RunConfig, view: LatentView, sampler: Sampler, plan: LabelPlan) -> Arrays:
    """The images of one sampler, uint8 [N, H, W, 3], with their labels and seeds."""
    num = cfg.num or DEFAULT_COUNT
    images, labels, seeds = [], [], []
    with restat.applied(norm_statistics(cfg, view, sampler)):
        size = cfg.batch_size or CPU_BATCH
        stream = sampler.stream(view, range(cfg.seed, cfg.seed + num), size, plan, cfg.noise_mode)
        for batch in progress(stream, cfg.sampler, total=math.ceil(num / size)):
            images.append(to_uint8(batch.images).permute(0, 2, 3, 1).cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
            seeds.append(batch.seeds.numpy())
    return {"images": np.concatenate(images), "labels": np.concatenate(labels), "seeds": np.concatenate(seeds)}


def _write(folder: Path, arrays: Arrays, num_scales: int) -> None:
    """The grid and the archive; with scales, a row of the grid is a seed and a column a scale."""
    images = arrays["images"]
    columns = min(len(images), COLUMNS)
    if num_scales:
        columns = num_scales
        by_scale = images.reshape(num_scales, -1, *images.shape[1:])
        images = by_scale.swapaxes(0, 1).reshape(images.shape)
    sheet = pictures.grid(pictures.enlarged(images), columns)

    named: dict[str, Any] = dict(arrays)
    with replacing(folder / "samples.npz") as temporary:
        np.savez(temporary, **named)
    pictures.save_png(folder / "grid.png", sheet)


def _write_each(folder: Path, arrays: Arrays) -> None:
    for i, image in enumerate(arrays["images"]):
        scale = f"-{arrays['scales'][i]:g}" if "scales" in arrays else ""
        name = f"{arrays['seeds'][i]:06d}-{arrays['labels'][i]:03d}{scale}.png"
        pictures.save_png(folder / name, image, sync=False)  # of many images, each would wait for the disk
