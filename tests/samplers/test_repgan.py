from __future__ import annotations

import math

import pytest
import torch
from conftest import identity_view
from torch import Tensor

from studiogan_guidance import rng, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan


def test_it_is_metropolis_for_images_with_proposals_in_the_latent() -> None:
    """A slow twin: the rule min(1, p(z') e^d(z') q(z|z') / (p(z) e^d(z) q(z'|z))), one chain after the other."""
    view = identity_view(lambda x, c: -3 * (x[:, 0] - 1).square() / 2)
    tau, steps = 0.3, 20
    sampler = samplers.create("repgan", {"step": tau, "steps": steps, "calibration": "none"})
    (batch,) = sampler.stream(view, range(20), 20, LabelPlan())

    def log_density(z: Tensor) -> Tensor:
        return -z * z / 2 - 3 * (z - 1) ** 2 / 2

    def centre(z: Tensor) -> Tensor:
        return z + tau / 2 * (-z - 3 * (z - 1))

    def log_q(to: Tensor, z: Tensor) -> Tensor:
        return -((to - centre(z)) ** 2) / (2 * tau)

    for seed, image in enumerate(batch.images.flatten()):
        inputs = view.draw([seed], seed, LabelPlan())
        z = inputs.z[0, 0]
        for _ in range(steps):
            proposal = centre(z) + math.sqrt(tau) * rng.randn(inputs.generators, 1)[0, 0]
            ratio = log_density(proposal) + log_q(z, proposal) - log_density(z) - log_q(proposal, z)
            z = proposal if rng.unit(inputs.generators)[0] < ratio.exp() else z
        torch.testing.assert_close(image, z, atol=1e-4, rtol=1e-4)


def test_the_correction_is_no_option() -> None:
    made = samplers.create("repgan")
    assert made.mala
    assert (made.steps, made.step) == (640, 0.01)
    with pytest.raises(UserError, match="sampler 'repgan' has no option 'mala'"):
        samplers.create("repgan", {"mala": False})
