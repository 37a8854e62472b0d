"""Time of guided against plain sampling, same batch, alternating in one run: the median of the paired ratios.

    python benchmarks/guided_vs_plain.py [--device cuda] [--batch 64 --batch 256] [--repeats 31]

Builds the host's CIFAR10 BigGAN, SNGAN (a ResNet) and StyleGAN2 (10 classes), and learned joints, with fresh weights:
time does not depend on their values. All but the built-in needs a checkout of the host and the studiogan extra.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from common import machine
from torch.utils._python_dispatch import TorchDispatchMode

from studiogan_guidance import builtin, samplers
from studiogan_guidance.config import read_yaml
from studiogan_guidance.host.locate import locate
from studiogan_guidance.host.networks import build
from studiogan_guidance.latents import Inputs, LabelPlan, LatentView, Networks, learned, view_for

CASES = (  # generator, joint (a learned one with its base and its hidden layers), the most that the ratio should be
    ("built-in", "class_shift", 1.02),
    ("built-in", "learned: class_shift 2", 1.05),
    ("BigGAN", "class_mean", 1.02),
    ("BigGAN", "learned: class_mean 0", 1.02),
    ("BigGAN", "learned: class_mean 2", 1.02),
    ("SNGAN", "class_mean", 1.02),
    ("StyleGAN2", "class_shift", 1.02),
    ("StyleGAN2", "class_mean", 1.05),
    ("StyleGAN2", "learned: class_shift 0", 1.02),
    ("StyleGAN2", "learned: class_shift 2", 1.05),
    ("StyleGAN2", "learned: mean_embedding 2", 1.05),
)
HEAD = ("generator", "joint (base, hidden layers)", "batch", "plain, ms", "guided / plain", "goal", "more operations")
SMALL = 16  # width of small networks


def open_networks(name: str, device: str, small: bool) -> Networks:
    """The built-in, or one of the host's CIFAR10 generators; small ones are narrow where the host allows it."""
    if name == "built-in":
        return builtin.networks(device)
    checkout = locate()
    sections: dict[str, Any] = read_yaml(checkout.path / "src" / "configs" / "CIFAR10" / f"{name}.yaml")
    if small and sections["MODEL"].get("g_conv_dim") != "N/A":
        sections["MODEL"]["g_conv_dim"] = SMALL
    return dataclasses.replace(build(sections, checkout, torch.device(device)), digest=f"benchmark-{name}")


def guided_by(view: LatentView, joint: str, folder: Path) -> samplers.Sampler:
    """GANdance with this joint; a learned one is a file with a fresh one whose residual is not zero."""
    name, _, rest = joint.partition(": ")
    if not rest:
        return samplers.create("gandance", {"scale": 1.5, "joint": name})

    base, depth = rest.split()
    fresh = learned.create(view, base, depth=int(depth)).eval().requires_grad_(False)
    for value in fresh.residual.parameters():
        torch.nn.init.normal_(value, std=0.1)
    path = folder / f"{view.networks.backbone} {rest}.safetensors"
    learned.save(path, fresh, view, {})
    return samplers.create("gandance", {"scale": 1.5, "joint": name, "joint_ckpt": str(path)})


class Operations(TorchDispatchMode):
    """Counts the operations that start work on a device; views of tensors are none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (function.is_view or "_unsafe_view" in function.name())
        return function(*args, **(kwargs or {}))


def operations(sampler: samplers.Sampler, view: LatentView, inputs: Inputs) -> int:
    with torch.no_grad(), Operations() as counted:
        sampler.images(view, inputs)
    return counted.count


def seconds(sampler: samplers.Sampler, view: LatentView, inputs: Inputs, clock: Callable[[], float]) -> float:
    """Of one batch, all of whose work is done at the end."""
    started = clock()
    with torch.no_grad():
        sampler.images(view, inputs)
    if view.device.type == "cuda":
        torch.cuda.synchronize(view.device)
    return clock() - started


def compared(
    view: LatentView, guided: samplers.Sampler, batch: int, repeats: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Time of a plain batch in ms, the median ratio, and the operations of a guided batch beyond a plain one's."""
    inputs = view.draw(range(batch), 0, LabelPlan())
    plain = samplers.create("plain")

    # Warm up, build the tables of the classes, and take turns.
    with view.frozen():
        for sampler in (plain, guided) * 2:
            seconds(sampler, view, inputs, clock)
        pairs = []
        for _ in range(repeats):
            guided_s = seconds(guided, view, inputs, clock)
            pairs.append((guided_s, seconds(plain, view, inputs, clock)))
        more = operations(guided, view, inputs) - operations(plain, view, inputs)

    ratio = statistics.median(guided_s / plain_s for guided_s, plain_s in pairs)
    return {"plain_ms": statistics.median(plain_s for _, plain_s in pairs) * 1000, "ratio": ratio, "more": more}


def measure(
    device: str,
    batches: Sequence[int] = (64, 256),
    repeats: int = 31,
    small: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """One row for each case and batch size: generator, joint, batch, plain_ms, ratio, goal and more.

    Args:
        device: such as cpu or cuda.
        batches: numbers of images.
        repeats: pairs of a guided and a plain batch.
        small: narrow networks of the host, where it allows that.
        clock: of time in seconds.
    """
    rows = []
    views: dict[str, LatentView] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, joint, goal in CASES:
            if name not in views:
                views[name] = view_for(open_networks(name, device, small))
            guided = guided_by(views[name], joint, Path(folder))
            for batch in batches:
                facts = {"generator": name, "joint": joint, "batch": batch, "goal": goal}
                rows.append({**facts, **compared(views[name], guided, batch, repeats, clock)})
    return rows


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for row in rows:
        times = f"{row['plain_ms']:.2f} | {row['ratio']:.3f} | {row['goal']}"
        lines.append(f"| {row['generator']} | {row['joint']} | {row['batch']} | {times} | {row['more']} |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--device", default="cpu", show_default=True)
@click.option("--batch", "batches", type=int, multiple=True, help="Images of a batch; repeatable.  [64, 256; CPU: 8]")
@click.option("--repeats", default=31, show_default=True)
@click.option("--small/--full", default=None, help="Narrow networks.  [default: on a CPU]")
@click.option("--cpu-time", is_flag=True, help="Of the process, all threads: where other work shares the processor.")
def main(device: str, batches: tuple[int, ...], repeats: int, small: bool | None, cpu_time: bool) -> None:
    on_cpu = device == "cpu"
    small = on_cpu if small is None else small
    batches = batches or ((8,) if on_cpu else (64, 256))
    clock = time.process_time if cpu_time else time.perf_counter
    click.echo(f"{machine(device)}, {repeats} pairs{', narrow networks' * small}{', CPU time' * cpu_time}\n")
    click.echo(table(measure(device, batches, repeats, small, clock)))


if __name__ == "__main__":
    main()
