"""What a stage trains beside the host's discriminator: when it steps, what it adds, and that it resumes exactly."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run
from torch import Tensor, nn
from torch.utils.data import DataLoader
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

from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.plugin import resuming
from studiogan_guidance.plugin.companions import Steps
from studiogan_guidance.plugin.process import kept
from studiogan_guidance.training.stage import STAGES, DiscriminatorStep, Stage, Training

HERE = Path(__file__).parent


REGISTERED = f"""
import sys
sys.path[:0] = [{str(HERE.parent)!r}, {str(HERE)!r}]
import test_companions
test_companions.STAGES.register("painting", "a test", "none")(test_companions.Painting)
"""


class Painter:
    """Predicts D's answer to real images by a 1x1 convolution; both are drawn together."""

    def __init__(self, weight: float, run: Training | None = None) -> None:
        self.network = nn.Conv2d(3, 1, 1).to(run.networks.device if run else "cpu")
        self.optimiser = torch.optim.Adam(self.network.parameters(), 0.01)
        self.losses: dict[str, Tensor] = {}
        self.weight = weight
        self.run = run
        self.open = 0
        self.steps: list[DiscriminatorStep] = []
        self.stepped = 0
        self.gradients: list[int] = []  # of the discriminator's parameters, those that the loss reaches
        self.optimiser.register_step_post_hook(lambda *_: setattr(self, "stepped", self.stepped + 1))

    @contextmanager
    def listening(self) -> Iterator[None]:
        self.open += 1
        yield
        self.open -= 1

    def loss(self, step: DiscriminatorStep) -> Tensor:
        assert self.open == 1
        answer = step.real_outputs["adv_output"]
        error = self.network(step.real_images.detach()).mean((1, 2, 3)) - answer.flatten()
        loss = self.weight * error.square().mean()
        self.steps.append(step)
        self.losses = {"answer": loss.detach()}
        if self.run and self.weight:
            parameters = [value for value in self.run.discriminator.parameters() if value.requires_grad]
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            self.gradients.append(sum(bool(part is not None and part.abs().sum() > 0) for part in found))
        return loss


MADE: list[Painter] = []


@dataclass(frozen=True)
class Painting(Stage):
    """A stage with a companion."""

    weight: float = 1.0

    def companion(self, run: Training) -> Painter:
        MADE.append(Painter(self.weight, run))  # from torch's own generator: the run must not notice
        return MADE[-1]


@pytest.fixture
def _stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(STAGES, "_entries", dict(STAGES._entries))
    STAGES.register("painting", "a test", "none")(Painting)
    MADE.clear()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


# ---------------------------------------------------------------------------- steps


def pair() -> tuple[torch.optim.Optimizer, nn.Linear, Painter]:
    torch.manual_seed(0)
    discriminator = nn.Linear(2, 1)
    return torch.optim.Adam(discriminator.parameters(), 0.1), discriminator, Painter(1.0)


def loss_of(painter: Painter, images: Tensor) -> Tensor:
    return painter.network(images).square().mean()


def test_the_optimiser_steps_as_a_twin_of_its_own_on_accumulated_gradients() -> None:
    optimiser, discriminator, painter = pair()
    twin = copy.deepcopy(painter.network)
    twin_optimiser = torch.optim.Adam(twin.parameters(), 0.01)
    Steps(optimiser, [painter], Group())
    for _ in range(3):
        images = torch.randn(2, 4, 3, 5, 5)
        optimiser.zero_grad()
        for part in images:
            ((loss_of(painter, part) + discriminator(torch.ones(1, 2)).sum()) / 2).backward()
        optimiser.step()
        twin_optimiser.zero_grad()
        (twin(images.flatten(0, 1)).square().mean()).backward()
        twin_optimiser.step()
        for value, expected in zip(painter.network.parameters(), twin.parameters()):
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)

        # A second step of the discriminator by itself, as that of a lazy penalty.
        optimiser.zero_grad()
        assert all(value.grad is None for value in painter.network.parameters())
        discriminator(torch.ones(1, 2)).sum().backward()
        optimiser.step()
    assert painter.stepped == 3


@pytest.mark.parametrize("infinite", ["discriminator", "companion"])
def test_half_precision_skips_steps_without_a_trace(infinite: str) -> None:
    optimiser, discriminator, painter = pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    Steps(optimiser, [painter], Group(), scaler)
    start = copy.deepcopy(painter.network.state_dict()), copy.deepcopy(discriminator.state_dict())
    images = torch.randn(4, 3, 5, 5)

    def step(spoiled: str) -> None:
        factors = {
            name: torch.tensor(float("inf") if name == spoiled else 1.0) for name in ("discriminator", "companion")
        }
        optimiser.zero_grad()
        answer = discriminator(torch.ones(1, 2)).sum() * factors["discriminator"]
        scaler.scale(loss_of(painter, images) * factors["companion"] + answer).backward()
        scaler.step(optimiser)
        scaler.update()

    step(infinite)
    moved = not torch.equal(discriminator.weight, start[1]["weight"])
    assert moved == (infinite == "companion")
    assert torch.equal(painter.network.weight, start[0]["weight"])
    assert painter.stepped == 0
    assert scaler.get_scale() == 2.0**9

    # The next step is that of gradients of its own, without the scale.
    step("")
    twin = nn.Conv2d(3, 1, 1)
    twin.load_state_dict(start[0])
    twin_optimiser = torch.optim.Adam(twin.parameters(), 0.01)
    twin(images).square().mean().backward()
    twin_optimiser.step()
    assert painter.stepped == 1
    torch.testing.assert_close(painter.network.weight, twin.weight)


def _process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    optimiser, discriminator, painter = pair()
    if rank == 1:
        nn.init.zeros_(painter.network.weight)  # replaced by the weights of rank 0
    Steps(optimiser, [painter], Group(rank, 2))
    images = torch.linspace(-1, 1, 2 * 4 * 3 * 4).reshape(2, 4, 3, 2, 2)
    for _ in range(2):
        optimiser.zero_grad()
        (loss_of(painter, images[rank]) + discriminator(torch.ones(1, 2)).sum()).backward()
        optimiser.step()
    torch.save(painter.network.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_step_together_as_one_on_both_batches(tmp_path: Path) -> None:
    spawn: Any = torch.multiprocessing
    spawn.spawn(_process, (str(tmp_path),), nprocs=2)
    painter = pair()[2]
    images = torch.linspace(-1, 1, 2 * 4 * 3 * 4).reshape(2, 4, 3, 2, 2)
    for _ in range(2):
        painter.optimiser.zero_grad()
        loss_of(painter, images.flatten(0, 1)).backward()
        painter.optimiser.step()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, value in painter.network.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------------------- runs of the host


@pytest.mark.studiogan
@pytest.mark.usefixtures("_stage")
def test_it_steps_with_the_main_step_and_its_loss_reaches_the_discriminator(
    tmp_path: Path, checkout: Checkout, images: Path
) -> None:
    cfg = write(tmp_path / "a.yaml", "stylegan2", ["painting"], acml_steps=2, d_updates_per_step=2, total_steps=2)
    train(checkout, cfg, images, tmp_path / "out")
    (painter,) = MADE
    assert painter.stepped == 3 * 2  # the host makes a step more than total_steps; it updates D 12 times and more
    assert len(painter.steps) == 3 * 2 * 2
    assert painter.open == 0
    assert min(painter.gradients) > 10
    state = painter.run
    assert state is not None
    assert (state.augmentation, state.processes, state.rank, state.seed) == ("ada", 1, 0, 3)
    assert state.networks.generator.training
    log = next((tmp_path / "out" / "logs").iterdir()).read_text()
    assert log.count("Losses of stages: painting/answer ") == 3


@pytest.mark.gpu
@pytest.mark.studiogan
@pytest.mark.usefixtures("_stage")
def test_in_half_precision_it_steps_as_often_as_the_discriminator(tmp_path: Path, images: Path) -> None:
    cfg = write(tmp_path / "a.yaml", "big_resnet", ["painting"])
    result = run("run", "--device", "cuda", "--", *flags(cfg, images, tmp_path / "out", "-mpc"))
    assert result.exit_code == 0, result.output
    saved = torch.load(next(tmp_path.rglob("stages-step=6.pt")), map_location="cpu")
    host = torch.load(next(tmp_path.rglob("model=D-current*.pth")), map_location="cpu", weights_only=False)
    steps = [
        {int(values["step"]) for values in optimiser["state"].values()}
        for optimiser in (saved["companions"]["painting"]["optimiser"], host["optimizer"])
    ]
    assert steps[0] == steps[1] == {MADE[0].stepped}  # fewer than 6 where the scale was too large
    assert all(value.isfinite().all() for value in saved["companions"]["painting"]["network"].values())


@pytest.mark.studiogan
@pytest.mark.usefixtures("_stage")
def test_with_weight_0_the_training_is_that_of_the_host(tmp_path: Path, checkout: Checkout, images: Path) -> None:
    found = []
    for name, stages in (("without", []), ("with", [{"name": "painting", "weight": 0.0}])):
        cfg = write(tmp_path / f"{name}.yaml", "big_resnet", stages, total_steps=6)
        folder = train(checkout, cfg, images, tmp_path / name)
        found.append((losses(tmp_path / name), weights(folder)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][key]) for key, value in found[0][1].items())
    assert MADE[0].stepped == 7


@pytest.mark.studiogan
@pytest.mark.usefixtures("_stage")
def test_a_run_that_was_killed_ends_as_an_uninterrupted_one(tmp_path: Path, checkout: Checkout, images: Path) -> None:
    """It is killed amid an epoch of four batches with random flips, after five of them."""
    cfg = write(tmp_path / "a.yaml", "big_resnet", ["painting"], total_steps=9)
    more = ("--num_workers", 0, "--save_freq", 5)
    whole = train(checkout, cfg, images, tmp_path / "whole", *more)
    killed(flags(cfg, images, tmp_path / "out", *more), REGISTERED)
    (folder,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert {path.name.rpartition("=")[2] for path in folder.iterdir()} == {"5.pth", "5.pt"}
    assert train(checkout, cfg, images, tmp_path / "out", *more, "-ckpt", folder) == folder
    assert {path.name.rpartition("=")[2] for path in folder.iterdir()} == {"10.pth", "10.pt"}
    assert_same(folder, whole)


@pytest.mark.studiogan
@pytest.mark.usefixtures("_stage")
def test_a_checkpoint_may_go_on_with_or_without_a_stage_and_a_wrong_state_is_refused(
    tmp_path: Path, checkout: Checkout, images: Path
) -> None:
    def write_with(stages: Sequence[Any], **more: Any) -> Path:
        name = "a.yaml" if not stages else "b.yaml"  # the host removes the log of a run of the same name and second
        return write(tmp_path / name, "big_resnet", stages, **more)

    # Without, then with it.
    folder = train(checkout, write_with([], total_steps=2), images, tmp_path / "out")
    assert not list(folder.glob("stages-*"))
    train(checkout, write_with(["painting"]), images, tmp_path / "out", "-ckpt", folder)
    (log,) = (tmp_path / "out" / "logs").iterdir()
    assert "Stage painting: the checkpoint of step 3 was trained without it, so it starts anew" in log.read_text()
    state = folder / "stages-step=6.pt"
    content = state.read_bytes()
    saved = torch.load(state)

    def refused(stages: Sequence[Any] = ("painting",)) -> str:
        arguments = flags(write_with(stages, total_steps=8), images, tmp_path / "out", "-ckpt", folder)
        result = run("run", "--device", "cpu", "--", *arguments)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        return result.stderr.strip().splitlines()[-1]

    # A wrong state.
    state.write_bytes(content[: len(content) // 2])
    assert "stages-step=6.pt: it is " in refused()
    torch.save({**saved, "run_name": "other"}, state)
    assert "is of the run other, the checkpoint is of " in refused()
    torch.save({**saved, "companions": {"painting": {"network": {}, "optimiser": {}}}}, state)
    assert "its painting does not fit" in refused()
    state.rename(folder / "stages-step=5.pt")
    assert refused().endswith(
        "is missing, there are those of steps 5: copy it there, or remove all stages-step=*.pt there to start what "
        "the stages train anew"
    )


@pytest.mark.studiogan
@pytest.mark.usefixtures("_stage")
def test_what_a_companion_cannot_train_with_is_refused(tmp_path: Path, images: Path) -> None:
    hinge = {"MODEL": {"d_cond_mtd": "MH"}, "LOSS": {"adv_loss": "MH", "mh_lambda": 0.05}}

    def refused(stages: Sequence[Any], *more: object, changes: Any = EXTRA) -> str:
        cfg = write(tmp_path / "a.yaml", "big_resnet", stages, changes, batch=16)
        result = run("run", "--device", "cpu", "--processes", 2, "--", *flags(cfg, images, tmp_path / "out", *more))
        assert result.exit_code == 2, result.output
        return result.stderr.strip().splitlines()[-1]

    parallel = ("-DDP", "--backend", "gloo", "--num_workers", 1)
    assert "do not work with the multi-hinge loss" in refused(["painting"], *parallel, changes={"big_resnet": hinge})
    assert "stages has 'painting' more than once" in refused(["painting", "painting"], *parallel)
    assert "does not go together with -DDP, -mpc and -sync_bn" in refused(["painting"], *parallel, "-mpc", "-sync_bn")
    assert "needs a process for each GPU, found one for 2: add -DDP" in refused(["painting"])
    result = run("train", "--stage", "painting", "--out", tmp_path / "t", "-c", tmp_path / "a.yaml")
    assert result.exit_code == 2
    assert "put it into 'stages' of the YAML, and use 'studiogan-guidance run -- -t ...'" in result.stderr


def test_states_of_steps_without_a_checkpoint_are_removed(tmp_path: Path) -> None:
    names = [
        f"model={kind}-{when}-weights-step={step}.pth" for kind in "GD" for when, step in (("best", 3), ("current", 9))
    ]
    states = [f"stages-step={step}.pt" for step in (3, 6, 9, 99)]
    for name in (*names, *states, "stages-step=x.pt", "notes"):
        (tmp_path / name).touch()
    resuming.remove_others(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names, states[0], states[2], "stages-step=x.pt", "notes"}


class Draws:
    """A worker that takes batches and random numbers of every kind, in half precision."""

    def __init__(self) -> None:
        self.local_rank, self.global_rank = "cpu", 0
        self.train_dataloader = DataLoader(torch.arange(12), batch_size=2, shuffle=True)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        self.prepare_train_iter(0)

    def prepare_train_iter(self, epoch_counter: int) -> None:
        self.epoch_counter = epoch_counter
        self.train_iter = iter(self.train_dataloader)

    def sample_data_basket(self) -> list[int]:
        basket = next(self.train_iter, None)
        if basket is None:
            self.prepare_train_iter(self.epoch_counter + 1)
            basket = next(self.train_iter)
        return list(map(int, basket))

    def step(self) -> tuple[Any, ...]:
        random_numbers = random.gauss(0, 1), float(np.random.randn()), float(torch.rand(()))
        return *random_numbers, self.epoch_counter, *self.sample_data_basket(), self.scaler.get_scale()


@pytest.mark.parametrize("steps", [1, 4, 6, 8])
def test_a_position_brings_back_random_numbers_and_the_place_in_the_epoch(steps: int, tmp_path: Path) -> None:
    """Of epochs of six batches."""
    with kept():
        worker = Draws()
        position = resuming.Position(worker)
        for _ in range(steps):
            worker.step()
        worker.scaler.load_state_dict({**worker.scaler.state_dict(), "scale": 4.0})
        resuming.write(resuming.state_file(tmp_path, steps), "a", {}, position.state())
        expected = [worker.step() for _ in range(9)]

        # Another process.
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        other = Draws()
        saved = resuming.read(tmp_path, steps, "a")
        assert saved is not None
        assert resuming.restore(tmp_path, saved, {}, resuming.Position(other)) == []
        assert [other.step() for _ in range(9)] == expected
