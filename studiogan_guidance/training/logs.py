"""Where losses go: a bar, TensorBoard, W&B."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from studiogan_guidance.errors import UserError
from studiogan_guidance.training.stage import Record


@contextmanager
def _bar(wanted: bool) -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        *Progress.get_default_columns()[:-1],
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (wanted and console.is_terminal),
    ) as progress:
        task = progress.add_task("training", total=None)

        def show(step: int, steps: int, values: Mapping[str, float]) -> None:
            said = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            progress.update(task, completed=step, total=steps, description=said)

        yield show


@contextmanager
def recorder(names: Sequence[str], folder: Path, rank: int, config: Mapping[str, Any]) -> Iterator[Record]:
    """What ``--log tensorboard`` and ``--log wandb`` mean: numbers by step, from the first process.

    Raises:
        UserError: a package that is not installed.
    """
    takers: list[Record] = []
    with ExitStack() as stack:
        for name in names if rank == 0 else ():
            try:
                takers.append(stack.enter_context({"tensorboard": _tensorboard, "wandb": _wandb}[name](folder, config)))
            except ImportError as error:
                raise UserError(f"--log {name} needs a package that is not installed: pip install {name}") from error

        def record(step: int, values: Mapping[str, float]) -> None:
            for taker in takers:
                taker(step, values)

        yield record


@contextmanager
def _tensorboard(folder: Path, config: Mapping[str, Any]) -> Iterator[Record]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def take(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield take


@contextmanager
def _wandb(folder: Path, config: Mapping[str, Any]) -> Iterator[Record]:
    import wandb

    run = wandb.init(
        dir=str(folder), config=dict(config), project=os.environ.get("WANDB_PROJECT", "studiogan-guidance")
    )
    try:
        yield lambda step, values: run.log(dict(values), step=step)
    finally:
        run.finish()
