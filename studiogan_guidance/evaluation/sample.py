"""Images without metrics: a grid and an archive of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studiogan_guidance import samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, torchrun_number
from studiogan_guidance.evaluation import pictures, results
from studiogan_guidance.evaluation.generation import CPU_BATCH, norm_statistics
from studiogan_guidance.evaluation.labels import check_folders, check_labels, label_advice, label_plan, resolved_classes
from studiogan_guidance.evaluation.source import Source, current_device, open_source
from studiogan_guidance.features.stats import to_uint8
from studiogan_guidance.files import Arrays, replacing
from studiogan_guidance.latents import LabelPlan, LatentView, Networks, view_for
from studiogan_guidance.options import whole_numbers
from studiogan_guidance.progress import track
from studiogan_guidance.rng import IMAGES, check_images
from studiogan_guidance.samplers import SAMPLERS, Sampler, restat

Array = NDArray[Any]
DEFAULT_COUNT = 64  # images
COLUMNS = 8  # of a grid without scales


def sample(
    cfg: RunConfig, scales: Sequence[float] = (), png: bool = False, seeds: Sequence[int] = ()
) -> dict[str, Any]:
    """Write DIR/grid.png and DIR/samples.npz: images uint8 [N, H, W, 3], labels int64 [N], seeds int64 [N].

    In the grid, each pixel of a small image is a square of pixels; in the npz, images are as they were made.

    Args:
        cfg: the run; ``num`` defaults to 64.
        scales: guidance scales to sample the same seeds at: a column of the grid for each, and in the npz one block of
            N images after the other with ``scales`` float64 [N * len(scales)] beside them.
        png: also write every image as DIR/images/<seed>-<class>[-<scale>].png.
        seeds: the seed of each image, in place of ``cfg.seed`` and ``cfg.num``; one may stand for several images, of
            other classes. Classes are used in turn by position, not by seed.

    Returns:
        The files written, the sampler with its options, and the number of images.

    Raises:
        UserError: several processes, what the configuration lacks, a seed that no image has, or a folder that cannot
            be written.
    """
    if torchrun_number("WORLD_SIZE", 1) > 1:
        raise UserError("sample runs in one process, found WORLD_SIZE > 1: start it without torchrun")
    seeds = _checked_seeds(cfg, seeds)
    variants = [{**cfg.options, "scale": scale} for scale in scales] or [dict(cfg.options)]
    chosen = [samplers.create(cfg.sampler, options) for options in variants]

    # Open the generator, and the real images where labels need them.
    source = open_source(cfg)
    networks = source.networks(current_device(cfg.device))
    check_labels(cfg, networks)
    view = view_for(networks)
    chosen = [samplers.checked(sampler, view) for sampler in chosen]
    plan = _plan(cfg, source, networks)
    view.weigh_classes(plan)
    folder = results.writable(Path(cfg.out))

    # Sample the same seeds with each variant.
    blocks = [_sampled(cfg, view, sampler, plan, seeds) for sampler in chosen]
    arrays = {name: np.concatenate([block[name] for block in blocks]) for name in ("images", "labels", "seeds")}
    if scales:
        arrays["scales"] = np.repeat(np.asarray(scales, np.float64), len(seeds))

    # Write the files.
    _write(folder, arrays, scales)
    if png:
        _write_each(folder / "images", arrays)
    options = samplers.options(chosen[0])
    if scales:
        options["scale"] = list(scales)
    pictures_folder = {"pictures": str(folder / "images")} if png else {}
    return {
        "grid": str(folder / "grid.png"),
        **pictures_folder,
        "samples": str(folder / "samples.npz"),
        "sampler": SAMPLERS.name_of(chosen[0]),
        "options": options,
        "images": len(arrays["images"]),
    }


def _checked_seeds(cfg: RunConfig, seeds: Sequence[int]) -> Sequence[int]:
    """``seeds``, or those of the configuration; UserError for one that no image has."""
    if not seeds:
        num = cfg.num or DEFAULT_COUNT
        check_images(cfg.seed, num)
        return range(cfg.seed, cfg.seed + num)
    for seed in (min(seeds), max(seeds)):
        if not 0 <= seed < IMAGES:
            raise UserError(f"no image has the seed {seed}: give seeds from 0 to {IMAGES - 1}")
    return seeds


def _plan(cfg: RunConfig, source: Source, networks: Networks) -> LabelPlan:
    """Where labels come from; real images are opened where they name the classes, or say how often each comes."""
    real = None
    needs_real = cfg.labels == "data" or any(whole_numbers(word) is None for word in cfg.classes)
    if needs_real and source.splits:
        real = source.real(cfg.reference or source.default_split, networks.image_size)
        check_folders(real, networks, label_advice(cfg))
    classes = resolved_classes(cfg, networks.num_classes, real.class_names if real else ())
    return label_plan(dataclasses.replace(cfg, classes=classes), networks.num_classes, real)


def _sampled(cfg: RunConfig, view: LatentView, sampler: Sampler, plan: LabelPlan, seeds: Sequence[int]) -> Arrays:
    """The images of one sampler, uint8 [N, H, W, 3], with their labels and seeds."""
    # Sample.
    images = []
    labels = []
    with restat.applied(norm_statistics(cfg, view, sampler)):
        size = cfg.batch_size or CPU_BATCH
        stream = sampler.stream(view, seeds, size, plan, cfg.noise_mode)
        for batch in track(stream, f"images of {cfg.sampler}", len(seeds), size):
            images.append(to_uint8(batch.images).permute(0, 2, 3, 1).cpu().numpy())
            labels.append(batch.labels.cpu().numpy())

    return {
        "images": np.concatenate(images),
        "labels": np.concatenate(labels),
        "seeds": np.asarray(seeds, np.int64),
    }


def _write(folder: Path, arrays: Arrays, scales: Sequence[float]) -> None:
    """The grid and the archive; with scales, a row of the grid is a seed and a column a scale, which stands above."""
    images = pictures.enlarged(arrays["images"])
    if scales:
        by_scale = images.reshape(len(scales), -1, *images.shape[1:])
        by_seed = by_scale.swapaxes(0, 1).reshape(images.shape)
        sheet = pictures.grid(by_seed, len(scales))
        sheet = pictures.captioned(sheet, [f"scale={scale:g}" for scale in scales])
    else:
        sheet = pictures.grid(images, min(len(images), COLUMNS))

    named: dict[str, Any] = dict(arrays)
    with replacing(folder / "samples.npz") as temporary:
        np.savez(temporary, **named)
    pictures.save_png(folder / "grid.png", sheet)


def _write_each(folder: Path, arrays: Arrays) -> None:
    for i, image in enumerate(arrays["images"]):
        scale = f"-{arrays['scales'][i]:g}" if "scales" in arrays else ""
        name = f"{arrays['seeds'][i]:06d}-{arrays['labels'][i]:03d}{scale}.png"
        pictures.save_png(folder / name, image, sync=False)  # of many images, each would wait for the disk
