"""What stages train beside the host's discriminator: their companions step when the discriminator's optimiser does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.host.imports import module
from studiogan_guidance.plugin import resuming
from studiogan_guidance.training.stage import STAGES, Companion, Stage, Training

AUGMENTATIONS = ("ada", "apa", "diffaug")


def augmentation(section: Any) -> str:
    """What the host's AUG section lets the discriminator see images through, such as "ada"; "" for nothing."""
    return "+".join(name for name in AUGMENTATIONS if getattr(section, f"apply_{name}"))


def attach(worker: Any, stages: Sequence[Stage], run: Training) -> dict[str, Companion]:
    """The companions of the stages by name, coupled to the host's worker; without any, the worker stays as it is.

    Args:
        worker: of the host, before its training loop.
        stages: of the YAML.
        run: what the companions see.
    """
    device = run.networks.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        made = {STAGES.name_of(stage): stage.companion(run) for stage in stages}
    companions = {name: companion for name, companion in made.items() if companion is not None}
    if companions:
        group = Group(run.rank, run.processes)
        Steps(run.optimiser, list(companions.values()), group, getattr(worker, "scaler", None))
        Coupling(worker, companions, run)
    return companions


class Steps:
    """Lets companions step with the discriminator's optimiser, on gradients averaged over the processes.

    A step without a gradient of the companion, such as that of StyleGAN2's lazy penalty by itself, leaves it alone.
    Where the scaler of half precision skips the discriminator's step, for numbers that are not finite, it is skipped,
    too, and its gradients go with the discriminator's.

    Args:
        optimiser: of the discriminator.
        companions: that start with the weights of rank 0.
        group: the processes.
        scaler: the host's torch.amp.GradScaler, if it has one.
    """

    def __init__(
        self, optimiser: torch.optim.Optimizer, companions: Sequence[Companion], group: Group, scaler: Any = None
    ) -> None:
        self._companions = companions
        self._group = group
        self._scaler = scaler
        for companion in companions:
            _share(companion.network, group)

        # Follow the discriminator's optimiser.
        zero_discriminator: Any = optimiser.zero_grad

        def zero_grad(*args: Any, **kwargs: Any) -> None:
            zero_discriminator(*args, **kwargs)
            for companion in companions:
                companion.optimiser.zero_grad()

        followed: Any = optimiser
        followed.zero_grad = zero_grad
        optimiser.register_step_post_hook(self._step)

    def _step(self, *_: Any) -> None:
        for companion in self._companions:
            gradients = [value.grad for value in companion.network.parameters() if value.grad is not None]
            if not gradients:
                continue

            # Average them, and step.
            _average(gradients, self._group)
            if self._scaler is None:
                companion.optimiser.step()
            else:
                self._scaler.step(companion.optimiser)


def _share(network: nn.Module, group: Group) -> None:
    """The weights of rank 0 in every process."""
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    if group.size > 1:
        network.load_state_dict(group.agree(state))


def _average(gradients: Sequence[Tensor], group: Group) -> None:
    """Replace gradients by their means over the processes, in one exchange."""
    if group.size == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    group.average([flat])
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts):
        gradient.copy_(part.view_as(gradient))


class Coupling:
    """Lets companions see the host's discriminator steps, logs their losses, and saves and resumes them.

    Args:
        worker: of the host.
        companions: by the names of their stages.
        run: what they see.
    """

    def __init__(self, worker: Any, companions: Mapping[str, Companion], run: Training) -> None:
        self._worker = worker
        self._companions = companions
        self._run = run
        self._position = resuming.Position(worker)
        self._begun = False

        # Go around the host's methods.
        self._host = {name: getattr(worker, name) for name in _METHODS}
        for name in _METHODS:
            setattr(worker, name, getattr(self, name))

    # ------------------------------------------------------------------------ around the host's methods

    def train_generator(self, current_step: int) -> Any:
        """The host's step, after a run that was stopped has been taken up."""
        self._begin(current_step)
        return self._host["train_generator"](current_step=current_step)

    def train_discriminator(self, current_step: int) -> Any:
        """The host's step, to which the companions listen."""
        self._begin(current_step)
        with ExitStack() as stack:
            for companion in self._companions.values():
                stack.enter_context(companion.listening())
            return self._host["train_discriminator"](current_step=current_step)

    def log_train_statistics(self, *args: Any, **kwargs: Any) -> None:
        """The host's losses, then those of the companions, in the log and in W&B; rank 0 only."""
        self._host["log_train_statistics"](*args, **kwargs)
        losses = {
            f"{stage}/{name}": float(loss)
            for stage, companion in self._companions.items()
            for name, loss in companion.losses.items()
        }
        if not losses:
            return
        self._run.log("Losses of stages: " + ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items()))
        step = self._worker.wandb_step
        module("wandb").log({f"stage/{name}": loss for name, loss in losses.items()}, step=step)

    def save(self, step: int, is_best: bool) -> None:
        """The state of the companions, then the host's files; older states go when all new files are there."""
        folder = Path(self._worker.RUN.ckpt_dir)
        path = resuming.state_file(folder, step)
        resuming.write(path, self._worker.run_name, self._companions, self._position.state())
        self._host["save"](step=step, is_best=is_best)
        resuming.remove_others(folder)

    # ------------------------------------------------------------------------ resuming

    def _begin(self, step: int) -> None:
        """Before the first step, take up what was saved after the last one."""
        if self._begun:
            return
        self._begun = True
        if step == 0:
            return

        # A checkpoint may have been trained without the stages.
        folder = Path(self._worker.run_state.folder)
        state = resuming.read(folder, step, self._worker.run_name)
        anew = list(self._companions)
        if state is not None:
            path = resuming.state_file(folder, step)
            anew = resuming.restore(path, state, self._companions, self._position)
        for name in anew:
            self._run.log(f"Stage {name}: the checkpoint of step {step} was trained without it, so it starts anew")


_METHODS = ("train_generator", "train_discriminator", "log_train_statistics", "save")
