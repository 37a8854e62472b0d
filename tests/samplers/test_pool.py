from __future__ import annotations

import dataclasses
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ToyGAN, toy_networks

from studiogan_guidance import files, rng
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


def test_members_of_pools_of_several_classes_have_the_labels_and_seeds_of_each(view: LatentView) -> None:
    inputs = pool.inputs(view, [3, 1, 3], 10, [4, 0, 9])
    assert inputs.labels.tolist() == [3, 1, 3]
    assert inputs.seeds.tolist() == [rng.POOLS + 34, rng.POOLS + 10, rng.POOLS + 39]
    alone = pool.inputs(view, [1], 10, [0])
    assert torch.equal(inputs.z[1:2], alone.z)


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


def test_processes_share_the_chunks_and_wait_for_each_other_only_at_the_end(
    view: LatentView, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    monkeypatch.setattr(pool, "cache_path", lambda *args: paths.append(files.cache_path(*args)) or paths[-1])
    pool.values(view, "squares", {}, 10, squares([]))
    first = paths[0]
    first.unlink()

    asked: list[int] = []
    with ExitStack() as other:
        assert other.enter_context(files.locked(first))  # as another process that computes the first chunk

        def compute(draws: range) -> torch.Tensor:
            asked.extend(draws)
            if draws.stop == 30:  # by now the other one has finished
                files.write_arrays(first, {"values": np.arange(10) ** 2})
                other.close()
            return torch.tensor([draw * draw for draw in draws])

        values = pool.values(view, "squares", {}, 30, compute)
    assert asked == list(range(10, 30))
    np.testing.assert_array_equal(values, np.arange(30) ** 2)


def test_a_cache_that_may_only_be_read_is_no_error(view: LatentView, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(os.environ["STUDIOGAN_GUIDANCE_CACHE"]) / "file"
    file.touch()
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(file))  # no folder can be made below a file
    np.testing.assert_array_equal(pool.values(view, "squares", {}, 15, squares([])), np.arange(15) ** 2)
