"""Images without metrics: a grid and an archive of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from studiogan_guidance import samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, torchrun_number
from studiogan_guidance.evaluation import pictures, results
from studiogan_guidance.evaluation.generation import CPU_BATCH, norm_statistics
from studiogan_guidance.evaluation.labels import check_folders, check_labels, label_advice, label_plan, resolved_classes
from studiogan_guidance.evaluation.source import current_device, open_source
from studiogan_guidance.features.stats import to_uint8
from studiogan_guidance.files import Arrays, replacing
from studiogan_guidance.latents import LabelPlan, view_for
from studiogan_guidance.options import Spec, whole_numbers
from studiogan_guidance.progress import track
from studiogan_guidance.rng import IMAGES, check_images
from studiogan_guidance.samplers import SAMPLERS, Sampler, Samples, restat

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
    seeds = seeds_of(cfg, seeds)
    chosen = at_scales(Spec(cfg.sampler, cfg.options), scales)

    # Open the generator, and the real images where labels need them.
    session = Session(cfg)
    chosen, plan = session.prepared(cfg, chosen)
    folder = results.writable(Path(cfg.out))

    # Sample the same seeds with each variant.
    images = []
    labels = []
    for sampler in chosen:
        for batch in session.batches(cfg, sampler, plan, seeds):
            images.append(as_pictures(batch.images))
            labels.append(batch.labels.cpu().numpy())
    arrays = named_arrays(np.concatenate(images), np.concatenate(labels), seeds, scales)

    # Write the files.
    save_arrays(folder / "samples.npz", arrays)
    pictures.save_png(folder / "grid.png", sheet(arrays["images"], scales))
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


class Session:
    """A generator that is opened once, and sampled any number of times: its tables are kept.

    Args:
        cfg: the run, which says what to open; later calls may have other samplers, classes and seeds.

    Attributes:
        source: what ``cfg`` points at.
        networks: the generator with its companions.
        view: of this generator.
    """

    def __init__(self, cfg: RunConfig) -> None:
        self.source = open_source(cfg)
        self.networks = self.source.networks(current_device(cfg.device))
        self.view = view_for(self.networks)

    def prepared(self, cfg: RunConfig, chosen: Sequence[Sampler]) -> tuple[list[Sampler], LabelPlan]:
        """The samplers as they work on this generator, and where labels come from.

        Real images are opened where they name the classes, or say how often each comes.

        Raises:
            UserError: samplers, classes or labels that have no meaning on this generator.
        """
        check_labels(cfg, self.networks)
        chosen = [samplers.checked(sampler, self.view) for sampler in chosen]
        plan = self._plan(cfg)
        self.view.weigh_classes(plan)
        return chosen, plan

    def _plan(self, cfg: RunConfig) -> LabelPlan:
        real = None
        needs_real = cfg.labels == "data" or any(whole_numbers(word) is None for word in cfg.classes)
        if needs_real and self.source.splits:
            real = self.source.real(cfg.reference or self.source.default_split, self.networks.image_size)
            check_folders(real, self.networks, label_advice(cfg))
        classes = resolved_classes(cfg, self.networks.num_classes, real.class_names if real else ())
        return label_plan(dataclasses.replace(cfg, classes=classes), self.networks.num_classes, real)

    def batches(self, cfg: RunConfig, sampler: Sampler, plan: LabelPlan, seeds: Sequence[int]) -> Iterator[Samples]:
        """The images of one sampler, one a seed, with a progress bar; ``prepared`` gives sampler and plan."""
        with restat.applied(norm_statistics(cfg, self.view, sampler)):
            size = cfg.batch_size or CPU_BATCH
            stream = sampler.stream(self.view, seeds, size, plan, cfg.noise_mode)
            yield from track(stream, f"images of {SAMPLERS.name_of(sampler)}", len(seeds), size)


def at_scales(spec: Spec, scales: Sequence[float]) -> list[Sampler]:
    """The sampler at each of the guidance scales, or once as it is where there are none."""
    return [samplers.create(spec, {"scale": scale}) for scale in scales] or [samplers.create(spec)]


def seeds_of(cfg: RunConfig, seeds: Sequence[int] = ()) -> Sequence[int]:
    """``seeds``, or those of the configuration; UserError for one that no image has."""
    if not seeds:
        num = cfg.num or DEFAULT_COUNT
        check_images(cfg.seed, num)
        return range(cfg.seed, cfg.seed + num)
    for seed in (min(seeds), max(seeds)):
        if not 0 <= seed < IMAGES:
            raise UserError(f"no image has the seed {seed}: give seeds from 0 to {IMAGES - 1}")
    return seeds


def as_pictures(images: Tensor) -> NDArray[np.uint8]:
    """Images float [N, 3, H, W] in [-1, 1] as uint8 [N, H, W, 3]."""
    pixels: NDArray[np.uint8] = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def named_arrays(images: Array, labels: Array, seeds: Sequence[int], scales: Sequence[float] = ()) -> Arrays:
    """What samples.npz holds: ``images``, ``labels``, ``seeds`` and, of several scales, ``scales``; see ``sample``.

    Images and labels are those of all scales, one block after the other; seeds are those of one block.
    """
    blocks = max(1, len(scales))
    arrays = {"images": images, "labels": labels, "seeds": np.tile(np.asarray(seeds, np.int64), blocks)}
    if scales:
        arrays["scales"] = np.repeat(np.asarray(scales, np.float64), len(seeds))
    return arrays


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays into an .npz file, whole or not at all."""
    named: dict[str, Any] = dict(arrays)
    with replacing(path) as temporary:
        np.savez(temporary, **named)


def sheet(
    images: Array, scales: Sequence[float] = (), columns: int = COLUMNS, factor: int | None = None
) -> NDArray[np.uint8]:
    """Images uint8 [N, H, W, 3] as one picture; with scales, a row is a seed and a column a scale, which stands above.

    Args:
        images: with scales, one block of equal size for each.
        scales: guidance scales.
        columns: the most without scales.
        factor: see ``pictures.enlarged``.
    """
    images = pictures.enlarged(images, factor)
    if not scales:
        return pictures.grid(images, min(len(images), columns))
    by_scale = images.reshape(len(scales), -1, *images.shape[1:])
    by_seed = by_scale.swapaxes(0, 1).reshape(images.shape)
    return pictures.captioned(pictures.grid(by_seed, len(scales)), [f"scale={scale:g}" for scale in scales])


def _write_each(folder: Path, arrays: Arrays) -> None:
    for i, image in enumerate(arrays["images"]):
        scale = f"-{arrays['scales'][i]:g}" if "scales" in arrays else ""
        name = f"{arrays['seeds'][i]:06d}-{arrays['labels'][i]:03d}{scale}.png"
        pictures.save_png(folder / name, image, sync=False)  # of many images, each would wait for the disk
