"""Pixels of every resizer on a device against those of the CPU, and milliseconds an image of both and of the host.

    python benchmarks/resizers.py [--device cuda] [--count 8] [--repeats 3]

Random images of each size; the CPU's pixels are Pillow's, and torch's on two threads or more. Where pixels differ, so
may FID: it is compared in the space of 64 random features of blurred pixels, against images half as bright.
The last rows are torch on one thread, whose bilinear interpolation is summed in another order. The host's column
needs a checkout of it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import torch
from common import machine
from features import medians
from torch import Tensor
from torch.nn import functional as F

from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.fid import frechet_distance_of
from studiogan_guidance.features.resize import resize, resize_on_device
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout, locate

SIZES = (32, 64, 128, 256, 512)
TARGETS = (299, 224)
MANY = max(torch.get_num_threads(), 2)  # threads of torch
RESIZERS = {  # filter: the host's resizer, and a network for which it has this filter
    "legacy": ("legacy", "InceptionV3_tf"),
    "bilinear": ("friendly", "InceptionV3_tf"),
    "bicubic": ("clean", "InceptionV3_tf"),
    "lanczos": ("friendly", "InceptionV3_torch"),
}
COLUMNS = {  # key of a row: heading
    "resizer": "resizer",
    "filter": "filter",
    "from": "from",
    "to": "to",
    "largest": "largest difference",
    "differing": "pixels that differ",
    "fid": "relative difference of FID",
    "cpu_ms": "CPU, ms",
    "device_ms": "device, ms",
    "host_ms": "host, ms",
}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def milliseconds(run: Callable[[], object], count: int, repeats: int, device: torch.device) -> float:
    """Median time of ``run`` for one of its ``count`` images, after one run that does not count."""
    (median,) = medians({"": run}, repeats, device).values()
    return median / count * 1000


def random_images(size: int, count: int) -> Tensor:
    """Random pixels, uint8 [count, 3, size, size], the same for the same size."""
    generator = torch.Generator().manual_seed(size)
    return torch.randint(256, (count, 3, size, size), generator=generator).byte()


def fid_difference(expected: Tensor, found: Tensor) -> float:
    """Relative difference of FID against the same images at half the brightness, in a space of random features."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(3 * 16 * 16, 64, generator=generator, dtype=torch.float64) / 28

    def features(pixels: Tensor) -> Any:
        blurred = F.adaptive_avg_pool2d(pixels.double(), 16).flatten(1)
        return (blurred @ basis).relu().numpy()

    real = features(expected / 2)
    fid = frechet_distance_of(real, features(expected))
    return abs(frechet_distance_of(real, features(found)) / fid - 1)


def compared(expected: Tensor, found: Tensor) -> dict[str, Any]:
    """Largest difference of a pixel, number of pixels that differ, and relative difference of FID."""
    difference = (expected - found).abs()
    differing = int((difference > 0).sum())
    return {
        "largest": difference.max().item(),
        "differing": differing,
        "pixels": difference.numel(),
        "fid": fid_difference(expected, found) if differing else 0.0,
    }


def host_resizing(checkout: Checkout | None, filter: str, size: int, images: Tensor) -> Callable[[], object] | None:
    """The host's own resizing of images, from one to the next; nothing without a checkout."""
    if checkout is None:
        return None
    from torchvision.transforms import ToTensor

    with inside(checkout):
        resizer = module("utils.resize").build_resizer(*RESIZERS[filter], size)
    pixels = images.numpy().transpose((0, 2, 3, 1))
    return lambda: [ToTensor()(resizer(image)) for image in pixels]


def table(device: str, count: int = 8, repeats: int = 3) -> list[dict[str, Any]]:
    """A row for each filter and size: differences of pixels, of 255, and milliseconds an image.

    The last rows are torch in one thread against itself in several.
    """
    try:
        checkout = locate()
    except UserError:
        checkout = None

    sizes = list(itertools.product(TARGETS, SIZES))
    rows = [
        row_of(filter, size, target, count, repeats, torch.device(device), checkout)
        for filter in RESIZERS
        for target, size in sizes
    ]
    return rows + [row_of_one_thread(size, target, count) for target, size in sizes]


def row_of(
    filter: str, size: int, target: int, count: int, repeats: int, device: torch.device, checkout: Checkout | None
) -> dict[str, Any]:
    """A filter on a device against the CPU."""
    # Resize in both places.
    images = random_images(size, count)
    on_cpu = functools.partial(resize, images, target, filter)
    on_device = functools.partial(resize_on_device, images.to(device), target, filter)
    with threads(MANY):
        row = {"resizer": RESIZERS[filter][0], "filter": filter, "from": size, "to": target}
        row |= compared(on_cpu(), on_device().cpu())

        # Time them, and the host.
        cpu = torch.device("cpu")
        row["cpu_ms"] = milliseconds(on_cpu, count, repeats, cpu)
        row["device_ms"] = milliseconds(on_device, count, repeats, device)
        by_host = host_resizing(checkout, filter, target, images)
        row["host_ms"] = by_host and milliseconds(by_host, count, repeats, cpu)
    return row


def row_of_one_thread(size: int, target: int, count: int) -> dict[str, Any]:
    """Torch's bilinear interpolation in one thread against itself in several."""
    images = random_images(size, count)
    with threads(MANY):
        expected = resize(images, target, "legacy")
    with threads(1):
        found = resize(images, target, "legacy")
    row = {"resizer": "legacy, 1 thread", "filter": "legacy", "from": size, "to": target}
    return row | compared(expected, found)


def cell(row: dict[str, Any], column: str) -> str:
    """A value of a row as text: pixels that are equal are said to be."""
    value = row.get(column)
    if value is None:
        return "-"
    if column == "largest":
        return f"{value:.1e}" if value else "equal"
    if column == "differing":
        return f"{value} of {row['pixels']}" if value else "0"
    if column == "fid":
        return f"{value:.1e}" if value else "0"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the rows."""
    lines = [f"| {' | '.join(COLUMNS.values())} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(cell(row, column) for column in COLUMNS)} |" for row in rows]
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--device", default="cpu", show_default=True)
@click.option("--count", default=8, show_default=True, help="Images of each size.")
@click.option("--repeats", default=3, show_default=True)
def main(device: str, count: int, repeats: int) -> None:
    click.echo(machine(device))
    click.echo(markdown(table(device, count, repeats)))


if __name__ == "__main__":
    main()
