from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ToyGAN, table_noise, toy_networks
from toy_families import toy_of

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.fid import frechet_distance, moments
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers.gandance import guide
from studiogan_guidance.samplers.spaces import spread_of_w


def guided(view: LatentView, n: int = 64, **options: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs = view.draw(range(n), 0, LabelPlan())
    return samplers.create("gandance", options).images(view, inputs).flatten(1), inputs.z, inputs.labels


def test_guide_extrapolates_linearly_from_the_joint() -> None:
    code, joint = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])
    assert guide(code, joint, 2.5).tolist() == [6.0, 1.0]
    assert guide(code, joint, 0).tolist() == [1.0, 1.0]
    assert guide(code, joint, 1) is code


@pytest.mark.parametrize(  # METHODS: which of a(z), b(c), i(z, c) each estimator multiplies by s
    ("joint", "factors", "tolerance"),
    [
        ("class_mean", (1, 2, 2), 1e-4),
        ("class_subset", (1, 2, 2), 1e-4),  # of all five classes
        ("global_mean", (2, 2, 2), 1e-4),
        ("class_shift", (1, 2, 1), 0.1),  # class means come from 10,000 draws
        ("mean_embedding", (1, 2, 2), 1e-4),  # this toy is linear in the label
    ],
)
def test_each_joint_scales_its_own_terms(
    toy: ToyGAN, toy_view: LatentView, joint: str, factors: tuple[int, int, int], tolerance: float
) -> None:
    images, z, labels = guided(toy_view, scale=2, joint=joint, subset=99)
    parts = toy.parts(z, labels)
    expected = toy.mean + sum(factor * part for factor, part in zip(factors, parts))
    torch.testing.assert_close(images, expected, atol=tolerance, rtol=0)


def test_scale_zero_forgets_the_class(toy: ToyGAN, toy_view: LatentView) -> None:
    images, z, _ = guided(toy_view, scale=0, joint="class_mean")
    torch.testing.assert_close(images, toy.mean + z @ toy.A, atol=1e-5, rtol=0)


def test_a_subset_scatters_about_the_mean_of_all_classes(toy: ToyGAN, toy_view: LatentView) -> None:
    joint, z, _ = guided(toy_view, n=3000, scale=0, joint="class_subset", subset=2)
    noise = joint - (toy.mean + z @ toy.A)
    per_class = toy.b + (z @ toy.Q)[:, None] * toy.d  # [B, C, D], mean 0 over classes
    variance = per_class.var(1, unbiased=True).mean() * (1 / 2 - 1 / toy.classes)  # drawn without repetition
    assert abs(noise.mean()) < 0.05
    assert abs(noise.square().mean() / variance - 1) < 0.05


def test_layers_guide_only_their_rows(toy_view: LatentView) -> None:
    inputs = toy_view.draw(range(4), 0, LabelPlan())
    code = toy_view.encode(inputs.z, inputs.labels)
    all_rows = samplers.create("gandance", {"scale": 3}).guided(toy_view, inputs, code)
    some = samplers.create("gandance", {"scale": 3, "layers": [1, 2]}).guided(toy_view, inputs, code)
    assert torch.equal(some[:, [0, 2]], code[:, [0, 2]])
    assert torch.equal(some[:, 1], all_rows[:, 1])
    with pytest.raises(UserError, match="has 3 w rows: give a part of 0-3"):
        samplers.create("gandance", {"layers": [1, 9]}).check(toy_view)


def test_each_group_of_rows_has_its_share_of_the_scale(toy_view: LatentView) -> None:
    inputs = toy_view.draw(range(4), 0, LabelPlan())
    code = toy_view.encode(inputs.z, inputs.labels)
    several = samplers.create("gandance", {"scale": 3, "profile": "1:0:-0.25"}).guided(toy_view, inputs, code)
    for row, scale in enumerate((3, 1, 0.5)):
        one = samplers.create("gandance", {"scale": scale}).guided(toy_view, inputs, code)
        torch.testing.assert_close(several[:, row], one[:, row], atol=1e-6, rtol=0)

    two = samplers.create("gandance", {"scale": 3, "profile": "1:0"}).guided(toy_view, inputs, code)  # 2 rows, then 1
    torch.testing.assert_close(two[:, 1], several[:, 0])
    with pytest.raises(UserError, match="has 4 groups, but this generator has 3"):
        samplers.create("gandance", {"profile": "1:2:3:4"}).check(toy_view)
    with pytest.raises(UserError, match="numbers such as 1:0.5:0"):
        samplers.create("gandance", {"profile": "1:x"})


def test_psi_narrows_each_class_and_keeps_the_distance_between_classes(toy: ToyGAN, toy_view: LatentView) -> None:
    images, z, labels = guided(toy_view, scale=2, psi=0.25, joint="class_mean")
    noise, offset, interaction = toy.parts(0.25 * z + 0.75 * table_noise(toy), labels)
    expected = toy.mean + noise + 2 * (offset + interaction)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)

    toy.w_avg += 1  # not the mean over classes: it has no part in this
    again, _, _ = guided(toy_view, scale=2, psi=0.25, joint="class_mean")
    torch.testing.assert_close(again, images)
    toy.w_avg -= 1
    only, z, labels = guided(toy_view, scale=1, psi=0.25)
    torch.testing.assert_close(only, guided_by_truncation(toy_view, psi=0.25, center="class"), atol=1e-5, rtol=0)


def test_psi_and_layers(toy_view: LatentView) -> None:
    inputs = toy_view.draw(range(4), 0, LabelPlan())
    code = toy_view.encode(inputs.z, inputs.labels)

    def codes(**options: object) -> torch.Tensor:
        return samplers.create("gandance", options).guided(toy_view, inputs, code)

    some = codes(scale=2, psi=0.7, layers=[0, 1])
    torch.testing.assert_close(some[:, 0], codes(scale=2, psi=0.7)[:, 0])
    torch.testing.assert_close(some[:, 1:], codes(scale=1, psi=0.7)[:, 1:])  # there it is as without guidance


def guided_by_truncation(view: LatentView, **options: object) -> torch.Tensor:
    return samplers.create("truncation", options).images(view, view.draw(range(64), 0, LabelPlan())).flatten(1)


def test_a_threshold_is_that_of_truncation(toy_view: LatentView) -> None:
    images, _, _ = guided(toy_view, scale=1, threshold=0.5)
    torch.testing.assert_close(images, guided_by_truncation(toy_view, threshold=0.5))
    with pytest.raises(UserError, match="threshold must be positive"):
        samplers.create("gandance", {"threshold": -1})


@pytest.mark.parametrize("joint", ["class_mean", "global_mean"])
def test_keep_norm_keeps_the_distance_from_the_class_mean(toy: ToyGAN, toy_view: LatentView, joint: str) -> None:
    means = toy_view.class_means()
    toy.w_avg.copy_(means[:, 0].mean(0))
    inputs = toy_view.draw(range(4), 0, LabelPlan())
    code = toy_view.encode(inputs.z, inputs.labels)
    plain_mean, guided_mean = means[inputs.labels], (3 * means - 2 * means.mean(0))[inputs.labels]
    free = samplers.create("gandance", {"scale": 3, "joint": joint}).guided(toy_view, inputs, code)
    kept = samplers.create("gandance", {"scale": 3, "joint": joint, "keep_norm": True}).guided(toy_view, inputs, code)

    # In units of the spread within classes, about the guided mean, in the direction of the guided code.
    _, inverse = spread_of_w(toy_view)
    offset = kept - guided_mean
    norm = ((code - plain_mean) @ inverse).norm(dim=-1)
    torch.testing.assert_close((offset @ inverse).norm(dim=-1), norm, rtol=1e-4, atol=1e-4)
    cosine = torch.cosine_similarity(offset, free - guided_mean, -1)
    torch.testing.assert_close(cosine, torch.ones(4, 3), rtol=0, atol=1e-4)

    # Guidance by the global mean widens alone, so what is left is the class shift.
    if joint == "global_mean":
        torch.testing.assert_close(offset, code - plain_mean, rtol=1e-4, atol=1e-4)


def test_keep_norm_is_refused_where_it_would_undo_guidance() -> None:
    with pytest.raises(
        UserError, match="keep_norm needs a generator with w: on big_resnet, whose codes are one vector"
    ):
        samplers.create("gandance", {"keep_norm": True}).check(toy_of("big_resnet"))


def test_the_best_scale_undoes_contracted_classes() -> None:
    """Data R b_c + noise, generator r b_c + the same noise: the distance is least, and nil, at s = R / r = 1.6."""
    data = ToyGAN(between=1.6, interaction=0)
    view = view_for(toy_networks(ToyGAN(between=1.0, interaction=0), "contracted"))
    real, _, _ = guided(view_for(toy_networks(data, "data")), n=20000, scale=1)
    distances = {}
    for scale in (1.0, 1.3, 1.6, 1.9):
        fake, _, _ = guided(view, n=20000, scale=scale)
        distances[scale] = frechet_distance(*moments(real.numpy()), *moments(fake.numpy()))
    assert min(distances, key=lambda scale: distances[scale]) == 1.6
    assert distances[1.6] < 1e-4 < 0.1 < distances[1.0]  # same seeds: not even sampling noise is left
    assert np.all(np.diff([distances[s] for s in (1.6, 1.3, 1.0)]) > 0)
