"""Time and memory of precision, recall, density and coverage: ours against the host's, same features, in one run.

    python benchmarks/prdc.py [--sizes 1000,5000] [--dim 2048] [--device cuda] [--threads 2]

N real and N fake features, random normal float32. The host's compute_prdc has them as float64, and is left out above
--host-limit, for it holds whole matrices of distances. "cached" knows the radii of the real features. Times are
medians of runs in alternating order, ratios those of the medians. Peak memory is that of the process during the call,
with torch and the features in it. Needs a checkout of the host and the studiogan extra.
"""

from __future__ import annotations

import functools
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from common import machine

from studiogan_guidance.evaluation.prdc import prdc, radii
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import locate

Values = dict[str, float]


def rss() -> float:
    """Memory of this process, GB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024 / 1e9


def measured(call: Callable[[], Values]) -> tuple[float, float, Values]:
    """Seconds, peak memory in GB, values."""
    peak = rss()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, rss())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    values = call()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return seconds, peak, values


@click.command(help=__doc__)
@click.option("--sizes", default="1000,5000", show_default=True)
@click.option("--dim", default=2048, show_default=True)
@click.option("--k", default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=int, help="Of torch; the host's numpy obeys OPENBLAS_NUM_THREADS.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--host-limit", default=6000, show_default=True)
def main(sizes: str, dim: int, k: int, device: str, threads: int | None, repeats: int, host_limit: int) -> None:
    if threads:
        torch.set_num_threads(threads)
    click.echo(f"{machine(device)}, D = {dim}, k = {k}, median of {repeats}")
    small = np.random.default_rng(0).normal(size=(50, 4))
    prdc(small, small, k, device=device)  # warm up
    for n in map(int, sizes.split(",")):
        compare(n, dim, k, device, repeats, with_host=n <= host_limit)


def compare(n: int, dim: int, k: int, device: str, repeats: int, with_host: bool) -> None:
    """Print a line for each way, and whether their values are equal."""
    # What is compared.
    rng = np.random.default_rng(n)
    real, fake = (rng.standard_normal((n, dim), dtype=np.float32) for _ in range(2))
    known = radii(real, k, device)
    calls: dict[str, Callable[[], Values]] = {
        "ours": functools.partial(prdc, real, fake, k, device=device),
        "cached": functools.partial(prdc, real, fake, k, known, device),
    }
    if with_host:
        with inside(locate()):
            compute = module("metrics.prdc").compute_prdc
        calls["host"] = lambda: compute(real.astype(np.float64), fake.astype(np.float64), k)

    # Take turns, in alternating order.
    runs: dict[str, list[tuple[float, float, Values]]] = {name: [] for name in calls}
    for i in range(repeats):
        for name in list(calls)[:: 1 if i % 2 else -1]:
            runs[name].append(measured(calls[name]))

    # Compare times, memory and values.
    seconds = {name: statistics.median(run[0] for run in same) for name, same in runs.items()}
    for name, same in runs.items():
        ratio = f", host / this {seconds['host'] / seconds[name]:.2f}" if with_host else ""
        peak = max(run[1] for run in same)
        click.echo(f"N = {n:6d}  {name:<6} {seconds[name]:8.2f} s{ratio}, peak {peak:.2f} GB")
    values = [{key: float(value) for key, value in run[2].items()} for same in runs.values() for run in same]
    equal = "equal" if all(one == values[0] for one in values) else "DIFFERENT"
    click.echo(f"            values {equal}: {values[0]}")


if __name__ == "__main__":
    main()
