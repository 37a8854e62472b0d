"""The reference rows: what guidance and its rivals do to generators of several kinds, one command a row.

    python benchmarks/reference.py built-in
    python benchmarks/reference.py biggan --ckpt BigGAN --data letters         # a folder with the host's YAML
    python benchmarks/reference.py stylegan2 --ckpt StyleGAN2 --data letters --channels 40
    python benchmarks/reference.py resnet --data letters                       # trained by the host first
    python benchmarks/reference.py snapshots --data letters                    # of that training, each of them
    python benchmarks/reference.py all --data letters --checkpoints DIR        # the rows that RESULTS lacks

Settings are chosen on the validation split, in one feature space, and reported on the test split, over three other
ranges of seeds, in that space and in two more: see ``guidance.py``, which measures. Letters and their feature networks
come from ``letters.py``: FEATURES/letters-b.pt is the space of the choice, letters-a.pt the second one and the
classifier, efficientnet.pt the third one. A checkpoint that is not given is trained by the host's own loop. A row that
was stopped goes on where it was (a training starts anew). On a CPU networks, grids and numbers of images are small; on
a GPU all methods are measured, with 5,000 images. Writes RESULTS/reference-ROW.json, and for the snapshots PICTURE.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import guidance
import report
import torch
from common import command, machine
from glead_runs import Run, Setting, train
from narrow import narrow

from studiogan_guidance import config
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.files import replacing

SHORT = {"MODEL": {"z_dim": 80, "g_ema_decay": 0.995, "g_ema_start": 100}}  # a moving average for short trainings
CHANGES: dict[str, dict[str, dict[str, Any]]] = {  # to common.sections
    "ResNet": SHORT,
    "BigGAN": {"MODEL": {**SHORT["MODEL"], "g_shared_dim": 64}},
    "StyleGAN2": {
        "MODEL": {"z_dim": 128, "w_dim": 128},
        "LOSS": {"r1_lambda": 1.0},
        "OPTIMIZATION": {"d_lr": 1e-3},
        "STYLEGAN": {"g_ema_kimg": 5, "d_epilogue_mbstd_group_size": 4},
    },
}
NARROW = {
    "g_conv_dim": 8,
    "d_conv_dim": 16,
}  # channels on a CPU, of which the host's ResNet has up to four times as many
GUIDED = ("scale", "spread", "scale and spread", "truncation")
CHEAP = (*GUIDED, "drs")
DEAR = (*CHEAP, "layers", "gaussian", "one-pass", "one-pass per class", "isir", "dgflow")
SPACES = {"backbone": "letters-b.pt", "judge": "letters-a.pt", "third": "efficientnet.pt"}


@dataclass(frozen=True)
class Row:
    """A generator, and what is measured on it.

    Attributes:
        network: of the host; empty for the built-in.
        methods: on a CPU; on a GPU all are measured.
        channels: the most of a layer of a StyleGAN2 that is trained on a CPU.
        is_curve: measure every snapshot of the training, and not the last one alone.
    """

    network: str
    methods: tuple[str, ...]
    channels: int = 0
    is_curve: bool = False


ROWS = {
    "built-in": Row("", DEAR),
    "stylegan2": Row("StyleGAN2", CHEAP, channels=40),
    "resnet": Row("ResNet", CHEAP),
    "snapshots": Row("ResNet", ("scale",), is_curve=True),
    "biggan": Row("BigGAN", GUIDED),
}


@dataclass(frozen=True)
class Profile:
    """How much is measured, and how long generators are trained.

    Attributes:
        num: images of an evaluation.
        few: try few settings of a method, and few methods.
        batch: images of a training step.
        steps: of a training.
        every: steps between snapshots.
        minutes: the most that a training may take.
    """

    num: int
    few: bool
    batch: int
    steps: int
    every: int
    minutes: float


SMALL = Profile(num=1000, few=True, batch=32, steps=2000, every=200, minutes=14)
FULL = Profile(num=5000, few=False, batch=64, steps=10_000, every=1000, minutes=60)


@dataclass(frozen=True)
class Bench:
    """What all rows of a call share.

    Attributes:
        out: folder of trainings and measurements.
        device: cpu or cuda.
        profile: the amount of work.
        data: ImageFolder of the letters.
        features: folder of their feature networks.
        more: keys of every run.
    """

    out: Path
    device: str
    profile: Profile
    data: Path | None
    features: Path
    more: Mapping[str, Any] = field(default_factory=dict)

    def keys(self, row: Row) -> dict[str, Any]:
        """The keys of a row's run: data and feature spaces."""
        keys = {"device": self.device, "num": self.profile.num, **self.more}
        if not row.network:
            return {**keys, "judges": ("random", "discriminator")}
        spaces = {name: f"torchscript:{self.features / file}" for name, file in SPACES.items()}
        judges = (spaces["judge"], spaces["third"])
        return keys | {
            "data": str(self.data),
            "backbone": spaces["backbone"],
            "judges": judges,
            "classifier": spaces["judge"],
        }

    def snapshots(self, row: Row) -> tuple[Path, dict[int, Path]]:
        """The YAML and the snapshots, by step, of a training of the host, which runs first unless it is there."""
        assert self.data is not None
        on_cpu = self.device == "cpu"
        changes = copy.deepcopy(CHANGES)
        if on_cpu and row.network != "StyleGAN2":
            changes[row.network]["MODEL"] |= NARROW
        at = Setting(
            self.data, self.out, self.device, on_cpu, row.channels * on_cpu, [], (), self.profile.batch, changes
        )
        run = Run(row.network, "host", 0, self.out / row.network)
        if not run.is_done:
            train(at, [run], {row.network: self.profile.every}, self.profile.steps, self.profile.minutes, 0)
        return run.path, run.snapshots()


def measure(bench: Bench, row: Row, folder: Path, path: Path | None, ckpt: Path | None) -> dict[str, Any]:
    """The summary of a row, see ``guidance.on_test``."""
    keys = {**bench.keys(row), "ckpt": ckpt and str(ckpt)}
    cfg: RunConfig = config.load(path and str(path), keys)
    is_small = bench.profile.few
    wanted = row.methods if is_small or row.is_curve else ()
    chosen = guidance.choose(cfg, folder, wanted, few=is_small and row.network != "")
    return guidance.on_test(cfg, folder, chosen)


def yaml_of(folder: Path) -> Path:
    """The host's YAML in a folder of a checkpoint."""
    found = sorted(folder.glob("*.yaml"))
    if len(found) != 1:
        raise click.ClickException(f"{folder} must hold one YAML of the host, found {len(found)}: copy it there")
    return found[0]


def curve(bench: Bench, row: Row, folder: Path) -> dict[str, Any]:
    """The summary of each snapshot of a training."""
    path, found = bench.snapshots(row)
    points = []
    for step, file in found.items():
        kept = measure(bench, row, folder / str(step), path, file)
        points.append({"step": step, "images": step * bench.profile.batch, **kept})
        click.echo(f"step {step}\n{report.methods(kept)}")
    facts = {key: points[-1][key] for key in ("protocol", "machine")}
    total = sum(point["seconds"] for point in points)
    shared = [{key: value for key, value in point.items() if key not in facts} for point in points]
    return {**facts, "seconds": total, "snapshots": shared}


def draw(kept: Mapping[str, Any], path: Path) -> None:
    """A picture of a curve: by how much guidance changes each distance, and the class accuracy, along the training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The gain in per cent, with its standard error, in each space.
    points = kept["snapshots"]
    steps = [point["step"] for point in points]
    figure, (gain, accuracy) = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for key, label in LABELS.items():
        plain = [point["rows"][0]["metrics"][key]["mean"] for point in points]
        paired = [point["rows"][1]["paired"][key] for point in points]
        values = [100 * difference["mean"] / base for difference, base in zip(paired, plain)]
        errors = [100 * difference["se"] / base for difference, base in zip(paired, plain)]
        gain.errorbar(steps, values, errors, marker="o", ms=3, lw=1, capsize=2, label=label)
    for point in points:
        scale = point["rows"][1]["differs"]["scale"]
        gain.annotate(f"{scale:g}", (point["step"], 0), (0, 3), textcoords="offset points", ha="center", fontsize=7)
    gain.axhline(0, color="gray", lw=0.8)
    gain.set(xlabel="steps of the training", ylabel="guided minus plain, %", title="distance (numbers: chosen scale)")
    gain.legend(fontsize=7)

    # The accuracy of both.
    for number, label in enumerate(("plain", "guided")):
        values = [point["rows"][number]["metrics"]["accuracy"]["mean"] for point in points]
        accuracy.plot(steps, values, marker="o", ms=3, lw=1, label=label)
    accuracy.set(xlabel="steps of the training", ylabel="share of images", title="read as their class")
    accuracy.legend(fontsize=7)
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)


LABELS = {
    "fid": "FID, letters (chosen in)",
    "fid@letters-a": "FID, second letters",
    "kid@efficientnet": "KID, EfficientNet",
}


@click.command(help=__doc__)
@click.argument("wanted", nargs=-1, required=True, type=click.Choice([*ROWS, "all"]), metavar="ROW...")
@click.option("--ckpt", type=click.Path(path_type=Path, exists=True), help="Of a single row. [trained here]")
@click.option("--checkpoints", type=click.Path(path_type=Path, exists=True), help="A folder of folders named as rows.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="The letters, see letters.py.")
@click.option("--features", type=click.Path(path_type=Path, exists=True), default=Path("."), show_default=True)
@click.option("--channels", type=int, help="Of a StyleGAN2 that narrow.py trained.")
@click.option("--device", default=None, help="[a GPU if there is one]")
@click.option("--num", type=int, help="Images of each evaluation. [1000; 5000 on a GPU]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/reference"), show_default=True)
@click.option("--results", "target", type=click.Path(path_type=Path), default=Path("benchmarks/results"))
@click.option("--picture", type=click.Path(path_type=Path), default=Path(".assets/when.png"), show_default=True)
def main(
    wanted: tuple[str, ...],
    ckpt: Path | None,
    checkpoints: Path | None,
    data: Path | None,
    features: Path,
    channels: int | None,
    device: str | None,
    num: int | None,
    out: Path,
    target: Path,
    picture: Path,
) -> None:
    # The rows.
    names = [name for name in ROWS if name in wanted]
    if "all" in wanted:
        names = [name for name in ROWS if name in wanted or not file_of(target, name).exists()]
        click.echo(f"rows without results in {target}: {', '.join(names) or 'none'}", err=True)
    if ckpt and len(names) != 1:
        raise click.UsageError(f"--ckpt is for one row, found {len(names)}: give --checkpoints for several")
    if not data and any(ROWS[name].network for name in names):
        raise click.UsageError("these rows need the letters: give --data, see letters.py")

    # The amount of work.
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    profile = SMALL if device == "cpu" else FULL
    more = {"num": num} if num else {}
    bench = Bench(out.resolve(), device, profile, data and data.resolve(), features.resolve(), more)

    # Each row.
    for name in names:
        row = ROWS[name]
        given = ckpt or (checkpoints and checkpoints / name)
        try:
            kept = measured(bench, name, row, given if given and given.exists() else None, channels)
        except UserError as error:
            raise click.ClickException(f"{name}: {error}") from error
        target.mkdir(parents=True, exist_ok=True)
        with replacing(file_of(target, name)) as temporary:
            temporary.write_text(json.dumps({"command": command(), **kept}, indent=1) + "\n")
        if row.is_curve:
            draw(kept, picture)


def file_of(target: Path, name: str) -> Path:
    """The file of a row's results."""
    return target / f"reference-{name}.json"


def measured(bench: Bench, name: str, row: Row, ckpt: Path | None, channels: int | None) -> dict[str, Any]:
    """What is kept of a row."""
    folder = bench.out / name
    if row.network == "StyleGAN2" and (channels or (not ckpt and bench.device == "cpu")):
        narrow(channels or row.channels)
    if row.is_curve:
        return curve(bench, row, folder)

    # One generator.
    path = ckpt and yaml_of(ckpt)
    if row.network and not ckpt:
        path, found = bench.snapshots(row)
        ckpt = found[max(found)]
    kept = measure(bench, row, folder, path, ckpt)
    click.echo(f"{name}, {machine(bench.device)}\n\n{report.methods(kept)}")
    return kept


if __name__ == "__main__":
    main()
