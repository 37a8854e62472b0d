"""Images a second of the feature pass: ours, the host's own, the networks by themselves, and one after the other.

    python benchmarks/features.py [--device cuda] [--num 2000] [--batch-size 64] [--fast] [--resizer clean] [--width 8]

The generator is the host's CIFAR10 BigGAN with fresh weights: time does not depend on their values. "ours" is the pass
of ``eval``, "host" the host's generate_images_and_stack_features. "network" and "generator" get inputs that are ready;
"one after the other" makes a batch of images, resizes it and runs the network, and keeps nothing. All take turns, and
medians are compared. ``--fast`` runs ours and the networks so; the host has no such mode. Needs a checkout of the host
and the studiogan extra.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch
from common import biggan, machine
from torch import Tensor

from studiogan_guidance.config import CHOICES
from studiogan_guidance.evaluation import distributed
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.source import HOST_NETWORKS
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout, locate
from studiogan_guidance.host.networks import host_yaml, load
from studiogan_guidance.latents import Networks
from studiogan_guidance.options import Spec

HOST_SHARE = 4  # the host is slow: of so many images it makes one


def seconds(run: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def medians(runs: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, taken in turn after one run of each that does not count."""
    for run in runs.values():
        seconds(run, device)
    rounds = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(repeats)]
    return {name: statistics.median(times[name] for times in rounds) for name in runs}


def measure(
    work: Path,
    device: str,
    num: int,
    batch_size: int | None,
    repeats: int,
    fast: bool = False,
    num_real: int = 16,
    **more: Any,
) -> dict[str, float]:
    """Images a second of each way, by its name; "batch" is the images of a batch, "computed" network after generator.

    Args:
        work: a folder for the checkpoint and the weights; see ``common.biggan``.
        device: where everything runs.
        num: images of a pass, of which the host makes a quarter; rounded to whole batches.
        batch_size: images of a batch; None leaves it to the run, and all ways take what it chose.
        repeats: timed passes of each way.
        fast: the fast mode, of all but the host's pass.
        num_real: real images, and as many generated ones, on which the precision of the fast mode is chosen.
        more: ``width`` of the generator, and keys of the run, such as resizer.
    """
    # Open ours and the host's, with a generator each.
    place = torch.device(device)
    keys = {"device": device, "metrics": ("fid", "is", "prdc"), "sampler": "plain", "num": num_real, **more}
    chosen = {"batch_size": batch_size, "fast": fast or None}
    cfg = biggan(work, num_real, **keys, **{key: value for key, value in chosen.items() if value})
    checkout = locate()
    networks = load(cfg, checkout, place, host_yaml(cfg, checkout))
    with inside(checkout):
        name = (cfg.backbone or "InceptionV3_tf").removeprefix("host:")
        hosts = module("metrics.preparation").LoadEvalModel(name, cfg.resizer, 1, False, place)
    hosts.model.requires_grad_(False)

    with distributed.group() as group, torch.no_grad():
        evaluation = Evaluation(cfg, group, [Spec("plain")])
        size = evaluation.batch_size
        ways = passes(evaluation, size, num, checkout, networks, hosts)
        times = medians({name: run for name, (_, run) in ways.items()}, repeats, place)
    rates = {name: ways[name][0] / times[name] for name in ways}
    rates["computed"] = 1 / (1 / rates["network"] + 1 / rates["generator"])
    return {**rates, "batch": size}


def passes(
    evaluation: Evaluation, size: int, num: int, checkout: Checkout, networks: Networks, hosts: Any
) -> dict[str, tuple[int, Callable[[], object]]]:
    """The ways by name: how many images each makes, and what to call."""
    view, backbone = evaluation.view, evaluation.backbone
    ((name, sampler),) = evaluation.chosen
    batches = max(1, num // size)
    hosts_batches = math.ceil(batches / HOST_SHARE)
    inputs = view.draw(range(size), 0, evaluation.plan)
    with view.frozen():
        ready = backbone.prepare(sampler.images(view, inputs))

    def images() -> Tensor:
        return sampler.images(view, inputs)

    def repeated(step: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            with view.frozen():
                for _ in range(batches):
                    step()

        return run

    evaluation.num = batches * size
    return {
        "ours": (batches * size, lambda: evaluation.generate(name, sampler, 0)),
        "host": (hosts_batches * size, lambda: hosts_pass(checkout, networks, hosts, hosts_batches * size, size)),
        "network": (batches * size, repeated(lambda: backbone(ready))),
        "generator": (batches * size, repeated(images)),
        "one after the other": (batches * size, repeated(lambda: backbone(backbone.prepare(images())))),
    }


def hosts_pass(checkout: Checkout, networks: Networks, model: Any, num: int, batch_size: int) -> None:
    """The host's generate_images_and_stack_features, as its evaluation calls it."""
    with inside(checkout):
        module("metrics.features").generate_images_and_stack_features(
            generator=networks.generator,
            discriminator=None,
            eval_model=model,
            num_generate=num,
            y_sampler="totally_random",
            batch_size=batch_size,
            z_prior=networks.z_prior,
            truncation_factor=-1,
            z_dim=networks.z_dim,
            num_classes=networks.num_classes,
            LOSS=SimpleNamespace(lo_steps4eval=0, lo_steps4train=0, apply_lo=False),
            RUN=SimpleNamespace(langevin_sampling=False, truncation_cutoff=None),
            MODEL=SimpleNamespace(backbone=networks.backbone, info_type="N/A"),
            is_stylegan=False,
            generator_mapping=None,
            generator_synthesis=None,
            quantize=True,
            world_size=1,
            DDP=False,
            device=networks.device,
            logger=None,
            disable_tqdm=True,
        )


@click.command(help=__doc__)
@click.option("--device", default="cpu", show_default=True)
@click.option("--num", default=64, show_default=True, help="Images of a pass.")
@click.option("--batch-size", default=16, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--threads", default=0, help="Of torch; by default as many as it takes.")
@click.option("--backbone", type=click.Choice(HOST_NETWORKS), default="InceptionV3_tf", show_default=True)
@click.option("--resizer", type=click.Choice(CHOICES["resizer"]), default="legacy", show_default=True)
@click.option("--width", default=0, help="g_conv_dim of the generator; by default the configuration's.")
@click.option("--fast", is_flag=True)
def main(
    device: str,
    num: int,
    batch_size: int,
    repeats: int,
    threads: int,
    backbone: str,
    resizer: str,
    width: int,
    fast: bool,
) -> None:
    if threads:
        torch.set_num_threads(threads)
    click.echo(f"{machine(device)}{', fast' * fast}")
    keys = {"backbone": f"host:{backbone}", "resizer": resizer, "width": width}
    with tempfile.TemporaryDirectory() as work:
        rates = measure(Path(work), device, num, batch_size, repeats, fast, **keys)
        click.echo(f"images of a batch    {rates.pop('batch'):9.0f}")
        for name, rate in rates.items():
            click.echo(f"{name:<20} {rate:9.1f} images/s")
        click.echo(f"ours / the host's        {rates['ours'] / rates['host']:.2f}")
        click.echo(f"ours / network alone     {rates['ours'] / rates['network']:.2f}")
        click.echo(f"ours / one after the other {rates['ours'] / rates['computed']:.2f}")


if __name__ == "__main__":
    main()
