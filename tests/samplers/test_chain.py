from __future__ import annotations

from dataclasses import dataclass

import torch
from conftest import identity_view

from studiogan_guidance.latents import LabelPlan
from studiogan_guidance.samplers.chain import LatentChain, Target, Walk, value_and_gradient


def test_climbing_leaves_rows_to_themselves_and_its_input_alone() -> None:
    u = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    with torch.no_grad():
        values, slope = value_and_gradient(lambda v: v.pow(3).sum(1), u)
    assert values.tolist() == [9, 26]
    assert slope.tolist() == [[3, 12], [27, 3]]
    assert not u.requires_grad


@dataclass(frozen=True)
class Shift(LatentChain):
    """Every step adds 1 to z, uphill or not."""

    calibration: str = "none"

    def walk(self, target: Target) -> Walk:
        z = target.latent.start
        for _ in range(self.steps):
            z = z + target.slope(z)[1].sign()
        return z, {"far": z.sum(1)}


@dataclass(frozen=True)
class Knowing(Shift):
    """Gives the score of its last state itself."""

    def walk(self, target: Target) -> Walk:
        z, _ = super().walk(target)
        return z, {"score": torch.full((len(z),), 7.0)}


def test_a_walk_gets_its_notes_and_costs_from_the_chain() -> None:
    """d(x) = x_1 + x_2: the notes are those of both ends, and each step costs one pass each way."""
    view = identity_view(lambda x, c: x.sum(1), z_dim=2)
    batch = next(Shift(steps=3).stream(view, range(5), 5, LabelPlan()))
    plain = next(Shift(steps=0).stream(view, range(5), 5, LabelPlan()))
    torch.testing.assert_close(batch.images, plain.images + 3)
    assert plain.notes == {}
    assert list(batch.notes) == ["score", "score_start", "norm", "far"]
    torch.testing.assert_close(batch.notes["score_start"], plain.images.sum(1))
    torch.testing.assert_close(batch.notes["score"], batch.images.sum(1))
    torch.testing.assert_close(batch.notes["norm"], batch.images.norm(dim=1) / 2**0.5)
    assert batch.cost == {"synthesis": 20, "discriminator": 20, "backward": 15}


def test_a_score_that_the_walk_knows_costs_no_pass() -> None:
    view = identity_view(lambda x, c: x.sum(1), z_dim=2)
    batch = next(Knowing(steps=3).stream(view, range(5), 5, LabelPlan()))
    assert batch.notes["score"].tolist() == [7] * 5
    assert batch.cost["discriminator"] == 15
