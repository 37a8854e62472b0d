"""The verb ``train``: a stage on a checkpoint and its real images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, one_line, say
from studiogan_guidance.evaluation import distributed, results
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.labels import check_folders
from studiogan_guidance.evaluation.source import current_device, open_source, validated
from studiogan_guidance.features.images import Real
from studiogan_guidance.training.logs import recorder
from studiogan_guidance.training.stage import STAGES, Batches, Record, Stage, Trained, has_companion

LOCK = "train"  # of the one command that trains in a folder


def train(cfg: RunConfig, name: str, options: Mapping[str, Any], logs: Sequence[str] = ()) -> dict[str, Any]:
    """Run the stage ``name`` on the checkpoint of ``cfg``, with its real images, into the folder ``cfg.out``.

    The stage has the options that the configuration's ``stages`` give it, overridden by ``options``. Under torchrun the
    processes share each batch.

    Args:
        cfg: the run; ``seed`` is that of the training, the rest says how validation data are measured.
        name: of the stage.
        options: of the stage.
        logs: among tensorboard and wandb.

    Returns:
        What the stage returns; in processes above rank 0, nothing.

    Raises:
        UserError: what the stage refuses, or the checkpoint, the data, or the folder.
    """
    configured = next((spec for spec in cfg.stages if spec["name"] == name), name)
    stage: Stage = STAGES.create(configured, options)
    if has_companion(stage):
        raise UserError(
            f"the stage '{name}' trains beside the host's discriminator: put it into 'stages' of the YAML, and use "
            "'studiogan-guidance run -- -t ...'"
        )
    folder = results.writable(Path(cfg.out))

    # Train in it alone.
    with (
        distributed.group() as group,
        _only_training(folder, group),
        recorder(logs, folder, group.rank, dataclasses.asdict(stage)) as record,
    ):
        try:
            result = stage.after_training(_trained(cfg, folder, group, record))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(f"out of memory ({one_line(error, 120)}): lower the option batch") from error
        return result if group.rank == 0 else {}


@contextmanager
def _only_training(folder: Path, group: Group) -> Iterator[None]:
    """Refuse a folder in which another command trains: the two would overwrite each other's states."""
    lock = results.claim(folder, LOCK) if group.rank == 0 else None
    if group.agree(group.rank == 0 and lock is None):
        raise UserError(f"another process is training in {folder}: wait for its end, or choose another --out")
    try:
        yield
    finally:
        if lock:
            results.remove_locks(folder, [LOCK])
            lock.release()


def _trained(cfg: RunConfig, folder: Path, group: Group, record: Record) -> Trained:
    """The checkpoint of ``cfg`` as a stage sees it; discriminator, data and evaluation are opened when asked for."""
    source = open_source(cfg)
    networks = source.networks(current_device(cfg.device))
    measured = dataclasses.replace(validated(cfg, source), metrics=("fid",), classifier=None, seed=0)

    @functools.cache
    def real() -> Real:
        images = source.real("train", networks.image_size)
        check_folders(images, networks)
        return images

    def batches(batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return shuffled(real(), cfg.seed, group)(batch_size, first)

    return Trained(
        networks=networks,
        discriminator=lambda: source.discriminator(networks.device),
        real=batches,
        folder=folder,
        seed=cfg.seed,
        rank=group.rank,
        world_size=group.size,
        log=say,
        record=record,
        evaluation=lambda: Evaluation(measured, group, [], source),
    )


def shuffled(real: Real, seed: int, group: Group) -> Batches:
    """The images of ``real`` in another order in each epoch; the order depends on ``seed`` and the epoch alone.

    So a resumed run sees the same batches. The processes share a batch; images that fill no batch wait for the next
    epoch.
    """

    def epochs(batch_size: int, first: int, per_epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            # Shuffle the epoch of the next batch.
            epoch, done = divmod(first, per_epoch)
            order = np.random.default_rng([seed, epoch]).permutation(len(real))[: per_epoch * batch_size]

            # Take this process's share of the batches that are left of it.
            share = order[done * batch_size :].reshape(-1, batch_size)[:, group.rank :: group.size]
            yield from real.batches(share.shape[1], only=share.ravel().tolist())
            first = (epoch + 1) * per_epoch

    def batches(batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        if len(real) < batch_size:
            raise UserError(f"{len(real)} real images fill no batch of {batch_size}: lower the option batch")
        return epochs(batch_size, first, len(real) // batch_size)

    return batches
