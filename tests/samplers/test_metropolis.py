from __future__ import annotations

import pytest
import torch
from conftest import identity_view

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView
from studiogan_guidance.samplers import Samples
from studiogan_guidance.samplers.metropolis import moves, walk


def run(view: LatentView, count: int, **options: object) -> Samples:
    options = {"calibration": "none", **options}
    return next(samplers.create("metropolis", options).stream(view, range(count), count, LabelPlan()))


def test_the_rule_is_that_of_calibrated_probabilities() -> None:
    old, new, chance = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha = (1 / old - 1) / (1 / new - 1)
    found = moves(torch.logit(old), torch.logit(new), chance)
    assert torch.equal(found, chance < alpha.clamp(max=1))


def test_moments_and_acceptance_of_a_shifted_gaussian() -> None:
    """p_g = N(0, 1), log ratio x - 1/2: the target is N(1, 1), and about 48 % of the proposals are accepted."""
    view = identity_view(lambda x, c: x[:, 0] - 0.5)
    found = run(view, 2000, proposals=100)
    x = found.images.flatten()
    assert x.mean() == pytest.approx(1, abs=0.08)
    assert x.var() == pytest.approx(1, abs=0.1)
    assert found.notes["acceptance"].mean() == pytest.approx(0.4795, abs=0.02)  # 2 Phi(-1 / sqrt 2), once stationary
    assert found.cost["discriminator"] == found.cost["proposed"] == 200_000


def test_a_shared_pool_has_the_same_law_and_judges_each_member_once() -> None:
    view = identity_view(lambda x, c: x[:, 0] - 0.5)
    found = run(view, 2000, proposals=100, pool=20_000)
    x = found.images.flatten()
    assert x.mean() == pytest.approx(1, abs=0.08)
    assert x.var() == pytest.approx(1, abs=0.12)
    assert view.ledger.setup["discriminator"] == 40_000  # two classes
    assert "discriminator" not in found.cost


def test_chains_start_at_the_score_of_a_real_image_which_is_never_put_out() -> None:
    """Real images that no fake can match: nothing is accepted, and the chain is repeated from its first proposal."""
    real = torch.full((40, 1), 50.0)
    view = identity_view(lambda x, c: x[:, 0] - 0.5, real=real)
    found = run(view, 1000, proposals=60, calibration="logistic")
    assert found.images.max() < 10
    assert found.notes["acceptance"].max() == 0
    assert found.images.mean() > 0.2  # ... from which it walks on, towards higher ratios


def test_a_walk_by_hand() -> None:
    ratios, chance = torch.tensor([0.0, -1.0, 2.0, 1.9, 0.0]), torch.tensor([0.5, 0.5, 0.5, 0.5, 0.01])
    moved = walk(torch.tensor(-torch.inf), ratios, chance)
    assert moved == [0, 2, 3, 4]  # exp(-1) < .5, exp(-.1) > .5, exp(-1.9) > .01
    assert walk(torch.tensor(3.0), ratios, chance) == [4]  # exp(-1) < .5, ..., exp(-3) > .01


def test_mh_is_another_name() -> None:
    assert samplers.SAMPLERS["mh"].name == "metropolis"
    with pytest.raises(UserError, match="metropolis.pool must be a number from 640 up, found 10"):
        samplers.create("mh", {"pool": 10})
