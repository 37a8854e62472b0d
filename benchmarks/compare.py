"""Every sampler on one generator: settings chosen on the validation split, numbers on the test split, three seeds.

    python benchmarks/compare.py --out runs/compare                                     # the built-in, on a CPU
    python benchmarks/compare.py --out runs/compare --host BigGAN                       # the host's, trained first
    python benchmarks/compare.py --out runs/compare --device cuda --num 1000 --host BigGAN --host StyleGAN2 \\
        --host-steps 20000 --early-steps 4000 --width 64                                # the same on a GPU

Data are the MNIST digits of the built-in; features are those of its digit classifier, not Inception. Discriminators are
calibrated on the validation split everywhere. Settings are those of the least FID among the few of ``CANDIDATES``; what
is printed is 'compare' itself, whose files are in DIR/<generator>-test. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import yaml
from learned_joint import folders, sections

from studiogan_guidance import config, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import distributed, results, tables
from studiogan_guidance.evaluation.compare import compare
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.sweep import complete

HEAD = {"calibration": "head"}
CHAIN = {"steps": 15}
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "gandance": [{"scale": s, "joint": "class_shift"} for s in (0.85, 0.95, 1.1, 1.2)],
    "autoguidance": [{"scale": s} for s in (1.1, 1.3)],
    "truncation": [{"threshold": t} for t in (1.5, 2.5)],
    "conditional_truncation": [{"psi": p} for p in (0.7, 0.9)],
    "cluster_truncation": [{"psi": p, "per_class": True, "clusters": 8, "draws": 10_000} for p in (0.7, 0.9)],
    "hubness": [{"pool": 2000, "threshold": t} for t in (10, 20)],
    "simplicial": [{"accept": a} for a in (0.3, 0.7)],
    "polarity": [{"pool": 2000, "projections": 32, "k": 10, "rho": r} for r in (-0.2, 0.1)],
    "drs": [{"burn_in": 2000, "percentile": 60}, *({**HEAD, "burn_in": 2000, "percentile": p} for p in (40, 70))],
    "metropolis": [{"proposals": 40}, {**HEAD, "proposals": 40}],
    "isir": [{"steps": 5}, {**HEAD, "steps": 5}],
    "ddls": [{**CHAIN, "step": 0.1}, {**HEAD, **CHAIN, "step": 0.2}],
    "dgflow": [{"steps": 10}, {**HEAD, "steps": 10}],
    "dot": [{"steps": 10}, {**HEAD, "steps": 10, "rate": 0.05}],
    "ex2mcmc": [{"steps": 3}, {**HEAD, "steps": 3}],
    "collaborative": [{"steps": 10}, {**HEAD, "steps": 10}],
}
ON_TOP = "ddls"  # also with the chosen gandance as its base


def train(out: Path, name: str, device: str, width: int, early: int, steps: int) -> tuple[Path, Path, Path]:
    """(YAML, last checkpoint folder, early one) of a generator of the host, by its own loop, unless they are there."""
    path, kept, folder = out / f"{name}.yaml", out / f"{name}-{early}", out / name / "checkpoints"

    def run(until: int, *more: object) -> None:
        path.write_text(yaml.safe_dump(sections(name, width, until)))
        if list(folder.glob(f"*/model=D*step={until}.pth")):
            return
        arguments = ["-t", "-cfg", path, "-data", out / "digits", "-save", out / name, "-metrics", "none", *more]
        often = ["--num_workers", 1, "--save_freq", until if not more else until - early, "--print_freq", 100]
        command = [sys.executable, "-m", "studiogan_guidance", "run", "--device", device, "--", *arguments, *often]
        subprocess.run(list(map(str, command)), check=True, env={"WANDB_MODE": "disabled", **os.environ})

    if not kept.exists():
        run(early)
        shutil.copytree(next(folder.iterdir()), kept)
    run(steps, "-ckpt", next(folder.iterdir()))
    return path, next(folder.iterdir()), kept


def choose(cfg: config.RunConfig, reference: Path | None) -> list[dict[str, Any]]:
    """The best candidate of each sampler on the validation split, as the list that 'compare' takes."""
    chosen: list[dict[str, Any]] = []
    evaluation, folder = Evaluation(cfg, distributed.Group(), [("plain", {})]), results.writable(Path(cfg.out))
    names = [*(name for name in CANDIDATES if reference or name != "autoguidance"), ON_TOP]
    for i, name in enumerate(names):
        base = {"base": chosen[0]} if i == len(names) - 1 else {}
        points = []
        for options in CANDIDATES[name]:
            options = {**options, **base, **({"reference": str(reference)} if name == "autoguidance" else {})}
            try:
                points.append((name, evaluation.checked(samplers.create(name, options)), cfg.seed))
            except UserError as error:
                click.echo(f"{name} is left out: {error}", err=True)
                break
        if not points:
            continue
        rows = complete(evaluation, points, folder)
        best = min(rows, key=lambda row: row["metrics"]["fid"])
        chosen.append({"name": name, **results.plain_data(best["options"])})
        for row in rows:
            mark = "*" if row is best else " "
            click.echo(f"{mark} {name} {tables.format_options(row['options'])}: {row['metrics']['fid']:.1f}", err=True)
    return chosen


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/compare"), show_default=True)
@click.option("--host", type=click.Choice(["BigGAN", "StyleGAN2"]), multiple=True, help="[the built-in]")
@click.option("--device", default="cpu", show_default=True)
@click.option("--num", default=500, show_default=True, help="Images of each evaluation.")
@click.option("--host-steps", default=2500, show_default=True)
@click.option("--early-steps", default=1000, show_default=True, help="Of the snapshot that autoguidance refers to.")
@click.option("--width", default=16, show_default=True, help="Channels (g_conv_dim) of the host's generators.")
def main(
    out: Path, host: tuple[str, ...], device: str, num: int, host_steps: int, early_steps: int, width: int
) -> None:
    out = out.resolve()
    for name in host or ("built-in",):
        given: dict[str, Any] = {"device": device, "num": num, "metrics": ("fid", "prdc"), "reference": "valid"}
        test, path, early = {"reference": "test"}, None, None
        if host:
            learn, held_back = folders(out)
            path, ckpt, early = train(out, name, device, width, early_steps, host_steps)
            given |= {"ckpt": str(ckpt), "data": str(learn), "held_out": str(learn), "backbone": "builtin"}
            test = {"data": str(held_back)}
        cfg = config.load(path and str(path), {**given, "seed": 10_000, "out": str(out / f"{name}-valid")})
        chosen = choose(cfg, early)
        cfg = dataclasses.replace(cfg, **test, seed=40_000, out=str(out / f"{name}-test"), compare=tuple(chosen))
        click.echo(f"{name}, test split, 3 ranges of seeds, settings chosen on the validation split\n")
        click.echo(tables.compared(compare(cfg, seeds=3)))


if __name__ == "__main__":
    main()
