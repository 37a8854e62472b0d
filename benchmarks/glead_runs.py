"""Trainings of the host with and without a stage: a step of each alone, and all of them side by side."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml
from common import program, sections, silent, training

WIDTH, SMALL_WIDTH = 48, 16  # channels
CHANGES: dict[str, dict[str, dict[str, Any]]] = {  # to common.sections
    "StyleGAN2": {"LOSS": {"r1_lambda": 1.0}},
    "BigGAN": {
        "MODEL": {"z_dim": 80, "g_shared_dim": 64, "g_ema_decay": 0.995, "g_ema_start": 200},  # for short trainings
        "OPTIMIZATION": {"g_lr": 2e-4, "d_lr": 2e-4, "beta2": 0.999, "d_updates_per_step": 2},
    },
}
ARMS = ("host", "glead")  # without the stage, and with it
BATCH, SMALL_BATCH = 64, 8
SNAPSHOTS = 8  # of the slower training, about
ENDLESS = 10**6  # steps
CHECKPOINT = re.compile(r"model=G_ema-current-weights-step=(\d+)\.pth")
LOSSES = re.compile(r"Step: *(\d+)|Losses of stages: (.*)")


@dataclass(frozen=True)
class Setting:
    """What all trainings share.

    Attributes:
        data: an ImageFolder of 32x32 images.
        out: folder of everything.
        device: cpu or cuda.
        small: tiny networks and batches.
        channels: the most of a layer of StyleGAN2; 0 for all.
        stages: of the second arm.
        more: flags of the host.
        batch: images of a step. [8 where small, otherwise 64]
        changes: what a network's YAML has other than ``common.sections``.
    """

    data: Path
    out: Path
    device: str
    small: bool
    channels: int
    stages: list[Any]
    more: tuple[str, ...]
    batch: int = 0
    changes: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=lambda: CHANGES)

    def sections(self, network: str) -> dict[str, Any]:
        """The host's YAML of a network."""
        made = copy.deepcopy(sections(network, SMALL_WIDTH if self.small else WIDTH, ENDLESS))
        for name, values in self.changes.get(network, {}).items():
            made[name] |= values

        # The data.
        classes = sum(path.is_dir() for path in (self.data / "train").iterdir())
        made["DATA"] = {"name": "LETTERS32", "img_size": 32, "num_classes": classes}
        made["OPTIMIZATION"]["batch_size"] = self.batch or (SMALL_BATCH if self.small else BATCH)
        return made

    def images(self, network: str) -> int:
        """Training images of a step."""
        numbers = self.sections(network)["OPTIMIZATION"]
        return int(numbers["batch_size"] * numbers["d_updates_per_step"])

    def channels_of(self, network: str) -> int:
        """The most channels of a network's layers, as ``program`` wants them."""
        return self.channels if network == "StyleGAN2" else 0

    def write(self, path: Path, network: str, arm: str, steps: int) -> Path:
        """The YAML of a training."""
        made = self.sections(network)
        made["OPTIMIZATION"]["total_steps"] = steps
        if arm != ARMS[0]:
            made["stages"] = self.stages
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(made))
        return path

    def words(self, path: Path, folder: Path, seed: int, workers: int, save: int, shown: int) -> list[str]:
        """The command line of a training, behind its program."""
        flags = ["-cfg", path, "-data", self.data, "-save", folder, "-metrics", "none", "--seed", seed]
        flags += ["--num_workers", workers, "--save_freq", save, "--print_freq", shown, *self.more]
        return [*training(self.device), *map(str, flags)]


@dataclass(frozen=True)
class Run:
    """One training."""

    network: str
    arm: str
    seed: int
    folder: Path

    @property
    def path(self) -> Path:
        """Its YAML."""
        return self.folder / f"{self.network}.yaml"

    @property
    def is_done(self) -> bool:
        return (self.folder / "done").exists()

    def snapshots(self) -> dict[int, Path]:
        """The generators that were kept, by step."""
        found = {int(match[1]): path for path in self.folder.glob("snapshots/*/*") if (match := named(path))}
        return dict(sorted(found.items()))

    def keep(self) -> None:
        """Keep the present checkpoint, if it is whole, and of earlier ones the generator alone."""
        for path in self.folder.glob("checkpoints/*/*"):
            match = named(path)
            target = self.folder / "snapshots" / (match[1] if match else "")
            if not match or target.exists() or not zipfile.is_zipfile(path):
                continue

            # The generator's moving average is the last file that the host writes.
            partial = target.with_name(f"partial-{match[1]}")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for file in path.parent.glob(f"*step={match[1]}.p*"):
                os.link(file, partial / file.name)
            for file in self.folder.glob("snapshots/*/*"):
                if not named(file) and file.parent != partial:
                    file.unlink()
            partial.rename(target)

    def losses(self) -> list[dict[str, float]]:
        """What the stage's losses were, by step, from the log."""
        rows: list[dict[str, float]] = []
        step = 0
        for path in self.folder.glob("logs/*.log"):
            for match in LOSSES.finditer(path.read_text()):
                if match[1]:
                    step = int(match[1])
                    continue
                pairs = (pair.split() for pair in match[2].split(", "))
                rows.append({"step": step, **{name.rpartition("/")[2]: float(value) for name, value in pairs}})
        return rows


def named(path: Path) -> re.Match[str] | None:
    return CHECKPOINT.fullmatch(path.name)


# ---------------------------------------------------------------------------- a step, alone


def time_steps(at: Setting, networks: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds of a step of each network in each arm, and GiB on a GPU: measured alone, unless they are there."""
    first, count = (2, 4) if at.small else (32, 96)  # whole periods of StyleGAN2's lazy penalty
    times: dict[str, dict[str, dict[str, float]]] = {}
    for network in networks:
        for arm in ARMS:
            folder = at.out / "timing" / f"{network}-{arm}"
            target = folder / "step.json"
            if not target.exists():
                path = at.write(folder / f"{network}.yaml", network, arm, ENDLESS)
                words = at.words(path, folder, 0, 1 if at.small else 8, ENDLESS, 100)
                numbers = [target, first, count, at.channels_of(network)]
                script = Path(__file__).with_name("step_time.py")
                execute([sys.executable, *map(str, (script, *numbers)), *words], folder / "output.log")
            times.setdefault(network, {})[arm] = json.loads(target.read_text())
            click.echo(f"{network}, {arm}: {times[network][arm]}", err=True)
    return times


def execute(command: Sequence[str], log: Path) -> None:
    """Run a command whose output goes to a file; what it said last is shown where it fails."""
    with log.open("w") as file:
        if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=silent()).returncode:
            raise click.ClickException(f"{log}:\n" + "\n".join(log.read_text().splitlines()[-12:]))


def interval(times: dict[str, dict[str, float]], runs: int, minutes: float) -> int:
    """Steps between snapshots, where ``runs`` trainings share the device for so long: a round number."""
    slower = max(time["ms"] for time in times.values())
    steps = 60_000 * minutes / (slower * runs * SNAPSHOTS)
    unit = 10 ** max(1, math.floor(math.log10(max(steps, 1))))
    return max(unit, round(steps / unit) * unit)


# ---------------------------------------------------------------------------- trainings side by side


def train(at: Setting, runs: Sequence[Run], every: dict[str, int], steps: int, minutes: float, workers: int) -> None:
    """All trainings that are not done, started together, until the time is up or they end."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // max(1, len(runs))))
    processes: dict[Run, subprocess.Popen[bytes]] = {}
    for run in runs:
        if run.is_done:
            continue
        shutil.rmtree(run.folder, ignore_errors=True)
        at.write(run.path, run.network, run.arm, steps or ENDLESS)
        save = every[run.network]
        words = at.words(run.path, run.folder, run.seed, workers, save, save // 10 or 1)
        with (run.folder / "output.log").open("w") as file:
            command = [*program(at.channels_of(run.network)), *words]
            processes[run] = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=silent(OMP_NUM_THREADS=threads)
            )

    # Keep what they save.
    until = time.time() + 60 * minutes
    while any(process.poll() is None for process in processes.values()) and time.time() < until:
        time.sleep(0.2)
        keep(processes)

    # Stop them.
    for process in processes.values():
        process.terminate()
    for run, process in processes.items():
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()
        run.keep()
        if not run.snapshots():
            click.echo(f"{run.folder} saved nothing:\n{last_lines(run.folder / 'output.log')}", err=True)
            continue
        (run.folder / "done").write_text(f"{max(run.snapshots())}\n")


def keep(runs: Iterable[Run]) -> None:
    for run in runs:
        with suppress(FileNotFoundError):  # the host removes its last checkpoint
            run.keep()


def last_lines(path: Path) -> str:
    return "\n".join(path.read_text().splitlines()[-12:])
