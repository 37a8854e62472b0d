"""What lowers the Frechet distance of a generator at which cost: knobs, closed forms, learned ways, and the rivals.

    python benchmarks/guidance.py --out runs/guidance                                   # the built-in, on a CPU
    python benchmarks/guidance.py --out runs/guidance --config BigGAN.yaml --ckpt DIR --data letters \\
        --backbone torchscript:letters-b.pt --judge torchscript:letters-a.pt --judge torchscript:efficientnet.pt \\
        --classifier torchscript:letters-a.pt --device cuda                             # a checkpoint, see letters.py

The learned ways are trained on the train split first. Each method's setting is the one of least FID on the validation
split, in the feature space of ``--backbone``, among the few of ``candidates``. What is printed and written to
RESULTS/<name>.json is measured on the test split, on three other ranges of seeds: differences to plain sampling are
paired by seeds, with their standard errors. The spaces of ``--judge`` saw neither training nor choice. A stopped run
resumes where it was; ``--only`` chooses methods.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from common import command, machine
from compare import best_of
from narrow import narrow
from report import methods

from studiogan_guidance import config, training
from studiogan_guidance.config import RunConfig
from studiogan_guidance.evaluation import distributed, results
from studiogan_guidance.evaluation.compare import compare
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.one_pass import one_pass, with_class_scales
from studiogan_guidance.options import Spec
from studiogan_guidance.samplers.gandance import spread_option

SCALES = (0.8, 0.9, 1.1, 1.2, 1.5, 2.0)
SPREADS = {"psi": (0.85, 1.15, 1.3, 1.5, 1.7), "tau": (0.85, 0.95, 1.05, 1.1, 1.2)}
BOTH = {
    "psi": ((0.9, 1.3), (1.1, 1.15), (1.1, 1.3), (1.1, 1.5), (1.3, 1.3), (1.3, 1.5), (1.5, 0.85), (2.0, 0.85)),
    "tau": ((0.95, 0.95), (0.95, 1.05), (1.05, 0.95), (1.1, 0.9), (1.1, 1.05), (1.25, 0.9), (1.5, 0.9)),
}
PROFILES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.5, 0.0), (0.0, 0.5, 1.0))
HEAD = {"calibration": "head"}
FILES = {"joint": "joint", "frechet": "frechet", "amortised": "amortised", "latent_reweighting": "latent_reweighting"}
TARGETS = ("frechet", "amortised")  # joints that lead to a target at the scale of their training
RIVALS: dict[str, list[dict[str, Any]]] = {
    "truncation": [{"threshold": threshold} for threshold in (1.0, 1.5, 2.0)],
    "isir": [{**HEAD, "steps": 2, "particles": 5}, {**HEAD, "steps": 4, "particles": 5}],
    "dgflow": [{**HEAD, "steps": 5}, {**HEAD, "steps": 5, "eta": 0.03}],
    "drs": [{**HEAD, "burn_in": 1000, "percentile": p} for p in (50, 80)],
}
VALID_SEED, TEST_SEED = 10_000, 40_000
REPEATS = 3
SHIFT = "class_shift"  # the joint that moves classes alone
Method = tuple[str, list[dict[str, Any]]]  # sampler, and the options to choose among


def free(spread: str, shift: str) -> dict[str, Method]:
    """The methods that need neither training nor discriminator, ``spread`` being the knob of the within-class spread.

    ``shift`` is the joint that moves classes alone: class_shift for w.
    """
    knob = {"joint": shift}
    guided = [{**knob, "scale": scale} for scale in SCALES]
    spreads = [{**knob, "scale": 1.0, spread: value} for value in SPREADS[spread]]
    both = [{**knob, "scale": scale, spread: value} for scale, value in BOTH[spread]]
    layers = [{**knob, "scale": scale, "profile": profile} for profile in PROFILES for scale in (0.8, 1.3)]
    methods = {"scale": guided, spread: spreads, f"scale and {spread}": both, "layers": layers}
    if spread == "psi":
        methods["gaussian"] = [{"joint": "gaussian", "scale": scale} for scale in (0.5, 0.8, 1.5, 2.0, 4.0)]
    return {name: ("gandance", options) for name, options in methods.items()}


def learned(folder: Path) -> dict[str, Method]:
    """The methods whose files are in ``folder``."""
    path = {name: str(folder / name / f"{file}.safetensors") for name, file in FILES.items()}
    methods: dict[str, Method] = {}
    if Path(path["joint"]).exists():
        scales = [{"joint": "learned", "joint_ckpt": path["joint"], "scale": scale} for scale in SCALES]
        methods["learned: adversarial"] = "gandance", scales
    for name in TARGETS:
        if Path(path[name]).exists():
            scales = [{"joint": name, "joint_ckpt": path[name], "scale": scale} for scale in (1.25, 1.5, 2.0)]
            methods[f"learned: {name}"] = "gandance", scales
    if Path(path["latent_reweighting"]).exists():
        methods["latent_reweighting"] = "latent_reweighting", [{"weights_ckpt": path["latent_reweighting"]}]
    return methods


def train(cfg: RunConfig, folder: Path, stages: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Train each stage into a folder of its own, unless its file is there; returns the seconds."""
    seconds = {}
    for name, options in stages.items():
        if (folder / name / f"{FILES[name]}.safetensors").exists():
            continue
        start = time.perf_counter()
        out = dataclasses.replace(
            cfg, out=str(folder / name), seed=0, reference=None, judges=("random",), classifier=None
        )
        training.train(out, name, options)
        seconds[name] = time.perf_counter() - start
        click.echo(f"{name}: {seconds[name]:.0f} s", err=True)
    return seconds


def by_one_pass(evaluation: Evaluation, spread: str, shift: str, folder: Path) -> dict[str, Method]:
    """The options that the closed forms give: one scale and spread, and a scale for each class."""
    closed = one_pass(evaluation, {"joint": shift}, spread)
    classes = with_class_scales(evaluation.view, closed, shift, folder / "one-pass.safetensors")
    both = {"joint": shift, "scale": closed.scale, spread: closed.spread}
    by_class = {**classes, spread: closed.spread}
    return {"one-pass": ("gandance", [both]), "one-pass per class": ("gandance", [by_class])}


def choose(cfg: RunConfig, folder: Path, wanted: Sequence[str], few: bool = False) -> dict[str, dict[str, Any]]:
    """Each method with its options of least distance on the validation split, as 'compare' takes them.

    Args:
        cfg: the run; its judges see nothing of this.
        folder: results of the validation, and the files of trained methods.
        wanted: names of methods, of which "spread" stands for this generator's psi or tau; methods that have no
            meaning on it are left out. [all]
        few: try every second setting of a grid, and one of the rivals.
    """
    by_form = not wanted or any(name.startswith("one-pass") for name in wanted)
    valid = dataclasses.replace(
        cfg,
        seed=VALID_SEED,
        judges=(),
        reference="valid",
        metrics=("fid", "prdc") if by_form else ("fid",),  # the closed forms need the features of each image
        out=str(folder / "valid"),
    )
    evaluation = Evaluation(valid, distributed.Group(), [Spec("plain")])
    spread = spread_option(evaluation.view)

    # The methods, and their settings.
    methods = {**free(spread, SHIFT), **learned(folder)}
    if by_form:
        methods |= by_one_pass(evaluation, spread, SHIFT, folder)
    methods |= {rival: (rival, options) for rival, options in RIVALS.items()}
    names = [name for name in methods if not wanted or {name, name.replace(spread, "spread")} & {*wanted}]

    # The best of each.
    chosen = {}
    for method in names:
        sampler, options = methods[method]
        if few:
            options = options[1::2] if len(options) > 3 else options[:1]
        chosen[method] = best_of(evaluation, results.writable(Path(valid.out)), sampler, options)
    return {method: spec for method, spec in chosen.items() if spec}


def on_test(cfg: RunConfig, folder: Path, chosen: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Plain sampling and the chosen methods on the test split, over three other ranges of seeds.

    Returns:
        See ``summary``, with the ``seconds`` of all measurements in the folder, those of the validation among them.
    """
    test = dataclasses.replace(
        cfg,
        metrics=("fid", "kid", "prdc"),
        seed=TEST_SEED,
        reference="test",
        out=str(folder / "test"),
        compare=tuple(chosen.values()),
    )
    kept = summary(compare(test, repeats=REPEATS), ["plain", *chosen], test.device)
    rows = [row for path in folder.glob(f"*/{results.FILE}") for row in results.read(path)]
    return {**kept, "seconds": sum(row["seconds"] for row in rows)}


def summary(result: dict[str, Any], methods: list[str], device: str) -> dict[str, Any]:
    """What is kept of a comparison: the protocol, and each method's setting, metrics, differences and cost.

    Settings are the scale and the options that are not the defaults, files by their names.
    """
    rows = []
    for method, record in zip(methods, result["rows"], strict=True):
        metrics = {key: {"mean": value["mean"], "std": value["std"]} for key, value in record["metrics"].items()}
        scale = {key: value for key, value in record["options"].items() if key == "scale"}
        differs = {k: Path(v).name if k.endswith("_ckpt") else v for k, v in {**scale, **record["differs"]}.items()}
        parts = {key: record[key] for key in ("sampler", "paired", "cost", "seconds", "time")} | {"differs": differs}
        rows.append({"method": method, **parts, "metrics": metrics})
    return {"protocol": result["protocol"], "machine": machine(device), "rows": rows}


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/guidance"), show_default=True)
@click.option("--name", default="built-in", show_default=True, help="Of the generator, in results.")
@click.option("--results", "target", type=click.Path(path_type=Path), default=Path("benchmarks/results"))
@click.option("--channels", type=int, help="Of a StyleGAN2 that narrow.py trained.")
@click.option("--config", "path", type=click.Path(exists=True), help="The host's YAML. [the built-in]")
@click.option("--ckpt")
@click.option("--data")
@click.option("--backbone", help="The space in which settings are chosen.")
@click.option("--judge", "judges", multiple=True)
@click.option("--classifier")
@click.option("--device", default="cpu", show_default=True)
@click.option("--fast", is_flag=True)
@click.option("--num", default=1000, show_default=True, help="Images of each evaluation.")
@click.option("--stages", default="{}", help='JSON: options of stages, such as {"frechet": {"steps": 100}}.')
@click.option("--only", multiple=True, help="Methods. [all]")
def main(
    out: Path,
    name: str,
    target: Path,
    channels: int | None,
    path: str | None,
    num: int,
    stages: str,
    only: tuple[str, ...],
    **keys: Any,
) -> None:
    if channels:
        narrow(channels)
    folder = (out / name).resolve()
    cfg = config.load(path, {**keys, "num": num, "reference": "valid", "out": str(folder / "valid")})
    seconds = train(cfg, folder, json.loads(stages))
    kept = {"command": command(), **on_test(cfg, folder, choose(cfg, folder, only)), "training_seconds": seconds}
    target.mkdir(parents=True, exist_ok=True)
    (target / f"guidance-{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    click.echo(methods(kept))


if __name__ == "__main__":
    main()
