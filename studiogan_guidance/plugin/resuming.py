"""What a run with companions keeps beside the host's checkpoints, so that it goes on exactly where it was stopped."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.errors import UserError
from studiogan_guidance.files import write_bytes
from studiogan_guidance.training.stage import Companion
from studiogan_guidance.weights import archives

CHECKPOINT = re.compile(r"model=\w+-(?:current|best)-weights-step=(\d+)\.pth")
STATE = re.compile(r"stages-step=(\d+)\.pt")
ANEW = ", or remove all stages-step=*.pt there to start what the stages train anew"
TENSORS = (  # of the host's worker
    "pl_reg.pl_mean",
    "pl_reg_loss",
    "r1_penalty",
    *(f"dis_{what}_{images}{log}" for what in ("sign", "logit") for images in ("real", "fake") for log in ("", "_log")),
)
NUMBERS = ("aa_kimg", "blur_init_sigma", "ema.ema_rampup")  # the host's code sets others when it resumes


class Order(Sampler[int]):
    """A sampler of training images that knows from which random state the order of the present epoch was drawn.

    Args:
        sampler: of the images; it draws from torch's generator of the CPU when an epoch begins, or from none.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.drawn_from = torch.get_rng_state()
        self._next: tuple[Tensor, int] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def continue_from(self, drawn_from: Tensor, first: int) -> None:
        """Let the next epoch be the one that was drawn from a random state, from its image ``first`` on."""
        self._next = drawn_from, first

    def __iter__(self) -> Iterator[int]:
        # An epoch that begins.
        if self._next is None:
            self.drawn_from = torch.get_rng_state()
            yield from self.sampler
            return

        # An epoch that goes on.
        self.drawn_from, first = self._next
        self._next = None
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.drawn_from)
            order = list(self.sampler)
        yield from order[first:]


class Position:
    """Where a training of the host stands, beyond what its own checkpoints hold.

    Those are: the random states, the place in the epoch, the gradient scaler, the mean path length, the counters of
    adaptive augmentation, and constants that the host replaces when it resumes. With them a run that was stopped
    continues as if it had not been, bit for bit on the CPU. Two things are drawn anew: what processes that load images
    draw (random flips and crops with --num_workers above 0), and the noise of processes above rank 0 (-DDP), which
    write no checkpoint.

    Args:
        worker: of the host; the order of its training data is observed from here on.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._epoch = -1
        self._batches = 0  # taken in this epoch

        # Observe the order of the images.
        self._loader = worker.train_dataloader
        self._order = Order(self._loader.batch_sampler.sampler)
        self._loader.batch_sampler.sampler = self._order

        # Count batches.
        take = worker.sample_data_basket

        def sample_data_basket() -> Any:
            basket = take()
            self._batches = self._batches + 1 if worker.epoch_counter == self._epoch else 1
            self._epoch = worker.epoch_counter
            return basket

        worker.sample_data_basket = sample_data_basket

    def state(self) -> dict[str, Any]:
        """The position as tensors and JSON."""
        worker = self._worker
        device = torch.device(worker.local_rank)

        found = {name: _get(worker, name) for name in (*TENSORS, *NUMBERS)}
        numpy_state: Any = np.random.get_state()
        words = {
            "epoch": worker.epoch_counter,
            "batches": self._batches if worker.epoch_counter == self._epoch else 0,
            "python": random.getstate(),
            "numpy": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
            "numbers": {name: found[name] for name in NUMBERS if found[name] is not None},
            "scaler": worker.scaler.state_dict() if hasattr(worker, "scaler") else {},
        }

        return {
            "words": json.dumps(words),
            "drawn_from": self._order.drawn_from,
            "cpu": torch.get_rng_state(),
            "gpu": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "tensors": {name: found[name].detach() for name in TENSORS if found[name] is not None},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position that ``state`` gave; called before the first step."""
        worker = self._worker
        words = json.loads(state["words"])
        device = torch.device(worker.local_rank)

        # What the worker keeps.
        for name, value in words["numbers"].items():
            _set(worker, name, value)
        for name, value in state["tensors"].items():
            _set(worker, name, value.to(device))
        if hasattr(worker, "scaler"):
            worker.scaler.load_state_dict(words["scaler"])

        # The place in the epoch.
        self._epoch, self._batches = words["epoch"], words["batches"]
        self._order.continue_from(state["drawn_from"], self._batches * self._loader.batch_size)
        worker.prepare_train_iter(self._epoch)

        # Random states, which are those of the process that saved them.
        if worker.global_rank > 0:
            return
        version, numbers, gauss = words["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = words["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(state["cpu"])
        if device.type == "cuda" and state["gpu"] is not None:
            torch.cuda.set_rng_state(state["gpu"], device)


def _get(owner: Any, path: str) -> Any:
    """An attribute of an attribute, or None."""
    for name in path.split("."):
        owner = getattr(owner, name, None)
    return owner


def _set(owner: Any, path: str, value: Any) -> None:
    *names, last = path.split(".")
    for name in names:
        owner = getattr(owner, name)
    setattr(owner, last, value)


# ---------------------------------------------------------------------------- files


def state_file(folder: Path, step: int) -> Path:
    """The file of a step, beside the host's checkpoints."""
    return folder / f"stages-step={step}.pt"


def write(path: Path, run_name: str, companions: Mapping[str, Companion], position: Mapping[str, Any]) -> None:
    """Write companions and position, whole or not at all; UserError where that cannot be done."""
    parts = {
        name: {"network": companion.network.state_dict(), "optimiser": companion.optimiser.state_dict()}
        for name, companion in companions.items()
    }
    buffer = io.BytesIO()
    torch.save({"run_name": run_name, "companions": parts, "position": dict(position)}, buffer)
    write_bytes(path, buffer.getvalue())


def remove_others(folder: Path) -> None:
    """Remove the states of steps of which the host keeps no checkpoint."""
    names = [path.name for path in folder.iterdir()]
    kept = {match[1] for match in map(CHECKPOINT.fullmatch, names) if match}
    for match in map(STATE.fullmatch, names):
        if match and match[1] not in kept:
            (folder / match[0]).unlink(missing_ok=True)


def read(folder: Path, step: int, run_name: str) -> dict[str, Any] | None:
    """The state of a step; None where the folder holds none of any step, since no stage was trained.

    Raises:
        UserError: the state is missing, damaged, or of another run.
    """
    path = state_file(folder, step)
    if not path.exists():
        others = sorted(
            int(match[1]) for match in map(STATE.fullmatch, (file.name for file in folder.iterdir())) if match
        )
        if not others:
            return None
        raise UserError(
            f"{path} is missing, there are those of steps {', '.join(map(str, others))}: copy it there{ANEW}"
        )

    # Read it.
    try:
        state = archives.read(path, "the state of the stages")
    except UserError as error:
        raise UserError(f"{error}{ANEW}") from error
    missing = {"run_name", "companions", "position"} - set(state if isinstance(state, dict) else ())
    if missing:
        raise UserError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}: copy it again{ANEW}")
    if state["run_name"] != run_name:
        raise UserError(
            f"{path} is of the run {state['run_name']}, the checkpoint is of {run_name}: copy its own{ANEW}"
        )
    return dict(state)


def restore(path: Path, state: Mapping[str, Any], companions: Mapping[str, Companion], position: Position) -> list[str]:
    """Put a state into companions and position; returns the names of companions that it does not hold.

    Raises:
        UserError: the state does not fit.
    """
    part = ""
    try:
        for name, companion in companions.items():
            if name in state["companions"]:
                part = name
                companion.network.load_state_dict(state["companions"][name]["network"])
                companion.optimiser.load_state_dict(state["companions"][name]["optimiser"])

        part = "position"
        position.restore(state["position"])

    except Exception as error:  # torch's optimisers check little of what they are given
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{path} is damaged, or of other options: its {part} does not fit: give the stages those that they "
            f"had{ANEW}"
        ) from error
    return [name for name in companions if name not in state["companions"]]
