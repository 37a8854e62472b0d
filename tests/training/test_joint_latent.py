"""The objectives of the stage ``joint`` against closed forms and slow twins, and the stage on toys of known answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Readout, ToyGAN, toy_networks
from torch import Tensor, nn

from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.fid import factor, frechet_distance, moments
from studiogan_guidance.latents import LabelPlan, LatentView, LearnedJoint, Networks, learned, view_for
from studiogan_guidance.latents.joint import JOINTS, JointOptions
from studiogan_guidance.training import STAGES, Trained
from studiogan_guidance.training.joint_latent import JointStage
from studiogan_guidance.training.loop import step_seeds
from studiogan_guidance.training.objectives import energy_distance, frechet, sliced_wasserstein
from studiogan_guidance.training.strengths import StrengthStage, learn_strengths


def test_energy_distance_is_its_double_sum() -> None:
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, generator=gen), torch.randn(7, 3, generator=gen) + 1

    def mean(a: Tensor, b: Tensor) -> float:
        pairs = [(u - v).norm().item() for i, u in enumerate(a) for j, v in enumerate(b) if a is not b or i != j]
        return sum(pairs) / len(pairs)

    assert energy_distance(x, y).item() == pytest.approx(2 * mean(x, y) - mean(x, x) - mean(y, y), rel=1e-5)


def test_energy_distance_of_two_gaussians() -> None:
    """In one dimension with unit variances: 2 E|N(t, 2)| - 2 E|N(0, 2)|, and E|N(t, 2)| is known."""
    gen, t = torch.Generator().manual_seed(0), 1.5
    x, y = torch.randn(2, 4000, 1, generator=gen)
    apart = 2 / math.sqrt(math.pi) * math.exp(-(t**2) / 4) + t * math.erf(t / 2)
    assert energy_distance(x, y + t).item() == pytest.approx(2 * apart - 4 / math.sqrt(math.pi), abs=0.05)
    small = torch.stack([energy_distance(*torch.randn(2, 20, 1, generator=gen)) for _ in range(2000)])
    assert abs(small.mean().item()) < 3 * small.std().item() / math.sqrt(2000)  # unbiased: 0 on average, for any N


def test_sliced_wasserstein_sees_a_shift_along_each_direction() -> None:
    gen = torch.Generator().manual_seed(0)
    x, directions = torch.randn(50, 3, generator=gen), torch.nn.functional.normalize(torch.randn(20, 3, generator=gen))
    shift = torch.tensor([1.0, -2.0, 0.5])
    expected = (directions @ shift).square().mean()
    mixed = (x + shift)[torch.randperm(50, generator=gen)]
    torch.testing.assert_close(sliced_wasserstein(x, mixed, directions), expected)
    assert sliced_wasserstein(x, x.flip(0), directions) == 0


@pytest.mark.parametrize("n", [4, 50])
def test_frechet_is_that_of_the_metric_and_has_its_gradient(n: int) -> None:
    gen = torch.Generator().manual_seed(0)
    real = torch.randn(100, 6, generator=gen, dtype=torch.float64).numpy() @ np.diag([3, 2, 1, 1, 0.5, 0.1])
    fake = torch.randn(n, 6, generator=gen, dtype=torch.float64) + 1
    mean, cov = moments(real)
    given = torch.from_numpy(mean), torch.from_numpy(factor(cov))
    expected = frechet_distance(mean, cov, *moments(fake.numpy()))
    assert frechet(fake, *given).item() == pytest.approx(expected, rel=1e-7)
    assert torch.autograd.gradcheck(lambda x: frechet(x, *given), fake.requires_grad_())


class Mixture(nn.Module):
    """w = m_c + 0.6 (z_1, z_2), and z_3 moves nothing: over all classes, four Gaussians at the corners of a square."""

    classes, z_dim, w_dim = 4, 3, 2

    def __init__(self) -> None:
        super().__init__()
        self.corners = 2 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("w_avg", torch.zeros(2))
        self.synthesis = Readout(1)

    def mapping(self, z: Tensor, weights: Tensor) -> Tensor:
        return (0.6 * z[:, :2] + weights @ self.corners)[:, None]


def learn(gan: Any, folder: Path, discriminator: Any = None, real: Any = None, **options: Any) -> LearnedJoint:
    """The joint that the stage learns on a toy."""
    networks = Networks(gan, "builtin", gan.classes, gan.z_dim, 2, torch.device("cpu"), "", "a toy")
    run = Trained(networks, lambda: discriminator, real, folder, 0, 0, 1, lambda line: None)
    result = JointStage(**options).after_training(run)
    return learned.load(Path(result["joint"]), view_for(networks))


def codes(view: LatentView, first: int, count: int, joint: str | LearnedJoint | None = None) -> Tensor:
    """Codes [count, D] of the generator, or joints of the same inputs."""
    inputs = view.draw(range(first, first + count), 0, LabelPlan())
    code = view.encode(inputs.z, inputs.labels)
    if isinstance(joint, str):
        code = JOINTS[joint].target(view, inputs, code, JointOptions())
    elif joint:
        code = joint(view, inputs, code)
    return code[:, 0].detach()


@pytest.mark.parametrize("distance", ["energy", "sliced"])
def test_latent_learns_the_marginal_of_a_mixture_and_class_mean_does_not(tmp_path: Path, distance: str) -> None:
    gan = Mixture()
    h = learn(gan, tmp_path, distance=distance, batch=256, steps=1200, lr=2e-3)
    view = view_for(toy_networks(gan, ""))  # type: ignore[arg-type]
    n = 500
    noise = torch.stack([energy_distance(*codes(view, i * 2 * n, 2 * n).split(n)) for i in range(1, 21)])
    real = codes(view, 10**6, n)
    level = noise.mean() + 3 * noise.std()  # of two samples of the true marginal
    assert energy_distance(codes(view, 2 * 10**6, n, h), real) < level
    assert energy_distance(codes(view, 2 * 10**6, n, "class_mean"), real) > 20 * level


def test_distill_learns_class_mean(tmp_path: Path) -> None:
    gan = ToyGAN()
    h = learn(gan, tmp_path, distill=1, latent=0, base="global_mean", steps=1200, batch=64, lr=2e-3)
    view = view_for(toy_networks(gan, ""))
    target = codes(view, 0, 500, "class_mean")
    assert (codes(view, 0, 500, h) - target).square().mean() < 0.01 * (gan.mean - target).square().mean()


class LinearFeatures(nn.Module):
    """A discriminator that knows nothing yet: no opinion, and the pixels as features."""

    d_cond_mtd = "W/O"

    def forward(self, images: Tensor, labels: Tensor, eval: bool) -> dict[str, Tensor]:
        pixels = images.flatten(1)
        return {"h": pixels, "adv_output": 0 * pixels.sum(1)}


def test_adversarial_moves_the_images_to_the_mean_of_the_real_ones(tmp_path: Path) -> None:
    """With a head linear in the pixels and one vector to learn, the players rest where the mean images agree."""
    gan, target = ToyGAN(), torch.linspace(-2, 2, 12)

    def real(batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        gen = torch.Generator().manual_seed(first)
        while True:
            yield target.view(3, 2, 2) + torch.randn(batch_size, 3, 2, 2, generator=gen), torch.zeros(batch_size)

    options = {"depth": 0, "steps": 1500, "batch": 64, "lr": 1e-2, "head_lr": 1e-2, "head_hidden": 0, "r1_every": 4}
    h = learn(gan, tmp_path, LinearFeatures(), real, adversarial=1, latent=0, **options)
    view = view_for(toy_networks(gan, ""))
    before, after = (codes(view, 0, 4000, joint).mean(0) for joint in ("class_shift", h))
    assert (before - target).norm() > 3
    assert (after - target).norm() < 0.3


@pytest.mark.parametrize("kind", ["class", "row"])
def test_strengths_find_how_far_each_class_is_contracted(kind: str) -> None:
    """Classes of the data lie R_c times as far from the joint; (scale - 1) * strength must become R_c - 1."""
    gan = ToyGAN(interaction=0, spread=0.3)
    far = torch.tensor([1.2, 1.4, 1.6, 1.8, 2.0]) if kind == "class" else torch.full((5,), 1.6)
    view = view_for(toy_networks(gan, ""))
    inputs = view.draw(range(10**6, 10**6 + 8000), 0, LabelPlan())
    spread, offset, _ = gan.parts(inputs.z, inputs.labels)
    mean, cov = moments((gan.mean + spread + far[inputs.labels, None] * offset).numpy())
    joint = learned.create(view, "class_mean")
    stage = StrengthStage(scale=1.5, steps=150, batch=128)
    chosen = joint.class_strength if kind == "class" else joint.row_strength
    given = (torch.from_numpy(value).float() for value in (mean, factor(cov)))
    learn_strengths(view, joint, [chosen], lambda images: images.flatten(1), *given, stage, 0)
    found = 1 + 0.5 * chosen.detach()
    expected = far if kind == "class" else torch.tensor([1.5, 1.5, 1.6])  # the toy's image shows its last row only
    torch.testing.assert_close(found, expected, atol=0.06, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 0}, "joint needs an objective, found distill 0, adversarial 0, latent 0"),
        ({"latent": -1, "distill": 2}, "joint needs an objective"),
        ({"distance": "energi"}, "joint.distance is 'energi': did you mean 'energy'"),
        ({"base": "learned"}, "joint.base is learned"),
        ({"base": "class_maen"}, "did you mean 'class_mean'"),
        ({"batch": 1}, "joint.batch must be 2 or more, found 1"),
        ({"r1": math.nan}, "joint.r1 must be 0 or more"),
        ({"scales": ()}, "joint.scales is empty"),
        ({"ema": 1}, r"joint.ema must be in \[0, 1\)"),
        ({"stpes": 3}, "did you mean 'steps'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        STAGES.create("joint", options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per": "layer"}, "strengths.per is 'layer': known: both, class, row"),
        ({"scale": math.nan}, "strengths.scale must be a finite number"),
        ({"steps": -1}, "strengths.steps must be 0 or more, found -1"),
        ({"batch": 1}, "strengths.batch must be 2 or more, found 1"),
    ],
)
def test_wrong_options_of_strengths_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        STAGES.create("strengths", options)


def test_latent_is_the_objective_where_nothing_else_is_asked_for() -> None:
    assert JointStage().weights == {"distill": 0, "adversarial": 0, "latent": 1}
    assert JointStage(distill=1).weights == {"distill": 1, "adversarial": 0, "latent": 0}
    assert JointStage(adversarial=1, latent=2).weights == {"distill": 0, "adversarial": 1, "latent": 2}


def test_noise_differs_between_places_and_runs_and_fits_into_a_generator() -> None:
    keys = [(seed, place, kind) for seed in range(3) for place in range(3) for kind in range(3)]
    drawn = [tuple(step_seeds(64, *key)) for key in keys]
    assert len({seed for one in drawn for seed in one}) > 64 * 27 - 3
    assert max(map(max, drawn)) < 2**32  # of more, a generator of the CPU sees the low 32 bits
    assert drawn[0] == tuple(step_seeds(64, 0, 0, 0))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    gan = Mixture()
    gan.corners[0] = torch.inf
    with pytest.raises(UserError, match="losses are not finite at step 1"):
        learn(gan, tmp_path, base="global_mean", note_every=1, steps=2)
