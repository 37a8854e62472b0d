"""25 Gaussians, conditional by rows: what each sampler makes of a weak generator when its discriminator is good.

    python benchmarks/gaussians.py --out runs/gaussians        # some 35 minutes of one CPU core
    python benchmarks/gaussians.py --out DIR --device cuda

Modes stand on 2 {-2..2}^2 with deviation 0.05, all divided by 2.828; the class is the row. A small GAN (logistic loss,
R1, moving average of the generator) is trained until the first check at which all modes are hit and the share --weak of
its samples is good (within 4 deviations of a mode of its row); then its discriminator is trained on against it. Options
are chosen on one range of seeds by the share of good samples, and reported on another, as mean and deviation over three
GANs.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance import samplers
from studiogan_guidance.latents import LabelPlan, LatentView, Networks
from studiogan_guidance.latents.base import Companions

SCALE, DEVIATION, CLASSES, Z_DIM = 2.828, 0.05 / 2.828, 5, 4
CENTRES = torch.tensor([[x, y] for y in range(-2, 3) for x in range(-2, 3)]) * 2 / SCALE  # row by row
TESTED = range(1_000_000, 1_004_000)
CHOSEN_ON = range(2_000_000, 2_001_000)
COLUMNS = ("modes", "good", "deviation", "kl")
GRID: dict[str, tuple[str, dict[str, list[Any]]]] = {  # row -> sampler, values of its options
    "plain": ("plain", {}),
    "drs": ("drs", {"percentile": [50, 80, 95]}),
    "metropolis": ("metropolis", {"proposals": [100, 640], "calibration": ["logistic", "isotonic"]}),
    "ddls": ("ddls", {"step": [1e-4, 3e-4, 1e-3], "steps": [400]}),
    "ddls, mala": ("ddls", {"step": [3e-4, 1e-3, 3e-3], "steps": [400], "mala": [True]}),
    "dgflow": ("dgflow", {"eta": [1e-4, 1e-3, 1e-2], "steps": [25, 100]}),
    "dot": ("dot", {"rate": [0.01, 0.05], "steps": [20, 100]}),
    "isir": ("isir", {"steps": [20, 60]}),
    "ex2mcmc": ("ex2mcmc", {"step": [1e-3, 1e-2], "steps": [20, 60]}),
}


def mlp(width_in: int, width: int, width_out: int) -> nn.Sequential:
    widths = [width_in, width, width, width]
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
    return nn.Sequential(*layers, nn.Linear(width, width_out))


class Discriminator(nn.Module):
    """Points [B, 2] and labels [B] -> logits, in the form in which the host's discriminators answer."""

    d_cond_mtd, num_classes = "MD", CLASSES

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = mlp(2 + CLASSES, width, width)
        self.linear1 = nn.Linear(width, 1)

    def forward(self, x: Tensor, labels: Tensor, eval: bool = False, adc_fake: bool = False) -> dict[str, Tensor]:
        h = F.leaky_relu(self.body(torch.cat([x, F.one_hot(labels, CLASSES).float()], 1)), 0.2)
        return {"h": h, "adv_output": self.linear1(h).squeeze(1)}


class PointView(LatentView):
    """Code = one-hot label; an image is a point [2]."""

    def encode(self, z: Tensor, labels: Tensor) -> Tensor:
        return F.one_hot(labels, CLASSES).float()

    def decode(self, code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        self.ledger.cost["synthesis"] += len(z)
        points: Tensor = self.generator(torch.cat([z, code], 1))
        return points


def real(count: int, device: str) -> tuple[Tensor, Tensor]:
    """Points [count, 2] of the data and their rows."""
    modes = torch.randint(25, (count,))
    return (CENTRES[modes] + DEVIATION * torch.randn(count, 2)).to(device), (modes // 5).to(device)


def measure(points: Tensor, labels: Tensor) -> dict[str, float]:
    """Modes hit, share of good samples, deviation within modes (of the data's), KL of the modes' shares to uniform.

    A sample is good within 4 deviations of a mode of its own row.
    """
    points, labels = points.cpu(), labels.cpu()
    distance, mode = torch.cdist(points, CENTRES).min(1)
    good = (distance < 4 * DEVIATION) & (mode // 5 == labels)
    shares = torch.bincount(mode[good], minlength=25) / max(int(good.sum()), 1)
    within = (points - CENTRES[mode])[good]
    return {
        "modes": float((shares > 0).sum()),
        "good": float(good.float().mean()),
        "deviation": float(within.square().mean().sqrt()) / DEVIATION,
        "kl": math.log(25) + float(torch.special.xlogy(shares, shares).sum()),
    }


def train(seed: int, device: str, weak: float, batch: int = 256) -> tuple[nn.Module, Discriminator, str]:
    """A GAN whose generator is at most just that good, and a discriminator that knows it well."""
    torch.manual_seed(seed)
    gen, dis = mlp(Z_DIM + CLASSES, 128, 2).to(device), Discriminator(256).to(device)
    average = copy.deepcopy(gen).requires_grad_(False)
    g_opt = torch.optim.Adam(gen.parameters(), 1e-3, (0.0, 0.99))
    d_opt = torch.optim.Adam(dis.parameters(), 1e-3, (0.0, 0.99))

    def fake(count: int, net: nn.Module) -> tuple[Tensor, Tensor]:
        z, y = torch.randn(count, Z_DIM, device=device), torch.randint(CLASSES, (count,), device=device)
        return net(torch.cat([z, F.one_hot(y, CLASSES).float()], 1)), y

    def d_step(penalty: float, net: nn.Module) -> None:
        x, y = real(batch, device)
        with torch.no_grad():
            points, labels = fake(batch, net)
        x.requires_grad_(penalty > 0)
        logits = dis(x, y)["adv_output"]
        loss = F.softplus(-logits).mean() + F.softplus(dis(points, labels)["adv_output"]).mean()
        if penalty:
            (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
            loss = loss + penalty / 2 * slope.square().sum(1).mean()
        d_opt.zero_grad()
        loss.backward()
        d_opt.step()

    found: dict[str, float] = {}
    for step in range(1, 20_001):
        d_step(2e-3, gen)
        points, labels = fake(batch, gen)
        loss = F.softplus(-dis(points, labels)["adv_output"]).mean()
        g_opt.zero_grad()
        loss.backward()
        g_opt.step()
        for kept, new in zip(average.parameters(), gen.parameters()):
            kept.lerp_(new.detach(), 0.01)
        if step % 250 == 0:
            with torch.no_grad():
                found = measure(*fake(5000, average))
            if found["modes"] == 25 and found["good"] >= weak:
                break
    for group in d_opt.param_groups:
        group["betas"] = (0.9, 0.999)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(d_opt, 8000)
    for _ in range(8000):
        d_step(0.0, average)
        schedule.step()
    said = f"seed {seed}: {step} steps, then {found['modes']:.0f} modes, {found['good']:.3f} good"
    return average.eval(), dis.eval().requires_grad_(False), said


def view_of(gen: nn.Module, dis: Discriminator, device: str) -> LatentView:
    companions = Companions(lambda: dis, lambda count: _held_out(count, device), lambda: "fresh data", lambda path: gen)
    networks = Networks(
        gen, "points", CLASSES, Z_DIM, 1, torch.device(device), "", "a small GAN", companions=companions
    )
    return PointView(networks)


def _held_out(count: int, device: str) -> tuple[Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(10**6)
        return real(count, device)


def run(view: LatentView, name: str, options: Mapping[str, Any], seeds: range) -> dict[str, float]:
    """The figures of one sampler, with its passes per sample."""
    started, cost = time.perf_counter(), Counter[str]()
    found = []
    for batch in samplers.create(name, options).stream(view, seeds, 2000, LabelPlan()):
        cost.update(batch.cost)
        found.append(batch)
    points, labels = torch.cat([b.images for b in found]), torch.cat([b.labels for b in found])
    passes = {key: cost[key] / len(seeds) for key in ("synthesis", "discriminator", "backward")}
    rate = {"acceptance": cost["accepted"] / cost["proposed"]} if cost["proposed"] else {}
    if "acceptance" in found[0].notes:
        rate = {"acceptance": float(torch.cat([b.notes["acceptance"] for b in found]).mean())}
    return {**measure(points, labels), **passes, **rate, "seconds": time.perf_counter() - started}


def points_of(options: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(options, values)) for values in itertools.product(*options.values())]


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/gaussians"), show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--weak", default=0.65, show_default=True, help="Training stops at this share of good samples.")
@click.option("--gans", default=3, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(GRID)), help="Rows. [all]")
def main(out: Path, device: str, weak: float, gans: int, only: tuple[str, ...]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, float]]] = {}
    picked: dict[str, list[str]] = {}
    for seed in range(gans):
        gen, dis, said = train(seed, device, weak)
        click.echo(said, err=True)
        view = view_of(gen, dis, device)
        for row, (name, grid) in GRID.items():
            if only and row not in only:
                continue
            fixed = {} if name == "plain" else {"calibration_images": 2000}
            candidates = [{**fixed, **options} for options in points_of(grid)]
            if len(candidates) > 1:
                scores = [run(view, name, options, CHOSEN_ON) for options in candidates]
                best = max(range(len(scores)), key=lambda i: (scores[i]["modes"], round(scores[i]["good"], 3)))
            else:
                best = 0
            found = run(view, name, candidates[best], TESTED)
            rows.setdefault(row, []).append(found)
            short = " ".join(f"{key}={value}" for key, value in candidates[best].items() if key in grid)
            picked.setdefault(row, []).append(short)
            with (out / "results.jsonl").open("a") as file:
                file.write(json.dumps({"seed": seed, "row": row, "options": candidates[best], **found}) + "\n")
            click.echo(f"  {row} {short}: {found}", err=True)
    click.echo("| sampler | modes | good | deviation / data's | KL of modes | G | D | backward | acceptance | chosen |")
    click.echo("|---|---|---|---|---|---|---|---|---|---|")
    for row, found in rows.items():
        cells = [_cell([one[key] for one in found], key) for key in COLUMNS]
        passes = [f"{statistics.mean(one[k] for one in found):.4g}" for k in ("synthesis", "discriminator", "backward")]
        rates = [one["acceptance"] for one in found if "acceptance" in one]
        rate = f"{statistics.mean(rates):.2f}" if rates else "-"
        chosen = "; ".join(dict.fromkeys(picked[row]))
        click.echo(f"| {row} | {' | '.join([*cells, *passes, rate, chosen])} |")


def _cell(values: list[float], key: str) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f}" if key == "modes" else f"{statistics.mean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
