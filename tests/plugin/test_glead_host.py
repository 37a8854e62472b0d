"""The stage glead inside runs of the host: neutral at weights 0, resumed exactly, and its checkpoints are ordinary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ok
from training_runs import (
    EXTRA,
    assert_same,
    flags,
    killed,
    losses,
    train,
    weights,
    write,
    write_images,
)

from studiogan_guidance.host import compat
from studiogan_guidance.host.compat import RUN_SHIMS
from studiogan_guidance.host.imports import inside
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.plugin import hooks
from studiogan_guidance.plugin.process import kept

pytestmark = pytest.mark.studiogan
GLEAD = {"name": "glead", "distance": "pixels"}
NEUTRAL = {**GLEAD, "real": 0.0, "fake": 0.0}
AUGMENTED: dict[str, dict[str, Any]] = {
    "diffaug": {"AUG": {"apply_diffaug": True, "diffaug_type": "diffaug"}},
    "ada": {"AUG": EXTRA["stylegan2"]["AUG"]},
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("name", ["big_resnet", "stylegan2"])
def test_with_weights_0_fifty_steps_are_those_of_the_host(
    tmp_path: Path, checkout: Checkout, images: Path, name: str
) -> None:
    found = []
    for folder, stages in (("without", []), ("with", [NEUTRAL])):
        cfg = write(tmp_path / f"{folder}.yaml", name, stages, total_steps=49)
        ended = train(checkout, cfg, images, tmp_path / folder, "--save_freq", 50)
        found.append((losses(tmp_path / folder), weights(ended)))
    assert found[0][0] == found[1][0]
    assert len(found[0][0]["dis_loss"]) == 50
    assert len(set(found[0][0]["dis_loss"])) == 50
    assert [key for key, value in found[0][1].items() if not torch.equal(value, found[1][1][key])] == []


@pytest.mark.parametrize(("name", "workers"), [("big_resnet", 0), ("stylegan2", 1)])
def test_a_run_that_was_killed_ends_as_an_uninterrupted_one_and_is_an_ordinary_one(
    tmp_path: Path, checkout: Checkout, images: Path, name: str, workers: int
) -> None:
    cfg = write(tmp_path / "a.yaml", name, [GLEAD], total_steps=9)
    more = ("--num_workers", workers, "--save_freq", 5)
    whole = train(checkout, cfg, images, tmp_path / "whole", *more)
    killed(flags(cfg, images, tmp_path / "out", *more))
    (folder,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert train(checkout, cfg, images, tmp_path / "out", *more, "-ckpt", folder) == folder
    assert_same(folder, whole)
    assert any(key.startswith("/glead/") for key in weights(folder))

    # Images are made of it, guided, and the host without the plugin goes on with it.
    plain = write(tmp_path / "plain.yaml", name, total_steps=10)
    guided = tmp_path / "guided.yaml"
    guided.write_text(plain.read_text() + "sampler: {name: gandance, scale: 1.5}\n")
    ok("sample", "-c", guided, "--ckpt", folder, "--num", 4, "--out", tmp_path / "sampled")
    with kept(), inside(checkout), compat.active(RUN_SHIMS):
        arguments = flags(plain, images, tmp_path / "out", *more, "--save_freq", 11, "-ckpt", folder)
        hooks.execute(checkout.path / "src" / "main.py", tuple(arguments))
    assert {path.name.rpartition("=")[2] for path in folder.glob("model*")} == {"11.pth"}


@pytest.mark.parametrize("augmentation", AUGMENTED)
@pytest.mark.parametrize("name", ["big_resnet", "stylegan2"])
def test_augmented_images_and_accumulated_gradients_train(
    tmp_path: Path, checkout: Checkout, images: Path, name: str, augmentation: str
) -> None:
    cfg = write(
        tmp_path / "a.yaml",
        name,
        [GLEAD],
        {name: {**EXTRA[name], **AUGMENTED[augmentation]}},
        total_steps=1,
        acml_steps=2,
    )
    folder = train(checkout, cfg, images, tmp_path / "out", "--save_freq", 2)
    assert all(map(math.isfinite, losses(tmp_path / "out")["dis_loss"]))
    found = weights(folder)
    steps = [value for key, value in found.items() if key.startswith("/glead/") and key.endswith("/step")]
    assert set(map(float, steps)) == {2.0}
    assert all(value.isfinite().all() for value in found.values())
