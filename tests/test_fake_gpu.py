"""What a GPU would be asked to do, without one: all tensors on one device, and nobody waits for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_gpu import DEVICE, fake_gpu, moved, moved_networks
from torch._subclasses.fake_tensor import DataDependentOutputException

from studiogan_guidance import builtin, rng, samplers
from studiogan_guidance.builtin.backbone import BuiltinBackbone
from studiogan_guidance.devices import to_device
from studiogan_guidance.evaluation.generation import Meter
from studiogan_guidance.features.preparation import Preparation
from studiogan_guidance.features.resize import FILTERS
from studiogan_guidance.features.stats import Moments
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers import Sampler

GUIDED = [
    ("plain", {}),
    ("truncation", {"psi": 0.7}),
    *(("gandance", {"joint": joint}) for joint in ("class_mean", "global_mean", "class_shift", "mean_embedding")),
]


BUILTIN = builtin.networks()


def fake_view() -> LatentView:
    """The built-in on the GPU that is not there; its class means are known."""
    view = view_for(moved_networks(BUILTIN))
    means = torch.empty(view.num_classes, 1, 64, device=DEVICE).expand(-1, view.rows or 0, -1)
    view.once("class means", lambda: means)
    return view


@pytest.mark.parametrize(("name", "options"), GUIDED)
def test_a_pass_waits_for_the_gpu_at_its_first_batch_only(name: str, options: dict[str, Any]) -> None:
    sampler: Sampler = samplers.create(name, options)
    backbone = BuiltinBackbone("cpu")
    with fake_gpu() as read, torch.no_grad():
        view = fake_view()
        backbone.device = DEVICE
        backbone._net = moved(backbone._net)
        meter = Meter(sampler.stream(view, range(20), 4, LabelPlan()), view)
        reads = []
        moments = Moments()
        for images, labels in meter:
            features, logits = backbone(backbone.prepare(images))
            moments.add(features)
            assert images.device == labels.device == features.device == logits.device == DEVICE
            reads.append(len(read))
    assert reads == [1, 1, 1, 2, 3]  # each later one two batches after it was made
    assert len(read) == 5


@pytest.mark.parametrize("name", ["legacy", *FILTERS])
def test_images_are_resized_on_the_gpu_without_waiting(name: str) -> None:
    with fake_gpu(), torch.no_grad():
        prepare = Preparation(299, name, torch.zeros(3), torch.ones(3), DEVICE)
        for size in (32, 512):
            inputs = prepare(torch.empty(2, 3, size, size, device=DEVICE))
            assert (inputs.shape, inputs.device) == ((2, 3, 299, 299), DEVICE)


def test_a_real_gpu_beside_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with fake_gpu():
        drawn = rng.randn(rng.generators(range(2)), 3, device=DEVICE)
        assert drawn.device == to_device(torch.zeros(2), DEVICE).device == DEVICE


def test_what_waits_is_noticed() -> None:
    with fake_gpu(), pytest.raises(DataDependentOutputException):
        bool(torch.zeros(1, device=DEVICE).any())
    with fake_gpu(), pytest.raises(RuntimeError, match="on the same device"):
        torch.zeros(2, device=DEVICE) + torch.zeros(2)
