"""Where losses are kept beside the log of a run: TensorBoard, W&B."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from studiogan_guidance.errors import UserError
from studiogan_guidance.training.stage import Record


@contextmanager
def recorder(names: Sequence[str], folder: Path, rank: int, config: Mapping[str, Any]) -> Iterator[Record]:
    """The loggers of ``--log tensorboard,wandb`` as one function of step and numbers; rank 0 alone writes.

    Args:
        names: among those of ``LOGGERS``.
        folder: of the run; logs are written below it.
        rank: of this process.
        config: the options of the run, for loggers that keep them.

    Raises:
        UserError: a package that is not installed.
    """
    with ExitStack() as stack:
        loggers: list[Record] = []
        for name in names if rank == 0 else ():
            try:
                loggers.append(stack.enter_context(LOGGERS[name](folder, config)))
            except ImportError as error:
                raise UserError(f"--log {name} needs a package that is not installed: pip install {name}") from error

        def record(step: int, values: Mapping[str, float]) -> None:
            for logger in loggers:
                logger(step, values)

        yield record


@contextmanager
def _tensorboard(folder: Path, config: Mapping[str, Any]) -> Iterator[Record]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def record(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield record


@contextmanager
def _wandb(folder: Path, config: Mapping[str, Any]) -> Iterator[Record]:
    import wandb

    project = os.environ.get("WANDB_PROJECT", "studiogan-guidance")
    run = wandb.init(dir=str(folder), config=dict(config), project=project)
    try:
        yield lambda step, values: run.log(dict(values), step=step)
    finally:
        run.finish()


Logger = Callable[[Path, Mapping[str, Any]], AbstractContextManager[Record]]
LOGGERS: dict[str, Logger] = {"tensorboard": _tensorboard, "wandb": _wandb}
