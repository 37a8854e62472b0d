from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import identity_view
from torch import Tensor

from studiogan_guidance import builtin, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers import simplicial
from studiogan_guidance.samplers.simplicial import axes_logits, cells_of, confidence

AXES = {"centers": "axes", "cells": 3}


def view_of(z_dim: int, classes: int = 2, **more: object) -> LatentView:
    return identity_view(lambda x, c: x[:, 0], z_dim=z_dim, classes=classes, **more)


def draw(view: LatentView, count: int, batch: int = 500, **options: object) -> tuple[Tensor, Tensor, dict[str, int]]:
    found = list(samplers.create("simplicial", options).stream(view, range(count), batch, LabelPlan()))
    cost = {key: sum(each.cost.get(key, 0) for each in found) for key in ("proposed", "accepted")}
    return torch.cat([each.images for each in found]), torch.cat([each.labels for each in found]), cost


@pytest.mark.parametrize(
    ("d", "m", "tau", "share", "within"),
    [(64, 10, 0.135, 0.9999, 2e-4), (128, 100, 0.08, 0.385, 0.004), (128, 100, 0.20, 0.0105, 8e-4)],
)
def test_shares_that_the_thresholds_of_the_paper_keep(d: int, m: int, tau: float, share: float, within: float) -> None:
    z = torch.randn(100_000, d, generator=torch.Generator().manual_seed(0))
    kept = (confidence(axes_logits(z, torch.arange(m))) > tau).float().mean()
    assert kept == pytest.approx(share, abs=within)


def test_confidence_is_that_of_the_distances_to_the_centres() -> None:
    """sqrt(d) z_k / |z| is -|a - b|^2 / 2 sqrt(d), up to a constant, for a = z and b = e_k, both of length sqrt(d)."""
    z, axes = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 0, 2])
    sphere = 6**0.5 * z / z.norm(dim=1, keepdim=True)
    centres = 6**0.5 * torch.eye(6)[axes]
    distances = (sphere[:, None] - centres).square().sum(2)
    torch.testing.assert_close(confidence(axes_logits(z, axes)), (-distances / (2 * 6**0.5)).softmax(1).amax(1))
    torch.testing.assert_close(axes_logits(7 * z, axes), axes_logits(z, axes))


@pytest.mark.parametrize("accept", [0.1, 0.5, 0.9])
def test_the_asked_share_is_kept_and_what_is_kept_is_plain(accept: float) -> None:
    view = view_of(8)
    x, _, cost = draw(view, 1500, accept=accept, **AXES)
    plain, _, _ = draw(view, 1500, accept=1)
    assert cost["accepted"] / cost["proposed"] == pytest.approx(accept, abs=0.04)
    same = (x == plain).all(1)
    assert same.float().mean() == pytest.approx(accept, abs=0.04)
    axes = torch.randperm(8, generator=torch.Generator().manual_seed(0))[:3]
    low, high = (confidence(axes_logits(each, axes)) for each in (plain[~same], x))
    assert low.max() <= high.min()
    assert torch.equal(draw(view, 60, 7, accept=accept, **AXES)[0], x[:60])


def test_a_threshold_is_tau_itself() -> None:
    x, _, cost = draw(view_of(64), 2000, centers="axes", threshold=0.27)
    axes = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:10]
    assert confidence(axes_logits(x, axes)).min() > 0.27
    z = torch.randn(100_000, 64, generator=torch.Generator().manual_seed(1))
    share = (confidence(axes_logits(z, axes)) > 0.27).float().mean()
    assert cost["accepted"] / cost["proposed"] == pytest.approx(float(share), rel=0.06)


def test_a_classifier_of_cells_that_are_half_spaces_of_z() -> None:
    """Features jump where z_0 changes sign: certain latents are those far from there, whatever the rest of z is."""
    z = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0))
    cells = cells_of(z, 10 * z[:, :1].sign() + 0.1 * z[:, 1:2], 2)
    assert cells.accuracy > 0.97
    found = confidence(z.double() @ cells.weights + cells.offsets)
    assert (
        torch.corrcoef(torch.stack([found.argsort().argsort().double(), z[:, 0].abs().argsort().argsort()]))[0, 1] > 0.9
    )
    chance = cells_of(z, torch.randn(2000, 3, generator=torch.Generator().manual_seed(1)), 4)
    assert chance.accuracy < 0.35


def test_probabilities_are_those_of_scikit_learn() -> None:
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression

    z = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    for count in (2, 3):
        cells, labels = cells_of(z, z[:, :2], count), KMeans(count, n_init=4, random_state=0).fit_predict(z[:, :2])
        train = torch.arange(500) % 5 != 4
        fit = LogisticRegression(max_iter=1000).fit(z[train].double(), labels[train])
        expected = torch.from_numpy(fit.predict_proba(z.double())).amax(1)
        torch.testing.assert_close(confidence(z.double() @ cells.weights + cells.offsets), expected)


def test_in_two_modes_the_latents_between_them_go() -> None:
    """Features of an image are the signs of its first two numbers: cells are quadrants, and their borders go."""

    class Signs(torch.nn.Module):
        d_cond_mtd, num_classes = "MD", 2

        def forward(self, x: Tensor, labels: Tensor, eval: bool = False, adc_fake: bool = False) -> dict[str, Tensor]:
            return {"h": x[:, :2].sign(), "adv_output": x[:, 0]}

    view = view_of(3)
    companions = dataclasses.replace(view.networks.companions, discriminator=Signs)  # type: ignore[type-var]
    view = type(view)(dataclasses.replace(view.networks, companions=companions))
    sampler = samplers.create("simplicial", {"cells": 4, "draws": 2000, "accept": 0.3})
    batch = next(sampler.stream(view, range(800), 800, LabelPlan()))
    x, plain = batch.images, draw(view, 800, accept=1)[0]
    assert x[:, :2].abs().amin(1).mean() > 2 * plain[:, :2].abs().amin(1).mean()
    assert x[:, 2].std() == pytest.approx(1, abs=0.1)
    assert torch.histc(x[:, 0].sign() + 3 * x[:, 1].sign(), 4, -4.1, 4.1).min() > 120  # no cell is lost
    assert batch.notes["cell_accuracy"].min() > 0.9
    assert batch.cost["accepted"] / batch.cost["proposed"] == pytest.approx(0.3, abs=0.04)
    assert view.ledger.setup["discriminator"] == 2 * 1000


def test_each_class_has_cells_of_its_own_and_classes_that_do_not_occur_cost_nothing(toy_view: LatentView) -> None:
    sampler = samplers.create("simplicial", {"cells": 2, "draws": 200})
    next(sampler.stream(toy_view, range(4), 4, LabelPlan((2,))))
    assert toy_view.ledger.setup["synthesis"] == toy_view.ledger.setup["discriminator"] == 40
    again = view_for(toy_view.networks)
    next(sampler.stream(again, range(4), 4, LabelPlan((2, 3))))
    assert again.ledger.setup["synthesis"] == 40  # those of class 2 were on disk
    weights = [sampler.cells_of_class(again, label).weights for label in (2, 3)]
    assert not torch.allclose(*weights, atol=0.1)


def test_infogan_numbers_stay() -> None:
    view = view_of(6, info_discrete=1, info_discrete_dim=3, info_continuous=2)
    x, plain = draw(view, 50, accept=0.1, **AXES)[0], draw(view, 50, accept=1)[0]
    assert torch.equal(x[:, 6:], plain[:, 6:])
    assert not torch.equal(x, plain)


def test_a_tau_that_nothing_passes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplicial, "TRIES", 50)
    with pytest.raises(UserError, match="simplicial kept none of 50 latents of class . at tau 0.999"):
        draw(view_of(8), 2, threshold=0.999, **AXES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"centers": "axis"}, "simplicial.centers is 'axis': did you mean 'axes'"),
        ({"cells": 1}, "simplicial.cells must be a number from 2 up"),
        ({"accept": 0}, "simplicial.accept must be more than 0"),
        ({"accept": 1.1}, "simplicial.accept must be more than 0 and at most 1"),
        ({"threshold": 1}, "simplicial.threshold must be below 1"),
        ({"centers": "axes", "cells": 9}, "simplicial.cells is 9, but z has 8 axes"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("simplicial", options).check(view_of(8))


def test_only_clusters_need_a_discriminator() -> None:
    view = view_for(dataclasses.replace(builtin.networks(), companions=None))
    with pytest.raises(UserError, match="needs a discriminator, and there is none beside"):
        samplers.create("simplicial").check(view)
    samplers.create("simplicial", AXES).check(view)
    assert samplers.create("simplicial", AXES).files(view) == {}
    assert "discriminator_sha256" in samplers.create("simplicial").files(view_for(builtin.networks()))
