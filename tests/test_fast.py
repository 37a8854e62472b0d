"""Graphs of a fixed batch give what the function gives; a precision ends with its with-block."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Recorder
from torch import Tensor, nn

from studiogan_guidance import builtin, fast
from studiogan_guidance.fast import Graphed, memory_of, precision
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.latents.accelerated import accelerated

CPU = torch.device("cpu")


def mixed(code: Tensor, z: Tensor, noise: list[Tensor] | None) -> tuple[Tensor, Tensor | None]:
    """A function of everything that a generator may be given; each row by itself."""
    total = code.sum((1, 2)) + z.prod(1)
    return total, None if noise is None else total[:, None] + torch.cat([layer.flatten(1) for layer in noise], 1)


def batch(count: int, with_noise: bool, seed: int = 0) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """Whole numbers, whose sums are exact."""
    g = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-9, 9, (count, *shape), generator=g).float()

    noise = [numbers(1, side, side) for side in (2, 4)] if with_noise else None
    code = numbers(1, 5).expand(-1, 3, -1)  # equal rows of w, which share their memory
    return code, numbers(4), noise


@pytest.mark.parametrize("with_noise", [False, True])
@torch.no_grad()
def test_a_replay_gives_what_the_function_gives_for_full_and_filled_up_batches(with_noise: bool) -> None:
    recorder = Recorder()
    graphed = Graphed(mixed, 8, recorder)
    outputs = []
    for seed, count in enumerate((8, 5, 8)):
        outputs.append((graphed(*batch(count, with_noise, seed)), mixed(*batch(count, with_noise, seed))))
    assert recorder.captures == 1
    assert recorder.replays == 3

    # Also after later replays.
    for found, expected in outputs:
        assert torch.equal(found[0], expected[0])
        assert found[1] is None if expected[1] is None else torch.equal(found[1], expected[1])


@torch.no_grad()
def test_each_structure_has_a_graph_of_its_own() -> None:
    recorder = Recorder()
    graphed = Graphed(mixed, 4, recorder)
    for with_noise in (True, False, True, False):
        graphed(*batch(4, with_noise))
    assert (recorder.captures, recorder.replays) == (2, 4)


@torch.no_grad()
def test_channels_stay_last_in_the_memory_of_a_graph() -> None:
    seen = []

    def layout(x: Tensor) -> Tensor:
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return x.flatten(1)

    graphed = Graphed(layout, 4, Recorder())
    x = torch.randn(3, 5, 2, 2).contiguous(memory_format=torch.channels_last)
    assert torch.equal(graphed(x), x.flatten(1))
    assert seen
    assert all(seen)


def test_where_a_graph_must_not_stand_in_the_function_runs_as_it_is() -> None:
    recorder = Recorder()
    graphed = Graphed(mixed, 8, recorder)
    code, z, _ = batch(8, False)

    # Gradients pass.
    z.requires_grad_()
    graphed(code, z, None)[0].sum().backward()
    assert z.grad is not None
    assert z.grad.any()

    with torch.no_grad():
        # Small, large and empty batches.
        for count in (0, 4, 9):
            assert len(graphed(*batch(count, True))[0]) == count

        # Transforms.
        torch.func.vmap(lambda code, z: graphed(code[None].expand(8, -1, -1), z[None].expand(8, -1), None)[0])(code, z)
    assert recorder.captures == 0


@torch.no_grad()
def test_a_failed_capture_is_told_once_and_everything_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(run: Callable[[], Any]) -> Any:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    graphed = Graphed(mixed, 8, fails, what="generator")
    for seed in range(2):
        assert torch.equal(graphed(*batch(8, True, seed))[0], mixed(*batch(8, True, seed))[0])
    line = "no CUDA graph of the generator (operation not permitted when stream is capturing): continuing without\n"
    assert capsys.readouterr().err == line


@torch.no_grad()
def test_a_graph_holds_while_weights_stay_in_their_memory() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    recorder = Recorder()
    graphed = Graphed(net, 4, recorder, memory_of(net))
    x = torch.randn(4, 3)

    def same() -> bool:
        return torch.equal(graphed(x), net(x))

    # Changes in place need no new graph, other tensors do.
    assert same()
    net[0].weight.mul_(2)
    assert same()
    assert recorder.captures == 1
    net[1]._buffers["running_mean"] = torch.ones(4)
    assert same()
    assert recorder.captures == 2

    # Hooks are called, and training changes buffers.
    handle = net[0].register_forward_hook(lambda module, args, out: out + 1)
    assert same()
    handle.remove()
    net.train()
    graphed(x)
    assert recorder.replays == 3
    assert net[1].num_batches_tracked == 1


def test_a_precision_ends_with_its_block_in_every_thread() -> None:
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    exact = a @ b
    for name in fast.HALVES:
        with precision(name, CPU):
            assert (a @ b).dtype == getattr(torch, name)
    with precision("float32", CPU):
        assert torch.equal(a @ b, exact)
    assert torch.equal(a @ b, exact)

    # TF32 is a switch of the process, here for two threads that leave in the order in which they came.
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with precision("tf32", CPU):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with precision("tf32", CPU):
        thread.start()
        entered.wait()
    assert backends.cuda.matmul.allow_tf32
    leave.set()
    thread.join()
    assert (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32) == before


def test_a_cpu_has_two_precisions_and_no_graphs() -> None:
    assert fast.precisions(CPU) == ("bfloat16", "float32")
    assert fast.precisions(torch.device("cuda")) == ("float16", "bfloat16", "tf32", "float32")
    assert fast.capture_on(CPU) is None


def digits(view: LatentView, count: int, first: int = 0) -> Tensor:
    return view.images(view.draw(range(first, first + count), 0, LabelPlan()))


@torch.no_grad()
def test_the_view_of_the_built_in_makes_the_same_digits_and_counts_the_same_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = view_for(builtin.networks())
    expected = digits(exact, 8)
    recorder = Recorder()
    monkeypatch.setattr(fast, "capture_on", lambda device: recorder)
    for name, distance in (("float32", 1e-4), ("bfloat16", 0.1)):
        view = accelerated(view_for(builtin.networks()), name, 8)
        images = digits(view, 8)
        assert images.dtype == torch.float32
        assert (images - expected).square().mean().sqrt() < distance
        assert torch.equal(digits(view, 5), digits(view, 8)[:5])
        assert view.ledger.cost == {"mapping": 8 + 5 + 8, "synthesis": 8 + 5 + 8}
    assert (recorder.captures, recorder.replays) == (2, 6)


def test_gradients_pass_through_the_view_under_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(fast, "capture_on", lambda device: recorder)
    slopes = []
    for name in ("float32", "bfloat16"):
        view = accelerated(view_for(builtin.networks()), name, 4)
        inputs = view.draw(range(4), 0, LabelPlan())
        inputs.z.requires_grad_()
        view.images(inputs).square().mean().backward()
        slopes.append(inputs.z.grad)
    exact, rounded = slopes
    assert exact is not None
    assert rounded is not None
    assert not torch.equal(exact, rounded)
    assert torch.cosine_similarity(exact.flatten(), rounded.flatten(), 0) > 0.99
    assert recorder.captures == 0


def test_what_is_cached_under_the_weights_is_not_that_of_a_lower_precision() -> None:
    exact = view_for(builtin.networks())
    assert accelerated(exact, "float32", 4).networks.digest == exact.networks.digest
    lower = accelerated(exact, "bfloat16", 4)
    assert lower.networks.digest != exact.networks.digest
    assert torch.equal(lower.class_means(), exact.class_means())  # codes are exact


def test_numbers_that_are_filled_in_are_those_that_are_assigned() -> None:
    def assigned() -> Tensor:
        values = torch.zeros(3, 4)
        values[0, 0] = 1 / 3
        values[1] = 2
        values[..., 2:, None] = 0.1
        values[torch.tensor([2]), 1] = 5  # no view
        values[values == 2] = -1.5
        values[2, :2] = torch.tensor([7.0, 8.0])
        return values

    expected = assigned()
    with fast.FilledIn():
        assert torch.equal(assigned(), expected)


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_a_replay_is_the_generator_bit_for_bit() -> None:
    device = torch.device("cuda", 0)
    view = accelerated(view_for(builtin.networks(device)), "float32", 64)
    exact = view.bare

    def check(count: int, first: int) -> None:
        inputs = exact.draw(range(first, first + count), 0, LabelPlan())
        code = exact.encode(inputs.z, inputs.labels)
        filled_up = torch.cat([code, code[-1:].expand(64 - count, -1, -1)])
        with exact.frozen():
            assert torch.equal(view.decode(code, inputs.z, None), exact.decode(filled_up, inputs.z, None)[:count])

    # Full and filled-up batches, and weights that change in place.
    check(64, 0)
    check(40, 64)
    exact.generator.synthesis.start.weight.mul_(1.1)  # type: ignore[union-attr, operator]
    check(64, 0)


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_what_cannot_be_captured_runs_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    device = torch.device("cuda", 0)

    def waits(x: Tensor) -> Tensor:
        return x * float(x.sum())  # which needs the number on the CPU

    x = torch.ones(4, 3, device=device)
    graphed = Graphed(waits, 4, fast.capture_on(device), what="network")
    for _ in range(2):
        assert torch.equal(graphed(x), 12 * x)
    assert capsys.readouterr().err.count("no CUDA graph of the network") == 1
    assert torch.cuda.current_stream(device) == torch.cuda.default_stream(device)

    # Other functions can be captured, and memory is given back as before.
    assert torch.equal(Graphed(lambda x: 2 * x, 4, fast.capture_on(device))(x), 2 * x)
    block = torch.empty(2**26, device=device)
    reserved = torch.cuda.memory_reserved(device)
    del block
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved(device) <= reserved - 2**28
