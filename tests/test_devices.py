"""What is made and measured on a GPU is what the CPU makes, up to the tolerance of the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tolerance, ok
from contract import draw
from host_models import networks

from studiogan_guidance.host import compat
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.latents import view_for

SHARES = ("precision", "recall", "density", "coverage")


def test_an_evaluation_of_the_built_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, tolerance: Tolerance
) -> None:
    """Plain and guided; real images are measured on the same device."""

    def rows(where: str, batch: int) -> list[dict[str, Any]]:
        monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / f"{where}-{batch}"))
        command = ("eval", "--num", 300, "--metrics", "fid,prdc", "-o", "scale=1.3", "--batch-size", batch)
        found: list[dict[str, Any]] = ok(*command, "--device", where, "--out", tmp_path / "out")["rows"]
        return found

    for row, expected in zip(rows(device, 32), rows("cpu", 50)):
        assert row["metrics"]["fid"] == pytest.approx(expected["metrics"]["fid"], rel=tolerance.fid)
        for name in SHARES:
            assert row["metrics"][name] == pytest.approx(expected["metrics"][name], abs=tolerance.share)
        assert row["cost"]["synthesis"] == expected["cost"]["synthesis"]


@pytest.mark.studiogan
@pytest.mark.parametrize("sampler", ["plain", "gandance"])
@pytest.mark.parametrize("name", ["big_resnet", "stylegan2"])
def test_images_of_the_host(checkout: Checkout, device: str, tolerance: Tolerance, name: str, sampler: str) -> None:
    """The latter with its plug-ins on a GPU, where they can be compiled."""
    options: dict[str, object] = {"scale": 1.5} if sampler == "gandance" else {}
    images = draw(view_for(networks(name, checkout, device)), sampler, options, range(8), 8).cpu()
    expected = draw(view_for(networks(name, checkout)), sampler, options, range(8), 3)
    unit = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(images, expected, atol=tolerance.pixel * unit, rtol=0)


@pytest.mark.gpu
@pytest.mark.studiogan
@pytest.mark.parametrize("name", ["stylegan2", "stylegan3"])
def test_plugins_compute_what_the_reference_code_does(
    checkout: Checkout, exact: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """They are compiled when the network is built; skipped where they cannot be."""
    view = view_for(networks(name, checkout, "cuda"))
    with inside(checkout):
        operations = [module(f"utils.style_ops.{plugin}") for plugin in compat.PLUGINS[name]]
    if any(one._plugin is None for one in operations):
        pytest.skip("the plug-ins cannot be compiled here: see the line on stderr")

    images = draw(view, "gandance", {"scale": 1.5}, range(8), 8)
    for one in operations:
        monkeypatch.setattr(one, "_init", lambda: False)
    expected = draw(view, "gandance", {"scale": 1.5}, range(8), 8)
    assert not torch.equal(images, expected)
    unit = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(images, expected, atol=2e-3 * unit, rtol=0)
