"""Plain, best training-free and learned joints on real images: scales chosen on validation data, reported on test data.

    python benchmarks/learned_joint.py --out runs/learned                                # the built-in, on a CPU
    python benchmarks/learned_joint.py --out runs/learned --host BigGAN --host ResNet    # and the host's, trained first
    python benchmarks/learned_joint.py --out runs/learned --device cuda --host BigGAN --host ResNet --host StyleGAN2 \\
        --host-steps 20000 --steps 5000 --width 64                                       # the same on a GPU

Data are the 5,000 MNIST digits of the built-in, written as folders for the host, whose own loop trains the generators
(an earlier checkpoint in DIR is used again); features are those of the built-in's digit classifier, not Inception. Each
learned joint is trained with three seeds; the scale of a method is the one of least mean FID on the validation split
(seeds 10000 up), and what is printed is on the test split, one other range of seeds for each training seed.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import click
import yaml
from common import folders, run_host, sections

from studiogan_guidance import config, training
from studiogan_guidance.evaluation import distributed
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.source import device_of, open_source
from studiogan_guidance.options import Spec

SCALES = (0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.15, 1.2)
REPORT = ("fid", "precision", "recall", "coverage", "accuracy")
TRAINING_FREE = ("class_mean", "class_shift", "mean_embedding", "global_mean")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "latent": {"latent": 1},
    "distill": {"distill": 1},
    "adversarial": {"adversarial": 1, "batch": 32},
    "adversarial + latent": {"adversarial": 1, "latent": 1, "batch": 32},
}


def train_host(out: Path, name: str, device: str, width: int, steps: int) -> tuple[Path, Path]:
    """(YAML, checkpoint folder) of a generator, trained by the host's loop unless there is one already."""
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(sections(name, width, steps)))
    if not list((out / name).glob("checkpoints/*/model=G*")):
        files = ["-cfg", path, "-data", out / "digits", "-save", out / name]
        run_host(device, steps, *files, "-metrics", "none")
    return path, next((out / name).glob("checkpoints/*"))


def load(keys: dict[str, Any], **more: Any) -> config.RunConfig:
    """A configuration from its keys, of which ``config`` is the YAML, if there is one."""
    return config.load(keys.get("config"), {**{key: keys[key] for key in keys if key != "config"}, **more})


def measure(
    keys: dict[str, Any], points: list[dict[str, Any]], seed: int, metrics: tuple[str, ...]
) -> list[dict[str, float]]:
    """The metrics of gandance at each of ``points``, opened once."""
    cfg = load(keys, sampler="gandance", seed=seed, metrics=metrics)
    specs = [Spec("gandance", {**point, "profile": None}) for point in points]
    evaluation = Evaluation(cfg, distributed.Group(), specs)
    rows = [evaluation.measure(*chosen) for chosen in evaluation.chosen]
    return [row["metrics"] for row in rows if row]


def cells(runs: list[dict[str, float]]) -> str:
    """Mean and deviation of each metric, as cells of a Markdown row; empty for a metric that the runs lack."""
    texts = []
    for key in REPORT:
        values = [run[key] for run in runs if key in run]
        texts.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" if values else "")
    return " | ".join(texts)


def learn(name: str, objective: str, keys: dict[str, Any], out: Path, steps: int) -> list[dict[str, Any]]:
    """Options of gandance for three joints that were trained with one objective, with three seeds."""
    started = time.time()
    steps = steps if "adversarial" in objective else 5 * steps  # steps of the others take milliseconds
    options = {**OBJECTIVES[objective], "steps": steps, "eval_every": 0, "save_every": steps}
    trained = []
    for seed in range(3):
        folder = out / name / f"{objective.replace(' ', '')}-{seed}"
        cfg = load(keys, out=str(folder), seed=seed, reference=None)
        trained.append({"joint": "learned", "joint_ckpt": training.train(cfg, "joint", options)["joint"]})
    click.echo(f"{name}, {objective}: {(time.time() - started) / 3:.0f} s a training of {steps} steps", err=True)
    return trained


def best_scale(keys: dict[str, Any], runs: list[dict[str, Any]]) -> tuple[float, float]:
    """The least mean FID of the runs on the validation split, and its scale."""
    points = [{**options, "scale": scale} for scale in SCALES for options in runs]
    fids = [values["fid"] for values in measure(keys, points, 10_000, ("fid",))]
    means = [statistics.mean(fids[start : start + len(runs)]) for start in range(0, len(fids), len(runs))]
    return min(zip(means, SCALES))


def compare(name: str, valid: dict[str, Any], test: dict[str, Any], out: Path, steps: int, wanted: list[str]) -> None:
    # Three sets of options for each method.
    cfg = load(valid)
    style = open_source(cfg).networks(device_of(cfg.device)).backbone in ("builtin", "stylegan2", "stylegan3")
    methods: dict[str, list[dict[str, Any]]] = {}
    for joint in TRAINING_FREE if style else TRAINING_FREE[:1]:
        methods[joint] = [{"joint": joint}] * 3
    for objective in wanted:
        if style or objective != "distill":  # elsewhere class_mean is the start, and takes no pass
            methods[f"learned: {objective}"] = learn(name, objective, valid, out, steps)

    # Choose each method's scale, and the best training-free method, on the validation split.
    best = {}
    for method, runs in methods.items():
        best[method] = best_scale(valid, runs if method.startswith("learned") else runs[:1])
    free = min((method for method in best if not method.startswith("learned")), key=lambda method: best[method])
    best["plain"] = measure(valid, [{"scale": 1.0}], 10_000, ("fid",))[0]["fid"], 1.0
    methods["plain"] = [{}] * 3

    # Report on the test split.
    click.echo(f"\n| {name} | scale | validation fid | {' | '.join(f'test {key}' for key in REPORT)} |")
    click.echo(f"|{'---|' * (len(REPORT) + 3)}")
    for method in ("plain", free, *(method for method in best if method.startswith("learned"))):
        fid, scale = best[method]
        runs = []
        for i, options in enumerate(methods[method]):
            runs += measure(test, [{**options, "scale": scale}], 40_000 + 10_000 * i, ("fid", "prdc"))
        facts = {"generator": name, "method": method, "scale": scale, "validation_fid": fid, "steps": steps}
        with (out / "results.jsonl").open("a") as file:
            file.write(json.dumps({**facts, "test": runs}) + "\n")
        click.echo(f"| {method} | {scale:g} | {fid:.3f} | {cells(runs)} |")


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/learned"), show_default=True)
@click.option("--host", "hosts", multiple=True, type=click.Choice(["BigGAN", "ResNet", "StyleGAN2"]))
@click.option("--builtin/--no-builtin", default=True, show_default=True)
@click.option("--objective", "wanted", multiple=True, type=click.Choice(list(OBJECTIVES)), help="[all]")
@click.option("--device", default="cpu", show_default=True)
@click.option("--steps", default=400, show_default=True, help="Of an adversarial joint; others take five times more.")
@click.option("--host-steps", default=2500, show_default=True, help="Of each generator of the host.")
@click.option("--num", type=int, help="Images of each evaluation. [as many as real ones]")
@click.option("--width", default=16, show_default=True, help="Channels (g_conv_dim) of the host's generators.")
def main(
    out: Path,
    hosts: tuple[str, ...],
    builtin: bool,
    wanted: tuple[str, ...],
    device: str,
    steps: int,
    host_steps: int,
    num: int | None,
    width: int,
) -> None:
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    objectives = list(wanted or OBJECTIVES)

    if builtin:
        keys: dict[str, Any] = {"device": device, "num": num}
        compare("built-in", {**keys, "reference": "valid"}, {**keys, "reference": "test"}, out, steps, objectives)
    for name in hosts:
        train, test = folders(out)
        path, ckpt = train_host(out, name, device, width, host_steps)
        keys = {"config": str(path), "ckpt": str(ckpt), "backbone": "builtin", "reference": "valid"}
        keys |= {"device": device, "num": num}
        compare(name, {**keys, "data": str(train)}, {**keys, "data": str(test)}, out, steps, objectives)


if __name__ == "__main__":
    main()
