"""A loop that can be stopped anywhere and goes on exactly."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.files import replacing
from studiogan_guidance.training.logs import _bar
from studiogan_guidance.training.stage import Record


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
