from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from conftest import ToyGAN, toy_networks

from studiogan_guidance import builtin, samplers
from studiogan_guidance.critics.critic import Critic
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import view_for


def test_the_built_in_discriminator_has_a_logit_for_every_class() -> None:
    discriminator, _ = builtin.load(builtin.network.Discriminator, "discriminator")
    images = builtin.data.digits("test")[0][:4].requires_grad_()
    features, logits = Critic(discriminator)(images)
    for label in range(10):
        expected = discriminator(images, torch.full((4,), label))
        torch.testing.assert_close(logits[:, label], expected)
        torch.testing.assert_close(Critic(discriminator).judge(images, torch.full((4,), label))[1], expected)
    assert features.shape == (4, 96)

    # Without the class it is the logit of the features alone.
    labels = torch.arange(4)
    _, alone = Critic(discriminator).judge_without_class(images, labels)
    torch.testing.assert_close(alone, discriminator.out(features)[:, 0], atol=1e-4, rtol=1e-4)

    # The marginal logit is the mean over classes.
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
    with pytest.raises(UserError, match="discriminators with Linear have no real-or-fake logit"):
        Critic(torch.nn.Linear(1, 1))


def test_without_a_discriminator_there_is_one_line(toy: ToyGAN) -> None:
    view = view_for(dataclasses.replace(toy_networks(toy), companions=None))
    with pytest.raises(UserError, match="needs a discriminator, and there is none beside a toy"):
        samplers.create("ddls").check(view)


def test_a_discriminator_of_anyone_may_bring_its_own_logits() -> None:
    """Three methods are enough; the critic does not ask whose class it is."""

    class Foreign(torch.nn.Module):
        means = torch.tensor([-1.0, 0.5, 3.0])

        def features(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

        def class_logits(self, features: torch.Tensor) -> torch.Tensor:
            return features[:, :1] * self.means

        def score(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return features[:, 0] * self.means[labels]

    images = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 1])
    critic = Critic(Foreign())
    features, logits = critic(images)
    assert torch.equal(features, images.flatten(1))
    assert torch.equal(critic.judge(images, labels)[1], logits[torch.arange(4), labels])
    assert critic.minibatch.count == 0
