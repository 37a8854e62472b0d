"""The stage glead on networks of the host: its losses, where their gradients go, and what they learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import digit_images
from host_models import both
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.errors import UserError
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.latents import Networks
from studiogan_guidance.training import STAGES
from studiogan_guidance.training.glead import GLeaD, Reconstruction
from studiogan_guidance.training.stage import DiscriminatorStep, Training

pytestmark = pytest.mark.studiogan
BACKBONES = ("stylegan2", "big_resnet", "big_resnet_deep_studiogan")


def opened(name: str, checkout: Checkout, augmentation: str = "", **options: Any) -> tuple[Any, Networks, nn.Module]:
    """The companion of a training that begins, and the networks."""
    networks, discriminator = both(name, checkout)
    for network in (networks.generator, discriminator):
        network.train().requires_grad_(True)
    optimiser = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.0, 0.99))
    run = Training(networks, discriminator, optimiser, augmentation, 1, 0, 3, lambda line: None)
    stage = STAGES.create("glead", {"distance": "pixels", "noise": "const", **options})
    assert isinstance(stage, GLeaD)
    return stage.companion(run), networks, discriminator


def digits(networks: Networks) -> tuple[Tensor, Tensor]:
    """Sixteen real images and their classes."""
    found = list(digit_images("train", 4))
    images = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for _, _, image in found]).float() / 127.5 - 1
    size = (networks.image_size, networks.image_size)
    return F.interpolate(images, size), torch.tensor([label for label, _, _ in found])


def step_of(networks: Networks, discriminator: nn.Module) -> DiscriminatorStep:
    """The passes of one discriminator step of the host."""
    real, labels = digits(networks)
    torch.manual_seed(1)
    z = torch.randn(len(real), networks.z_dim)
    classes = F.one_hot(labels, networks.num_classes) if networks.backbone == "stylegan2" else labels
    fake = networks.generator(z, classes).detach()
    return DiscriminatorStep(real, labels, discriminator(real, labels), fake, labels, discriminator(fake, labels))


@pytest.mark.parametrize("term", ["image", "cosine"])
@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_reach_discriminator_and_decoder_and_never_the_generator(
    name: str, term: str, checkout: Checkout
) -> None:
    for weights in ({"real": 1.0, "fake": 0.0}, {"real": 0.0, "fake": 1.0}):
        companion, networks, discriminator = opened(name, checkout, fake_term=term, **weights)
        with companion.listening():
            companion.loss(step_of(networks, discriminator)).backward()
        assert all(value.grad is None for value in networks.generator.parameters())

        # The cosine reads the decoded feature alone.
        decoder = dict(companion.network.named_parameters())
        read = [key for key in decoder if term == "image" or weights["real"] or key.startswith(("levels", "feature"))]
        assert all(decoder[key].grad is not None and decoder[key].grad.abs().sum() > 0 for key in read)
        blocks = [value.grad for key, value in discriminator.named_parameters() if key.startswith("b")]
        assert max(float(grad.abs().sum()) for grad in blocks if grad is not None) > 0


def test_the_loss_is_the_weighted_sum_of_its_terms(checkout: Checkout) -> None:
    totals = []
    for weights in ({"real": 2.0, "fake": 0.0}, {"real": 0.0, "fake": 5.0}, {"real": 2.0, "fake": 5.0}):
        companion, networks, discriminator = opened("stylegan2", checkout, **weights)
        with companion.listening():
            totals.append(float(companion.loss(step_of(networks, discriminator)).detach()))
        names = [name for name in ("real", "fake") if weights[name]]
        assert list(companion.losses) == names
        assert totals[-1] == pytest.approx(sum(weights[name] * float(companion.losses[name]) for name in names))
    assert totals[2] == pytest.approx(totals[0] + totals[1])


def test_the_cosine_is_that_of_the_generators_own_feature(checkout: Checkout) -> None:
    companion, networks, discriminator = opened("stylegan2", checkout, fake_term="cosine", real=0.0)
    with companion.listening():
        step = step_of(networks, discriminator)
        decoded = companion.network(companion._passes[1]).feature.detach().double()
        own = companion._latents[-1].feature.detach().double()
        companion.loss(step)
    pixels = [
        float(a @ b / (a.norm() * b.norm()))
        for one, other in zip(decoded.flatten(2).mT, own.flatten(2).mT)
        for a, b in zip(one, other)
    ]
    assert float(companion.losses["cosine"]) == pytest.approx(1 - math.fsum(pixels) / len(pixels), abs=1e-6)


@pytest.mark.parametrize("name", ["stylegan2", "big_resnet"])
def test_reconstructions_of_real_images_improve(name: str, checkout: Checkout) -> None:
    companion, networks, discriminator = opened(name, checkout, real=1.0, fake=0.0, lr=0.01)
    optimiser = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.0, 0.99))
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        companion.optimiser.zero_grad()
        with companion.listening():
            loss = companion.loss(step_of(networks, discriminator))
        loss.backward()
        optimiser.step()
        companion.optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]


def test_the_optimiser_is_the_discriminators_for_stylegan2_alone(checkout: Checkout) -> None:
    rates = {name: opened(name, checkout)[0].optimiser.param_groups[0]["lr"] for name in BACKBONES[:2]}
    assert rates == {"stylegan2": 2e-3, "big_resnet": 2.5e-3}


def test_nothing_is_built_at_weights_0(checkout: Checkout) -> None:
    assert opened("stylegan2", checkout, real=0.0, fake=0.0)[0] is None
    assert isinstance(opened("stylegan2", checkout, real=0.0)[0], Reconstruction)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet", {}, "resnet"),
        ("stylegan3", {}, "stylegan3"),
        ("big_resnet+info", {}, "InfoGAN"),
        ("stylegan2", {"fake_term": "cosine", "augmentation": "ada"}, "ada moves the images"),
        ("stylegan2", {"fake_term": "cosin"}, "glead.fake_term is 'cosin'"),
        ("stylegan2", {"real": -1.0}, "glead.real is -1"),
        ("stylegan2", {"lr": 0.0}, "glead.lr is 0"),
        ("stylegan2", {"fake": float("nan")}, "glead.fake must be a finite number"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    name: str, options: dict[str, Any], words: str, checkout: Checkout
) -> None:
    with pytest.raises(UserError) as error:
        opened(name, checkout, **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
