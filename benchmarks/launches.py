"""Kernels and synchronisations of a batch: of plain and guided sampling, and of the feature pass.

    python benchmarks/launches.py [--device cuda] [--batch-size 64] [--fast]

Counted by torch's profiler, as the difference between a longer and a shorter run, so that what is done once does not
count. A synchronisation is a call of CUDA that waits for all that was asked for, or a copy from or to memory that is
not pinned; a call that waits for an event is counted apart, for the event may be that of an earlier batch. A CPU has
none of them: there operators of ATen are counted, and numbers that Python reads (``aten::_local_scalar_dense``), of
which those in the CPU's memory would not wait for a GPU. Needs a checkout of the host and the studiogan extra.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
import torch
from common import biggan, machine
from torch.profiler import ProfilerActivity, profile

from studiogan_guidance.evaluation import distributed
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.options import Spec

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize")
READS = ("aten::_local_scalar_dense",)
KINDS = ("launches", "waits", "events", "pageable copies")
SHORT, LONG = 2, 6  # batches


def counts(run: Callable[[], object], cuda: bool) -> Counter[str]:
    """How often each kind of event happened, see ``KINDS``; launches are operators on a CPU."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        run()
        if cuda:
            torch.cuda.synchronize()
    found: Counter[str] = Counter()
    for event in profiler.events():
        is_launch = event.name in LAUNCHES if cuda else event.name.startswith("aten::")
        found["launches"] += is_launch
        found["waits"] += event.name in (WAITS if cuda else READS)
        found["events"] += event.name == "cudaEventSynchronize"
        found["pageable copies"] += "Pageable" in event.name and event.name.startswith("Memcpy")
    return found


def per_batch(run: Callable[[int], object], cuda: bool) -> dict[str, float]:
    """``counts`` of one more batch of ``run(batches)``."""
    run(SHORT)
    short, long = (counts(lambda batches=batches: run(batches), cuda) for batches in (SHORT, LONG))
    return {key: (long[key] - short[key]) / (LONG - SHORT) for key in KINDS}


def measure(
    work: Path, device: str, batch_size: int, fast: bool = False, num_real: int = 16
) -> dict[str, dict[str, float]]:
    """Counts a batch of plain and guided sampling by themselves, and of the pass of ``eval``, by name.

    Args:
        work: a folder for the checkpoint and the weights; see ``common.biggan``.
        device: where everything runs.
        batch_size: images of a batch.
        fast: the fast mode.
        num_real: real images, on which the precision of the fast mode is chosen.
    """
    keys = {"device": device, "num": num_real, "metrics": ("fid", "prdc"), "batch_size": batch_size}
    cfg = biggan(work, num_real, **keys, **({"fast": True} if fast else {}))
    cuda = device.startswith("cuda")
    found = {}
    with distributed.group() as group, torch.no_grad():
        wanted = [Spec("plain"), Spec("gandance", {"scale": 1.2})]
        evaluation = Evaluation(cfg, group, wanted)
        view = evaluation.view
        for name, sampler in evaluation.chosen:

            def stream(batches: int, sampler=sampler) -> None:
                for _ in sampler.stream(view, range(batches * batch_size), batch_size, evaluation.plan):
                    pass

            def whole(batches: int, name=name, sampler=sampler) -> None:
                evaluation.num = batches * batch_size
                evaluation.generate(name, sampler, 0)

            found[f"sampling, {name}"] = per_batch(stream, cuda)
            found[f"feature pass, {name}"] = per_batch(whole, cuda)
    return found


@click.command(help=__doc__)
@click.option("--device", default="cpu", show_default=True)
@click.option("--batch-size", default=4, show_default=True)
@click.option("--fast", is_flag=True)
def main(device: str, batch_size: int, fast: bool) -> None:
    click.echo(f"{machine(device)}, batch {batch_size}{', fast' * fast}")
    with tempfile.TemporaryDirectory() as work:
        for name, values in measure(Path(work), device, batch_size, fast).items():
            click.echo(f"{name:<24} " + "  ".join(f"{key} {value:g}" for key, value in values.items()))


if __name__ == "__main__":
    main()
