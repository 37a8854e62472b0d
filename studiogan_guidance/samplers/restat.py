"""Batch-norm statistics of the images of a sampler, in place of those in the checkpoint.

Guided codes move activations away from the running averages of training. For evaluation the host has standing
statistics (Brock et al. 2019, arXiv:1809.11096, appendix D), a few passes over fresh samples; these are the same for
the samples of any sampler.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from studiogan_guidance import rng
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import LabelPlan, LatentView
from studiogan_guidance.progress import track
from studiogan_guidance.samplers.base import Sampler

SEED = rng.STATISTICS
BATCH_SIZE = 64  # the same everywhere, so that a checkpoint's statistics do not depend on who asks for them
Statistics = Mapping[nn.Module, tuple[Tensor | None, Tensor | None]]
ATTRIBUTES = ("training", "track_running_stats", "momentum")


def accumulate(view: LatentView, sampler: Sampler, batches: int) -> Statistics:
    """Mean and variance [channels] of every batch norm, averaged over ``batches`` batches of 64 images of ``sampler``.

    Labels are uniform; seeds are fixed, so every process gets the same. The generator is left as it was found.

    Raises:
        UserError: a generator without batch norms, a sampler whose other passes would go into the statistics, too, or
            64 images that do not fit into memory.
    """
    norms = [module for module in view.generator.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        raise UserError(f"restat needs batch norms, but {view.networks.backbone} has none: set restat to 0")

    # What is computed once under these norms is right for no other images.
    training_view = view.altered()
    training_view.on_disk = False
    training_view.networks = dataclasses.replace(view.networks, batch_statistics=True)

    seeds = range(SEED, SEED + batches * BATCH_SIZE)
    with _averaging(norms):
        setup = view.ledger.setup["synthesis"]
        stream = sampler.stream(training_view, seeds, BATCH_SIZE, LabelPlan())
        for batch in track(stream, "images for batch-norm statistics", len(seeds), BATCH_SIZE):
            check_whole(len(batch.images), BATCH_SIZE)
            if batch.cost["synthesis"] != len(batch.images) or view.ledger.setup["synthesis"] != setup:
                raise UserError(f"restat needs a sampler with one pass of the generator an image, unlike {sampler}")
        return {norm: (norm._buffers["running_mean"], norm._buffers["running_var"]) for norm in norms}


def check_whole(count: int, batch_size: int) -> None:
    """Raise UserError where memory was too small for a batch whose own statistics are wanted: parts have others."""
    if count != batch_size:
        raise UserError(
            f"batch-norm statistics are those of batches of {batch_size} images, and only {count} fit into memory: end "
            "what else uses the GPU, or use --device cpu"
        )


@contextmanager
def _averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Batch norms average the statistics of all batches inside the with-block, and are then as before."""
    before = [(norm, dict(norm.__dict__), dict(norm._buffers)) for norm in norms]

    try:
        for norm in norms:
            # Average in copies of the buffers.
            copies = {key: value.clone() for key, value in norm._buffers.items() if value is not None}
            norm._buffers.update(copies)

            norm.training = True
            norm.track_running_stats = True
            norm.momentum = None  # the mean of all batches
            norm.reset_running_stats()
        yield
    finally:
        for norm, attributes, buffers in before:
            norm.__dict__.update({key: attributes[key] for key in ATTRIBUTES})
            norm._buffers.update(buffers)


@contextmanager
def applied(statistics: Statistics) -> Iterator[None]:
    """The batch norms use ``statistics`` inside the with-block; an empty mapping changes nothing."""
    before = {norm: dict(norm._buffers) for norm in statistics}
    try:
        for norm, (mean, var) in statistics.items():
            norm._buffers.update(running_mean=mean, running_var=var)
        yield
    finally:
        for norm, buffers in before.items():
            norm._buffers.update(buffers)
