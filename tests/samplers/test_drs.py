from __future__ import annotations

import math

import pytest
import torch
from conftest import identity_view

from studiogan_guidance import rng, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView
from studiogan_guidance.samplers.drs import acceptance


def line(view: LatentView, count: int = 4000, **options: object) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    found = list(samplers.create("drs", options).stream(view, range(count), 500, LabelPlan()))
    cost = {key: sum(batch.cost[key] for batch in found) for key in ("proposed", "accepted")}
    return torch.cat([b.images for b in found]).flatten(), torch.cat([b.labels for b in found]), cost


def test_without_gamma_and_epsilon_it_is_ordinary_rejection() -> None:
    ratio, bound = torch.linspace(-8, 1, 50, dtype=torch.float64), 1.0
    found = torch.sigmoid(acceptance(ratio, bound, 0.0, 1e-14))
    torch.testing.assert_close(found, torch.exp(ratio - bound), atol=1e-12, rtol=1e-10)


def test_at_and_beyond_the_bound_all_is_finite_or_accepted_and_gamma_shifts() -> None:
    assert torch.sigmoid(acceptance(torch.tensor([0.0, 5.0]), 0.0, 0.0, 0.0)).tolist() == [1, 1]
    f = acceptance(torch.tensor([-1e4, -1.0, 0.0, 3.0], dtype=torch.float64), 0.0, 2.0)
    assert torch.isfinite(f).all()
    assert f[3] == f[2] == pytest.approx(-math.log(1e-6) - 2, abs=1e-3)
    assert f[1] == pytest.approx(-1 - math.log(1 - math.exp(-1 - 1e-6)) - 2)


def test_it_samples_the_density_ratio_times_the_generator() -> None:
    """p_g = N(0, 1) and d(x) = -x^2 / 2: the product is N(0, 1/2), and the ratio is at most 1 at 0."""
    view = identity_view(lambda x, c: -x[:, 0].square() / 2)
    x, _, cost = line(view, calibration="none", gamma=0, burn_in=2000)
    assert len(x) == cost["accepted"] == 4000
    assert x.mean().abs() < 0.04
    assert x.var() == pytest.approx(0.5, abs=0.04)
    assert cost["accepted"] / cost["proposed"] == pytest.approx(math.sqrt(0.5), abs=0.02)  # the mean of exp(d - max d)


def test_bounds_belong_to_classes_so_labels_stay_as_drawn() -> None:
    """Class 1 gets 20 more than class 0: one bound for both would reject every image of class 0."""
    view = identity_view(lambda x, c: -x[:, 0].square() / 2 + 20 * c)
    x, labels, _ = line(view, calibration="none", gamma=0, burn_in=2000)
    assert labels.float().mean() == pytest.approx(0.5, abs=0.03)
    for label in (0, 1):
        assert x[labels == label].var() == pytest.approx(0.5, abs=0.06)


def test_one_bound_for_all_classes_is_the_largest_ratio_of_all_fakes() -> None:
    """Classes that differ by 1: the bound and the percentile are those of the fakes of both, half of them each."""
    view = identity_view(lambda x, c: -x[:, 0].square() / 2 + c)
    sampler = samplers.create("drs", {"calibration": "none", "burn_in": 501, "bound": "global", "percentile": 80})
    with view.frozen(), torch.no_grad():
        limits = [sampler.limits(view, label, "const") for label in (0, 1)]
        seeds = [rng.POOLS + draw % 2 * 501 + draw for draw in range(501)]
        z = torch.cat([view.draw([seed], 0, LabelPlan()).z for seed in seeds]).double().flatten()
    ratios = -z.square() / 2 + torch.arange(501) % 2
    assert limits[0] == limits[1] == (pytest.approx(float(ratios.max())), pytest.approx(gamma_of(ratios), abs=1e-4))
    assert view.ledger.setup["synthesis"] == 501

    # Of classes with bounds of their own, the better one has the higher bound.
    own = samplers.create("drs", {"calibration": "none", "burn_in": 501})
    assert own.limits(view, 1, "const")[0] - own.limits(view, 0, "const")[0] == pytest.approx(1, abs=0.01)


def gamma_of(ratios: torch.Tensor) -> float:
    return float(acceptance(ratios, float(ratios.max())).quantile(0.8))


def test_under_one_bound_a_class_that_is_liked_less_needs_more_proposals_and_labels_stay() -> None:
    view = identity_view(lambda x, c: -x[:, 0].square() / 2 + c)
    sampler = samplers.create("drs", {"calibration": "none", "burn_in": 2000, "bound": "global", "gamma": 0})
    batch = next(sampler.stream(view, range(3000), 3000, LabelPlan((0, 1))))
    assert batch.labels.tolist() == [0, 1] * 1500
    for label in (0, 1):  # 1 / E exp(d - max d), as the law within a class does not change
        rows = batch.labels == label
        assert batch.notes["tries"][rows].mean() == pytest.approx(math.sqrt(2) * math.exp(1 - label), rel=0.07)
        assert batch.images[rows].var() == pytest.approx(0.5, abs=0.06)


def test_a_higher_percentile_accepts_fewer_and_better_images() -> None:
    view = identity_view(lambda x, c: -x[:, 0].square() / 2)
    found = [line(view, 1000, calibration="none", percentile=p, burn_in=2000) for p in (10, 80, 95)]
    rates = [cost["accepted"] / cost["proposed"] for _, _, cost in found]
    spread = [float(x.var()) for x, _, _ in found]
    assert rates == sorted(rates, reverse=True)
    assert spread == sorted(spread, reverse=True)


def test_what_is_never_accepted_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studiogan_guidance.samplers.drs.TRIES", 20)
    view = identity_view(lambda x, c: -x[:, 0].square() / 2)
    with pytest.raises(UserError, match=r"accepted none of 20 images of class \d: lower percentile"):
        line(view, calibration="none", gamma=60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"percentile": 101}, "drs.percentile must be at most 100"),
        ({"percentile": -1}, "drs.percentile must be a number from 0 up"),
        ({"bound": "all"}, "drs.bound is 'all'"),
        ({"gamma": "nan"}, "drs.gamma must be a finite number"),
        ({"calibration": "logstic"}, "drs.calibration is 'logstic': did you mean 'logistic'"),
        ({"base": "ddls"}, "cannot be the base of another sampler"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("drs", options).check(identity_view(lambda x, c: x[:, 0]))
