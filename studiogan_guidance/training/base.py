"""What a stage sees of a training run, whoever runs it; and a loop that can be stopped anywhere and goes on exactly."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from studiogan_guidance.common import UserError, replacing
from studiogan_guidance.config import RunConfig
from studiogan_guidance.evaluation import distributed, report
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.runner import (
    Evaluation,
    Real,
    open_discriminator,
    open_networks,
    open_real,
    validation_split,
)
from studiogan_guidance.latents.base import Networks
from studiogan_guidance.registry import Registry

Record = Callable[[int, Mapping[str, float]], None]


class Batches(Protocol):
    """Opens this process's endless batches of real images; ``first`` of them are left out."""

    def __call__(self, batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Trained:
    """A run whose own training loop is over; the networks hold the weights that will be evaluated.

    Attributes:
        networks: the generator (its moving average where there is one).
        discriminator: opens it as the training left it.
        real: opens the training data without end: images [B, 3, H, W] in [-1, 1] and labels int64 [B], this process's
            share of batches of ``batch_size``, which it refuses if there are too few images. Inside a host run they are
            cut from the host's own batches, in its order.
        folder: where the run keeps its checkpoints.
        seed: of the run; rank, world_size: this process among those of the run.
        log: writes a line to the run's log (on rank 0, nothing elsewhere).
        record: keeps numbers by step for TensorBoard or W&B.
        evaluation: opens what measures on validation data; None inside a host run, which measures by itself.
    """

    networks: Networks
    discriminator: Callable[[], nn.Module]
    real: Batches
    folder: Path
    seed: int
    rank: int
    world_size: int
    log: Callable[[str], None]
    record: Record = field(default=lambda step, values: None)
    evaluation: Callable[[], Evaluation] | None = None


@dataclass(frozen=True)
class DiscriminatorStep:
    """One discriminator update before its backward pass: images [B, 3, H, W] as the discriminator saw them (augmented),
    labels [B], and the dictionaries of outputs that it returned for them."""

    real_images: Tensor
    real_labels: Tensor
    real_outputs: dict[str, Tensor]
    fake_images: Tensor
    fake_labels: Tensor
    fake_outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """Base of all stages; subclasses add options as fields and override what they need."""

    def check(self, networks: Networks, discriminator: nn.Module, processes: int) -> None:
        """Raise UserError for what cannot work in a host run; called in its beginning."""

    def after_training(self, run: Trained) -> Any:
        """Called once in every process after the training loop. The run's own networks must be left as they are."""

    def discriminator_loss(self, step: DiscriminatorStep) -> Tensor | None:
        """A scalar to add to the discriminator's loss of this step."""
        return None


STAGES: Registry[type[Stage]] = Registry("stage", "studiogan_guidance.stages")


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
    folder = report.writable(Path(cfg.out))
    measured = dataclasses.replace(cfg, reference=cfg.reference or validation_split(cfg), metrics=("fid",), seed=0)
    with distributed.group() as group, recorder(logs, folder, group.rank, dataclasses.asdict(stage)) as record:
        networks = open_networks(cfg)
        real = functools.cache(lambda: open_real(dataclasses.replace(cfg, reference="train"), networks))
        run = Trained(
            networks=networks,
            discriminator=lambda: open_discriminator(cfg),
            real=lambda batch_size, first=0: shuffled(real(), cfg.seed, group)(batch_size, first),
            folder=folder,
            seed=cfg.seed,
            rank=group.rank,
            world_size=group.size,
            log=(lambda line: print(line, file=sys.stderr)) if group.rank == 0 else (lambda line: None),
            record=record,
            evaluation=lambda: Evaluation(measured, group, [], networks),
        )
        try:
            result = stage.after_training(run)
        except torch.OutOfMemoryError as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"out of memory ({reason}): lower the option batch (or strength_batch)") from error
        return result if group.rank == 0 else {}


@contextmanager
def still(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients of parameters, so that nothing in ``modules`` moves; left as it was found."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    gradients = [(value, value.requires_grad) for module in modules for value in module.parameters()]
    try:
        for part, _ in modes:
            part.training = False
        for value, _ in gradients:
            value.requires_grad_(False)
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for value, gradient in gradients:
            value.requires_grad_(gradient)


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


class Loop:
    """Steps of gradient descent whose state is saved now and then, so that a run goes on exactly where it was.

    A step may use no random numbers but those it makes of its own number; then a resumed run, even after SIGKILL, ends
    with the very weights of an uninterrupted one. On SIGTERM or Ctrl-C the state is saved at the end of the step.

    Args:
        path: the files of the run are PATH.state and PATH.jsonl.
        identity: what the run depends on; a state with another one is refused by name.
        modules: what learns, and moving averages.
        optimisers: of those.
        group: the processes of the run; the first of them writes.
        record: takes numbers by step.
        anew: keys of ``identity``; where one of them differs, the state is out of date and the run starts anew.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        modules: Mapping[str, nn.Module],
        optimisers: Mapping[str, torch.optim.Optimizer],
        group: Group,
        record: Record,
        anew: Sequence[str] = (),
    ) -> None:
        self.state_file, self.log_file = path.with_name(f"{path.name}.state"), path.with_name(f"{path.name}.jsonl")
        self.identity, self.modules, self.optimisers = dict(identity), dict(modules), dict(optimisers)
        self.group, self.record = group, record
        self.step = 0
        self.kept: dict[str, Any] = {}  # numbers that belong to the state
        found = self.state_file.exists() and self._load(anew)
        if group.rank == 0:
            lines = self.log_file.read_text().splitlines() if found and self.log_file.exists() else []
            whole = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
            with replacing(self.log_file) as beside:
                beside.write_text("".join(f"{line}\n" for line in whole))

    def _load(self, anew: Sequence[str]) -> bool:
        try:
            state = torch.load(self.state_file, map_location="cpu", weights_only=True)
            known: dict[str, Any] = json.loads(state["identity"])
        except Exception as error:  # a damaged file can make the unpickler raise anything
            raise UserError(f"cannot read {self.state_file}: remove it to start anew, or use another --out") from error
        if any(known.get(key) != self.identity[key] for key in anew):
            return False
        for key, value in json.loads(json.dumps(self.identity)).items():
            if known.get(key) != value:
                raise UserError(
                    f"{self.state_file} belongs to a run with {key} {known.get(key)!r}, asked for was {value!r}: use "
                    "another --out, or remove the file"
                )
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step, self.kept = state["step"], json.loads(state["kept"])
        return True

    def _parts(self) -> dict[str, Any]:
        return {**self.modules, **self.optimisers}

    def save(self) -> None:
        """Write the state, whole or not at all."""
        if self.group.rank:
            return
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        with replacing(self.state_file) as beside:
            facts = {"identity": json.dumps(self.identity), "step": self.step, "kept": json.dumps(self.kept)}
            torch.save({**parts, **facts}, beside)

    def note(self, **values: float) -> None:
        """Keep numbers of the step that was just done."""
        if self.group.rank == 0:
            with self.log_file.open("a") as file:
                file.write(json.dumps({"step": self.step, **values}) + "\n")
            self.record(self.step, values)

    def run(
        self,
        steps: int,
        update: Callable[[int], Mapping[str, Tensor]],
        save_every: int,
        note_every: int,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Go on to ``steps`` steps: ``update(i)`` makes step i and returns its losses; ``after`` follows each.

        Raises:
            UserError: a loss that is not finite.
        """
        if not self.state_file.exists():
            self.save()  # from now on the folder is this run's
        with _bar(self.group.rank == 0) as show, _stop_signals() as stopped:
            while self.step < steps:
                losses = update(self.step)
                self.step += 1
                if self.step % note_every == 0 or self.step == steps:
                    means = {name: loss.detach().clone() for name, loss in losses.items()}
                    self.group.average(means.values())
                    values = {name: float(mean) for name, mean in means.items()}
                    if not all(map(math.isfinite, values.values())):
                        raise UserError(
                            f"losses are not finite at step {self.step} ({values}): lower lr, with another --out"
                        )
                    self.note(**values)
                    show(self.step, steps, values)
                after()
                stop = self._anywhere(bool(stopped))
                if self.step % save_every == 0 or self.step == steps or stop:
                    self.save()
                if stop:
                    print(
                        f"stopped at step {self.step} of {steps}: the same command goes on from here", file=sys.stderr
                    )
                    raise SystemExit(128 + (stopped[0] if stopped else signal.SIGTERM))

    def _anywhere(self, flag: bool) -> bool:
        share = torch.tensor(float(flag))
        self.group.average([share])
        return bool(share)


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
def _stop_signals() -> Iterator[list[int]]:
    """A list that holds the number of a SIGTERM or SIGINT once one has come; a second one acts as ever."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(number, before[number] or signal.SIG_DFL)

    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


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


def moving_average(average: nn.Module, source: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * source for all parameters; they have the same buffers."""
    with torch.no_grad():
        for kept, new in zip(average.parameters(), source.parameters()):
            kept.lerp_(new, 1 - decay)


def descend(
    loss: Tensor, parameters: Iterable[Tensor], optimiser: torch.optim.Optimizer, group: Group, clip: float
) -> None:
    """One step down the mean loss of all processes; the norm of the gradient is clipped to ``clip`` (0: is not)."""
    parameters = list(parameters)
    optimiser.zero_grad()
    loss.backward(inputs=parameters)
    group.average(value.grad for value in parameters if value.grad is not None)
    if clip:
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()
