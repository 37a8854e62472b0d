"""Values of a fixed pool of random draws, computed once, in chunks that are cached on disk, so that a run resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.batches import Halving
from studiogan_guidance.files import cache_path, locked, read_arrays, write_arrays
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView
from studiogan_guidance.progress import track

CHUNK = 256  # draws in a file of the cache
BATCH_SIZE = 64  # draws at a time
Array = NDArray[Any]
Compute = Callable[[range], Tensor]


def inputs(
    view: LatentView, labels: Sequence[int], size: int, draws: Sequence[int], noise_mode: str = "random"
) -> Inputs:
    """Members of pools, each by a seed of its own, with layer noise: one of ``draws`` from the pool of each label.

    A class has one pool of each ``size``; its members are numbered from 0.
    """
    seeds = [rng.POOLS + (label * size + draw) % 2**30 for label, draw in zip(labels, draws)]
    return view.draw(seeds, 0, LabelPlan(tuple(labels)), noise_mode)


def values(view: LatentView, what: str, key: Mapping[str, Any], size: int, compute: Compute) -> Array:
    """Values [size, ...] of the draws 0 to ``size``, on the CPU.

    Chunks of 256 draws are cached under the hash of the generator's weights and ``key``. Processes that need the same
    pool share the work chunk by chunk. Nothing is cached for a view whose ``on_disk`` is off.

    Args:
        view: the view whose generator the values depend on.
        what: a word for the progress bar and for the folder in the cache.
        key: plain data that names everything else that the values depend on, with ``"version": N``, which is raised
            when the maths of ``compute`` change.
        size: of the pool.
        compute: the numbers of up to 64 draws -> the values of these draws, [len, ...].
    """
    pool = _Pool(view, what, key, compute)
    chunks = [range(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)]

    # Compute the chunks that no other process is busy with, then wait for the others.
    arrays = [pool.chunk(draws, wait=False) for draws in track(chunks, what)]
    for number, draws in enumerate(chunks):
        if arrays[number] is None:
            arrays[number] = pool.chunk(draws, wait=True)
    return np.concatenate([array for array in arrays if array is not None])


class _Pool:
    """The chunks of one pool, computed or read."""

    def __init__(self, view: LatentView, what: str, key: Mapping[str, Any], compute: Compute) -> None:
        networks = view.networks
        prior = f"{networks.z_prior} {networks.z_dim}"
        self.view = view
        self.folder = f"pools/{what.replace(' ', '-')}"
        self.key = {"weights": networks.digest, "prior": prior, **key}
        self.compute = compute
        self.halving = Halving()

    def chunk(self, draws: range, wait: bool) -> Array | None:
        """The values of some draws; None if another process computes them and ``wait`` is off."""
        if not self.view.on_disk:
            return self._computed(draws)
        path = cache_path(self.folder, {**self.key, "draws": [draws.start, draws.stop]})
        arrays = read_arrays(path)
        if arrays is not None:
            return arrays["values"]

        # Another process may have finished the chunk just before the lock was free.
        with locked(path, wait) as held:
            if not held and not wait:
                return None
            arrays = read_arrays(path)
            if arrays is None:
                arrays = {"values": self._computed(draws)}
                write_arrays(path, arrays)
        return arrays["values"]

    def _computed(self, draws: range) -> Array:
        parts: list[Tensor] = []
        with self.view.frozen(), torch.no_grad():
            for start in range(0, len(draws), BATCH_SIZE):
                batch = draws[start : start + BATCH_SIZE]
                parts += [part.cpu() for part in self.halving(self.compute, batch)]
        array: Array = torch.cat(parts).numpy()
        return array
