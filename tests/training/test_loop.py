"""The loop of a stage: its files, its noise, and what it leaves as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.training.loop import Loop, descend, deterministic, frozen_parameters, step_seeds


def test_a_cut_line_and_lines_after_the_state_are_dropped(tmp_path: Path) -> None:
    net = torch.nn.Linear(1, 1)
    loop = Loop(tmp_path / "x", {"a": 1}, {"net": net}, {}, Group(), lambda step, values: None)
    loop.run(4, lambda step: {"loss": torch.tensor(float(step))}, save_every=3, note_every=1)
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 4.0}\n{"step": 2, "lo')
    again = Loop(tmp_path / "x", {"a": 1}, {"net": net}, {}, Group(), lambda step, values: None)
    assert again.step == 4
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert lines == [{"step": i + 1, "loss": float(i)} for i in range(4)]
    with pytest.raises(UserError, match=r"belongs to a run with a 1, asked for was 2: use another --out"):
        Loop(tmp_path / "x", {"a": 2}, {"net": net}, {}, Group(), lambda step, values: None)
    (tmp_path / "x.state").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot read .*x.state: .*; remove it to start anew"):
        Loop(tmp_path / "x", {"a": 1}, {"net": net}, {}, Group(), lambda step, values: None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"identity": None}, "it lacks identity"),
        ({"net": None, "step": None}, "it lacks net, step"),
        ({"identity": "{"}, "its identity is no JSON of a mapping"),
        ({"result": "[1]"}, "its result is no JSON of a mapping"),
        ({"step": -1}, "its step is no whole number from 0 up"),
        ({"step": "3"}, "its step is no whole number"),
        ({"net": {"weight": torch.ones(2, 2)}}, "its net does not fit"),
        ({"net": 3}, "its net does not fit"),
        ({"sgd": {"state": {}, "param_groups": []}}, "its sgd does not fit"),
    ],
)
def test_a_damaged_state_is_one_line(tmp_path: Path, change: dict[str, object], words: str) -> None:
    net = torch.nn.Linear(1, 1)
    parts = ({"net": net}, {"sgd": torch.optim.SGD(net.parameters(), 0.1)})
    Loop(tmp_path / "x", {"a": 1}, *parts, Group(), lambda step, values: None).save()
    state = {**torch.load(tmp_path / "x.state"), **change}
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "x.state")
    with pytest.raises(UserError, match=f"x.state is damaged: {words}.*; remove it to start anew") as caught:
        Loop(tmp_path / "x", {"a": 1}, *parts, Group(), lambda step, values: None)
    assert "\n" not in str(caught.value)


def test_a_state_that_is_another_file_says_what_it_is(tmp_path: Path) -> None:
    for content, words in ((b"", "an empty file"), (b"<html>", "a web page"), (b"PK\x03\x04abc", "lacks its end")):
        (tmp_path / "x.state").write_bytes(content)
        with pytest.raises(UserError, match=f"cannot read .*x.state: .*{words}.*; remove it to start anew"):
            Loop(tmp_path / "x", {"a": 1}, {}, {}, Group(), lambda step, values: None)


def test_frozen_parameters_are_left_as_they_were_found() -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2).eval().requires_grad_(False))
    with frozen_parameters(net):
        assert not any(part.training for part in net.modules())
        assert not any(value.requires_grad for value in net.parameters())
    assert [part.training for part in net.modules()] == [True, True, False]
    assert [value.requires_grad for value in net.parameters()] == [True, True, False, False]


def test_noise_differs_between_places_and_runs_and_fits_into_a_generator() -> None:
    keys = [(seed, place, kind) for seed in range(3) for place in range(3) for kind in range(3)]
    drawn = [tuple(step_seeds(64, *key)) for key in keys]
    assert len({seed for one in drawn for seed in one}) > 64 * 27 - 3
    assert max(map(max, drawn)) < 2**32  # of more, a generator of the CPU sees the low 32 bits
    assert drawn[0] == tuple(step_seeds(64, 0, 0, 0))


@pytest.mark.parametrize(("clip", "length"), [(0, 5), (2, 2), (10, 5)])
def test_the_gradient_is_clipped_to_a_norm(clip: float, length: float) -> None:
    value, slope = torch.zeros(2, requires_grad=True), torch.tensor([3.0, 4.0])
    descend((value * slope).sum(), [value], torch.optim.SGD([value], 1.0), Group(), clip)
    torch.testing.assert_close(value.detach(), -slope / 5 * length)


def test_losses_are_read_when_the_next_ones_come_and_before_a_state_is_saved(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "x", {}, {}, {}, Group(), lambda step, values: None)
    seen: dict[int, int] = {}

    def update(step: int) -> dict[str, torch.Tensor]:
        seen[step] = len(loop.log_file.read_text().splitlines())
        return {"loss": torch.tensor(1.0)}

    loop.run(12, update, save_every=6, note_every=2)
    assert seen == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 3, 7: 3, 8: 3, 9: 3, 10: 4, 11: 4}
    steps = [json.loads(line)["step"] for line in loop.log_file.read_text().splitlines()]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_a_loss_that_is_not_finite_is_found_before_the_state_is_saved(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "x", {}, {}, {}, Group(), lambda step, values: None)
    losses = {"loss": torch.tensor(float("nan"))}
    with pytest.raises(UserError, match="losses are not finite at step 4"):
        loop.run(12, lambda step: losses, save_every=4, note_every=4)
    assert torch.load(loop.state_file, weights_only=True)["step"] == 0


def settings() -> tuple[object, ...]:
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        cudnn.deterministic,
        memory.fill_uninitialized_memory,  # type: ignore[attr-defined]
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.mark.parametrize("strict", [False, True])
def test_deterministic_algorithms_are_for_a_gpu_and_settings_come_back(
    monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(strict)
    try:
        before = settings()
        with deterministic(torch.device("cpu")):
            assert settings() == before
        with pytest.raises(ValueError, match="inside"), deterministic(torch.device("cuda")):
            assert settings() == (True, not strict, False, True, False, ":4096:8")
            raise ValueError("inside")
        assert settings() == before
    finally:
        torch.use_deterministic_algorithms(False)
