"""Seconds of one evaluation from its first image to its row, and of more points of a sweep after it.

    python benchmarks/points.py [--device cuda] [--num 50000] [--points 10] [--batch-size 256] [--fast]

The host's CIFAR10 BigGAN with fresh weights, guided, FID and precision/recall against as many real images, whose pass
is timed apart. All points are measured by one process, as ``sweep`` does. Needs a checkout of the host and the
studiogan extra.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from common import biggan, machine

from studiogan_guidance.evaluation import distributed
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.options import Spec

SCALES = (1.2, 0.8, 0.9, 0.95, 1.05, 1.1, 1.3, 1.4, 1.6, 1.8, 2.0)


def measure(
    work: Path, device: str, num: int, points: int, batch_size: int | None = None, fast: bool = False
) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Yield what was done, its seconds, and the row of it: opening, the real images, and each point in turn.

    Args:
        work: a folder for the checkpoint, the images and the weights; see ``common.biggan``.
        device: where everything runs.
        num: real images, and generated ones.
        points: after the first.
        batch_size: images of a batch; None leaves it to the run.
        fast: the fast mode.
    """
    keys = {"device": device, "num": num, "metrics": ("fid", "prdc"), "batch_size": batch_size, "fast": fast or None}
    cfg = biggan(work, num, **{key: value for key, value in keys.items() if value is not None})
    with distributed.group() as group:
        started = time.perf_counter()
        wanted = [Spec("gandance", {"scale": scale}) for scale in SCALES[: points + 1]]
        evaluation = Evaluation(cfg, group, wanted)
        yield "opening", time.perf_counter() - started, {}

        # The real images, with what every comparison with them needs.
        started = time.perf_counter()
        reference = evaluation.reference
        assert reference is not None
        reference.factor, reference.radii(cfg.k, device)
        yield "real images", time.perf_counter() - started, {}

        # The points.
        for name, sampler in evaluation.chosen:
            started = time.perf_counter()
            row = evaluation.measure(name, sampler)
            assert row is not None
            yield f"scale={row['options']['scale']:g}", time.perf_counter() - started, row


@click.command(help=__doc__)
@click.option("--device", default="cpu", show_default=True)
@click.option("--num", default=64, show_default=True)
@click.option("--points", default=2, show_default=True, help="After the first.")
@click.option("--batch-size", type=int, help="[that of a run]")
@click.option("--fast", is_flag=True)
def main(device: str, num: int, points: int, batch_size: int | None, fast: bool) -> None:
    click.echo(f"{machine(device)}, {num} images{', fast' * fast}")
    with tempfile.TemporaryDirectory() as work:
        for what, seconds, row in measure(Path(work), device, num, points, batch_size, fast):
            values = " ".join(f"{key} {value:.4f}" for key, value in row.get("metrics", {}).items())
            click.echo(f"{what:<12} {seconds:8.2f} s  {values}")


if __name__ == "__main__":
    main()
