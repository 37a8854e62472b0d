from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import ToyCritic, ToyGAN, toy_networks
from sklearn.isotonic import IsotonicRegression
from torch.nn import functional as F

from studiogan_guidance import builtin, samplers
from studiogan_guidance.critics.calibration import calibration_statistic, isotonic_map, logistic_map
from studiogan_guidance.critics.critic import Critic
from studiogan_guidance.critics.log_ratio import LogRatio
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LatentView, view_for


def test_the_built_in_discriminator_has_a_logit_for_every_class() -> None:
    discriminator, _ = builtin.load(builtin.network.Discriminator, "discriminator")
    images = builtin.data.digits("test")[0][:4].requires_grad_()
    features, logits = Critic(discriminator)(images)
    for label in range(10):
        expected = discriminator(images, torch.full((4,), label))
        torch.testing.assert_close(logits[:, label], expected)
        torch.testing.assert_close(Critic(discriminator).judge(images, torch.full((4,), label))[1], expected)
    assert features.shape == (4, 96)
    _, score = Critic(discriminator).marginal(images)
    torch.testing.assert_close(score, logits.exp().mean(1).log())
    (slope,) = torch.autograd.grad(score.sum(), images)
    assert slope.abs().sum() > 0


def test_the_marginal_logit_is_the_log_ratio_of_mixtures() -> None:
    """p(x|c) = N(m_c, 1) against q = N(0, 2): logits log p(x|c) / q(x) become log p(x) / q(x)."""

    class Known(torch.nn.Module):
        d_cond_mtd, num_classes = "MD", 3
        means = torch.tensor([-1.0, 0.5, 3.0])

        def linear1(self, x: torch.Tensor) -> torch.Tensor:
            return torch.distributions.Normal(self.means, 1).log_prob(x) - torch.distributions.Normal(0, 2).log_prob(x)

        def forward(self, x: torch.Tensor, labels: torch.Tensor, eval: bool) -> dict[str, torch.Tensor]:
            return {"h": x, "adv_output": self.linear1(x)[torch.arange(len(x)), labels]}

    x = torch.linspace(-4, 4, 9)[:, None]
    density = sum(torch.exp(-((x - m) ** 2) / 2) for m in (-1.0, 0.5, 3.0)) / 3 / math.sqrt(2 * math.pi)
    base = torch.exp(-(x**2) / 8) / 2 / math.sqrt(2 * math.pi)
    torch.testing.assert_close(Critic(Known()).marginal(x)[1], (density / base).log().squeeze(1))


def test_what_has_no_such_logits_is_refused() -> None:
    with pytest.raises(UserError, match="no score of single images in a discriminator with Linear"):
        Critic(torch.nn.Linear(1, 1))


def scores(real_shift: float, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Scores of real images N(shift, 1) and of fakes N(0, 1): their log ratio is shift * s - shift^2 / 2."""
    draws = np.random.default_rng(0).normal(size=2 * count)
    is_real = np.arange(2 * count) < count
    return draws + real_shift * is_real, is_real


def test_platt_scaling_finds_the_log_ratio_of_gaussians_whatever_the_logit_was_multiplied_by() -> None:
    s, is_real = scores(1.5)
    weights, offset = logistic_map(10 * s[:, None] + 3, is_real)
    np.testing.assert_allclose([10 * weights[0], 3 * weights[0] + offset], [1.5, -1.125], atol=0.08)


def test_isotonic_calibration_undoes_a_monotone_distortion_and_agrees_with_scikit_learn() -> None:
    s, is_real = scores(1.5)
    distorted = np.sign(s) * np.abs(s) ** 3  # far from a log ratio
    ratio = LogRatio(None, None, torch.ones(1), knots=tuple(map(torch.from_numpy, isotonic_map(distorted, is_real))))
    found = ratio.of_evidence(torch.from_numpy(distorted)[:, None]).numpy()
    assert (np.diff(found[np.argsort(distorted)]) >= 0).all()
    middle = np.abs(s - 0.75) < 1.5
    assert np.abs(found - (1.5 * s - 1.125))[middle].mean() < 0.15
    fit = IsotonicRegression(out_of_bounds="clip").fit(distorted, is_real)
    inside = (found > -6) & (found < 6)
    grid = 1 / (1 + np.exp(-found[inside]))
    np.testing.assert_allclose(grid, fit.predict(distorted)[inside], atol=0.02)


def test_the_calibration_statistic_is_standard_normal_if_calibrated_and_large_if_not() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(0.1, 0.9, (400, 500))
    real = rng.uniform(size=p.shape) < p
    found = [calibration_statistic(np.log(q / (1 - q)), y) for q, y in zip(p, real)]
    assert abs(np.mean(found)) < 0.15
    assert abs(np.std(found) - 1) < 0.1
    assert calibration_statistic(np.log(p[0] / (1 - p[0])) + 1, real[0]) < -4


def judged(view: LatentView, **options: object) -> LogRatio:
    sampler = samplers.create("ddls", options)
    return sampler.ratio(sampler.under(view))


def test_calibration_learns_from_held_out_images_and_fakes_of_the_very_base(toy: ToyGAN) -> None:
    """Images of the toy are Gaussian, real ones 0.7 as wide: any linear head has log-ratio 0 on average at best."""
    view = view_for(toy_networks(toy))
    plain, guided = judged(view), judged(view, base={"name": "gandance", "scale": 3})
    assert plain.facts["auc"] > 0.55  # the toy's critic prefers the mean, and so are the real images
    assert guided.facts["auc"] > plain.facts["auc"] + 0.1  # guided fakes are farther out
    assert abs(plain.facts["calibration_z"]) < 3 < abs(plain.facts["calibration_z_raw"])
    assert len(plain.real[0]) == 1000
    assert view.ledger.setup["discriminator"] == 4000
    assert view.ledger.cost.total() == 0
    assert judged(view) is plain
    assert view.ledger.setup["discriminator"] == 4000


def test_a_head_is_fitted_where_the_logit_has_nothing_to_say(toy: ToyGAN) -> None:
    """Real images shifted along a feature that the logit does not see: the head finds the shift's log ratio."""

    class Blind(ToyCritic):
        def forward(self, x: torch.Tensor, labels: torch.Tensor, **more: bool) -> dict[str, torch.Tensor]:
            h = x.flatten(1)
            return {"h": h - self.mean, "adv_output": 0 * h[:, 0]}

    networks = toy_networks(toy, critic=Blind(toy))
    view = view_for(networks)
    direction = torch.randn(12, generator=torch.Generator().manual_seed(5))

    def shifted(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % toy.classes
        w = toy.mapping(torch.randn(count, toy.z_dim), F.one_hot(labels, toy.classes).float())
        return toy.synthesis(w + direction), labels

    networks = dataclasses.replace(networks, companions=dataclasses.replace(networks.companions, held_out=shifted))
    view = view_for(networks)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blind, head = judged(view, calibration="none"), judged(view, calibration="head")
        images, labels = shifted(500)
    plain = images - direction.view(1, 3, 2, 2)
    assert torch.equal(blind(images, labels), blind(plain, labels))
    assert (head(images, labels) > head(plain, labels)).float().mean() > 0.95
    assert head.facts["auc"] > 0.8
    slope = torch.autograd.functional.jacobian(lambda x: head(x, labels[:1]).sum(), images[:1]).flatten()
    assert slope @ direction > 0


def test_a_discriminator_that_ranks_fakes_first_is_refused(toy: ToyGAN) -> None:
    view = view_for(toy_networks(toy, critic=ToyCritic(toy, slope=0, curve=-1)))
    with pytest.raises(UserError, match="ranks fakes above held-out real images"):
        judged(view)


def test_without_a_discriminator_there_is_one_line(toy: ToyGAN) -> None:
    view = view_for(dataclasses.replace(toy_networks(toy), companions=None))
    with pytest.raises(UserError, match="needs a discriminator, and there is none beside a toy"):
        samplers.create("ddls").check(view)


def test_too_few_held_out_images_are_an_error_of_one_line(toy: ToyGAN) -> None:
    networks = toy_networks(toy)
    few = dataclasses.replace(networks.companions, held_out=lambda count: networks.companions.held_out(min(count, 5)))
    with pytest.raises(UserError, match=r"there are 5 held-out images \(a toy\), and calibrating needs 10"):
        judged(view_for(dataclasses.replace(networks, companions=few)))


def test_what_does_nothing_needs_no_discriminator(toy: ToyGAN) -> None:
    view = view_for(dataclasses.replace(toy_networks(toy), companions=None))
    sampler = samplers.create("ddls", {"steps": 0})
    sampler.check(view)
    assert sampler.files(view) == {}


def test_ties_count_half_in_the_auc(toy: ToyGAN) -> None:
    """A logit that is the same for all images says nothing: 0.5, whatever the calibration."""
    view = view_for(toy_networks(toy, critic=ToyCritic(toy, slope=0, curve=0)))
    assert judged_by("metropolis", view).facts["auc"] == pytest.approx(0.5)


def judged_by(name: str, view: LatentView) -> LogRatio:
    return samplers.create(name).ratio(view)
