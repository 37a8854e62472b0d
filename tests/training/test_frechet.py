"""The stage ``frechet`` on toys of known answer, and its command."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ToyGAN, ok, toy_networks
from torch import Tensor, nn

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.fid import frechet_distance, moments
from studiogan_guidance.latents import LabelPlan, moves, view_for
from studiogan_guidance.latents.moves import Move
from studiogan_guidance.training import STAGES, Trained
from studiogan_guidance.training.frechet import FrechetStage, Training
from studiogan_guidance.training.judge import Classifier, Judge, Memory
from studiogan_guidance.training.stage import Batches


class Pixels(nn.Module):
    """A discriminator whose features are the pixels, and whose logits are the first ``classes`` of them."""

    d_cond_mtd = "MD"
    num_classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def linear1(self, features: Tensor) -> Tensor:
        return features[:, : self.num_classes]

    def forward(self, images: Tensor, labels: Tensor, eval: bool) -> dict[str, Tensor]:
        pixels = self.weight * images.flatten(1)
        return {"h": pixels, "adv_output": pixels[:, 0]}


def shifted(gan: ToyGAN, spread: float) -> tuple[Batches, Tensor]:
    """Real images whose classes are shifted and ``spread`` times as wide as the toy's, and the shifts [C, D]."""
    view = view_for(toy_networks(gan, ""))
    shifts = 0.5 * torch.randn(5, 12, generator=torch.Generator().manual_seed(7))

    def batches(batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            start = 10**6 + first * batch_size
            inputs = view.draw(range(start, start + batch_size), 0, LabelPlan())
            a, b, _ = gan.parts(inputs.z, inputs.labels)
            yield (gan.mean + spread * a + b + shifts[inputs.labels]).view(-1, 3, 2, 2), inputs.labels
            first += 1

    return batches, shifts


def trained(gan: ToyGAN, real: Batches, folder: Path, size: int = 1) -> Trained:
    networks = toy_networks(gan, "")
    return Trained(networks, Pixels, real, folder, 0, 0, size, lambda line: None)


def learn(gan: ToyGAN, real: Batches, folder: Path, **options: Any) -> Move:
    run = trained(gan, real, folder)
    result = FrechetStage(**options).after_training(run)
    return moves.load(Path(result["joint"]), view_for(run.networks), "frechet")


def test_it_finds_the_offsets_and_the_spread_of_the_real_images(tmp_path: Path) -> None:
    gan = ToyGAN(interaction=0, spread=0.3)
    real, shifts = shifted(gan, 1.5)
    options = {
        "parts": ("offsets", "affine"),
        "label": 0,
        "ridge": 0,
        "steps": 150,
        "batch": 64,
        "lr": 0.05,
        "num_real": 3200,
    }
    move = learn(gan, real, tmp_path, **options)
    found = move.get_buffer("unit") * move.offsets[:, 0]
    assert shifts.abs().max() > 1
    torch.testing.assert_close(found, shifts, atol=0.25, rtol=0)

    # The spread, as images show it.
    view = view_for(toy_networks(gan, ""))
    inputs = view.draw(range(2000), 0, LabelPlan())
    code = view.encode(inputs.z, inputs.labels)
    moved = (move.target(view, inputs, code) - code)[:, 0] - found[inputs.labels]
    a, _, _ = gan.parts(inputs.z, inputs.labels)
    torch.testing.assert_close((a + moved).T.cov(), 1.5**2 * a.T.cov(), atol=0.25, rtol=0.15)


def test_sampling_at_its_scale_gives_what_was_learned(tmp_path: Path) -> None:
    gan = ToyGAN()
    real, _ = shifted(gan, 1.0)
    move = learn(gan, real, tmp_path, steps=3, batch=8, memory=1, num_real=16, per_block=True, scale=1.5)
    view = view_for(toy_networks(gan, ""))
    inputs = view.draw(range(8), 0, LabelPlan())
    code = view.encode(inputs.z, inputs.labels)
    path = str(tmp_path / "frechet.safetensors")
    sampler = samplers.create("gandance", {"joint": "frechet", "joint_ckpt": path, "scale": 1.5})
    expected = view.decode(move.target(view, inputs, code), inputs.z, None)
    torch.testing.assert_close(sampler.images(view, inputs), expected)
    assert not torch.equal(expected, view.decode(code, inputs.z, None))


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_the_loss_is_the_frechet_distance_of_evaluations(alpha: float) -> None:
    gen = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 5  # as many of each class, so that weights change nothing
    features = 1 + torch.randn(200, 12, generator=gen)
    fakes = 2 * torch.randn(150, 12, generator=gen)
    judge = Judge(features, labels, 5, alpha)

    def joined(values: Tensor) -> np.ndarray[Any, Any]:
        wide = values / features.var(0, correction=0).mean().sqrt()
        return torch.cat([wide, alpha * torch.eye(5)[labels[: len(values)]]], 1).double().numpy()

    expected = frechet_distance(*moments(joined(features)), *moments(joined(fakes)))
    found = judge.distance(judge.joined(fakes, labels[:150]))
    assert float(found) == pytest.approx(expected / 12, rel=1e-4)


def test_classes_of_few_real_images_weigh_as_much() -> None:
    """Class 0 has three times as many images: each of them counts a third."""
    features = torch.randn(100, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(100) % 5
    even = Judge(features, labels, 5, 1)
    more = features[labels == 0].repeat(2, 1)
    uneven = Judge(torch.cat([features, more]), torch.cat([labels, torch.zeros(40).long()]), 5, 1)
    torch.testing.assert_close(uneven.mean, even.mean)
    assert uneven.classifier.level == pytest.approx(even.classifier.level, abs=1e-3)
    covariances = [judge.factor @ judge.factor.T for judge in (uneven, even)]
    torch.testing.assert_close(covariances[0], covariances[1], rtol=0.02, atol=1e-3)  # but for 1 / (1 - 1 / N)


def test_the_classifier_is_that_of_gaussian_classes() -> None:
    """Of two classes N(-1, 1) and N(1, 1), log p(1|x) / p(0|x) is 2 x; swapped labels cost E 2 x over a class."""
    gen = torch.Generator().manual_seed(0)
    labels = torch.arange(20_000) % 2
    features = torch.randn(20_000, 1, generator=gen) + 2 * labels[:, None] - 1
    classifier = Classifier(features, labels, 2, torch.full((20_000,), 1 / 20_000))
    x = torch.linspace(-2, 2, 9)[:, None]
    right, wrong = (classifier.entropies(x, torch.full((9,), label)) for label in (1, 0))
    torch.testing.assert_close(wrong - right, 2 * x[:, 0], atol=0.15, rtol=0.05)
    assert float(classifier.excess(features, labels)) == pytest.approx(0, abs=1e-5)
    assert float(classifier.excess(features, 1 - labels)) == pytest.approx(2, abs=0.1)


def test_memory_holds_the_latest_rows() -> None:
    memory = Memory(4, 1)
    for i in range(3):
        memory.put(torch.tensor([[2.0 * i], [2.0 * i + 1]]))
    assert memory.rows[:, 0].tolist() == [2, 3, 4, 5]


def test_only_the_chosen_parts_move(tmp_path: Path) -> None:
    gan = ToyGAN()
    real, _ = shifted(gan, 1.5)
    before = gan.scale.clone()
    move = learn(gan, real, tmp_path, parts=("affine",), steps=2, batch=8, memory=1, num_real=16)
    assert not move.offsets.any()
    assert move.affine.any()
    assert torch.equal(gan.scale, before)
    assert gan.scale.grad is None
    assert gan.scale.requires_grad


def test_a_ridge_holds_it_near_the_start(tmp_path: Path) -> None:
    gan = ToyGAN()
    real, _ = shifted(gan, 1.5)
    options = {"steps": 30, "batch": 16, "memory": 1, "num_real": 64, "lr": 0.02}
    free, held = (learn(gan, real, tmp_path / str(ridge), ridge=ridge, **options) for ridge in (0, 1e4))
    assert held.offsets.norm() < 0.2 * free.offsets.norm()


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gan = ToyGAN()
    real, _ = shifted(gan, 1.5)
    options = {"steps": 7, "batch": 8, "memory": 2, "num_real": 32, "save_every": 2}
    learn(gan, real, tmp_path / "whole", **options)

    # End at step 5, after the state of step 4.
    update = Training.update

    def interrupted(training: Training, step: int) -> dict[str, Tensor]:
        if step == 5:
            raise KeyboardInterrupt
        return update(training, step)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            learn(gan, real, tmp_path / "parts", **options)
    learn(gan, real, tmp_path / "parts", **options)
    files = [tmp_path / folder / "frechet.safetensors" for folder in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": "offset"}, "frechet.parts has 'offset': did you mean 'offsets'"),
        ({"scale": 1}, "frechet.scale is 1, at which guidance moves nothing"),
        ({"start_spread": math.inf}, "frechet.start_spread must be a finite number"),
        ({"memory": -1}, "frechet.memory must be 0 or more, found -1"),
        ({"batch": 1}, "frechet.batch must be 2 or more, found 1"),
        ({"lr": 0}, "frechet.lr must be positive, found 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        STAGES.create("frechet", options)


def test_what_a_generator_lacks_is_refused(tmp_path: Path) -> None:
    gan = ToyGAN()
    real, _ = shifted(gan, 1.0)
    with pytest.raises(UserError, match="frechet.parts has noise, but codes of this generator hold the noise"):
        learn(gan, real, tmp_path, parts=("noise",))
    with pytest.raises(UserError, match="frechet.batch is 3: give a multiple of the 2 processes"):
        FrechetStage(batch=3).after_training(trained(gan, real, tmp_path, size=2))


def test_the_command_keeps_the_best_step_on_validation_data(tmp_path: Path) -> None:
    options = ["steps=2", "eval_every=2", "batch=32", "memory=1", "num_real=100", "start_spread=1.3"]
    given = [word for option in options for word in ("-o", option)]
    found = ok("train", "--stage", "frechet", "--out", tmp_path, "--num", 60, *given)
    assert found["fid"] <= found["fid_start"]
    (row,) = ok("eval", "-o", "joint=frechet", "-o", f"joint_ckpt={found['joint']}", "-o", "scale=2", "--reference",
                "valid", "--num", 60, "--no-compare-plain", "--metrics", "fid", "--out", tmp_path)["rows"]  # fmt: skip
    assert row["metrics"]["fid"] == pytest.approx(found["fid"])
    assert {key: row["cost"].get(key, 0) for key in ("mapping", "synthesis", "joint")} == {
        "mapping": 1,
        "synthesis": 1,
        "joint": 0,
    }
