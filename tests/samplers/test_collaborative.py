from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from conftest import IdentityView, ToyCritic, ToyGAN, identity_view
from torch import Tensor, nn

from studiogan_guidance import builtin, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers import Samples
from studiogan_guidance.samplers.collaborative import replaced, scale_free


def run(view: LatentView, count: int = 6, **options: object) -> Samples:
    sampler = samplers.create("collaborative", {"calibration": "none", **options})
    return next(sampler.stream(view, range(count), count, LabelPlan()))


def hooks(view: LatentView) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in view.generator.modules())


def trajectory(toy: ToyGAN, x: Tensor, steps: int, rate: float, momentum: float) -> list[Tensor]:
    """Closed form on d = s . x - c |x - m|^2 / 2: e = x - m - s / c and v follow powers of one 2x2 matrix."""
    critic = ToyCritic(toy)
    best = (toy.mean + critic.slope / critic.curve).double()
    once = torch.tensor([[1 - rate * critic.curve, rate * momentum], [-critic.curve, momentum]], dtype=torch.float64)
    error = x.double() - best
    return [best + torch.linalg.matrix_power(once, k)[0, 0] * error for k in range(steps + 1)]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_on_the_toy_it_is_gradient_ascent_with_momentum(
    toy: ToyGAN, toy_view: LatentView, layer: int, momentum: float
) -> None:
    """The toy's blocks do nothing, so its feature maps are its images."""
    plain = run(toy_view, steps=0).images.flatten(1)
    found = run(toy_view, steps=9, rate=1.5, momentum=momentum, layer=layer, loss="logit")
    expected = trajectory(toy, plain, 9, 1.5, momentum)[-1].float()
    torch.testing.assert_close(found.images.flatten(1), expected, atol=1e-4, rtol=1e-4)
    assert found.notes["best_step"].tolist() == [9] * 6
    critic = ToyCritic(toy)
    torch.testing.assert_close(found.notes["score"], critic(found.images, found.labels)["adv_output"])
    torch.testing.assert_close(found.notes["score_start"], critic(plain, found.labels)["adv_output"])
    assert found.cost == {"mapping": 6, "synthesis": 60, "discriminator": 60, "backward": 54}


def test_the_best_step_is_kept_where_momentum_overshoots(toy: ToyGAN, toy_view: LatentView) -> None:
    plain = run(toy_view, steps=0).images.flatten(1)
    path = torch.stack(trajectory(toy, plain, 12, 6.0, 0.9))
    critic = ToyCritic(toy)
    scores = torch.stack([critic(x.float(), torch.ones(()))["adv_output"] for x in path])
    found = run(toy_view, steps=12, rate=6, momentum=0.9, loss="logit")
    best = scores.argmax(0)
    assert 0 < best.max() < 12
    assert found.notes["best_step"].tolist() == best.tolist()
    expected = path[best, torch.arange(6)].float()
    torch.testing.assert_close(found.images.flatten(1), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("relative", [False, True])
def test_the_slope_of_the_default_loss_is_the_share_sigmoid_of_minus_d_of_that_of_d(
    toy: ToyGAN, toy_view: LatentView, relative: bool
) -> None:
    """One step without momentum from the plain image: a + rate sigmoid(-d) grad d, also where grad d is rescaled."""
    plain = run(toy_view, steps=0).images
    critic = ToyCritic(toy)
    d = critic(plain, torch.ones(()))["adv_output"]
    slope = (critic.slope - critic.curve * (plain.flatten(1) - toy.mean)).view_as(plain)
    slope = scale_free(slope, plain) if relative else slope
    best = run(toy_view, steps=1, rate=0.01, momentum=0, relative=relative)
    assert best.notes["best_step"].tolist() == [1] * 6
    share = torch.sigmoid(-d)[:, None, None, None]
    torch.testing.assert_close(best.images, plain + 0.01 * share * slope, atol=1e-5, rtol=0)
    assert (share.max() - share.min()) > 0.1  # else it would not show


def test_the_default_loss_is_the_official_cross_entropy_with_real_as_the_label(
    toy: ToyGAN, toy_view: LatentView
) -> None:
    """A slow twin of the whole climb, by autograd through the cross-entropy, with the official momentum."""
    critic = ToyCritic(toy)
    x = run(toy_view, steps=0).images.flatten(1)
    momentum = torch.zeros_like(x)
    for _ in range(5):
        x = x.detach().requires_grad_()
        logits = critic(x, torch.ones(()))["adv_output"]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.ones(6), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        momentum = 0.9 * momentum + 0.3 * gradient
        x = x - momentum
    found = run(toy_view, steps=5, rate=0.3)
    assert found.notes["best_step"].tolist() == [5] * 6
    torch.testing.assert_close(found.images.flatten(1), x.detach(), atol=1e-5, rtol=1e-4)


def test_a_probabilistic_image_stops_at_a_step_of_its_own(toy: ToyGAN, toy_view: LatentView) -> None:
    """Steps are uniform from 0 to ``steps``, the image is that of its step, and no image depends on its batch."""
    options = {"steps": 3, "rate": 1.5, "momentum": 0.6, "loss": "logit", "mode": "probabilistic"}
    found = run(toy_view, 400, **options)
    stops = found.notes["best_step"].long()
    shares = torch.bincount(stops) / 400
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.08, rtol=0)

    path = torch.stack(trajectory(toy, run(toy_view, 400, steps=0).images.flatten(1), 3, 1.5, 0.6)).float()
    torch.testing.assert_close(found.images.flatten(1), path[stops, torch.arange(400)], atol=1e-4, rtol=1e-4)
    again = run(toy_view, 7, **options)
    assert again.notes["best_step"].tolist() == stops[:7].tolist()
    scores = ToyCritic(toy)(found.images, found.labels)["adv_output"]
    torch.testing.assert_close(found.notes["score"], scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"rate": 1000.0}, {"rate": 1e30}, {"rate": 30.0, "relative": True}])
def test_it_is_never_worse_than_the_plain_image(toy_view: LatentView, options: dict[str, object]) -> None:
    found = run(toy_view, steps=5, **options)
    assert (found.notes["score"] >= found.notes["score_start"]).all()
    still = found.notes["best_step"] == 0
    assert torch.equal(found.images[still], run(toy_view, steps=0).images[still])


def test_relative_steps_do_not_depend_on_the_units_of_logits_or_of_maps() -> None:
    a, slope = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    scaled = scale_free(slope, a)
    for one, other, before in zip(scaled, a, slope):
        torch.testing.assert_close(one.square().mean(), other.square().mean())
        torch.testing.assert_close(torch.cosine_similarity(one.flatten(), before.flatten(), 0), torch.ones(()))
    torch.testing.assert_close(scale_free(1e-6 * slope, a), scaled)
    torch.testing.assert_close(scale_free(slope, 7 * a), 7 * scaled)
    assert torch.isfinite(scale_free(0 * slope, a)).all()


class Styled(nn.Module):
    """Two blocks as StyleGAN2's: (x, img) goes in and out; x of the last one leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)  # of the test's own network
        self.blocks = nn.ModuleList([Block(), Block()])
        self.bend = nn.ReLU(inplace=True)

    def forward(self, z: Tensor) -> Tensor:
        x, img = self.blocks[0](z, torch.zeros(len(z), 3))
        return self.blocks[1](self.bend(x), img)[1]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.rgb = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, img: Tensor) -> tuple[Tensor, Tensor]:
        x = self.x(x)
        return x, img + self.rgb(x)


class StyledView(IdentityView):
    def decode(self, code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        images: Tensor = self.generator(z)
        return images


def styled() -> LatentView:
    plain = identity_view(lambda x, c: x.sum(1) - x.square().sum(1) / 2, z_dim=3)
    return StyledView(dataclasses.replace(plain.networks, generator=Styled()))


def test_of_maps_beside_rgb_only_the_map_moves_and_the_suffix_alone_carries_gradients() -> None:
    view = styled()
    net: Any = view.generator
    z = view.draw(range(6), 0, LabelPlan()).z
    with torch.no_grad():
        x, img = net.blocks[0](z, torch.zeros(6, 3))

    # Four steps by hand.
    velocity = torch.zeros_like(x)
    for _ in range(4):
        x = x.detach().requires_grad_()
        bent = net.blocks[1].x(x.relu())
        image = img + net.blocks[1].rgb(bent)
        (slope,) = torch.autograd.grad((image.sum(1) - image.square().sum(1) / 2).sum(), x)
        velocity = 0.5 * velocity + slope
        x = (x + 0.05 * velocity).detach()
    expected = img + net.blocks[1].rgb(net.blocks[1].x(x.relu()))

    found = run(view, layer=0, steps=4, rate=0.05, momentum=0.5, loss="logit")
    rising = found.notes["best_step"] == 4
    assert rising.sum() >= 3
    torch.testing.assert_close(found.images[rising], expected.detach()[rising])
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_map_that_leads_to_no_image_is_refused() -> None:
    view = styled()
    with pytest.raises(UserError, match="no image follows from the output of layer 1: choose a lower"):
        run(view, layer=1)
    assert hooks(view) == 0
    assert torch.is_grad_enabled()


def test_hooks_are_gone_afterwards_whatever_happens(toy_view: LatentView) -> None:
    run(toy_view, steps=2)
    assert hooks(toy_view) == 0
    layer = toy_view.layers()[0]
    with pytest.raises(ZeroDivisionError), replaced(layer, lambda a: a / 0 if isinstance(a, int) else a):
        layer(1)
    assert hooks(toy_view) == 0


def test_the_builtin_climbs_at_each_of_its_layers() -> None:
    view = view_for(builtin.networks())
    for layer in range(len(view.layers())):
        found = run(view, 2, layer=layer, steps=3, rate=0.02, relative=True)
        assert (found.notes["score"] > found.notes["score_start"]).all()
    assert hooks(view) == 0


def test_layers_that_are_not_there_are_refused(toy_view: LatentView) -> None:
    with pytest.raises(UserError, match="collaborative.layer is 2, but this builtin has layers 0-1"):
        samplers.create("collaborative", {"layer": 2}).check(toy_view)
    with pytest.raises(UserError, match="this identity has no layers that are known: use ddls or dgflow"):
        samplers.create("collaborative").check(identity_view(lambda x, c: x[:, 0]))
    samplers.create("collaborative", {"steps": 0, "layer": 9}).check(toy_view)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": -1}, "collaborative.layer must be a number from 0 up"),
        ({"steps": -1}, "collaborative.steps must be a number from 0 up"),
        ({"rate": 0}, "collaborative.rate must be positive"),
        ({"rate": "inf"}, "collaborative.rate must be a finite number"),
        ({"momentum": 1}, "collaborative.momentum must be below 1"),
        ({"momentum": -0.1}, "collaborative.momentum must be a number from 0 up"),
        ({"calibration": "isotonic"}, "calibration=isotonic has no gradient"),
        ({"loss": "hinge"}, "collaborative.loss is 'hinge'"),
        ({"mode": "random"}, "collaborative.mode is 'random'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("collaborative", options)
