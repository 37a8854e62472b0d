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
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import yaml
from PIL import Image

from studiogan_guidance import config, training
from studiogan_guidance.builtin import data as digits
from studiogan_guidance.evaluation import distributed
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.source import device_of, open_source

SCALES = (0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.15, 1.2)
REPORT = ("fid", "precision", "recall", "coverage", "accuracy")
TRAINING_FREE = ("class_mean", "class_shift", "mean_embedding", "global_mean")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "latent": {"latent": 1},
    "distill": {"distill": 1},
    "adversarial": {"adversarial": 1, "batch": 32},
    "adversarial + latent": {"adversarial": 1, "latent": 1, "batch": 32},
}
CBN = {"g_cond_mtd": "cBN", "d_cond_mtd": "PD", "apply_g_sn": True, "apply_d_sn": True, "z_dim": 40}
EMA = {"apply_g_ema": True, "g_ema_decay": 0.999, "g_ema_start": 100}
ADAM = {"batch_size": 32, "g_lr": 4e-4, "d_lr": 4e-4, "beta1": 0.0, "beta2": 0.9, "d_updates_per_step": 1}
STYLE = {"g_cond_mtd": "cAdaIN", "d_cond_mtd": "SPD", "g_act_fn": "Auto", "d_act_fn": "Auto", "z_dim": 512}


def sections(name: str, width: int, steps: int) -> dict[str, Any]:
    """The host's YAML for one of its generators at 32x32."""
    found: dict[str, Any] = {
        "DATA": {"name": "MNIST32", "img_size": 32, "num_classes": 10},
        "OPTIMIZATION": {**ADAM, "total_steps": steps},
    }
    if name == "StyleGAN2":
        model = {"backbone": "stylegan2", **STYLE, "w_dim": 512, "g_conv_dim": "N/A", "d_conv_dim": "N/A"}
        regular = {"mapping_network": 2, "d_epilogue_mbstd_group_size": 8, "d_architecture": "resnet"}
        found["LOSS"] = {"adv_loss": "logistic", "apply_r1_reg": True, "r1_lambda": 0.01, "r1_place": "outside_loop"}
        found["STYLEGAN"] = {
            **regular,
            "g_reg_interval": 4,
            "d_reg_interval": 16,
            "g_ema_kimg": 20,
            "g_ema_rampup": 0.05,
        }
        found["OPTIMIZATION"].update({"g_lr": 2.5e-3, "d_lr": 2.5e-3, "beta2": 0.99})
        return {**found, "MODEL": {**model, "apply_g_ema": True}}
    widths = {"g_conv_dim": width, "d_conv_dim": width}
    own = {"backbone": "big_resnet", "g_shared_dim": 32} if name == "BigGAN" else {"backbone": "resnet"}
    return {**found, "LOSS": {"adv_loss": "hinge"}, "MODEL": {**own, **CBN, **widths, **EMA}}


def folders(out: Path) -> tuple[Path, Path]:
    """Two ImageFolders of digits: train and valid; and one whose valid is the test split."""
    learn, test = out / "digits", out / "digits-test"
    for folder, part, split in ((learn, "train", "train"), (learn, "valid", "valid"), (test, "valid", "test")):
        for i, (x, y) in enumerate(zip(*digits.digits(split))):
            path = folder / part / str(int(y)) / f"{i:05d}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(path)
    return learn, test


def train_host(out: Path, name: str, device: str, width: int, steps: int) -> tuple[Path, Path]:
    """(YAML, checkpoint folder) of a generator, trained by the host's loop unless there is one already."""
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(sections(name, width, steps)))
    if not list((out / name).glob("checkpoints/*/model=G*")):
        arguments = ["-t", "-cfg", path, "-data", out / "digits", "-save", out / name, "-metrics", "none"]
        more = ["--num_workers", 1, "--save_freq", steps, "--print_freq", 100]
        command = [sys.executable, "-m", "studiogan_guidance", "run", "--device", device, "--", *arguments, *more]
        subprocess.run(list(map(str, command)), check=True, env={"WANDB_MODE": "disabled", **os.environ})
    return path, next((out / name).glob("checkpoints/*"))


def measure(given: dict[str, Any], points: list[dict[str, Any]], seed: int, metrics: tuple[str, ...]) -> list[Any]:
    """The metrics of gandance at each of ``points``, opened once."""
    file = given.get("config")
    rest = {key: value for key, value in given.items() if key != "config"}
    cfg = config.load(file, {**rest, "sampler": "gandance", "seed": seed, "metrics": metrics})
    evaluation = Evaluation(cfg, distributed.Group(), [("gandance", {**p, "profile": None}) for p in points])
    rows = [evaluation.measure(*chosen) for chosen in evaluation.chosen]
    return [row["metrics"] for row in rows if row]


def cells(found: list[dict[str, float]]) -> str:
    means = [[one[key] for one in found if key in one] for key in REPORT]
    return " | ".join(f"{statistics.mean(v):.3f} ± {statistics.stdev(v):.3f}" if v else "" for v in means)


def compare(name: str, valid: dict[str, Any], test: dict[str, Any], out: Path, steps: int, wanted: list[str]) -> None:
    cfg = config.load(valid.get("config"), {k: v for k, v in valid.items() if k != "config"})
    style = open_source(cfg).networks(device_of(cfg.device)).backbone in ("builtin", "stylegan2", "stylegan3")
    methods: dict[str, list[dict[str, Any]]] = {f"{j}": [{"joint": j}] * 3 for j in TRAINING_FREE[: 4 if style else 1]}
    for objective in wanted:
        if objective == "distill" and not style:
            continue  # nothing to learn: there class_mean is the start, and takes no pass
        started, each = time.time(), []
        for seed in range(3):
            folder = out / name / f"{objective.replace(', ', '-').replace(' ', '')}-{seed}"
            given = {k: v for k, v in valid.items() if k not in ("config", "reference")}
            cfg = config.load(valid.get("config"), {**given, "out": str(folder), "seed": seed})
            many = steps if "adversarial" in objective else 5 * steps  # the others take milliseconds
            options = {**OBJECTIVES[objective], "steps": many, "eval_every": 0, "save_every": many}
            path = training.train(cfg, "joint", options)["joint"]
            each.append({"joint": "learned", "joint_ckpt": path})
        methods[f"learned: {objective}"] = each
        click.echo(f"{name}, {objective}: {(time.time() - started) / 3:.0f} s a training of {many} steps", err=True)
    best: dict[str, tuple[float, float]] = {}
    for method, each in methods.items():
        runs = each if method.startswith("learned") else each[:1]
        points = [{**options, "scale": s} for s in SCALES for options in runs]
        fids = [found["fid"] for found in measure(valid, points, 10_000, ("fid",))]
        means = [statistics.mean(fids[i : i + len(runs)]) for i in range(0, len(fids), len(runs))]
        best[method] = min(zip(means, SCALES))
    plain = measure(valid, [{"scale": 1.0}], 10_000, ("fid",))[0]["fid"]
    free = min((method for method in best if not method.startswith("learned")), key=lambda method: best[method])
    click.echo(f"\n| {name} | scale | validation fid | {' | '.join(f'test {key}' for key in REPORT)} |")
    click.echo(f"|{'---|' * (len(REPORT) + 3)}")
    for method in ("plain", free, *(method for method in best if method.startswith("learned"))):
        fid, scale = (plain, 1.0) if method == "plain" else best[method]
        options = methods.get(method, [{}] * 3)
        found = [
            measure(test, [{**options[i], "scale": scale}], 40_000 + 10_000 * i, ("fid", "prdc"))[0] for i in range(3)
        ]
        with (out / "results.jsonl").open("a") as file:
            facts = {"generator": name, "method": method, "scale": scale, "validation_fid": fid, "steps": steps}
            file.write(json.dumps({**facts, "test": found}) + "\n")
        click.echo(f"| {method} | {scale:g} | {fid:.3f} | {cells(found)} |")


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/learned"), show_default=True)
@click.option("--host", "hosts", multiple=True, type=click.Choice(["BigGAN", "ResNet", "StyleGAN2"]))
@click.option("--builtin/--no-builtin", default=True, show_default=True)
@click.option("--objective", "wanted", multiple=True, type=click.Choice(list(OBJECTIVES)), help="[all]")
@click.option("--device", default="cpu", show_default=True)
@click.option("--steps", default=400, show_default=True, help="Of an adversarial joint; others take five times more.")
@click.option("--host-steps", default=2500, show_default=True, help="Of each generator of the host.")
@click.option("--width", default=16, show_default=True, help="Channels (g_conv_dim) of the host's generators.")
def main(
    out: Path,
    hosts: tuple[str, ...],
    builtin: bool,
    wanted: tuple[str, ...],
    device: str,
    steps: int,
    host_steps: int,
    width: int,
) -> None:
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    objectives = list(wanted or OBJECTIVES)
    if builtin:
        given = {"device": device}
        compare("built-in", {**given, "reference": "valid"}, {**given, "reference": "test"}, out, steps, objectives)
    for name in hosts:
        learn, test = folders(out)
        path, ckpt = train_host(out, name, device, width, host_steps)
        given = {"config": str(path), "ckpt": str(ckpt), "backbone": "builtin", "reference": "valid", "device": device}
        compare(name, {**given, "data": str(learn)}, {**given, "data": str(test)}, out, steps, objectives)


if __name__ == "__main__":
    main()
