"""Values of a long row of random draws, computed once, in chunks that are kept on disk: a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from studiogan_guidance import __version__
from studiogan_guidance.batches import Halving, progress
from studiogan_guidance.files import cache_dir, replacing
from studiogan_guidance.latents.base import LatentView

CHUNK = 256  # draws between two visits to the disk
BATCH_SIZE = 64  # draws at a time
Array = NDArray[Any]


def values(view: LatentView, what: str, key: Mapping[str, Any], size: int, compute: Callable[[range], Tensor]) -> Array:
    """Values [size, ...] of the draws 0 to ``size``, which ``compute`` gives for a range of them, on the CPU.

    Each chunk of 256 goes into the cache folder under a hash of the generator's weights and ``key``, which must name
    everything else that the values depend on; what is there is not computed again, and processes that need the same
    pool share its chunks. Without a hash of the weights nothing is kept on disk.

    Args:
        view: whose generator they are about.
        what: a word for the progress bar and the folder.
        key: plain data.
        size: of the pool.
        compute: numbers of up to 64 draws -> their values, [len, ...].
    """
    net = view.networks
    facts = {"weights": net.digest, "version": __version__, "prior": f"{net.z_prior} {net.z_dim}", **key}
    name = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
    folder = cache_dir() / "pools" / f"{what.replace(' ', '-')}-{name}" if view.on_disk else None

    halving = Halving()

    def chunk(start: int, wait: bool) -> Array | None:
        """The values of a chunk; None, if another process is at it and ``wait`` is off."""
        draws = range(start, min(start + CHUNK, size))
        path = folder and folder / f"{start:08d}-{len(draws)}.npy"
        if found := _read(path):
            return found[0]
        with ExitStack() as stack:
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(FileLock(path.with_suffix(".lock"), timeout=-1 if wait else 0))
                except Timeout:
                    return None
                if found := _read(path):  # it may have been finished just before the lock was free
                    return found[0]
            parts = [draws[at : at + BATCH_SIZE] for at in range(0, len(draws), BATCH_SIZE)]
            with view.frozen(), torch.no_grad():
                made: Array = torch.cat([some.cpu() for part in parts for some in halving(compute, part)]).numpy()
            if path:
                with replacing(path) as beside:
                    np.save(beside, made)
            return made

    starts = range(0, size, CHUNK)
    first = [chunk(start, wait=False) for start in progress(starts, what)]  # processes share the chunks
    whole = [chunk(start, wait=True) if made is None else made for start, made in zip(starts, first)]
    return np.concatenate([made for made in whole if made is not None])


def _read(path: Path | None) -> list[Array]:
    try:
        return [np.load(path)] if path else []
    except (OSError, ValueError, EOFError):  # missing or damaged
        return []
