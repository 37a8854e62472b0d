"""Time of guided against plain sampling, same batch, alternating in one run: the median of the paired ratios.

    python benchmarks/guided_vs_plain.py [--device cuda] [--batch 64] [--repeats 15]

Builds the host's CIFAR10 BigGAN and StyleGAN2 (10 classes), and learned joints, with fresh weights: time does not
depend on their values. All but the built-in needs a checkout of the host and the studiogan extra.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import click
import torch
from common import machine

from studiogan_guidance import builtin, samplers
from studiogan_guidance.config import read_yaml
from studiogan_guidance.host.locate import locate
from studiogan_guidance.host.networks import build
from studiogan_guidance.latents import Inputs, LabelPlan, LatentView, Networks, learned, view_for
from studiogan_guidance.samplers.gandance import GANdance

CASES = (  # generator, joint (for a learned one its base), the most that the ratio should be
    ("built-in", "learned: class_shift", 1.05),
    ("BigGAN", "class_mean", 1.02),
    ("BigGAN", "learned: class_mean", 1.02),
    ("StyleGAN2", "class_shift", 1.02),
    ("StyleGAN2", "class_mean", 1.10),
    ("StyleGAN2", "learned: class_shift", 1.05),
    ("StyleGAN2", "learned: mean_embedding", 1.05),
)


def open_networks(name: str, device: str) -> Networks:
    if name == "built-in":
        return builtin.networks(device)
    checkout = locate()
    sections = read_yaml(checkout.path / "src" / "configs" / "CIFAR10" / f"{name}.yaml")
    return dataclasses.replace(build(sections, checkout, torch.device(device)), digest=f"benchmark-{name}")


def guided_by(view: LatentView, joint: str) -> samplers.Sampler:
    """GANdance with this joint; a learned one is a fresh one whose residual is not zero."""
    name, _, base = joint.partition(": ")
    if not base:
        return samplers.create("gandance", {"scale": 1.5, "joint": name})
    fresh = learned.create(view, base).eval().requires_grad_(False)
    for value in fresh.residual.parameters():
        torch.nn.init.normal_(value, std=0.1)
    return GANdance(scale=1.5, joint=name).away_from(fresh)


def seconds(sampler: samplers.Sampler, view: LatentView, inputs: Inputs, clock: Callable[[], float]) -> float:
    started = clock()
    with torch.no_grad():
        sampler.images(view, inputs)
    if view.device.type == "cuda":
        torch.cuda.synchronize(view.device)
    return clock() - started


@click.command(help=__doc__)
@click.option("--device", default="cpu", show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--repeats", default=15, show_default=True)
@click.option("--cpu-time", is_flag=True, help="Of the process, all threads: where other work shares the processor.")
def main(device: str, batch: int, repeats: int, cpu_time: bool) -> None:
    click.echo(f"{machine(device)}, batch {batch}, {repeats} pairs{', CPU time' * cpu_time}")
    clock = time.process_time if cpu_time else time.perf_counter
    for name, joint, goal in CASES:
        view = view_for(open_networks(name, device))
        inputs = view.draw(range(batch), 0, LabelPlan())
        plain = samplers.create("plain")
        guided = guided_by(view, joint)

        # Warm up and build class tables, then take turns.
        with view.frozen():
            for sampler in (plain, guided):
                seconds(sampler, view, inputs, clock)
            pairs = []
            for _ in range(repeats):
                guided_s = seconds(guided, view, inputs, clock)
                pairs.append((guided_s, seconds(plain, view, inputs, clock)))

        ratio = statistics.median(guided_s / plain_s for guided_s, plain_s in pairs)
        plain_ms = statistics.median(plain_s for _, plain_s in pairs) * 1000
        click.echo(f"{name:<10} {joint:<23} plain {plain_ms:8.1f} ms  guided / plain {ratio:.3f}  (goal <= {goal})")


if __name__ == "__main__":
    main()
