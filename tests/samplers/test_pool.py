from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ToyGAN, toy_networks

from studiogan_guidance.latents import LatentView, view_for
from studiogan_guidance.samplers import pool


@pytest.fixture
def view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: ToyGAN) -> LatentView:
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path))
    monkeypatch.setattr(pool, "CHUNK", 10)
    return view_for(toy_networks(toy))


def squares(asked: list[int]):
    def compute(draws: range) -> torch.Tensor:
        asked.extend(draws)
        return torch.tensor([draw * draw for draw in draws])

    return compute


def test_a_stopped_pool_goes_on_and_a_larger_one_begins_with_it(view: LatentView) -> None:
    def stops(draws: range) -> torch.Tensor:
        if draws.start == 20:
            raise KeyboardInterrupt
        return squares(first)(draws)

    first: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        pool.values(view, "squares", {}, 35, stops)
    again: list[int] = []
    found = pool.values(view, "squares", {}, 35, squares(again))
    np.testing.assert_array_equal(found, np.arange(35) ** 2)
    assert (first, again) == (list(range(20)), list(range(20, 35)))
    larger: list[int] = []
    pool.values(view, "squares", {}, 50, squares(larger))
    assert larger == list(range(30, 50))  # the last chunk of 35 was not whole


def test_other_weights_or_another_key_are_another_pool(view: LatentView, toy: ToyGAN) -> None:
    pool.values(view, "squares", {"k": 1}, 10, squares([]))
    for other, key in ((view, {"k": 2}), (view_for(toy_networks(toy, digest="other")), {"k": 1})):
        asked: list[int] = []
        pool.values(other, "squares", key, 10, squares(asked))
        assert len(asked) == 10


def test_damaged_chunks_are_made_again_and_nothing_is_kept_without_a_digest(view: LatentView, tmp_path: Path) -> None:
    pool.values(view, "squares", {}, 10, squares([]))
    (chunk,) = tmp_path.rglob("*.npz")
    chunk.write_bytes(b"spoilt")
    np.testing.assert_array_equal(pool.values(view, "squares", {}, 10, squares([])), np.arange(10) ** 2)
    nameless = view_for(dataclasses.replace(view.networks, digest=""))
    pool.values(nameless, "cubes", {}, 10, squares([]))
    assert [name for name in os.listdir(tmp_path / "pools") if "cubes" in name] == []
