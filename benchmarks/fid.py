"""Time of the Frechet distance of given moments, ours against the host's, alternating in one run.

    python benchmarks/fid.py [--dims 512,2048] [--num 5000] [--repeats 3] [--threads 2]

Features are normal with a covariance of falling eigenvalues. "cached" knows the factor of the real covariance, as every
evaluation after the first does. Memory is the rise of the peak while one of them ran. Needs the host.
"""

from __future__ import annotations

import contextlib
import io
import resource
import statistics
import time
from collections.abc import Callable

import click
import numpy as np
import torch
from common import machine

from studiogan_guidance.evaluation.fid import factor, frechet_distance, moments
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import locate


@click.command(help=__doc__)
@click.option("--dims", default="512,2048", show_default=True)
@click.option("--num", default=5000, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--threads", type=int, help="[all]")
def main(dims: str, num: int, repeats: int, threads: int | None) -> None:
    from threadpoolctl import threadpool_limits

    if threads:
        torch.set_num_threads(threads)
    with inside(locate()), threadpool_limits(threads):
        click.echo(f"{machine('cpu')}, numpy {np.__version__}, {num} images of each kind, median of {repeats}")
        for dim in map(int, dims.split(",")):
            measure(dim, num, repeats)


def measure(dim: int, num: int, repeats: int) -> None:
    """Print a line for each way to compute the distance."""
    # Two Gaussians.
    rng = np.random.default_rng(dim)
    spread = 1 / np.sqrt(1 + np.arange(dim))
    real = moments(rng.normal(size=(num, dim)) * spread)
    fake = moments(rng.normal(size=(num, dim)) * spread * 1.1 + 0.05)
    root = factor(real[1])
    host = module("metrics.fid").frechet_inception_distance
    ways: dict[str, Callable[[], float]] = {
        "host": lambda: host(*real, *fake),
        "ours": lambda: frechet_distance(*real, *fake),
        "cached": lambda: frechet_distance(*real, *fake, root),
    }

    # Take turns, the leaner first, as the peak of a process only rises.
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values: dict[str, float] = {}
    memory: dict[str, float] = {}
    for _ in range(repeats):
        for name in reversed(ways):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            started = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                values[name] = float(ways[name]())
            seconds[name].append(time.perf_counter() - started)
            memory.setdefault(name, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)

    # Compare.
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name in ways:
        click.echo(
            f"{dim:5d} dims  {name:<6} {medians[name]:7.3f} s  host / this {medians['host'] / medians[name]:5.1f}  "
            f"peak rose by {memory[name]:5.0f} MB  FID {values[name]:.10f}  relative difference "
            f"{abs(values[name] / values['host'] - 1):.1e}"
        )


if __name__ == "__main__":
    main()
