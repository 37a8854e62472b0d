from __future__ import annotations

import math

import pytest
import torch
from conftest import ToyGAN, table_noise

from studiogan_guidance import builtin, samplers
from studiogan_guidance.errors import UserError, notice_once
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers.truncation import truncated_normal


def images(view: LatentView, name: str, **options: object) -> torch.Tensor:
    return next(samplers.create(name, options).stream(view, range(64), 64, LabelPlan())).images.flatten(1)


@pytest.mark.parametrize("t", [0.5, 1.0, 2.0])
def test_truncated_normal_has_the_closed_form_variance(t: float) -> None:
    z = truncated_normal(torch.randn(400_000, generator=torch.Generator().manual_seed(0)), t)
    density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    mass = math.erf(t / math.sqrt(2))
    assert z.abs().max() <= t
    assert abs(z.var() / (1 - 2 * t * density / mass) - 1) < 0.01
    assert abs(z.mean()) < 0.005


def test_truncated_normal_matches_quantiles_and_neutral_is_identity() -> None:
    z = torch.linspace(-6, 6, 1001)
    cut = truncated_normal(z, 1.0)
    assert (cut.diff() >= 0).all()
    assert torch.equal(cut.sign(), z.sign())
    torch.testing.assert_close(truncated_normal(z, math.inf), z, atol=1e-6, rtol=0)
    share = torch.special.ndtr(z.double())  # P(Z < z) must equal P(cut < its image)
    mass = math.erf(1 / math.sqrt(2))
    torch.testing.assert_close((torch.special.ndtr(cut.double()) - (1 - mass) / 2) / mass, share, atol=1e-6, rtol=0)


def test_psi_moves_towards_w_avg_and_is_guidance_from_the_global_mean(toy: ToyGAN, toy_view: LatentView) -> None:
    plain = images(toy_view, "plain")
    half = images(toy_view, "truncation", psi=0.5)
    torch.testing.assert_close(half, toy.mean + 0.5 * (plain - toy.mean))
    torch.testing.assert_close(half, images(toy_view, "gandance", joint="global_mean", scale=0.5))
    torch.testing.assert_close(images(toy_view, "truncation", psi=0), toy.mean.expand(64, -1))


def test_class_centre_keeps_the_class(toy: ToyGAN, toy_view: LatentView) -> None:
    collapsed = images(toy_view, "truncation", psi=0, center="class")
    labels = toy_view.draw(range(64), 0, LabelPlan()).labels
    expected = toy.mean + sum(toy.parts(table_noise(toy), labels))
    torch.testing.assert_close(collapsed, expected, atol=1e-4, rtol=0)
    assert (collapsed - toy.mean - toy.b[labels]).abs().max() < 0.2  # means of 10,000 draws


def test_cutoff_leaves_the_later_rows(toy_view: LatentView) -> None:
    assert torch.equal(images(toy_view, "truncation", psi=0.5, cutoff=2), images(toy_view, "plain"))  # row 3 is read
    assert torch.equal(images(toy_view, "truncation", psi=0.5, cutoff=3), images(toy_view, "truncation", psi=0.5))


def test_meaningless_options_are_refused(toy_view: LatentView) -> None:
    with pytest.raises(UserError, match="has w rows 0-3"):
        samplers.create("truncation", {"cutoff": 9}).check(toy_view)


def test_a_threshold_where_z_is_normalised_is_said_once_to_do_next_to_nothing(
    toy_view: LatentView, capsys: pytest.CaptureFixture[str]
) -> None:
    notice_once.cache_clear()
    images(toy_view, "truncation", threshold=0.5)  # whose w is linear in z
    assert capsys.readouterr().err == ""

    view = view_for(builtin.networks())
    for sampler in ("truncation", "gandance"):
        images(view, sampler, threshold=1.0)
    said = capsys.readouterr().err
    assert said.count("Note: a threshold truncates z, whose norm builtin does not read") == said.count("Note:") == 1
    images(view, "truncation", psi=0.9)
    assert capsys.readouterr().err == ""


def test_while_drawing_truncates_fresh_noise_as_well(toy_view: LatentView) -> None:
    view = samplers.create("truncation", {"threshold": 0.5}).while_drawing(toy_view)
    inputs = view.draw(range(20), 0, LabelPlan())
    assert inputs.z.abs().max() <= 0.5
    assert view.redraw(inputs).z.abs().max() <= 0.5
    assert toy_view.redraw(inputs).z.abs().max() > 1
