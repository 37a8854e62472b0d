"""The stage ``latent_reweighting`` on a line, where the weights to learn are known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import identity_view, ok
from torch import Tensor

from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.latents import LabelPlan, LatentView
from studiogan_guidance.samplers.latent_reweighting import LatentReweighting
from studiogan_guidance.training import STAGES, Trained
from studiogan_guidance.training.latent_reweighting import (
    LatentReweightingStage,
    Training,
    average_penalty,
    class_means,
)


def line() -> LatentView:
    """G(z, c) = z, and a discriminator that shows the pixel and has no opinion."""
    return identity_view(lambda x, c: 0 * x[:, 0])


def real(batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of the law N(c / 2, 1/2) in class c."""
    gen = torch.Generator().manual_seed(first)
    while True:
        labels = torch.randint(2, (batch_size,), generator=gen)
        yield labels[:, None] / 2 + torch.randn(batch_size, 1, generator=gen) / math.sqrt(2), labels


def learn(folder: Path, **options: Any) -> Training:
    """A run of the stage on the line, to its last step."""
    view = line()
    companions = view.networks.companions
    assert companions
    run = Trained(view.networks, companions.discriminator, real, folder, 0, 0, 1, lambda text: None)
    training = Training(LatentReweightingStage(**options), run, view, Group())
    training.run_steps()
    return training


def test_the_weights_become_the_density_ratio(tmp_path: Path) -> None:
    networks = {"hidden": 32, "depth": 2, "head_hidden": 16, "note_every": 100, "lr": 5e-3, "head_lr": 1e-2}
    training = learn(tmp_path, pool=2000, batch=128, steps=300, **networks)
    weights = training.average.requires_grad_(False)

    # Within each class they average 1, and lead to the moments of the real images.
    z = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(5))
    for label in (0, 1):
        w = weights(z, torch.full((len(z),), label))
        assert w.mean() == pytest.approx(1, abs=0.12)
        mean = (w * z[:, 0]).mean() / w.mean()
        assert mean == pytest.approx(label / 2, abs=0.15)
        assert (w * (z[:, 0] - mean).square()).mean() / w.mean() == pytest.approx(0.5, abs=0.1)

    # So do images of the sampler, by the file.
    sampler = LatentReweighting(weights_ckpt=str(tmp_path / "latent_reweighting.safetensors"))
    (batch,) = sampler.stream(training.view, range(1000), 1000, LabelPlan(classes=(1,)))
    assert batch.images.mean() == pytest.approx(0.5, abs=0.15)
    assert batch.images.var() == pytest.approx(0.5, abs=0.12)


def test_a_stopped_run_ends_as_a_whole_one(tmp_path: Path) -> None:
    options = {"pool": 100, "batch": 16, "hidden": 8, "depth": 2, "head_hidden": 4, "save_every": 3}
    for folder, steps in (("whole", 11), ("stopped", 6), ("stopped", 11)):
        learn(tmp_path / folder, steps=steps, **options)
    files = [tmp_path / folder / "latent_reweighting.safetensors" for folder in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(UserError, match="belongs to a run with lr 0.0003, asked for was 0.1"):
        training = learn(tmp_path / "stopped", steps=11, **options)
        training.trained.__dict__["evaluation"] = lambda: None
        Training(LatentReweightingStage(steps=11, lr=0.1, eval_every=0, **options), training.trained, line(), Group())


def slow_penalty(weights: Tensor, labels: Tensor) -> float:
    """The mean over images of the mean of (w_i - 1)(w_j - 1) over the pairs of other images of their class."""
    total = 0.0
    for c in set(labels.tolist()):
        of_class = weights[labels == c] - 1
        n = len(of_class)
        pairs = [of_class[i] * of_class[j] for i in range(n) for j in range(n) if i != j]
        total += n * float(sum(pairs)) / len(pairs) if pairs else 0.0
    return total / len(weights)


def test_the_penalty_of_the_average_is_that_of_pairs() -> None:
    gen = torch.Generator().manual_seed(0)
    weights = torch.rand(30, generator=gen) * 3
    labels = torch.randint(4, (30,), generator=gen)
    labels[0] = 4  # the only image of its class
    assert average_penalty(weights, labels, 6) == pytest.approx(slow_penalty(weights, labels), rel=1e-5)
    assert average_penalty(torch.ones(30), labels, 6) == 0
    assert average_penalty(torch.full((30,), 3.0), labels, 6) == pytest.approx(4 * 29 / 30)

    # It does not punish the variance of weights that average 1.
    spread = torch.stack(
        [average_penalty(2 * torch.rand(8, generator=gen), torch.zeros(8).long(), 1) for _ in range(999)]
    )
    assert spread.mean() == pytest.approx(0, abs=0.01)  # the plain square would be 1 / 24

    means = class_means(weights, labels, 6)
    assert all(means[i] == pytest.approx(float(weights[labels == labels[i]].mean())) for i in range(30))


def test_on_validation_data_it_is_never_worse_than_plain_sampling(tmp_path: Path) -> None:
    """The step of the least FID is kept, and that of the start is plain sampling's."""
    result = ok(
        "train", "--stage", "latent_reweighting", "--out", tmp_path, "--num", 30, "-o", "pool=60", "-o", "batch=16",
        "-o", "steps=2", "-o", "eval_every=2", "-o", "lr=1", "-o", "hidden=8", "-o", "ema=0",
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "latent_reweighting.jsonl").read_text().splitlines()]
    fids = [line["fid"] for line in lines if "fid" in line]
    assert len(fids) == 2
    assert result["fid"] == min(fids)
    (plain,) = ok("eval", "--sampler", "plain", "--num", 30, "--out", tmp_path / "plain", "--reference", "valid")[
        "rows"
    ]
    assert fids[0] == pytest.approx(plain["metrics"]["fid"], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": 1}, "latent_reweighting.pool must be 2 or more, found 1"),
        ({"depth": 0}, "latent_reweighting.depth must be 1 or more"),
        ({"lr": 0}, "latent_reweighting.lr must be positive"),
        ({"ema": 1}, r"latent_reweighting.ema must be in \[0, 1\)"),
        ({"cap": 1}, "latent_reweighting.cap must be above 1"),
        ({"base": "gandanc"}, "did you mean 'gandance'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        STAGES.create("latent_reweighting", options)
