"""The loop of a stage: steps that can be interrupted anywhere and resumed exactly."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from studiogan_guidance import progress
from studiogan_guidance.batches import Later, is_out_of_memory
from studiogan_guidance.errors import Stopped, UserError
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.files import append_lines, json_lines, write_bytes
from studiogan_guidance.training.stage import Record
from studiogan_guidance.weights import archives

ANEW = "; remove it to start anew, or use another --out"


class Loop:
    """Steps of gradient descent whose state is saved every so often, so that a run can be resumed exactly.

    A step may use no random numbers but those that it derives from its own number (``step_seeds``); then a resumed run,
    even after SIGKILL, ends with the very weights of an uninterrupted one. On SIGTERM or Ctrl-C the state is saved at
    the end of the step. ``step`` is the number of steps done; ``result``, plain data, is saved with the state.

    Args:
        path: the files of the run are PATH.state and PATH.jsonl.
        identity: what the run depends on; the state of a run with another identity is refused, by the first key.
        modules: the networks that learn, and their moving averages.
        optimisers: of those networks.
        group: the processes of the run; the first of them writes.
        record: takes numbers by step.
        anew: keys of ``identity`` that make a state out of date: where one differs, the run starts from the beginning.

    Raises:
        UserError: a state that cannot be read, that belongs to another run, or that is not the same for all processes.
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
        self.state_file = path.with_name(f"{path.name}.state")
        self.log_file = path.with_name(f"{path.name}.jsonl")
        self.identity = dict(identity)
        self.group = group
        self.record = record
        self.step = 0
        self.result: dict[str, Any] = {}
        self._parts: dict[str, Any] = {**modules, **optimisers}

        # Losses that are still to be logged, and those that were logged last.
        self._kept: dict[str, Later] = {}
        self._kept_step = 0
        self._logged: dict[str, float] = {}

        resumed = self.state_file.exists() and self._load(anew)
        if group.agree(self.step) != self.step:
            raise UserError(f"{self.state_file} is not the same for all processes: give them one shared folder")
        if group.rank == 0:
            self._start_log(resumed)

    def _load(self, anew: Sequence[str]) -> bool:
        """Take up the state in the file; false if it is out of date."""
        state = self._read()
        saved: dict[str, Any] = state["identity"]

        # Compare identities.
        if any(saved.get(key) != self.identity[key] for key in anew):
            return False
        for key, value in json.loads(json.dumps(self.identity)).items():
            if saved.get(key) != value:
                raise UserError(
                    f"{self.state_file} belongs to a run with {key} {saved.get(key)!r}, asked for was {value!r}: use "
                    "another --out, or remove the file"
                )

        # Restore networks and optimisers.
        for name, part in self._parts.items():
            try:
                part.load_state_dict(state[name])
            except Exception as error:  # torch's optimisers check little of what they are given
                if is_out_of_memory(error):
                    raise
                raise UserError(f"{self.state_file} is damaged: its {name} does not fit{ANEW}") from error
        self.step = state["step"]
        self.result = state["result"]
        return True

    def _read(self) -> dict[str, Any]:
        """The content of the state's file; UserError for a damaged one."""
        try:
            state = archives.read(self.state_file, "the state of the training")
        except UserError as error:
            raise UserError(f"{error}{ANEW}") from error
        missing = {*self._parts, "identity", "step", "result"} - set(state if isinstance(state, dict) else ())
        if missing:
            raise UserError(f"{self.state_file} is damaged: it lacks {', '.join(sorted(missing))}{ANEW}")

        # Texts and numbers.
        for key in ("identity", "result"):
            try:
                state[key] = json.loads(state[key])
            except (TypeError, ValueError, RecursionError):
                state[key] = None
            if not isinstance(state[key], dict):
                raise UserError(f"{self.state_file} is damaged: its {key} is no JSON of a mapping{ANEW}")
        if type(state["step"]) is not int or state["step"] < 0:
            raise UserError(f"{self.state_file} is damaged: its step is no whole number from 0 up{ANEW}")
        return dict(state)

    def _start_log(self, resumed: bool) -> None:
        """Keep the whole lines up to the resumed step, or start an empty log."""
        rows: list[dict[str, Any]] = []
        if resumed and self.log_file.exists():
            rows = [row for row in json_lines(self.log_file) if row and row.get("step") in range(self.step + 1)]
        write_bytes(self.log_file, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def save(self) -> None:
        """Write the state, whole or not at all."""
        if self.group.rank:
            return
        state = {name: part.state_dict() for name, part in self._parts.items()}
        state["identity"] = json.dumps(self.identity)
        state["step"] = self.step
        state["result"] = json.dumps(self.result)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.state_file, buffer.getvalue())

    def note(self, **values: float) -> None:
        """Log numbers of the latest step."""
        self._log_losses()
        self._log(self.step, values)

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        if self.group.rank == 0:
            append_lines(self.log_file, [json.dumps({"step": step, **values})], sync=False)
            self.record(step, values)

    def _log_losses(self) -> None:
        """Log the losses that were kept, if there are any; raises UserError for one that is not finite."""
        if not self._kept:
            return
        means = {name: mean.value() for name, mean in self._kept.items()}
        self._kept = {}
        if not all(map(math.isfinite, means.values())):
            raise UserError(f"losses are not finite at step {self._kept_step} ({means}): lower lr, with another --out")
        self._log(self._kept_step, means)
        self._logged = means

    def run(
        self,
        steps: int,
        update: Callable[[int], Mapping[str, Tensor]],
        save_every: int,
        note_every: int,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Continue up to ``steps`` steps.

        Args:
            steps: in all.
            update: ``update(i)`` makes step i and returns its losses.
            save_every: steps between two states.
            note_every: steps between two lines of the log.
            after: called after each step.

        Raises:
            UserError: a loss that is not finite (when the next ones are logged, or before the state is saved).
            SystemExit: after SIGTERM or Ctrl-C, with the state saved.
        """
        if not self.state_file.exists():
            self.save()  # it marks the folder as that of this run
        with progress.bar("training", steps, self.step) as shown, _stop_signals() as signals:
            while self.step < steps:
                # Make a step.
                losses = update(self.step)
                self.step += 1
                shown.move(self.step)
                last = self.step == steps

                # Log the losses that were kept, which a GPU has computed by now, and keep those of this step.
                if last or self.step % note_every == 0:
                    self._log_losses()
                    shown.text = "  ".join(f"{name} {value:.4g}" for name, value in self._logged.items())
                    self._kept = {name: Later(mean) for name, mean in self._means(losses).items()}
                    self._kept_step = self.step
                after()

                # Save the state, and stop where a signal asks for it.
                stop = self._any_process(bool(signals))
                if last or stop or self.step % save_every == 0:
                    self._log_losses()
                    self.save()
                if stop:
                    self._end(steps, signals[0] if signals else signal.SIGTERM)

    def _end(self, steps: int, number: int) -> NoReturn:
        """End after the signal ``number``; the first process says how to go on."""
        progress.clear()
        if self.group.rank == 0:
            print(f"stopped at step {self.step} of {steps}: the same command resumes from here", file=sys.stderr)
        raise Stopped(128 + number)

    def keep_best(
        self,
        steps: int,
        every: int,
        measure: Callable[[], Mapping[str, float]] | None,
        write: Callable[[Mapping[str, float]], None],
    ) -> None:
        """After a step, write what is learned where it is the best so far; without validation data, at the last step.

        ``result`` is then its step with its values, and with the ``fid`` of step 0 as ``fid_start``.

        Args:
            steps: in all.
            every: steps between two measurements; the last one is measured, too.
            measure: gives values on validation data, ``fid`` among them, the same in all processes; None: no data.
            write: writes the file, with facts about its step.
        """
        is_last = self.step == steps
        if measure is None:
            if is_last:
                self.result = {"step": self.step}
                write({"step": self.step})
            return
        if not is_last and self.step % every:
            return

        # Measure, and keep it where it is better.
        values = dict(measure())
        self.note(**values)
        if values["fid"] < self.result.get("fid", math.inf):
            start = values["fid"] if self.step == 0 else self.result.get("fid_start")
            first = {} if start is None else {"fid_start": start}
            self.result = {"step": self.step, **values, **first}
            write({"step": self.step, **{f"validation_{name}": value for name, value in values.items()}})

    def finished(self, file: Path) -> dict[str, Any]:
        """``result``, once the first process has written ``file``, by its word: another node may see files later.

        Raises:
            UserError: the file is missing, as after somebody removed it.
        """
        if not self.group.agree(file.exists()):
            raise UserError(f"{file} is missing, though the run is over: remove {self.state_file}")
        return self.result

    def _means(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The losses, averaged over the processes."""
        means = {name: loss.detach().clone() for name, loss in losses.items()}
        self.group.average(means.values())
        return means

    def _any_process(self, flag: bool) -> bool:
        if self.group.size == 1:
            return flag
        share = torch.tensor(float(flag))
        self.group.average([share])
        return bool(share)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that receives the number of a SIGTERM or SIGINT; a second signal acts as it would without us."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, handlers[number] or signal.SIG_DFL)

    # Receive signals until the end of the block.
    for number in handlers:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def frozen_parameters(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients of parameters, so that nothing in ``modules`` moves; restored at the end."""
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


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On a GPU, only algorithms that give the same bits each time, as far as torch has them; it warns where not.

    So a training that was stopped and resumed ends as an uninterrupted one on the same GPU and the same versions. On
    the CPU that holds anyway, and nothing changes. What is set for the process is restored at the end.
    """
    if device.type != "cuda":
        yield
        return

    # Remember what is set.
    cudnn = torch.backends.cudnn
    filling: Any = torch.utils.deterministic
    variable = "CUBLAS_WORKSPACE_CONFIG"
    workspace = os.environ.get(variable)
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    before = (cudnn.benchmark, cudnn.deterministic, filling.fill_uninitialized_memory)

    try:
        os.environ.setdefault(variable, ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=warn_only or not enabled)
        cudnn.benchmark = False
        cudnn.deterministic = True
        filling.fill_uninitialized_memory = False  # it costs time, and nothing reads such memory
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, filling.fill_uninitialized_memory = before
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        if workspace is None:
            os.environ.pop(variable, None)


def step_seeds(count: int, *key: int) -> list[int]:
    """Seeds of ``count`` images for a place in a run, such as (seed, step): a hash, since those of images are near.

    They are below 2**32, as a generator of the CPU takes the low 32 bits of a seed only.
    """
    return [int(seed) for seed in np.random.SeedSequence(key).generate_state(count)]


def moving_average(average: nn.Module, source: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * source for all parameters; they have the same buffers."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(source.parameters()), 1 - decay)


def by_layer(module: nn.Module, rate: float) -> list[dict[str, Any]]:
    """Parameters of an optimiser, a group for each layer with the learning rate ``rate`` times their root mean square.

    So layers of equalised learning rate, whose weights are large and scaled when used, learn as others do.
    """
    groups = []
    for layer in module.modules():
        own = list(layer.parameters(recurse=False))
        if own:
            size = torch.cat([value.detach().flatten() for value in own]).square().mean().sqrt()
            groups.append({"params": own, "lr": rate * float(size)})
    return groups


def descend(
    loss: Tensor, parameters: Iterable[Tensor], optimiser: torch.optim.Optimizer, group: Group, clip: float
) -> None:
    """One step down the mean loss of all processes; the norm of its gradient is clipped to ``clip`` (0: is not)."""
    parameters = list(parameters)
    optimiser.zero_grad()
    loss.backward(inputs=parameters)
    group.average(value.grad for value in parameters if value.grad is not None)

    if clip:
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()
