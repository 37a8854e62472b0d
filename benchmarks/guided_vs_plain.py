"""Time of guided against plain sampling, same batch, alternating in one run: the median of the paired ratios.

    python benchmarks/guided_vs_plain.py [--device cuda] [--batch 64] [--repeats 15]

Builds the host's CIFAR10 BigGAN and StyleGAN2 (10 classes) with fresh weights: time does not depend on their values.
Needs a checkout of the host and the studiogan extra.
"""

from __future__ import annotations

import dataclasses
import platform
import statistics
import time
from pathlib import Path

import click
import torch

from studiogan_guidance import samplers
from studiogan_guidance.config import read_yaml
from studiogan_guidance.host.locate import locate
from studiogan_guidance.host.networks import build
from studiogan_guidance.latents import Inputs, LabelPlan, LatentView, view_for

CASES = (  # configuration, joint, the most that the ratio should be
    ("BigGAN", "class_mean", 1.02),
    ("StyleGAN2", "class_shift", 1.02),
    ("StyleGAN2", "class_mean", 1.10),
)


def seconds(sampler: samplers.Sampler, view: LatentView, inputs: Inputs) -> float:
    started = time.perf_counter()
    with torch.no_grad():
        sampler.images(view, inputs)
    if view.device.type == "cuda":
        torch.cuda.synchronize(view.device)
    return time.perf_counter() - started


@click.command(help=__doc__)
@click.option("--device", default="cpu", show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--repeats", default=15, show_default=True)
def main(device: str, batch: int, repeats: int) -> None:
    checkout = locate()
    cpu = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), platform.machine()
    )
    where = (
        torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"{cpu.split(':')[-1].strip()}, {torch.get_num_threads()} threads"
    )
    click.echo(f"{where}, torch {torch.__version__}, batch {batch}, {repeats} pairs")
    for name, joint, goal in CASES:
        sections = read_yaml(checkout.path / "src" / "configs" / "CIFAR10" / f"{name}.yaml")
        networks = build(sections, checkout, torch.device(device))
        view = view_for(dataclasses.replace(networks, digest=f"benchmark-{name}"))
        inputs = view.draw(range(batch), 0, LabelPlan())
        plain, guided = samplers.create("plain"), samplers.create("gandance", {"scale": 1.5, "joint": joint})
        with view.frozen():
            seconds(plain, view, inputs), seconds(guided, view, inputs)  # warm up, build class tables
            pairs = [(seconds(guided, view, inputs), seconds(plain, view, inputs)) for _ in range(repeats)]
        ratio = statistics.median(a / b for a, b in pairs)
        plain_ms = statistics.median(b for _, b in pairs) * 1000
        click.echo(f"{name:<10} {joint:<12} plain {plain_ms:8.1f} ms  guided / plain {ratio:.3f}  (goal <= {goal})")


if __name__ == "__main__":
    main()
