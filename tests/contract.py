"""The contract of samplers: what every registered name must keep to, on every view."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, importance
from studiogan_guidance.samplers import SAMPLERS
from studiogan_guidance.samplers.ratio import RatioSampler

VARIANTS: dict[str, list[dict[str, object]]] = {  # options under which images differ from plain ones, for the toy
    "plain": [
        {},
    ],
    "gandance": [
        {"scale": 2, "joint": "class_mean"},
        {"scale": 0.5, "joint": "class_subset", "subset": 2},
        {"scale": 2, "joint": "global_mean"},
        {"scale": 2, "joint": "class_shift", "keep_norm": True},
        {"scale": 2, "joint": "mean_embedding", "layers": [1, 3]},
        {"scale": 2, "joint": "gaussian"},
        {"scale": 0.5, "joint": "gaussian_shift"},
        {"scale": 2, "profile": [0, 0.5, 1]},
        {"scale": 2, "psi": 0.5, "layers": [0, 1]},
        {"scale": 2, "psi": 0.5},
        {"scale": 1, "threshold": 0.5},
        {"scale": 1.2, "psi": 1.5, "tau": 1.3},
    ],
    "truncation": [
        {"psi": 0.5},
        {"psi": 1.5, "center": "class"},
        {"threshold": 0.5},
        {"psi": 0.2, "cutoff": 3},
    ],
    "conditional_truncation": [
        {"psi": 0.5},
        {"psi": 0.5, "base": "gandance", "cutoff": 3},
    ],
    "cluster_truncation": [
        {"clusters": 4, "draws": 400},
        {"psi": 0.2, "clusters": 2, "draws": 200, "per_class": True},
    ],
    "autoguidance": [
        {"reference": "0.5", "scale": 2},
        {"reference": "0.2", "base": "truncation"},
    ],
    "simplicial": [
        {"cells": 3, "draws": 100, "accept": 0.2},
        {"centers": "axes", "cells": 3, "threshold": 0.6},
    ],
    "latent_reweighting": [
        {},
        {"proposals": 4, "mode": "resampling"},
        {"proposals": 5, "bound": 4, "ascent": 2, "rate": 0.1, "base": "gandance"},
    ],
    "drs": [
        {"burn_in": 200},
        {"burn_in": 200, "percentile": 50, "bound": "global", "base": "gandance"},
    ],
    "metropolis": [
        {"proposals": 5},
        {"proposals": 10, "pool": 40, "calibration": "head"},
    ],
    "isir": [
        {"steps": 2, "particles": 4},
        {"steps": 1, "calibration": "isotonic"},
    ],
    "ddls": [
        {"steps": 3, "step": 0.2},
        {"steps": 3, "step": 0.3, "mala": True, "target_acceptance": 0.67},
        {"steps": 2, "step": 0.2, "space": "w"},
    ],
    "repgan": [
        {"steps": 3, "step": 0.3},
    ],
    "ex2mcmc": [
        {"steps": 2, "particles": 4},
        {"steps": 1, "space": "w", "base": "truncation"},
    ],
    "dgflow": [
        {"steps": 3},
        {"steps": 2, "divergence": "js", "space": "w"},
    ],
    "dot": [
        {"steps": 5, "pairs": 10, "rate": 0.1},
        {"steps": 5, "k_eff": 0.1, "projection": "none"},
    ],
    "collaborative": [
        {"steps": 3, "rate": 2},
        {"steps": 3, "rate": 0.02, "relative": True, "layer": 0, "mode": "probabilistic"},
    ],
    "hubness": [
        {"pool": 200, "threshold": 6, "space": "z"},
        {"pool": 200, "threshold": 5, "space": "w", "metric": "cosine"},
    ],
    "polarity": [
        {"k": 2, "pool": 100},
        {"rho": 1, "k": 1, "pool": 200, "base": "gandance"},
    ],
}

REAL: dict[str, dict[str, object]] = {  # the same, cheap enough for real networks, trained or not
    "plain": {},
    "gandance": {"scale": 1.5},
    "truncation": {"threshold": 0.8},
    "conditional_truncation": {"psi": 0.5},
    "cluster_truncation": {"psi": 0.3, "clusters": 2, "draws": 100},
    "autoguidance": {"scale": 3, "reference": "another"},
    "simplicial": {"centers": "axes", "cells": 4, "accept": 0.3},
    "latent_reweighting": {"percentile": 90},
    "drs": {"burn_in": 1, "percentile": 90},
    "metropolis": {"proposals": 3},
    "isir": {"steps": 1, "particles": 3},
    "ddls": {"steps": 2, "step": 0.2, "base": "gandance"},
    "repgan": {"steps": 2, "step": 0.2},
    "ex2mcmc": {"steps": 1, "particles": 3, "mala_steps": 1},
    "dgflow": {"steps": 2},
    "dot": {"steps": 2, "pairs": 3, "rate": 0.02},
    "collaborative": {"steps": 2, "rate": 0.05, "relative": True, "layer": 0, "loss": "logit"},
    "hubness": {"pool": 100, "threshold": 7},
    "polarity": {"k": 2, "pool": 20, "projections": 3, "rho": 5},
}


def draw(
    view: LatentView,
    name: str,
    options: dict[str, object],
    seeds: range,
    batch: int,
    plan: LabelPlan | None = None,
    **more: int,
) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        sampler = samplers.create(name, with_weights(view, name, options, Path(folder)))
        stream = sampler.stream(view, seeds, batch, plan or LabelPlan(), **more)
        return torch.cat([samples.images for samples in stream])


def with_weights(view: LatentView, name: str, options: dict[str, object], folder: Path) -> dict[str, object]:
    """The options, with a file of weights for this generator where the sampler needs one."""
    sampler = samplers.create(name, options)
    if "weights" not in SAMPLERS[name].needs or sampler.neutral:
        return options
    weights = importance.create(view, 8, 1, samplers.options(sampler)["base"])
    gen = torch.Generator().manual_seed(0)
    for value in weights.parameters():
        value.data.copy_(torch.randn(value.shape, generator=gen))
    path = folder / "weights.safetensors"
    importance.save(path, weights, view, {})
    return {**options, "weights_ckpt": str(path)}


def keeps_the_contract(view: LatentView, name: str, chain: float, seeds: int = 3) -> str | None:
    """Assert the contract on a real generator; the reason, where the sampler has no meaning on it.

    Shape, finite pixels, the same images at another batch size and in another process, neutral options equal to plain
    sampling bit for bit, other ones not, and networks left exactly as they were found. ``chain`` is the tolerance of
    the device for images of another batch size.
    """
    entry = SAMPLERS[name]
    options = dict(REAL[name])
    if issubclass(entry.target, RatioSampler):
        options["calibration"] = "none"
    if not view.networks.is_conditional:
        options.pop("base", None)  # guidance
    plan = LabelPlan(classes=(1,))
    modules = [view.generator]
    if view.networks.companions:
        modules.append(view.networks.companions.discriminator())
    states = [{key: value.clone() for key, value in module.state_dict().items()} for module in modules]
    hooks = [_hooks(module) for module in modules]

    # Neutral options are plain sampling, bit for bit.
    assert entry.neutral is not None
    plain = draw(view, "plain", {}, range(seeds), seeds, plan)
    assert torch.equal(draw(view, name, dict(entry.neutral), range(seeds), seeds, plan), plain)

    # A batch, and the same images one by one; chains magnify the rounding of networks.
    try:
        whole = draw(view, name, options, range(seeds), seeds, plan)
    except UserError as error:
        return str(error)
    assert whole.shape == plain.shape
    assert torch.isfinite(whole).all()
    unit = max(1.0, float(plain.abs().max()))
    parts = draw(view, name, options, range(1, seeds), 1, plan, first=1)
    torch.testing.assert_close(parts, whole[1:], atol=chain * unit, rtol=0)
    if name != "plain":
        assert (whole - plain).abs().max() > 1e-4 * unit

    # Networks are as before.
    for module, state, count in zip(modules, states, hooks):
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
        assert _hooks(module) == count
        assert not any(part.training for part in module.modules())
    return None


def _hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
