from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from studiogan_guidance.batches import Halving
from studiogan_guidance.builtin.images import BuiltinImages
from studiogan_guidance.errors import UserError
from studiogan_guidance.features.stats import FeatureStats, accumulate, to_uint8


class Flat:
    """Pixels as features, the first three of them as logits."""

    classifies = False
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.protocol: dict[str, Any] = {"backbone": "flat"}

    def prepare(self, images: Tensor) -> Tensor:
        return images

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor | None]:
        return prepared.flatten(1), prepared.flatten(1)[:, :3]


class Small(Flat):
    """A network with memory for so many images."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.fits, self.seen = fits, []

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor | None]:
        self.seen.append(len(prepared))
        if len(prepared) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return super().__call__(prepared)


def same(a: FeatureStats, b: FeatureStats) -> None:
    for name in ("count", "mean", "cov", "features", "probabilities", "labels"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


def test_moments_equal_numpy_at_any_batch_size_and_far_from_zero() -> None:
    images = torch.randn(50, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double() + 1e6
    labels = torch.arange(50)
    wide = images.flatten(1).numpy()
    for size in (50, 7, 1):
        stats = accumulate(zip(images.split(size), labels.split(size)), Flat())
        assert stats.count == 50
        np.testing.assert_allclose(stats.mean, wide.mean(0), rtol=1e-14)
        np.testing.assert_allclose(stats.cov, np.cov(wide, rowvar=False), rtol=1e-7, atol=1e-8)
        assert stats.labels.tolist() == list(range(50))


def test_what_no_metric_needs_is_not_kept() -> None:
    batches = [(torch.randn(4, 3, 2, 2), torch.zeros(4))]
    lean = accumulate(batches, Flat(), features=False, probabilities=False)
    assert lean.features is None
    assert lean.probabilities is None
    full = accumulate(batches, Flat())
    assert full.features is not None
    assert full.probabilities is not None
    np.testing.assert_allclose(full.probabilities.sum(1), 1, rtol=1e-6)


def test_kept_features_are_copies() -> None:
    """A class token is a view of all tokens, which must not stay in memory for as long as it does."""

    class View(Flat):
        def __call__(self, prepared: Tensor) -> tuple[Tensor, None]:
            self.tokens = prepared.flatten(2)
            return self.tokens[:, 0], None

    network = View()
    stats = accumulate([(torch.ones(2, 3, 2, 2), torch.zeros(2))], network, probabilities=False)
    network.tokens.zero_()
    assert stats.features is not None
    assert stats.features.tolist() == [[1.0] * 4] * 2


class Returns(Flat):
    """What a function makes of the pixels."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def __call__(self, prepared: Tensor) -> Any:
        found = self.function(prepared.flatten(1))
        return found if isinstance(found, tuple) else (found, None)


def bright(values: Tensor) -> Tensor:
    """nan for images brighter than 0."""
    return torch.where(values.mean(1, keepdim=True) > 0, torch.nan, values)


def last_is(number: float) -> Callable[[Tensor], Tensor]:
    """Features whose last one is ``number`` where the first pixel is not 0."""
    return lambda values: torch.where(values[:, :1] == 0, values, torch.tensor([0.0] * 11 + [number]))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (bright, "features"),
        (last_is(math.inf), "features"),
        (last_is(-math.inf), "features"),
        (lambda values: values.double() * 1e200, "features"),  # beyond float32, in which they are kept
        (lambda values: (values * 0, bright(values)), "class probabilities"),
        (lambda values: (values * 0, last_is(math.inf)(values)), "class probabilities"),
    ],
)
def test_features_that_are_not_finite_are_counted_and_named(function: Any, kind: str, kept: bool) -> None:
    images = torch.zeros(20, 3, 2, 2)
    images[[4, 7, 13]] = 1
    batches = list(zip(images.split(6), torch.arange(20).split(6)))
    expected = re.escape(
        f"feature network flat gives {kind} that are not finite (nan or inf) for 3 of 20 digits (seed 104 to seed 113)"
        ": repair it, or choose another"
    )
    with pytest.raises(UserError, match=f"^{expected}$"):
        accumulate(
            batches,
            Returns(function),
            features=kept,
            probabilities=kind != "features",
            what="digits",
            name=lambda position: f"seed {100 + position}",
        )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda values: values.view(-1, 3, 2, 2), r"returned a tensor \[6, 3, 2, 2\] for 6 images: it must"),
        (lambda values: values[:5], r"returned a tensor \[5, 12\] for 6 images"),
        (lambda values: values[0], r"returned a tensor \[12\] for 6 images"),
        (lambda values: values[:, :0], r"returned a tensor \[6, 0\] for 6 images"),
        (lambda values: values.long(), "returned numbers of type int64 for 6 images: .* of type float$"),
        (lambda values: values.bool(), "returned numbers of type bool for 6 images"),
        (lambda values: values + 1j, "returned numbers of type complex64 for 6 images"),
        (lambda values: [values], "returned list for 6 images"),
        (lambda values: (values, values.int()), "returned numbers of type int32 as class logits for 6 images"),
        (lambda values: (values, values[:, 0]), r"returned a tensor \[6\] as class logits for 6 images"),
        (lambda values: (values, values[:, :0]), r"returned a tensor \[6, 0\] as class logits"),
        (
            lambda values: (values, values[:, : len(values)]),
            "returned 2 class logits an image after 6 for earlier ones",
        ),
        (lambda values: values[:, : len(values)], "returned 2 features an image after 6 for earlier ones"),
    ],
)
def test_features_of_other_shapes_and_types_are_one_line(function: Any, message: str) -> None:
    batches = zip(torch.ones(20, 3, 2, 2).split(6), torch.arange(20).split(6))
    with pytest.raises(UserError, match=f"^flat {message}") as caught:
        accumulate(batches, Returns(function), probabilities=isinstance(function(torch.zeros(2, 12)), tuple))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_features_too(dtype: torch.dtype) -> None:
    images = torch.arange(60).view(5, 3, 2, 2)
    stats = accumulate([(images.float(), torch.arange(5))], Returns(lambda values: values.to(dtype)), True, False)
    assert stats.features is not None
    assert stats.features.dtype == np.float32
    assert np.array_equal(stats.features, images.flatten(1).numpy())


def test_one_image_is_too_few() -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        accumulate([(torch.zeros(1, 3, 2, 2), torch.zeros(1))], Flat())


def test_a_network_without_classes_has_no_inception_score() -> None:
    class Blind(Flat):
        def __call__(self, prepared: Tensor) -> tuple[Tensor, None]:
            return prepared.flatten(1), None

    batches = [(torch.randn(4, 3, 2, 2), torch.zeros(4))]
    assert accumulate(batches, Blind(), probabilities=False).probabilities is None
    with pytest.raises(UserError, match="^flat has no class logits: leave 'is' out of --metrics$"):
        accumulate(batches, Blind())


def test_a_thread_ahead_changes_nothing_but_who_makes_the_batches() -> None:
    made_in: list[threading.Thread] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        gen = torch.Generator().manual_seed(1)
        for i in range(7):
            made_in.append(threading.current_thread())
            assert not torch.is_grad_enabled()  # a setting that each thread has of its own
            yield torch.randn(5 - (i == 6), 3, 2, 2, generator=gen), torch.full((5 - (i == 6),), i)

    inline = accumulate(batches(), Flat(), ahead=0)
    assert set(made_in) == {threading.current_thread()}
    for ahead in (1, 2, 50):
        made_in.clear()
        same(accumulate(batches(), Flat(), ahead=ahead), inline)
        assert len(set(made_in)) == 1
        assert made_in[0] is not threading.current_thread()
        assert not made_in[0].is_alive()
    made_in.clear()
    accumulate(batches(), Flat())  # on a CPU the default is no thread
    assert set(made_in) == {threading.current_thread()}


@pytest.mark.parametrize("prepares_on_cpu", [False, True])
def test_a_thread_works_where_the_cpu_prepares_for_a_gpu(
    prepares_on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    backbone = Flat()
    backbone.device = torch.device("cuda", 0)  # as far as threads are concerned
    if prepares_on_cpu:
        backbone.prepares_on_cpu = True  # type: ignore[attr-defined]
    made_in: set[threading.Thread] = set()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(3):
            made_in.add(threading.current_thread())
            yield torch.zeros(2, 3, 2, 2), torch.zeros(2)

    accumulate(batches(), backbone)
    assert (made_in == {threading.current_thread()}) is not prepares_on_cpu


def test_the_thread_works_while_the_network_does() -> None:
    second = threading.Event()

    class Waiting(Flat):
        def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor | None]:
            assert second.wait(30)  # the next batch is begun before this one is done
            return super().__call__(prepared)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.randn(2, 3, 2, 2), torch.zeros(2)
        second.set()
        yield torch.randn(2, 3, 2, 2), torch.zeros(2)

    assert accumulate(batches(), Waiting(), ahead=1).count == 4


@pytest.mark.parametrize("ahead", [0, 2])
def test_errors_of_either_side_come_out_and_nothing_goes_on(ahead: int) -> None:
    closed: list[str] = []

    def batches(fails_at: int) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            for i in range(1000):
                if i == fails_at:
                    raise KeyError("of the generator")
                yield torch.randn(2, 3, 2, 2), torch.zeros(2)
        finally:
            closed.append(f"after {i}")

    class Broken(Flat):
        def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor | None]:
            raise IndexError("of the network")

    class Unprepared(Flat):
        def prepare(self, images: Tensor) -> Tensor:
            raise LookupError("of the preparation")

    before = threading.active_count()
    with pytest.raises(KeyError, match="of the generator"):
        accumulate(batches(3), Flat(), ahead=ahead)
    assert closed.pop() == "after 3"
    kept = batches(-1)  # a reference of the caller's must not keep it open
    with pytest.raises(IndexError, match="of the network"):
        accumulate(kept, Broken(), ahead=ahead)
    assert int(closed.pop().removeprefix("after ")) <= ahead + 1
    with pytest.raises(LookupError, match="of the preparation"):
        accumulate(batches(-1), Unprepared(), ahead=ahead)
    assert closed.pop() == "after 0"
    assert closed == []
    assert threading.active_count() == before


def test_batches_are_halved_where_memory_runs_out_and_stay_so(capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = torch.randn(40, 3, 2, 2), torch.arange(40)
    batches = list(zip(images.split(13), labels.split(13)))
    whole, network = accumulate(batches, Flat()), Small(4)
    parts = accumulate(batches, network)
    assert network.seen == [13, 7, *[4, 4, 4, 1] * 3, 1]  # 13 and 7 are tried once
    assert capsys.readouterr().err.splitlines() == [
        "out of memory with 13 images at a time: continuing with 7",
        "out of memory with 7 images at a time: continuing with 4",
    ]
    for name in ("features", "probabilities", "labels"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name))
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(parts.cov, whole.cov, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("ahead", [0, 2])
def test_preparation_is_halved_with_its_labels(ahead: int) -> None:
    class Cramped(Flat):
        def prepare(self, images: Tensor) -> Tensor:
            return Small(3)(images)[0].view_as(images)

    images, labels = torch.randn(20, 3, 2, 2), torch.arange(20)
    stats = accumulate(zip(images.split(8), labels.split(8)), Cramped(), ahead=ahead)
    assert stats.features is not None
    assert np.array_equal(stats.features, images.flatten(1).numpy())
    assert stats.labels.tolist() == list(range(20))


def test_an_image_that_does_not_fit_by_itself_is_an_error_of_the_user() -> None:
    network = Small(0)
    with pytest.raises(UserError, match=r"with one image at a time \(CUDA out of memory.*\): .*use --device cpu"):
        accumulate([(torch.randn(4, 3, 2, 2), torch.zeros(4))], network)
    assert network.seen == [4, 2, 1]


def test_halving_takes_ranges_and_leaves_other_errors_alone() -> None:
    halving = Halving()

    def draw(seeds: range) -> list[int]:
        if len(seeds) > 3:
            raise torch.OutOfMemoryError
        return list(seeds)

    assert list(halving(draw, range(10, 18))) == [[10, 11], [12, 13], [14, 15], [16, 17]]
    assert list(halving(draw, range(3))) == [[0, 1], [2]]
    with pytest.raises(RuntimeError, match="other"):
        list(halving(lambda seeds: (_ for _ in ()).throw(RuntimeError("other")), range(2)))


def test_quantising_rounds_to_nearest_and_clips() -> None:
    levels = torch.arange(256) / 127.5 - 1
    assert to_uint8(levels).tolist() == list(range(256))
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
    assert to_uint8(levels[:-1] + 0.9 / 255).tolist() == list(range(255))  # not yet the next level


def test_some_of_the_real_digits() -> None:
    digits = BuiltinImages("valid")
    only = [7, 3, 11]
    images, labels = (torch.cat(parts) for parts in zip(*digits.batches(2, only=only)))
    everything = torch.cat([batch for batch, _ in digits.batches(100)])
    assert torch.equal(images, everything[only])
    assert labels.tolist() == [digits.labels()[i] for i in only]
    assert torch.equal(next(digits.batches(2, 1, 2, only))[0], everything[[11]])


@pytest.mark.gpu
def test_on_a_gpu_values_are_those_of_the_cpu() -> None:
    class OnGpu(Flat):
        device = torch.device("cuda", 0)

        def prepare(self, images: Tensor) -> Tensor:
            return images.pin_memory().to(self.device, non_blocking=True)

    images, labels = torch.randn(50, 3, 2, 2), torch.arange(50)
    batches = list(zip(images.split(8), labels.split(8)))
    cpu = accumulate(batches, Flat())
    for ahead in (0, None):
        gpu = accumulate(batches, OnGpu(), ahead=ahead)
        assert np.array_equal(gpu.features, cpu.features)  # type: ignore[arg-type]
        np.testing.assert_allclose(gpu.mean, cpu.mean, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(gpu.cov, cpu.cov, rtol=1e-12, atol=1e-14)
