"""What guidance costs: tables of the classes, passes and operations of a batch, and nothing that waits for a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_gpu import fake_gpu, moved_networks
from host_models import networks as host_networks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from toy_families import toy_of

from studiogan_guidance import builtin, samplers
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.latents import Inputs, LabelPlan, LatentView, LearnedJoint, learned, view_for
from studiogan_guidance.samplers.gandance import GANdance

WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "lift_fresh", "equal", "masked_select", "_unique2")
FREE = ("class_mean", "class_shift", "global_mean", "mean_embedding")


def moved(view: LatentView, base: str, depth: int) -> LearnedJoint:
    """A learned joint that is no longer its base, and whose strengths are not 1."""
    joint = learned.create(view, base, hidden=8, depth=depth)
    gen = torch.Generator().manual_seed(0)
    for value in joint.parameters():
        value.data += 0.3 * torch.randn(value.shape, generator=gen)
    return joint.requires_grad_(False)


def saved(view: LatentView, path: Path, base: str, depth: int) -> dict[str, object]:
    """Options of guidance away from a learned joint in a file."""
    learned.save(path, moved(view, base, depth), view, {})
    return {"joint": "learned", "joint_ckpt": str(path)}


def by_definition(view: LatentView, inputs: Inputs, sampler: samplers.Sampler) -> Tensor:
    """Guided codes without tables and without passes that share anything: the slow twin."""
    assert isinstance(sampler, GANdance)
    return sampler.guided(view, inputs, view.encode(inputs.z, inputs.labels))


def close(view: LatentView, sampler: samplers.Sampler, inputs: Inputs) -> None:
    assert isinstance(sampler, GANdance)
    found = sampler.codes(view, inputs)
    torch.testing.assert_close(found, by_definition(view, inputs, sampler), atol=2e-5, rtol=2e-5)
    plain = view.encode(inputs.z, inputs.labels)
    plain = plain if plain.dim() == found.dim() else plain[:, None].expand_as(found)
    assert not torch.allclose(found, plain, atol=1e-2)


# ---------------------------------------------------------------------------- values


@pytest.mark.parametrize("family", ["builtin", "big_resnet", "resnet"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"keep_norm": True},
        {"layers": [1, 2]},
        {"profile": [1, 0.5]},
        {"layers": [0, 1], "profile": [2]},
        {"psi": 2},
    ],
    ids=str,
)
def test_codes_are_those_of_the_definition(family: str, more: dict[str, object], tmp_path: Path) -> None:
    view = toy_of(family)
    if view.rows is None and {"keep_norm", "psi"} & set(more):
        pytest.skip("these options need w")
    hard = view.draw(range(6), 0, LabelPlan())
    soft = 0.8 * F.one_hot(hard.labels, 5).float() + 0.04
    every = [hard, Inputs(hard.seeds, hard.z, soft, None, hard.generators)]

    for joint in FREE:
        for inputs in every:
            close(view, samplers.create("gandance", {"scale": 1.7, "joint": joint, **more}), inputs)
    for base in FREE:
        for depth in (0, 1):
            options = saved(view, tmp_path / f"{base}-{depth}.safetensors", base, depth)
            for strengths in (False, True):
                sampler = samplers.create("gandance", {"scale": 1.7, "strengths": strengths, **options, **more})
                for inputs in every:
                    close(view, sampler, inputs)


@pytest.mark.parametrize("family", ["big_resnet", "resnet"])
def test_codes_that_ignore_z_come_out_of_a_table_as_the_plain_ones_do(family: str) -> None:
    view = toy_of(family)
    inputs = view.draw(range(6), 0, LabelPlan())
    sampler = samplers.create("gandance", {"scale": 3})
    assert torch.equal(view.encode(inputs.z, inputs.labels), view.class_codes()[inputs.labels])  # type: ignore[index]
    assert isinstance(sampler, GANdance)
    codes = sampler.codes(view, inputs)
    assert torch.equal(codes[inputs.labels == 1], codes[inputs.labels == 1][:1].expand_as(codes[inputs.labels == 1]))

    # The table follows the embedding, and forgets nothing else.
    for value in view.generator.parameters():
        value.mul_(2)
        torch.testing.assert_close(sampler.codes(view, inputs), 2 * codes)
        view.generator.shared.weight = nn.Parameter(3 * value, requires_grad=False)  # type: ignore[union-attr]
        torch.testing.assert_close(sampler.codes(view, inputs), by_definition(view, inputs, sampler))


def test_an_embedding_that_is_trained_gets_its_gradient() -> None:
    view = toy_of("big_resnet")
    inputs = view.draw(range(6), 0, LabelPlan())
    sampler = samplers.create("gandance", {"scale": 3})
    assert isinstance(sampler, GANdance)
    sampler.codes(view, inputs)
    weight: Any = view.class_codes()
    weight.requires_grad_()
    found = torch.autograd.grad(sampler.codes(view, inputs).square().sum(), weight)[0]
    expected = torch.autograd.grad(by_definition(view, inputs, sampler).square().sum(), weight)[0]
    torch.testing.assert_close(found, expected)
    assert found.any()


@pytest.mark.parametrize("family", ["builtin", "big_resnet"])
@pytest.mark.parametrize("strengths", [False, True])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_joint_in_memory_is_used_as_it_is_now(family: str, strengths: bool, depth: int) -> None:
    view = toy_of(family)
    inputs = view.draw(range(6), 0, LabelPlan())
    network = moved(view, "class_shift", depth)
    more: dict[str, Any] = {"psi": 0.5} if view.rows else {}
    sampler = GANdance(scale=1.7, joint="learned", strengths=strengths, **more).away_from(network)
    before = sampler.codes(view, inputs)
    for value in network.parameters():
        value.data += 0.5  # which no counter of versions sees
    close(view, sampler, inputs)
    assert not torch.allclose(sampler.codes(view, inputs), before, atol=1e-2)


@pytest.mark.parametrize("family", ["builtin", "big_resnet"])
def test_a_view_with_another_encode_is_guided_by_that(family: str) -> None:
    view = toy_of(family)
    inputs = view.draw(range(6), 0, LabelPlan())
    other = view.altered(encode=lambda z, labels: view.encode(z, labels).square())
    for joint in ("class_mean", "mean_embedding"):
        close(other, samplers.create("gandance", {"scale": 2, "joint": joint}), inputs)


# ---------------------------------------------------------------------------- passes and operations


class Operations(TorchDispatchMode):
    """Counts the operations that start work on a device; views of tensors are none."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.copies = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        self.names[name] += not (function.is_view or name == "_unsafe_view")
        self.copies += name == "_to_copy" and kwargs.get("device") is not None
        return function(*args, **kwargs)


def operations(view: LatentView, sampler: samplers.Sampler) -> Operations:
    """Those of a second batch."""
    inputs = view.draw(range(4), 0, LabelPlan())
    with torch.no_grad(), view.frozen():
        sampler.images(view, inputs)
        with Operations() as counted:
            sampler.images(view, inputs)
    return counted


def more_than_plain(view: LatentView, options: dict[str, object]) -> int:
    """Operations of a guided batch beyond those of a plain one; none of them may wait for the device."""
    plain = operations(view, samplers.create("plain"))
    guided = operations(view, samplers.create("gandance", {"scale": 1.5, **options}))
    assert guided.copies == 0
    for name in WAITING:
        assert guided.names[name] == plain.names[name], name
    return guided.names.total() - plain.names.total()


MLP = 3 + 2 + 2  # three layers, two activations, unit and sum
LIMITS: list[tuple[str, dict[str, object], int]] = [
    *(("big_resnet", {"joint": joint}, 0) for joint in FREE),
    *(("resnet", {"joint": joint}, 0) for joint in FREE),
    ("resnet", {"joint": "class_mean", "profile": [1, 0.5]}, 0),
    ("big_resnet", {"joint": "class_mean", "profile": [1, 0.5]}, 2),
    ("big_resnet", {"joint": "class_mean", "tau": 1.2}, 1),
    ("big_resnet", {"joint": "class_mean", "tau": 1.2, "tau_profile": [1, 0, 2]}, 1),
    ("builtin", {"joint": "class_shift"}, 2),
    ("builtin", {"joint": "class_shift", "profile": [1, 0.5], "layers": [0, 2]}, 2),
    ("builtin", {"joint": "class_shift", "psi": 0.5}, 4),
    ("builtin", {"joint": "class_mean"}, 7),
    ("builtin", {"joint": "mean_embedding"}, 6),
]


@pytest.mark.parametrize(("family", "options", "limit"), LIMITS, ids=str)
def test_operations_of_guidance(family: str, options: dict[str, object], limit: int) -> None:
    assert more_than_plain(toy_of(family), options) <= limit


@pytest.mark.parametrize(
    ("family", "depth", "strengths", "limit"),
    [
        ("big_resnet", 0, False, 0),
        ("big_resnet", 0, True, 2),  # a condition for each block
        ("resnet", 0, False, 0),
        ("builtin", 0, False, 2),
        ("builtin", 0, True, 2),
        ("big_resnet", 2, False, MLP),
        ("builtin", 2, False, 2 + MLP),
        ("builtin", 2, True, 3 + MLP),
    ],
)
def test_operations_of_a_learned_joint(family: str, depth: int, strengths: bool, limit: int, tmp_path: Path) -> None:
    view = toy_of(family)
    options = saved(view, tmp_path / "joint.safetensors", "class_shift", depth)
    assert more_than_plain(view, {**options, "strengths": strengths}) <= limit


@pytest.mark.studiogan
@pytest.mark.parametrize(
    ("name", "joint", "limit"),
    [
        ("big_resnet", "class_mean", 0),
        ("resnet", "class_mean", 0),
        ("deep_conv", "class_mean", 0),
        ("stylegan2", "class_shift", 2),
        ("stylegan2", "class_mean", 7),
        ("stylegan2", "mean_embedding", 6),
    ],
)
def test_operations_on_the_hosts_networks(name: str, joint: str, limit: int, checkout: Checkout) -> None:
    assert more_than_plain(view_for(host_networks(name, checkout)), {"joint": joint}) <= limit


def test_passes_of_the_mapping_network(monkeypatch: pytest.MonkeyPatch, toy_view: LatentView) -> None:
    calls: list[int] = []
    mapping: Callable[..., Tensor] = toy_view.mapping  # type: ignore[attr-defined]
    monkeypatch.setattr(toy_view, "mapping", lambda z, c: (calls.append(len(z)), mapping(z, c))[1])
    inputs = toy_view.draw(range(6), 0, LabelPlan())
    for joint, expected in (("class_mean", 30), ("mean_embedding", 12), ("class_shift", 6), ("global_mean", 6)):
        sampler = samplers.create("gandance", {"scale": 2, "joint": joint})
        sampler.images(toy_view, inputs)
        calls.clear()
        sampler.images(toy_view, inputs)
        assert calls == [expected], joint


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("joint", [*FREE, "class_subset"])
@pytest.mark.parametrize("more", [{}, {"psi": 0.7, "profile": [1, 0.5]}, {"keep_norm": True}], ids=str)
def test_nothing_waits_for_a_gpu_that_is_not_there(joint: str, more: dict[str, object]) -> None:
    """There, whatever reads a number raises."""
    networks = builtin.networks()
    sampler = samplers.create("gandance", {"scale": 1.5, "joint": joint, **more})
    with fake_gpu(), torch.no_grad():
        view = view_for(moved_networks(networks))
        view.once("class means", lambda: torch.zeros(10, 1, 64, device=view.device).expand(-1, view.rows or 1, -1))
        view.once("spread of w", lambda: (torch.eye(64, device=view.device),) * 2)
        images = sampler.images(view, view.draw(range(8), 0, LabelPlan()))
        assert images.is_cuda


@pytest.mark.gpu
@pytest.mark.parametrize("joint", [*FREE, "class_subset"])
def test_nothing_waits_for_the_gpu(joint: str) -> None:
    view = view_for(builtin.networks("cuda"))
    inputs = view.draw(range(8), 0, LabelPlan())
    sampler = samplers.create("gandance", {"scale": 1.5, "joint": joint, "psi": 0.7, "profile": [1, 0.5]})
    with torch.no_grad(), view.frozen():
        sampler.images(view, inputs)
        torch.cuda.synchronize()
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            sampler.images(view, inputs)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
