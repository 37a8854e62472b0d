"""The stage ``joint`` on toys of known answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Readout, ToyGAN, identity_view, toy_networks
from fake_gpu import fake_gpu, moved, moved_networks
from torch import Tensor, nn

from studiogan_guidance import builtin, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.latents import LabelPlan, LatentView, LearnedJoint, Networks, learned, view_for
from studiogan_guidance.latents.joint import JOINTS, JointOptions
from studiogan_guidance.samplers.gandance import guide
from studiogan_guidance.training import STAGES, Trained
from studiogan_guidance.training.blocks import Blocks
from studiogan_guidance.training.joint_latent import JointStage, Training
from studiogan_guidance.training.joint_losses import Coupling
from studiogan_guidance.training.loop import frozen_parameters
from studiogan_guidance.training.objectives import energy_distance


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


def linear_opponent(**options: Any) -> dict[str, Any]:
    """Options of a few adversarial steps against a head that stays at zero."""
    return {"adversarial": 1, "latent": 0, "depth": 0, "steps": 30, "lr": 1e-2, "head_lr": 0, "r1": 0, **options}


def noise(batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield torch.zeros(batch_size, 3, 2, 2), torch.zeros(batch_size)


class Opinion(LinearFeatures):
    """A discriminator that likes the first pixel, and remembers the precision of its matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.precisions: set[torch.dtype] = set()

    def forward(self, images: Tensor, labels: Tensor, eval: bool) -> dict[str, Tensor]:
        features = images.flatten(1) @ torch.eye(12)
        self.precisions.add(features.dtype)
        return {"h": features, "adv_output": features[:, 0]}


def test_marginal_asks_the_discriminator_itself(tmp_path: Path) -> None:
    """The head is zero and learns nothing, so only the discriminator's own logit can move the joint."""
    gan = ToyGAN()
    view = view_for(toy_networks(gan, ""))
    start = codes(view, 0, 64, "class_shift")
    without, within = (
        learn(gan, tmp_path / str(marginal), Opinion(), noise, **linear_opponent(marginal=marginal))
        for marginal in (False, True)
    )
    assert torch.equal(codes(view, 0, 64, without), start)
    moved = codes(view, 0, 64, within) - start
    assert (moved[:, 0] > 0.05).all()
    assert moved[:, 1:].abs().max() < 1e-6


@pytest.mark.parametrize("bf16", [False, True])
def test_bf16_is_for_the_networks_and_weights_stay_float32(tmp_path: Path, bf16: bool) -> None:
    opponent = Opinion()
    h = learn(ToyGAN(), tmp_path, opponent, noise, **linear_opponent(marginal=True, bf16=bf16))
    assert opponent.precisions == {torch.float32, torch.bfloat16} if bf16 else {torch.float32}
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in h.parameters())
    assert h.residual.value[0] > 0  # type: ignore[operator, index, union-attr]


def test_weights_decay_as_in_adamw(tmp_path: Path) -> None:
    """The first layer has no gradient at step 0, as the last layer is zero: it decays, and does nothing else."""
    at_first, plain, decayed = (
        learn(ToyGAN(), tmp_path / str(i), ema=0, lr=0.01, **options).residual.get_parameter("0.weight")
        for i, options in enumerate(({"steps": 0}, {"steps": 1}, {"steps": 1, "weight_decay": 0.5}))
    )
    assert torch.equal(plain, at_first)
    torch.testing.assert_close(decayed, (1 - 0.01 * 0.5) * at_first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 0}, "joint needs an objective, found distill 0, adversarial 0, latent 0"),
        ({"latent": -1, "distill": 2}, "joint needs an objective"),
        ({"distance": "energi"}, "joint.distance is 'energi': did you mean 'energy'"),
        ({"base": "learned"}, "joint.base is learned"),
        ({"base": "gaussian"}, "joint.base is gaussian"),
        ({"coupling": -1}, "joint.coupling must be 0 or more"),
        ({"base": "class_maen"}, "did you mean 'class_mean'"),
        ({"batch": 1}, "joint.batch must be 2 or more, found 1"),
        ({"r1": math.nan}, "joint.r1 must be a finite number, found nan"),
        ({"r1": -1}, "joint.r1 must be 0 or more"),
        ({"scales": ()}, "joint.scales is empty"),
        ({"ema": 1}, r"joint.ema must be in \[0, 1\)"),
        ({"stpes": 3}, "did you mean 'steps'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        STAGES.create("joint", options)


def test_latent_is_the_objective_where_nothing_else_is_asked_for() -> None:
    assert JointStage().weights == {"distill": 0, "adversarial": 0, "latent": 1}
    assert JointStage(distill=1).weights == {"distill": 1, "adversarial": 0, "latent": 0}
    assert JointStage(adversarial=1, latent=2).weights == {"distill": 0, "adversarial": 1, "latent": 2}


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    gan = Mixture()
    gan.corners[0] = torch.inf
    with pytest.raises(UserError, match="losses are not finite at step 1"):
        learn(gan, tmp_path, base="global_mean", note_every=1, steps=2)


# ---------------------------------------------------------------------------- a free joint, and its coupling


class Line(nn.Module):
    """w = m_c + z A with A A' known, and a mapping network that sees labels through a linear layer alone."""

    classes, z_dim, w_dim = 4, 3, 2

    def __init__(self) -> None:
        super().__init__()
        self.mapping = Mapping()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("w_avg", torch.zeros(2))
        self.synthesis = Readout(1)


class Mapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Linear(4, 2, bias=False)
        self.noise = nn.Linear(3, 2)
        self.labels.weight.data = 3 * torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]])
        self.noise.weight.data = torch.tensor([[0.8, 0, 0], [0, 0.5, 0]])
        self.noise.bias.data = torch.tensor([0.3, -0.2])

    def forward(self, z: Tensor, weights: Tensor) -> Tensor:
        w: Tensor = self.noise(z) + self.labels(weights)
        return w[:, None]


def test_a_free_joint_starts_at_mean_embedding_and_learns_as_a_whole(tmp_path: Path) -> None:
    gan = Line()
    before = [value.clone() for value in gan.parameters()]
    options = {"base": "none", "latent": 1, "batch": 32, "lr": 1e-2}
    start = learn(gan, tmp_path / "start", steps=0, **options)
    view = view_for(toy_networks(gan, ""))  # type: ignore[arg-type]
    assert torch.equal(codes(view, 0, 50, start), codes(view, 0, 50, "mean_embedding"))

    # Its own layers move, those of the generator do not, and its file gives it back.
    h = learn(gan, tmp_path / "learned", steps=40, **options)
    learnt = dict(h.residual.named_parameters())
    assert set(learnt) == {"mapping.labels.weight", "mapping.noise.weight", "mapping.noise.bias"}
    mapping: Any = view.mapping  # type: ignore[attr-defined]
    moved = [not torch.equal(learnt[f"mapping.{name}"], value) for name, value in mapping.named_parameters()]
    assert all(moved)
    assert all(torch.equal(value, old) for value, old in zip(gan.parameters(), before))
    assert h.base == "none"

    # Guidance away from the file is that away from the network.
    path = str(tmp_path / "learned" / "joint.safetensors")
    sampler = samplers.create("gandance", {"joint": "learned", "joint_ckpt": path, "scale": 1.5})
    inputs = view.draw(range(8), 0, LabelPlan())
    code = view.encode(inputs.z, inputs.labels)
    joint = mapping_of(h, inputs.z)
    torch.testing.assert_close(sampler.guided(view, inputs, code)[:, 0], joint + 1.5 * (code[:, 0] - joint))


def mapping_of(h: LearnedJoint, z: Tensor) -> Tensor:
    """w of the label-free copy, by its layers."""
    layers = dict(h.residual.named_parameters())
    mean = layers["mapping.labels.weight"].mean(1)
    return z @ layers["mapping.noise.weight"].T + layers["mapping.noise.bias"] + mean


def test_layers_of_a_free_joint_learn_in_units_of_their_weights(tmp_path: Path) -> None:
    """The first step of Adam moves each weight by its learning rate, whatever the gradient is."""
    gan = Line()
    options = {"base": "none", "batch": 16, "lr": 1e-3, "ema": 0, "clip": 0, "steps": 1}
    h = learn(gan, tmp_path, **options)
    for layer in ("labels", "noise"):
        old, new = getattr(gan.mapping, layer), getattr(h.residual.mapping, layer)
        size = torch.cat([value.flatten() for value in old.parameters()]).square().mean().sqrt()
        steps = (new.weight - old.weight).abs()
        torch.testing.assert_close(steps.max(), 5e-3 * size, rtol=1e-2, atol=0)


def test_a_free_joint_of_codes_without_noise_is_the_null_code_and_its_residual(tmp_path: Path) -> None:
    view = identity_view(lambda x, labels: x[:, 0])
    free, usual = (learned.create(view, base, hidden=4) for base in ("none", "class_mean"))
    assert free.base == "class_mean"
    assert {key: value.shape for key, value in free.state_dict().items()} == {
        key: value.shape for key, value in usual.state_dict().items()
    }


def test_a_joint_of_none_needs_a_mapping_network() -> None:
    with pytest.raises(UserError, match="base none is a copy of a mapping network, and builtin has none"):
        learned.create(view_for(toy_networks(ToyGAN())), "none")


def test_coupling_takes_back_the_spread_that_the_law_of_h_alone_lets_guidance_add() -> None:
    """Joints h = m + B a + C e that all have the law of w, from independent of it (B = 0) to its transport (C = 0).

    With w = m_c + a, variances v of a and b of the means, the coupling is 2 - 2 B v / (v + b), and the guided
    code has variance (s - B (s - 1))^2 v + (s - 1)^2 C^2 within a class, where B^2 v + C^2 = v + b.
    """
    gan = Line()
    view = view_for(toy_networks(gan, ""))  # type: ignore[arg-type]
    inputs = view.draw(range(20_000), 0, LabelPlan())
    code = view.encode(inputs.z, inputs.labels)
    means = torch.stack([code[inputs.labels == c].mean(0) for c in range(4)])
    a = (code - means[inputs.labels])[:, 0]
    v, b = torch.tensor([0.64, 0.25]), torch.tensor([9.0, 9.0])
    fresh = torch.randn(a.shape, generator=torch.Generator().manual_seed(4))
    loss = Coupling(view, torch.ones(()))

    spreads, losses = [], []
    for angle in torch.linspace(math.pi / 2, 0, 4):
        own, other = ((v + b) / v).sqrt() * angle.cos(), (v + b).sqrt() * angle.sin()
        h = torch.tensor([0.3, -0.2]) + own * a + other * fresh
        losses.append(loss(h, code[:, 0]))
        torch.testing.assert_close(losses[-1], (2 - 2 * own * v / (v + b)).mean(), rtol=0.03, atol=0)

        guided = guide(code[:, 0], h, 1.3)
        within = torch.stack([guided[inputs.labels == c].var(0) for c in range(4)]).mean(0)
        torch.testing.assert_close(within, (1.3 - 0.3 * own).square() * v + 0.09 * other**2, rtol=0.05, atol=0.01)
        spreads.append(within)
    assert losses == sorted(losses, reverse=True)
    assert all((after < before).all() for before, after in zip(spreads, spreads[1:]))
    assert (spreads[0] > 1.09 * (v + 0.09 * b)).all()  # guidance added it
    assert (spreads[-1] < v).all()


def test_the_stage_couples_h_with_the_codes(tmp_path: Path) -> None:
    """Coupling alone would be least at the mean over classes of w, so a large weight leads there."""
    gan = Line()
    view = view_for(toy_networks(gan, ""))  # type: ignore[arg-type]
    options = {"base": "class_shift", "steps": 150, "batch": 64, "lr": 1e-2, "hidden": 16, "ema": 0.9}
    far, near = (learn(gan, tmp_path / str(w), coupling=w, **options) for w in (0, 30))
    target = codes(view, 0, 400, "class_mean")
    distances = [(codes(view, 0, 400, h) - target).square().mean() for h in (far, near)]
    assert distances[1] < 0.2 * distances[0]


def training(
    folder: Path, gan: Any, view: LatentView | None = None, discriminator: Any = None, **options: Any
) -> Training:
    """A run of the stage whose steps can be made one by one."""
    view = view or view_for(toy_networks(gan, ""))
    side = view.networks.image_size

    def real(batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield torch.zeros(batch_size, 3, side, side), torch.zeros(batch_size)

    run = Trained(view.networks, lambda: discriminator, real, folder, 0, 0, 1, lambda line: None)
    return Training(JointStage(**options), run, view, Group())


def test_a_block_of_steps_gives_what_its_steps_give_alone(tmp_path: Path) -> None:
    run = training(tmp_path, ToyGAN(), distill=1, latent=1, batch=6)
    blocks = Blocks(run.source, 4)
    for step in range(10):
        block, alone = blocks.step(step), run.source(range(step, step + 1))
        assert torch.equal(block.inputs.z, alone.inputs.z)
        assert torch.equal(block.inputs.labels, alone.inputs.labels)
        for name in ("start", "target", "others"):
            torch.testing.assert_close(getattr(block, name), getattr(alone, name), atol=1e-6, rtol=1e-5)

    # A run that goes on in the middle of a block computes the very same.
    again = Blocks(run.source, 4).step(9)
    for name in ("start", "target", "others"):
        assert torch.equal(getattr(block, name), getattr(again, name))


def test_in_blocks_a_stopped_run_ends_as_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "block", 4)
    stopped = tmp_path / "stopped"
    learn(Mixture(), stopped, steps=6, batch=8, save_every=3)
    found = learn(Mixture(), stopped, steps=11, batch=8, save_every=3)
    whole = learn(Mixture(), tmp_path / "whole", steps=11, batch=8, save_every=3)
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), whole.parameters()))


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(
    "options", [{"latent": 1}, {"distill": 1}, {"adversarial": 1}, {"latent": 1, "distance": "sliced"}]
)
def test_no_step_on_a_gpu_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """On a GPU that is not there, whatever reads a number raises. (Torch runs no backward pass without a driver.)"""

    def backward(self: Tensor, inputs: list[nn.Parameter]) -> None:
        for value in inputs:
            value.grad = torch.zeros_like(value)

    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, image, create_graph: (torch.zeros_like(image),))
    monkeypatch.setattr(learned, "fingerprint", lambda network: "")
    opponent = builtin.networks().companions.discriminator()  # type: ignore[union-attr]
    networks = builtin.networks()
    monkeypatch.setattr(nn.Module, "to", lambda module, device: moved(module).requires_grad_())
    with fake_gpu() as read:
        view = view_for(moved_networks(networks))
        view.once("class means", lambda: torch.zeros(10, view.rows or 1, 64, device=view.device))
        run = training(tmp_path, None, view, moved(opponent), batch=4, r1_every=2, **options)
        if run.adversary:
            run.adversary.start(0)
        with frozen_parameters(view.generator):
            for step in range(3):
                losses = run.update(step)
        assert all(loss.is_cuda for loss in losses.values())
        assert not read
