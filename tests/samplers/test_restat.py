"""Batch-norm statistics of the sampler's own images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import ok, run
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from studiogan_guidance import builtin, rng, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers import restat


@pytest.fixture
def view() -> LatentView:
    return view_for(builtin.networks())


def inputs_of(norm: nn.Module, view: LatentView, batches: int, options: dict[str, Any]) -> list[Tensor]:
    """What reaches a batch norm while the images of restat's own seeds are made."""
    seen: list[Tensor] = []
    size = restat.BATCH_SIZE
    handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for i in range(batches):
        seeds = range(restat.SEED + i * size, restat.SEED + (i + 1) * size)
        list(samplers.create("gandance", options).stream(view, seeds, size, LabelPlan()))
    handle.remove()
    return seen


def test_the_first_norm_gets_the_mean_of_the_batches_statistics(view: LatentView) -> None:
    first = next(module for module in view.generator.modules() if isinstance(module, _BatchNorm))
    options = {"scale": 2.0, "joint": "class_shift"}
    first.track_running_stats = False  # as the host leaves a generator after a discriminator step
    first.num_batches_tracked.fill_(999)
    found = restat.accumulate(view, samplers.create("gandance", options), 3)
    seen = inputs_of(first, view, 3, options)  # nothing before it normalises, so its inputs are the same now
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    var = torch.stack([x.var((0, 2, 3), unbiased=True) for x in seen]).mean(0)
    torch.testing.assert_close(found[first][0], mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[first][1], var, atol=1e-4, rtol=1e-4)


def test_the_generator_is_left_as_it_was_found_and_statistics_apply_only_inside(view: LatentView) -> None:
    def image() -> Tensor:
        return next(samplers.create("plain").stream(view, range(4), 4, LabelPlan())).images

    norms = [module for module in view.generator.modules() if isinstance(module, _BatchNorm)]
    norms[0].training, norms[0].momentum = True, 0.3
    state = {key: value.clone() for key, value in view.generator.state_dict().items()}
    before = image()
    found = restat.accumulate(view, samplers.create("gandance", {"scale": 3.0}), 2)
    assert (norms[0].training, norms[0].momentum) == (True, 0.3)
    assert all(torch.equal(state[key], value) for key, value in view.generator.state_dict().items())
    with restat.applied(found):
        assert not torch.allclose(image(), before, atol=1e-2)
        with restat.applied({}):
            assert not torch.allclose(image(), before, atol=1e-2)
    assert torch.equal(image(), before)


def test_no_statistic_comes_from_the_seed_of_an_image(view: LatentView, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    generators = rng.generators
    monkeypatch.setattr(rng, "generators", lambda asked: seeds.extend(asked) or generators(asked))
    restat.accumulate(view, samplers.create("plain"), 2)
    assert len(set(seeds)) == 2 * restat.BATCH_SIZE
    assert min(seed % 2**32 for seed in seeds) >= rng.IMAGES  # a generator of the CPU takes the low 32 bits
    assert all(seed in rng.RESERVED["statistics"] for seed in seeds)


def test_a_generator_without_batch_norms_is_refused(toy_view: LatentView) -> None:
    with pytest.raises(UserError, match="restat needs batch norms, but builtin has none"):
        restat.accumulate(toy_view, samplers.create("plain"), 1)


def test_the_table_says_which_statistics_were_used(tmp_path: Any) -> None:
    common = ["--num", 64, "--batch-size", 32, "--metrics", "fid", "--out", tmp_path, "-o", "scale=1.5"]
    before, after = ok("eval", *common)["rows"], ok("eval", *common, "--restat", 2)["rows"]
    assert [row["protocol"]["statistics"] for row in (*before, *after)] == ["checkpoint"] * 2 + ["restat 2x64"] * 2
    for one, other in zip(before, after):
        assert one["metrics"]["fid"] != other["metrics"]["fid"]
    assert "statistics=restat 2x64" in run("eval", *common, "--restat", 2).stdout
