"""The stage ``amortised`` on toys of known answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ToyGAN, toy_networks
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.critics.critic import Critic
from studiogan_guidance.critics.maps import PooledMaps
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, moves, view_for
from studiogan_guidance.latents.moves import Move
from studiogan_guidance.samplers.gandance import GANdance
from studiogan_guidance.training import STAGES, Trained
from studiogan_guidance.training.amortised import AmortisedStage, moved_images
from studiogan_guidance.training.label_head import LabelHead, Memory


class Pixels(nn.Module):
    """A discriminator without an opinion, whose features are the pixels."""

    d_cond_mtd = "W/O"

    def forward(self, images: Tensor, labels: Tensor, eval: bool) -> dict[str, Tensor]:
        pixels = images.flatten(1)
        return {"h": pixels, "adv_output": 0 * pixels.sum(1)}


class OneMap(Pixels):
    """The same after a convolution that doubles the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1, bias=False)
        self.convolution.weight.data = 2 * torch.eye(3).view(3, 3, 1, 1)

    def forward(self, images: Tensor, labels: Tensor, eval: bool) -> dict[str, Tensor]:
        return super().forward(self.convolution(images), labels, eval)


SHIFT = 1.5 * torch.randn(5, 12, generator=torch.Generator().manual_seed(5))  # of the classes of real images


def shifted(batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Real images: those of the toy, each class shifted by a known vector."""
    gan = ToyGAN(interaction=0)
    for number in itertools.count(first):
        gen = torch.Generator().manual_seed(number)
        labels = torch.randint(5, (batch_size,), generator=gen)
        w = gan.mapping(torch.randn(batch_size, 4, generator=gen), F.one_hot(labels, 5).float())
        yield gan.synthesis(w) + SHIFT[labels].view(-1, 3, 2, 2), labels


def learn(
    folder: Path, gan: ToyGAN, evaluation: Any = None, discriminator: nn.Module | None = None, **options: Any
) -> Move:
    """The move that the stage learns on a toy."""
    networks = toy_networks(gan, "")
    opponent = discriminator or Pixels()
    run = Trained(networks, lambda: opponent, shifted, folder, 0, 0, 1, lambda line: None, evaluation=evaluation)
    result = AmortisedStage(**options).after_training(run)
    return moves.load(Path(result["joint"]), view_for(networks), "amortised")


def class_means(gan: ToyGAN, sampler: GANdance) -> Tensor:
    """Mean image of each class, [5, 12]."""
    view = view_for(toy_networks(gan, ""))
    inputs = view.draw(range(4000), 0, LabelPlan((0, 1, 2, 3, 4)))
    with torch.no_grad():
        pixels = sampler.images(view, inputs).flatten(1)
    return pixels.view(800, 5, 12).mean(0)


@pytest.mark.parametrize("weights", [{"energy": 1, "deceive": 0}, {"energy": 0, "deceive": 1}])
def test_class_means_that_are_off_are_corrected(tmp_path: Path, weights: dict[str, float]) -> None:
    """By either objective alone."""
    gan = ToyGAN(interaction=0)
    options: dict[str, Any] = {"depth": 0, "per_block": False, "steps": 300, "batch": 32, "lr": 0.05, **weights}
    move = learn(tmp_path, gan, classify=0, ridge_code=0, ridge_noise=0, head_lr=0.01, ema=0.9, **options)
    plain = class_means(gan, GANdance(scale=1))
    moved = class_means(gan, GANdance(scale=2, joint="amortised").away_from(move))
    assert (moved - plain - SHIFT).norm() < 0.4 * SHIFT.norm()


def test_at_step_0_the_move_is_the_free_setting(tmp_path: Path) -> None:
    """m + s (m_c - m) + psi (w - m_c), as gandance samples it."""
    gan = ToyGAN()
    move = learn(tmp_path, gan, steps=0, start_scale=1.4, start_spread=0.7, hidden=8)
    view = view_for(toy_networks(gan, ""))
    inputs = view.draw(range(8), 0, LabelPlan())
    moved = GANdance(scale=2, joint="amortised").away_from(move).images(view, inputs)
    free = GANdance(scale=1.4, joint="class_shift", psi=0.7).images(view, inputs)
    torch.testing.assert_close(moved, free)


def test_only_move_and_head_learn(tmp_path: Path) -> None:
    gan, opponent = ToyGAN(), OneMap()
    opponent.train()
    before = [value.clone() for value in (*gan.parameters(), *opponent.parameters())]
    move = learn(tmp_path, gan, discriminator=opponent, steps=4, batch=8, hidden=8, head_first=1)
    after = [*gan.parameters(), *opponent.parameters()]
    assert all(torch.equal(one, other) and other.grad is None for one, other in zip(before, after))
    assert all(value.requires_grad for value in after)
    assert opponent.training
    assert move.offsets.any()
    assert move.code_network[-1].weight.any()


def test_a_run_that_goes_on_ends_as_a_whole_one(tmp_path: Path) -> None:
    """It stops after step 6, with the state of step 4."""
    options: dict[str, Any] = {"batch": 8, "hidden": 8, "head_first": 2, "steps": 9, "note_every": 1}
    whole = learn(tmp_path / "whole", ToyGAN(), **options)

    def stop(step: int, values: Any) -> None:
        if step == 6:
            raise KeyError("stop")

    run = Trained(toy_networks(ToyGAN(), ""), Pixels, shifted, tmp_path / "rest", 0, 0, 1, lambda line: None, stop)
    with pytest.raises(KeyError, match="stop"):
        AmortisedStage(save_every=4, **options).after_training(run)
    rest = learn(tmp_path / "rest", ToyGAN(), **options)
    assert whole.digest() == rest.digest()
    assert (tmp_path / "rest" / "amortised.jsonl").read_text() == (tmp_path / "whole" / "amortised.jsonl").read_text()


class Judge:
    """Validation by distances that are known: those of the start and of each evaluation after it."""

    def __init__(self, *fids: float) -> None:
        self.fids = iter(fids)

    def measure(self, name: str, sampler: GANdance) -> dict[str, Any]:
        return {"metrics": {"fid": next(self.fids)}}


@pytest.mark.parametrize(("fids", "best"), [((1.0, 2.0, 3.0), 0), ((3.0, 1.0, 2.0), 2)])
def test_the_step_of_the_least_distance_is_kept(tmp_path: Path, fids: tuple[float, ...], best: int) -> None:
    options: dict[str, Any] = {"steps": 4, "eval_every": 2, "batch": 8, "hidden": 8, "head_first": 0}
    move = learn(tmp_path, ToyGAN(), evaluation=lambda: Judge(*fids), **options)
    assert moves.FILES["amortised"].read(tmp_path / "amortised.safetensors")[0]["training"]["step"] == best
    assert bool(move.offsets.any()) == bool(best)


def test_the_head_tells_images_by_what_belongs_to_their_label() -> None:
    """Real and other features are alike, but for which label has which sign."""
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    x = torch.randn(64, 3) + 4 * (labels[:, None] - 0.5)
    head = LabelHead(torch.zeros(3), torch.ones(3), 2, 8)
    assert not head(x, labels).any()
    optimiser = torch.optim.Adam(head.parameters(), 0.03)
    for _ in range(100):
        loss = F.softplus(-head(x, labels)).mean() + F.softplus(head(x, 1 - labels)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (head(x, labels) > 0).float().mean() > 0.95
    assert (head(x, 1 - labels) < 0).float().mean() > 0.95


def test_the_head_reads_standard_features() -> None:
    torch.manual_seed(0)
    centre, unit = torch.randn(3), torch.rand(3) + 0.5
    scaled, plain = (LabelHead(*pair, 2, 4) for pair in ((centre, unit), (torch.zeros(3), torch.ones(3))))
    for head in (scaled, plain):
        torch.manual_seed(1)
        for value in head.parameters():
            nn.init.normal_(value)
    x, labels = torch.randn(6, 3), torch.arange(6) % 2
    torch.testing.assert_close(scaled(centre + unit * x, labels), plain(x, labels))
    torch.testing.assert_close(scaled.classes(centre + unit * x), plain.classes(x))


def test_maps_are_pooled_to_mean_and_root_mean_square_of_their_positive_part() -> None:
    images = torch.randn(4, 3, 2, 2, requires_grad=True)
    opponent = OneMap().requires_grad_(False)
    features = PooledMaps(Critic(opponent))(images)
    positive = 2 * images.flatten(2).clamp_min(0)
    expected = torch.cat([positive.mean(2), positive.square().mean(2).sqrt(), 2 * images.flatten(1)], 1)
    torch.testing.assert_close(features, expected, atol=2e-4, rtol=1e-4)
    assert torch.autograd.grad(features.sum(), images)[0].any()
    assert not opponent.convolution._forward_hooks


def test_ridges_are_in_units_of_the_spread_of_classes_and_of_the_prior() -> None:
    view = view_for(toy_networks(ToyGAN(), ""))
    move = moves.create(view, "amortised")
    move.offsets.data += 3
    inputs = view.draw(range(6), 0, LabelPlan())
    images, ridges = moved_images(move, view, inputs)
    assert ridges["code"].item() == pytest.approx(9)
    assert ridges["noise"].item() == 0
    torch.testing.assert_close(images, view.images(inputs) + 3 * move.get_buffer("unit"))


def test_the_rate_waits_for_the_head_and_falls_at_the_end() -> None:
    stage = AmortisedStage(steps=110, head_first=10, lr=0.5)
    assert [stage.rate(step) for step in (0, 9, 10, 60, 85, 110)] == [0, 0, 0.5, 0.5, 0.25, 0]


def test_an_image_costs_one_pass_of_the_generator(tmp_path: Path) -> None:
    """The passes of the small network are counted apart."""
    gan = ToyGAN()
    move = moves.create(view_for(toy_networks(gan, "")), "amortised", hidden=8, depth=1)
    view = view_for(toy_networks(gan, ""))
    GANdance(scale=2, joint="amortised").away_from(move).images(view, view.draw(range(6), 0, LabelPlan()))
    assert view.ledger.cost["synthesis"] == 6
    assert view.ledger.cost["mapping"] == 6
    assert view.ledger.cost["joint"] == 6


def test_memory_holds_the_latest_rows() -> None:
    memory = Memory(5, 1)
    assert [len(rows) for rows in memory.parts()] == [0, 0]
    for first in range(0, 6, 2):
        rows = torch.arange(first, first + 2.0)[:, None]
        memory.put(rows, -rows)
    moved, real = memory.parts()
    assert moved.squeeze(1).tolist() == [4, 5, 2, 3, 0]
    assert torch.equal(real, -moved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 1}, "amortised.scale is 1, at which nothing is moved"),
        ({"start_spread": math.inf}, "amortised.start_spread must be a finite number"),
        ({"batch": 1}, "amortised.batch must be 2 or more, found 1"),
        ({"classify": -1}, "amortised.classify must be 0 or more, found -1"),
        ({"lr": 0}, "amortised.lr must be positive, found 0"),
        ({"ema": 1}, r"amortised.ema must be in \[0, 1\), found 1"),
        ({"ridge": 1}, "ridge_code"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        STAGES.create("amortised", options)
