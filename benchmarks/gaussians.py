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

SCALE = 2.828
DEVIATION = 0.05 / 2.828
CLASSES = 5
Z_DIM = 4
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

    d_cond_mtd = "MD"
    num_classes = CLASSES

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
    points = points.cpu()
    labels = labels.cpu()
    distance, mode = torch.cdist(points, CENTRES).min(1)
    good = (distance < 4 * DEVIATION) & (mode // 5 == labels)

    # Shares of the modes, and the spread within them.
    shares = torch.bincount(mode[good], minlength=25) / max(int(good.sum()), 1)
    within = (points - CENTRES[mode])[good]
    return {
        "modes": float((shares > 0).sum()),
        "good": float(good.float().mean()),
        "deviation": float(within.square().mean().sqrt()) / DEVIATION,
        "kl": math.log(25) + float(torch.special.xlogy(shares, shares).sum()),
    }


class Game:
    """A generator, the moving average of its weights, and a discriminator, with a batch of each step."""

    def __init__(self, device: str, batch: int = 256) -> None:
        self.device = device
        self.batch = batch
        self.gen = mlp(Z_DIM + CLASSES, 128, 2).to(device)
        self.dis = Discriminator(256).to(device)
        self.average = copy.deepcopy(self.gen).requires_grad_(False)
        self.g_optimiser = torch.optim.Adam(self.gen.parameters(), 1e-3, (0.0, 0.99))
        self.d_optimiser = torch.optim.Adam(self.dis.parameters(), 1e-3, (0.0, 0.99))

    def fake(self, count: int, net: nn.Module) -> tuple[Tensor, Tensor]:
        """Points of a generator and their rows."""
        z = torch.randn(count, Z_DIM, device=self.device)
        labels = torch.randint(CLASSES, (count,), device=self.device)
        return net(torch.cat([z, F.one_hot(labels, CLASSES).float()], 1)), labels

    def discriminator_step(self, penalty: float, net: nn.Module) -> None:
        """A step of the logistic loss against ``net``, with R1 of weight ``penalty``."""
        x, y = real(self.batch, self.device)
        with torch.no_grad():
            points, labels = self.fake(self.batch, net)
        x.requires_grad_(penalty > 0)
        logits = self.dis(x, y)["adv_output"]
        loss = F.softplus(-logits).mean() + F.softplus(self.dis(points, labels)["adv_output"]).mean()
        if penalty:
            (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
            loss = loss + penalty / 2 * slope.square().sum(1).mean()

        self.d_optimiser.zero_grad()
        loss.backward()
        self.d_optimiser.step()

    def generator_step(self) -> None:
        """A step of the non-saturating loss, and of the moving average."""
        points, labels = self.fake(self.batch, self.gen)
        loss = F.softplus(-self.dis(points, labels)["adv_output"]).mean()
        self.g_optimiser.zero_grad()
        loss.backward()
        self.g_optimiser.step()
        for mean, value in zip(self.average.parameters(), self.gen.parameters()):
            mean.lerp_(value.detach(), 0.01)


def train(seed: int, device: str, weak: float, steps: int, finish: int) -> tuple[nn.Module, Discriminator, str]:
    """A GAN whose generator is at most just that good, and a discriminator that knows it well."""
    torch.manual_seed(seed)
    game = Game(device)

    # Train both until the generator is good enough.
    state: dict[str, float] = {"modes": 0, "good": 0}
    for step in range(1, steps + 1):
        game.discriminator_step(2e-3, game.gen)
        game.generator_step()
        if step % 250 == 0:
            with torch.no_grad():
                state = measure(*game.fake(5000, game.average))
            if state["modes"] == 25 and state["good"] >= weak:
                break

    # Train the discriminator against the average.
    for group in game.d_optimiser.param_groups:
        group["betas"] = (0.9, 0.999)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(game.d_optimiser, finish)
    for _ in range(finish):
        game.discriminator_step(0.0, game.average)
        schedule.step()

    text = f"seed {seed}: {step} steps, then {state['modes']:.0f} modes, {state['good']:.3f} good"
    return game.average.eval(), game.dis.eval().requires_grad_(False), text


def view_of(gen: nn.Module, dis: Discriminator, device: str) -> LatentView:
    companions = Companions(lambda: dis, lambda count: _held_out(count, device), lambda: "fresh data", lambda path: gen)
    networks = Networks(
        gen, "points", CLASSES, Z_DIM, 1, torch.device(device), "", "a small GAN", companions=companions
    )
    return PointView(networks)


def _held_out(count: int, device: str) -> tuple[Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(10**6)
        return real(count, device)


def run(view: LatentView, name: str, options: Mapping[str, Any], seeds: range) -> dict[str, float]:
    """The figures of one sampler, with its passes per sample."""
    # Sample.
    started = time.perf_counter()
    cost: Counter[str] = Counter()
    batches = []
    for batch in samplers.create(name, options).stream(view, seeds, 2000, LabelPlan()):
        cost.update(batch.cost)
        batches.append(batch)

    # Count passes and accepted proposals.
    passes = {key: cost[key] / len(seeds) for key in ("synthesis", "discriminator", "backward")}
    rate = {"acceptance": cost["accepted"] / cost["proposed"]} if cost["proposed"] else {}
    if "acceptance" in batches[0].notes:
        rate = {"acceptance": float(torch.cat([batch.notes["acceptance"] for batch in batches]).mean())}

    # Compare with the data.
    points = torch.cat([batch.images for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    return {**measure(points, labels), **passes, **rate, "seconds": time.perf_counter() - started}


def choose(view: LatentView, name: str, grid: Mapping[str, list[Any]]) -> dict[str, Any]:
    """The options with the most modes, and then the most good samples, on the seeds that are for choosing."""
    fixed = {} if name == "plain" else {"calibration_images": 2000}
    points = [{**fixed, **dict(zip(grid, values))} for values in itertools.product(*grid.values())]
    if len(points) == 1:
        return points[0]
    scores = [run(view, name, options, CHOSEN_ON) for options in points]
    best = max(range(len(points)), key=lambda i: (scores[i]["modes"], round(scores[i]["good"], 3)))
    return points[best]


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/gaussians"), show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--weak", default=0.65, show_default=True, help="Training stops at this share of good samples.")
@click.option("--gans", default=3, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(GRID)), help="Rows. [all]")
@click.option("--steps", default=20_000, show_default=True, help="Most steps of a GAN.")
@click.option("--finish", default=8000, show_default=True, help="Steps of the discriminator alone.")
def main(out: Path, device: str, weak: float, gans: int, only: tuple[str, ...], steps: int, finish: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, list[dict[str, float]]] = {}
    chosen: dict[str, list[str]] = {}
    for seed in range(gans):
        gen, dis, text = train(seed, device, weak, steps, finish)
        click.echo(text, err=True)
        view = view_of(gen, dis, device)
        for row, (name, grid) in GRID.items():
            if only and row not in only:
                continue

            # Choose the sampler's options, and test it.
            options = choose(view, name, grid)
            values = run(view, name, options, TESTED)
            figures.setdefault(row, []).append(values)
            choice = " ".join(f"{key}={value}" for key, value in options.items() if key in grid)
            chosen.setdefault(row, []).append(choice)

            # Keep the result.
            with (out / "results.jsonl").open("a") as file:
                file.write(json.dumps({"seed": seed, "row": row, "options": options, **values}) + "\n")
            click.echo(f"  {row} {choice}: {values}", err=True)

    click.echo("| sampler | modes | good | deviation / data's | KL of modes | G | D | backward | acceptance | chosen |")
    click.echo("|---|---|---|---|---|---|---|---|---|---|")
    for row, runs in figures.items():
        click.echo(markdown(row, runs, chosen[row]))


def markdown(row: str, runs: list[dict[str, float]], chosen: list[str]) -> str:
    """A row of the table: mean and deviation over the GANs."""
    cells = [_cell([values[key] for values in runs], key) for key in COLUMNS]
    for key in ("synthesis", "discriminator", "backward"):
        cells.append(f"{statistics.mean(values[key] for values in runs):.4g}")
    rates = [values["acceptance"] for values in runs if "acceptance" in values]
    cells.append(f"{statistics.mean(rates):.2f}" if rates else "-")
    cells.append("; ".join(dict.fromkeys(chosen)))
    return f"| {row} | {' | '.join(cells)} |"


def _cell(values: list[float], key: str) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f}" if key == "modes" else f"{statistics.mean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
