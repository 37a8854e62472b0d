"""The verb ``train``: a stage on a checkpoint and its real images."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import distributed, results
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.source import device_of, open_source
from studiogan_guidance.features.images import Real
from studiogan_guidance.training.logs import recorder
from studiogan_guidance.training.stage import STAGES, Batches, Stage, Trained


def train(cfg: RunConfig, name: str, options: Mapping[str, Any], logs: Sequence[str] = ()) -> dict[str, Any]:
    """Run the stage ``name`` on the checkpoint of ``cfg``, with its real images, into the folder ``cfg.out``.

    Options of the stage in the configuration's ``stages`` are kept where ``options`` does not name them. Under torchrun
    the processes share each batch.

    Args:
        cfg: the run; ``seed`` is that of the training, the rest says how validation data are measured.
        name: of the stage.
        options: of the stage.
        logs: of tensorboard and wandb.

    Returns:
        What the stage returns; in processes above rank 0, nothing.

    Raises:
        UserError: what the stage refuses, or the checkpoint, the data, or the folder.
    """
    given = next((dict(spec) for spec in cfg.stages if spec["name"] == name), {"name": name})
    stage: Stage = STAGES.create(name, {**{k: v for k, v in given.items() if k != "name"}, **options})
    folder = results.writable(Path(cfg.out))
    source = open_source(cfg)
    measured = dataclasses.replace(cfg, reference=cfg.reference or source.validation_split, metrics=("fid",), seed=0)
    with distributed.group() as group, recorder(logs, folder, group.rank, dataclasses.asdict(stage)) as record:
        networks = source.networks(device_of(cfg.device))
        real = functools.cache(lambda: source.real("train", networks.image_size))
        run = Trained(
            networks=networks,
            discriminator=lambda: source.discriminator(networks.device),
            real=lambda batch_size, first=0: shuffled(real(), cfg.seed, group)(batch_size, first),
            folder=folder,
            seed=cfg.seed,
            rank=group.rank,
            world_size=group.size,
            log=(lambda line: print(line, file=sys.stderr)) if group.rank == 0 else (lambda line: None),
            record=record,
            evaluation=lambda: Evaluation(measured, group, [], source),
        )
        try:
            result = stage.after_training(run)
        except torch.OutOfMemoryError as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"out of memory ({reason}): lower the option batch (or strength_batch)") from error
        return result if group.rank == 0 else {}


def shuffled(real: Real, seed: int, group: Group) -> Batches:
    """The images of ``real`` in an order of its own for each epoch, the same however often the run is resumed.

    A batch is shared out among the processes; images that fill no batch wait for the next epoch.
    """

    def epochs(batch_size: int, first: int, each: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            epoch, done = divmod(first, each)
            order = np.random.default_rng([seed, epoch]).permutation(len(real))[: each * batch_size]
            own = order[done * batch_size :].reshape(-1, batch_size)[:, group.rank :: group.size]
            yield from real.batches(own.shape[1], only=own.ravel().tolist())
            first = (epoch + 1) * each

    def batches(batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        if len(real) < batch_size:
            raise UserError(f"{len(real)} real images fill no batch of {batch_size}: lower the option batch")
        return epochs(batch_size, first, len(real) // batch_size)

    return batches
