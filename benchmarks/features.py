"""Images a second of the feature pass: ours, the host's own on the same networks, and the feature network by itself.

    python benchmarks/features.py [--device cuda] [--num 2000] [--batch-size 64] [--resizer clean] [--width 8]

The generator is the host's CIFAR10 BigGAN with fresh weights: time does not depend on their values. The three take
turns, and medians are compared. Needs a checkout of the host and the studiogan extra.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch
from common import machine
from torch import Tensor

from studiogan_guidance import samplers
from studiogan_guidance.config import CHOICES, read_yaml
from studiogan_guidance.doctor import INCEPTION
from studiogan_guidance.evaluation.source import HOST_NETWORKS
from studiogan_guidance.features.resize import filter_of, resize, resize_on_device
from studiogan_guidance.features.stats import accumulate
from studiogan_guidance.host.backbone import HostBackbone
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout, locate
from studiogan_guidance.host.modules import swapped
from studiogan_guidance.host.networks import build
from studiogan_guidance.latents import LabelPlan, Networks, view_for


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


def open_host(checkout: Checkout, name: str, resizer: str, device: torch.device) -> tuple[HostBackbone, Any, str]:
    """Our backbone, the host's LoadEvalModel, and which weights they have."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION

    def both() -> tuple[HostBackbone, Any]:
        with inside(checkout):
            load = module("metrics.preparation").LoadEvalModel
            return HostBackbone(name, checkout, device, resizer), load(name, resizer, 1, False, device)

    if name != "InceptionV3_tf" or weights.exists():
        return (*both(), "weights of the hub cache")

    # Without the file, make the host's network with random weights twice the same.
    with inside(checkout), torch.random.fork_rng(devices=[]):
        inception = module("metrics.inception_net")
        networks: list[torch.nn.Module] = []
        load = lambda self, *args, **kwargs: networks.append(self)  # noqa: E731
        with (
            swapped(inception, "load_state_dict_from_url", lambda *args, **kwargs: {}),
            swapped(torch.nn.Module, "load_state_dict", load),
        ):
            inception.fid_inception_v3()
        state = networks[0].state_dict()
        with swapped(inception, "load_state_dict_from_url", lambda *args, **kwargs: state):
            return (*both(), f"random weights, for want of {weights}")


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
def main(
    device: str, num: int, batch_size: int, repeats: int, threads: int, backbone: str, resizer: str, width: int
) -> None:
    if threads:
        torch.set_num_threads(threads)

    # Build the generator and both feature networks.
    place = torch.device(device)
    checkout = locate()
    sections = read_yaml(checkout.path / "src" / "configs" / "CIFAR10" / "BigGAN.yaml")
    if width:
        sections["MODEL"]["g_conv_dim"] = width
    networks = build(sections, checkout, place)
    ours, hosts, weights = open_host(checkout, backbone, resizer, place)
    hosts.model.requires_grad_(False)
    view = view_for(networks)
    sampler = samplers.create("plain")
    click.echo(machine(device))
    click.echo(f"BigGAN g_conv_dim {sections['MODEL']['g_conv_dim']}, {backbone} {resizer} with {weights}")

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in sampler.stream(view, range(num), batch_size, LabelPlan()):
            yield batch.images, batch.labels

    def network() -> None:
        for _ in range(num // batch_size):
            ours(ready)

    # Time them in turn.
    num = num // batch_size * batch_size or batch_size  # the host makes whole batches only
    size = networks.image_size
    with torch.no_grad():
        ready = ours.prepare(torch.rand(batch_size, 3, size, size, device=place) * 2 - 1)
        times = medians(
            {
                "ours": lambda: accumulate(batches(), ours),
                "host": lambda: hosts_pass(checkout, networks, hosts, num, batch_size),
                "network alone": network,
            },
            repeats,
            place,
        )
        for name, median in times.items():
            click.echo(f"{name:<14} {num / median:9.1f} images/s")
        click.echo(f"ours / the host's        {times['host'] / times['ours']:.2f}")
        click.echo(f"ours / network alone     {times['network alone'] / times['ours']:.2f}")
        resizing(checkout, backbone, resizer, hosts, batch_size, max(repeats, 5), place)


def resizing(
    checkout: Checkout, backbone: str, resizer: str, hosts: Any, count: int, repeats: int, place: torch.device
) -> None:
    """Milliseconds an image of resizing alone, from 8 bits."""
    name = filter_of(resizer, backbone)

    def as_host(pixels: Any) -> Tensor:
        return torch.stack([hosts.totensor(hosts.resizer(image)) for image in pixels])

    for size in (32, 128, 256):
        images = torch.randint(256, (count, 3, size, size)).byte()
        runs: dict[str, Callable[[], object]] = {
            "ours": functools.partial(resize, images, hosts.res, name),
            "on device": functools.partial(resize_on_device, images.to(place), hosts.res, name),
            "host": functools.partial(as_host, images.numpy().transpose((0, 2, 3, 1))),
        }
        with inside(checkout):
            times = medians(runs, repeats, place)
        text = ", ".join(f"{what} {median / count * 1000:.2f}" for what, median in times.items())
        click.echo(f"resizing {size:>3} -> {hosts.res} alone, ms an image: {text}")


if __name__ == "__main__":
    main()
