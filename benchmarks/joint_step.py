"""Time and memory of one step of the stage ``joint`` against one discriminator step of the host, same batch.

    python benchmarks/joint_step.py [--device cuda] [--width 16] [--batch 32] [--steps 48] [--warm-up 16]
        [--generator BigGAN --generator ResNet --generator StyleGAN2]

For the host's BigGAN and its ResNet with conditional batch norms, or its StyleGAN2, which is slow on a CPU (10 classes,
32x32, those of learned_joint.py), the host's own training loop runs on the built-in's digits, once with its D steps
alone (one update each) and once with its G steps alone: what the others keep, gradients and optimiser state, would
count as memory. The stage then trains a joint for the checkpoint of this run, once for each objective, all else at its
defaults: "adversarial" has R1 in every 16th step, the two rows below it have it in none and in all. Images are loaded
by as many worker processes everywhere, whose memory does not count. Ratios are to the D step.

Time is the median of the steps after the warm-up. Memory is the peak of all steps less what there was just before the
first, so gradients and optimiser states are in it: of what CUDA's allocator gave out, or, on Linux, of the resident
set, in a second process whose malloc hands back at once what is freed (which is slow, but repeats to 1%).
Needs a checkout of the host and the studiogan extra.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from common import folders, machine, sections
from learned_joint import OBJECTIVES

from studiogan_guidance import config, host, training
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import locate
from studiogan_guidance.host.modules import swapped
from studiogan_guidance.plugin import hooks
from studiogan_guidance.training import joint_latent

NAMES = ("BigGAN", "ResNet", "StyleGAN2")
STEPS: dict[str, dict[str, Any] | str] = {  # options of the stage, or the method of the host's worker
    "the host's D step": "train_discriminator",
    "the host's G step": "train_generator",
    **{name: OBJECTIVES[name] for name in ("distill", "latent", "adversarial")},
    "adversarial, no R1": {**OBJECTIVES["adversarial"], "r1": 0},
    "adversarial, R1 steps": {**OBJECTIVES["adversarial"], "r1_every": 1},
}


class Meter:
    """Seconds of each of the first ``count`` steps, and by how many bytes memory grew during them."""

    def __init__(self, device: str, count: int, clock: Callable[[], float]) -> None:
        self.device = torch.device(device)
        self.count = count
        self.clock = clock
        self.seconds: list[float] = []
        self.level = self.peak = 0
        x = torch.randn(8, 8, 8, 8, device=device)  # libraries and workspaces that every process needs once
        layers = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 8)).to(device)
        layers(x).square().mean().backward()
        torch.optim.Adam(layers.parameters()).step()

    @contextmanager
    def step(self) -> Iterator[None]:
        if len(self.seconds) == self.count:
            yield
            return
        if not self.seconds:
            self.level = self._level()
        self._wait()
        started = self.clock()
        yield
        self._wait()
        self.seconds.append(self.clock() - started)
        self.peak = torch.cuda.max_memory_allocated() if self._cuda else resident("VmHWM")

    def _level(self) -> int:
        gc.collect()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        ctypes.CDLL(None).malloc_trim(0)  # what is free but still resident would hide what the steps take
        with suppress(OSError):  # without the right to, the peak is that of all the process's life
            Path("/proc/self/clear_refs").write_text("5")
        return resident("VmRSS")

    @property
    def _cuda(self) -> bool:
        return self.device.type == "cuda"

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def resident(key: str) -> int:
    """Bytes of this process now (VmRSS), or at their peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def host_steps(folder: Path, name: str, wanted: str, meter: Meter) -> None:
    """The host's training on the digits with one kind of step; it writes a checkpoint at the end."""
    checkout = locate()
    workers = min(4, len(os.sched_getaffinity(0)))  # as many as the stage takes
    with inside(checkout):
        host.register()
        loader = module("loader")

        def step(kind: str, left_out: Any) -> Any:
            original = getattr(loader.WORKER, kind)

            def call(*args: Any, **kwargs: Any) -> Any:
                if kind != wanted:
                    return left_out
                with meter.step():
                    return original(*args, **kwargs)

            return call

        # Leave out the other kind of step, and time this one.
        losses = {"train_discriminator": ("N/A", torch.zeros(())), "train_generator": torch.zeros(())}
        worker = type("WORKER", (loader.WORKER,), {kind: step(kind, loss) for kind, loss in losses.items()})
        arguments = ["-t", "-cfg", folder / f"{name}.yaml", "-data", folder / "digits", "-save", folder / name]
        more = ["-metrics", "none", "--num_workers", workers, "--save_freq", meter.count, "--print_freq", meter.count]
        try:
            with swapped(loader, "WORKER", worker):
                hooks.execute(checkout.path / "src" / "main.py", tuple(map(str, [*arguments, *more])))
        finally:
            host.unregister()


def stage_steps(folder: Path, name: str, options: dict[str, Any], meter: Meter) -> None:
    """The stage on the checkpoint of ``host_steps``, without measuring on validation data."""
    update = joint_latent.Training.update

    def metered(self: joint_latent.Training, step: int) -> Any:
        with meter.step():
            return update(self, step)

    with swapped(joint_latent.Training, "update", metered), tempfile.TemporaryDirectory() as out:
        keys = {"ckpt": str(next((folder / name).glob("checkpoints/*"))), "data": str(folder / "digits"), "out": out}
        cfg = config.load(str(folder / f"{name}.yaml"), {**keys, "device": str(meter.device)})
        training.train(cfg, "joint", {**options, "steps": meter.count, "eval_every": 0})


@dataclass(frozen=True)
class Setting:
    """``steps`` are timed after ``warm_up`` others; on a CPU ``memory`` takes a second process."""

    device: str = "cpu"
    width: int = 16
    batch: int = 32
    steps: int = 48
    warm_up: int = 16
    cpu_time: bool = False
    memory: bool = True


@click.command(help=__doc__)
@click.option("--device", default="cpu", show_default=True)
@click.option("--width", default=16, show_default=True, help="Channels (g_conv_dim, d_conv_dim) of the networks.")
@click.option("--batch", default=32, show_default=True)
@click.option("--steps", default=48, show_default=True, help="That are timed.")
@click.option("--warm-up", default=16, show_default=True, help="Steps before them.")
@click.option("--cpu-time", is_flag=True, help="Of the process, all threads: where other work shares the processor.")
@click.option("--generator", "names", multiple=True, type=click.Choice(NAMES), default=NAMES[:2], show_default=True)
@click.option("--one", nargs=3, hidden=True, help="Folder, generator and step: what a process of its own measures.")
def main(names: tuple[str, ...], one: tuple[str, str, str] | None, **options: Any) -> None:
    setting = Setting(**options)
    if one:
        measure_here(Path(one[0]), *one[1:], setting)
        return

    click.echo(f"{machine(setting.device)}, {setting}\n")
    click.echo(f"| generator | step | {'CPU ' * setting.cpu_time}ms | ratio | MB | ratio |\n|{'---|' * 6}")
    for row in rows(names, tuple(STEPS), setting):
        cells = (f"{row[key]:.1f} | {row[f'{key} ratio']:.2f}" for key in ("ms", "MB"))
        click.echo(f"| {row['generator']} | {row['step']} | {' | '.join(cells)} |")


def measure_all(device: str, small: bool) -> list[dict[str, Any]]:
    """The rows of StyleGAN2 at the stage's own batch; if ``small``, two steps of eight images, and no memory."""
    setting = Setting(device, batch=64)
    if small:
        setting = Setting(device, batch=8, steps=2, warm_up=1, memory=False)
    return list(rows(("StyleGAN2",), ("the host's D step", "distill", "latent", "adversarial"), setting))


def rows(names: Sequence[str], steps: Sequence[str], setting: Setting) -> Iterator[dict[str, Any]]:
    """A row for each generator and step: milliseconds and megabytes, and their ratios to the first step's."""
    with tempfile.TemporaryDirectory() as out:
        folders(Path(out))
        for name in names:
            base: dict[str, float] = {}
            for step in steps:
                values = measure(Path(out), name, step, setting)
                base = base or values
                ratios = {f"{key} ratio": value / base[key] for key, value in values.items()}
                yield {"generator": name, "step": step, **values, **ratios}


def measure_here(folder: Path, name: str, step: str, setting: Setting) -> None:
    """Take the steps in this process, and leave milliseconds and megabytes in a file."""
    clock = time.process_time if setting.cpu_time else time.perf_counter
    meter = Meter(setting.device, setting.warm_up + setting.steps, clock)
    kind = STEPS[step]
    if isinstance(kind, str):
        host_steps(folder, name, kind, meter)
    else:
        stage_steps(folder, name, {**kind, "batch": setting.batch}, meter)
    ms = statistics.median(meter.seconds[setting.warm_up :]) * 1000
    (folder / "values.json").write_text(json.dumps({"ms": ms, "MB": (meter.peak - meter.level) / 1e6}))


def measure(out: Path, name: str, step: str, setting: Setting) -> dict[str, float]:
    """Milliseconds and megabytes of a step, each from a process of its own (on a GPU one does both)."""
    # On a CPU a second process measures memory.
    environment = {"WANDB_MODE": "disabled", **os.environ}
    on_gpu = setting.device.startswith("cuda")
    runs = [(setting, environment)]
    if not on_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if not on_gpu and setting.memory:
        few = dataclasses.replace(setting, steps=4, warm_up=2)
        runs.append((few, {**environment, "MALLOC_MMAP_THRESHOLD_": "65536"}))

    values: dict[str, float] = {}
    for one, variables in runs:
        # Write the host's YAML, and remove what an earlier run of the host left.
        yaml_keys = sections(name, one.width, one.warm_up + one.steps)
        yaml_keys["OPTIMIZATION"]["batch_size"] = one.batch
        (out / f"{name}.yaml").write_text(yaml.safe_dump(yaml_keys))
        if isinstance(STEPS[step], str):
            shutil.rmtree(out / name, ignore_errors=True)

        # Run the steps in a process of their own.
        command = [sys.executable, __file__, "--device", one.device, *["--cpu-time"] * one.cpu_time]
        for key in ("width", "batch", "steps", "warm_up"):
            command += [f"--{key.replace('_', '-')}", str(getattr(one, key))]
        command += ["--one", str(out), name, step]
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        if done.returncode:
            raise click.ClickException(f"{name}, {step}: {done.stderr[-3000:]}")
        last = json.loads((out / "values.json").read_text())
        values = {"ms": values.get("ms", last["ms"]), "MB": last["MB"]}
    if not (on_gpu or setting.memory):
        del values["MB"]
    return values


if __name__ == "__main__":
    main()
