"""Every sampler on one generator: settings chosen on the validation split, numbers on the test split, three seeds.

    python benchmarks/compare.py --out runs/compare                                     # the built-in, on a CPU
    python benchmarks/compare.py --out runs/compare --host BigGAN                       # the host's, trained first
    python benchmarks/compare.py --out runs/compare --device cuda --num 1000 --host BigGAN --host StyleGAN2 \\
        --host-steps 20000 --early-steps 4000 --width 64                                # the same on a GPU

Data are the MNIST digits of the built-in; features are those of its digit classifier, not Inception. Discriminators are
calibrated on the validation split everywhere. Settings are those of the least FID among the few of ``CANDIDATES``; what
is printed is 'compare' itself, whose files are in DIR/<generator>-test. A stopped run resumes where it was.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import click
import yaml
from common import folders, run_host, sections

from studiogan_guidance import config, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import distributed, results, tables
from studiogan_guidance.evaluation.compare import compare
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.sweep import complete
from studiogan_guidance.options import Spec

HEAD = {"calibration": "head"}
CHAIN = {"steps": 15}
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "gandance": [{"scale": s, "joint": "class_shift"} for s in (0.85, 0.95, 1.1, 1.2)],
    "autoguidance": [{"scale": s} for s in (1.1, 1.3)],
    "truncation": [{"threshold": t} for t in (1.5, 2.5)],
    "conditional_truncation": [{"psi": p} for p in (0.7, 0.9, 1.3, 1.5)],
    "cluster_truncation": [{"psi": p, "per_class": True, "clusters": 8, "draws": 10_000} for p in (0.7, 0.9, 1.3)],
    "hubness": [{"pool": 2000, "threshold": t} for t in (10, 14)],
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
    path = out / f"{name}.yaml"
    snapshot = out / f"{name}-{early}"
    folder = out / name / "checkpoints"

    def run(until: int, save_every: int, *resume: object) -> None:
        path.write_text(yaml.safe_dump(sections(name, width, until)))
        if list(folder.glob(f"*/model=D*step={until}.pth")):
            return
        files = ["-cfg", path, "-data", out / "digits", "-save", out / name, "-metrics", "none", *resume]
        run_host(device, save_every, *files)

    # Train to the early step, keep a copy, and resume.
    if not snapshot.exists():
        run(early, early)
        shutil.copytree(next(folder.iterdir()), snapshot)
    run(steps, steps - early, "-ckpt", next(folder.iterdir()))
    return path, next(folder.iterdir()), snapshot


def candidates(name: str, reference: Path | None, base: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The options of a sampler to choose among."""
    more: dict[str, Any] = {"base": base} if base else {}
    if name == "autoguidance":
        more["reference"] = str(reference)
    return [{**options, **more} for options in CANDIDATES[name]]


def best_of(evaluation: Evaluation, folder: Path, name: str, candidates: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The sampler ``name`` with the candidate of the least FID, as 'compare' takes it; None where it is refused.

    A single candidate is not measured.
    """
    # Check the candidates.
    seed = evaluation.cfg.seed
    try:
        points = [(name, evaluation.checked(samplers.create(name, options)), seed) for options in candidates]
    except UserError as error:
        click.echo(f"{name} is left out: {error}", err=True)
        return None

    # There may be no choice.
    if len(points) == 1:
        return {"name": name, **results.plain_data(samplers.options(points[0][1]))}

    # Measure them.
    rows = complete(evaluation, points, folder)
    best_row = min(rows, key=lambda row: row["metrics"]["fid"])
    for row in rows:
        mark = "*" if row is best_row else " "
        click.echo(f"{mark} {name} {tables.format_options(row['options'])}: {row['metrics']['fid']:.4g}", err=True)
    return {"name": name, **results.plain_data(best_row["options"])}


def choose(cfg: config.RunConfig, reference: Path | None, names: list[str]) -> list[dict[str, Any]]:
    """The best candidate of each sampler on the validation split, as the list that 'compare' takes."""
    evaluation = Evaluation(cfg, distributed.Group(), [Spec("plain")])
    folder = results.writable(Path(cfg.out))

    def best(name: str, base: dict[str, Any] | None = None) -> dict[str, Any] | None:
        return best_of(evaluation, folder, name, candidates(name, reference, base))

    chosen = [best(name) for name in names if reference or name != "autoguidance"]
    if ON_TOP in names and chosen[0]:
        chosen.append(best(ON_TOP, base=chosen[0]))
    return [spec for spec in chosen if spec]


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/compare"), show_default=True)
@click.option("--host", type=click.Choice(["BigGAN", "StyleGAN2"]), multiple=True, help="[the built-in]")
@click.option("--device", default="cpu", show_default=True)
@click.option("--num", default=500, show_default=True, help="Images of each evaluation.")
@click.option("--host-steps", default=2500, show_default=True)
@click.option("--early-steps", default=1000, show_default=True, help="Of the snapshot that autoguidance refers to.")
@click.option("--width", default=16, show_default=True, help="Channels (g_conv_dim) of the host's generators.")
@click.option("--only", multiple=True, type=click.Choice(list(CANDIDATES)), help="Samplers. [all]")
def main(
    out: Path,
    host: tuple[str, ...],
    device: str,
    num: int,
    host_steps: int,
    early_steps: int,
    width: int,
    only: tuple[str, ...],
) -> None:
    out = out.resolve()
    for name in host or ("built-in",):
        # The generator, and what differs between validation and test.
        keys: dict[str, Any] = {"device": device, "num": num, "metrics": ("fid", "prdc"), "reference": "valid"}
        test = {"reference": "test"}
        path = None
        early = None
        if host:
            learn, held_back = folders(out)
            path, ckpt, early = train(out, name, device, width, early_steps, host_steps)
            keys |= {"ckpt": str(ckpt), "data": str(learn), "held_out": str(learn), "backbone": "builtin"}
            test = {"data": str(held_back)}

        # Choose on the validation split, report on the test split.
        cfg = config.load(path and str(path), {**keys, "seed": 10_000, "out": str(out / f"{name}-valid")})
        chosen = choose(cfg, early, list(only or CANDIDATES))
        cfg = dataclasses.replace(cfg, **test, seed=40_000, out=str(out / f"{name}-test"), compare=tuple(chosen))
        click.echo(f"{name}, test split, 3 ranges of seeds, settings chosen on the validation split\n")
        click.echo(tables.compared(compare(cfg, repeats=3)))


if __name__ == "__main__":
    main()
