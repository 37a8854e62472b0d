"""Wall time of a ten-point sweep against ten evaluations by 'eval' and ten by the host itself, all as processes.

    python benchmarks/sweep.py -c BigGAN.yaml --ckpt DIR --data DIR --num N [--reference valid]

``-c`` is a YAML of the host. Each way starts with an empty cache of real statistics, and keeps it for its ten points
(the host keeps its own in -save). All three use the host's Inception, FID and precision/recall metrics and the same
seeds; the host draws as many images as the split has. Run it on a quiet machine. Needs the host and its weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import yaml

from studiogan_guidance.evaluation import results
from studiogan_guidance.host.locate import locate

SCALES = (0.8, 0.9, 0.95, 1.05, 1.1, 1.2, 1.3, 1.4, 1.6, 2.0)  # all of them guided: the host has other seeds at 1


def run(arguments: list[str], cache: Path) -> float:
    """Seconds of one process of the command line."""
    env = {**os.environ, "STUDIOGAN_GUIDANCE_CACHE": str(cache), "WANDB_MODE": "disabled"}
    env["STUDIOGAN_ROOT"] = str(locate().path)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "studiogan_guidance", *arguments], env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise click.ClickException(f"{' '.join(arguments)} failed: {done.stderr[-1500:]}")
    return time.perf_counter() - started


@click.command(help=__doc__)
@click.option("-c", "--config", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--ckpt", required=True)
@click.option("--data", required=True)
@click.option("--reference", default="valid", show_default=True)
@click.option("--num", type=int, required=True, help="As many as the split has, for the host can no other.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--skip-host", is_flag=True)
def main(config: Path, ckpt: str, data: str, reference: str, num: int, device: str, skip_host: bool) -> None:
    sections = yaml.safe_load(config.read_text())
    batch = sections["OPTIMIZATION"]["batch_size"]
    common = ["-c", str(config), "--ckpt", ckpt, "--data", data, "--reference", reference, "--num", str(num)]
    common += ["--batch-size", str(batch), "--metrics", "fid,prdc", "--sampler", "gandance", "--device", device]
    common += ["--no-compare-plain"]
    seconds: dict[str, float] = {}
    fids: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)

        # One sweep.
        grid = ",".join(map(str, SCALES))
        seconds["sweep"] = run(["sweep", *common, "--grid", f"scale={grid}", "--out", str(root / "s")], root / "c1")
        fids["sweep"] = fids_in(root / "s")

        # Ten evaluations.
        points = [["eval", *common, "-o", f"scale={scale}", "--out", str(root / "e")] for scale in SCALES]
        seconds["eval"] = sum(run(point, root / "c2") for point in points)
        fids["eval"] = fids_in(root / "e")

        # Ten runs of the host.
        if not skip_host:
            files = ["-ckpt", ckpt, "-data", data, "-save", str(root / "h"), "-ref", reference]
            files += ["-metrics", "fid", "prdc", "--seed", "0", "--num_workers", "2"]
            seconds["host"] = 0.0
            for scale in SCALES:
                path = root / "guided" / config.name
                path.parent.mkdir(exist_ok=True)
                path.write_text(yaml.safe_dump({**sections, "sampler": {"name": "gandance", "scale": scale}}))
                seconds["host"] += run(["run", "--device", device, "--", "-cfg", str(path), *files], root / "c3")
            fids["host"] = fids_in(root / "h")

    for way, values in fids.items():
        worst = max(abs(a / b - 1) for a, b in zip(fids["sweep"], values, strict=True))
        click.echo(
            f"{way:<6} {seconds[way]:8.1f} s  sweep / this {seconds['sweep'] / seconds[way]:.2f}  "
            f"largest relative difference of FID {worst:.1e}"
        )
    click.echo(json.dumps({"num": num, "batch": batch, "scales": SCALES, "fid": fids}))


def fids_in(folder: Path) -> list[float]:
    return [row["metrics"]["fid"] for row in results.read(folder / "results.jsonl")]


if __name__ == "__main__":
    main()
