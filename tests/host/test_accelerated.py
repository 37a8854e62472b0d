"""The host's generators in fast mode."""

from __future__ import annotations

import dataclasses
from typing import Any

import host_models
import pytest
import torch
from conftest import Recorder
from fake_gpu import fake_gpu, moved_networks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from studiogan_guidance import fast
from studiogan_guidance.host import compat
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.latents import LabelPlan, Networks, view_for
from studiogan_guidance.latents.accelerated import accelerated

pytestmark = pytest.mark.studiogan
STYLEGANS = ("stylegan2", "stylegan3")


@pytest.fixture(scope="module", params=host_models.BACKBONES)
def networks(request: pytest.FixtureRequest, checkout: Checkout) -> Networks:
    return host_models.networks(request.param, checkout)


@torch.no_grad()
def test_images_are_those_of_the_exact_generator_and_a_replay_changes_nothing(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = dataclasses.replace(networks, device=torch.device("cpu"))
    exact = view_for(networks)
    inputs = exact.draw(range(5), 0, LabelPlan())
    with exact.frozen():
        expected = exact.images(inputs)
        for name in ("float32", "bfloat16"):
            if name == "bfloat16" and networks.backbone in STYLEGANS:
                with pytest.raises(AssertionError):  # its kernels check their types, so another precision is taken
                    accelerated(exact, name, 6).images(inputs)
                continue

            eager = accelerated(exact, name, 6).images(inputs)
            bound = 1e-5 if name == "float32" else 0.02
            assert (eager - expected).square().mean().sqrt() < bound

            # Filled up, and replayed.
            recorder = Recorder()
            with monkeypatch.context() as patch:
                patch.setattr(fast, "capture_on", lambda device, recorder=recorder: recorder)
                view = accelerated(exact, name, 6)
            for _ in range(2):
                torch.testing.assert_close(view.images(inputs), eager, rtol=0, atol=bound)
            assert (recorder.captures, recorder.replays) == (1, 2)


class OnDevice(TorchDispatchMode):
    """Refuses tensors in the CPU's memory, which a capture cannot read."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            assert not isinstance(value, Tensor) or value.is_cuda, function
        return result


def test_nothing_in_a_generator_waits_for_a_gpu_so_that_it_can_be_captured(
    networks: Networks, checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference code stands in for the plug-ins of StyleGAN, which want a real GPU."""
    with inside(checkout):
        for name in compat.PLUGINS["stylegan3"]:
            monkeypatch.setattr(module(f"utils.style_ops.{name}"), "_init", lambda: False)

    with fake_gpu(), torch.no_grad():
        view = view_for(moved_networks(networks))
        inputs = view.draw(range(4), 0, LabelPlan())
        code = view.encode(inputs.z, inputs.labels)
        with view.frozen(), fast.FilledIn(), OnDevice():
            images = view.decode(code, inputs.z, inputs.noise)
        assert images.device.type == "cuda"
