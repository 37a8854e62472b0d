import pytest
import torch

from studiogan_guidance import rng
from studiogan_guidance.latents import LabelPlan


def test_each_row_comes_from_its_own_generator() -> None:
    rows = rng.randn(rng.generators([7, 8, 9]), 3, 2)
    alone = torch.randn(3, 2, generator=torch.Generator().manual_seed(8))
    assert torch.equal(rows[1], alone)


def test_uniform_fills_the_symmetric_interval() -> None:
    numbers = rng.uniform(rng.generators(range(200)), 50)
    assert numbers.min() < -0.99
    assert numbers.max() > 0.99
    assert abs(numbers.mean()) < 0.03
    assert abs(numbers.var() - 1 / 3) < 0.01


def test_drawing_no_numbers_leaves_the_generator_alone() -> None:
    gens = rng.generators([3])
    assert rng.randint(gens, 5, 0).shape == (1, 0)
    assert torch.equal(rng.randn(gens, 2), rng.randn(rng.generators([3]), 2))


def test_no_two_ranges_of_reserved_seeds_overlap() -> None:
    ranges = sorted([range(rng.IMAGES), *rng.RESERVED.values()], key=lambda seeds: seeds.start)
    assert ranges[0] == range(2**31)  # images
    for lower, upper in zip(ranges, ranges[1:]):
        assert lower.stop <= upper.start
    assert ranges[-1].stop <= 2**32  # where the seeds of a CPU generator begin again


@pytest.mark.parametrize("size", [*range(1, 36), 80, 120, 255, 256, 1000, 4097])
def test_rows_filled_in_place_have_the_bits_of_tensors_of_their_own(size: int) -> None:
    """Normal numbers come 16 at a time, or in pairs of which one is kept: so twice, and the generators."""
    seeds = [3, 2**31 + 5, 2**32 - 1]
    ours = rng.generators(seeds)
    alone = rng.generators(seeds)
    for _ in range(2):
        assert torch.equal(rng.randn(ours, size), torch.stack([torch.randn(size, generator=g) for g in alone]))
        assert torch.equal(rng.unit(ours, size), torch.stack([torch.rand(size, generator=g) for g in alone]))
        for high in (1, 7, 2**40):
            whole = torch.stack([torch.randint(high, (size,), generator=g) for g in alone])
            assert torch.equal(rng.randint(ours, high, size), whole)
    for one, other in zip(ours, alone):
        assert torch.equal(one.get_state(), other.get_state())


def test_one_generator_may_fill_several_rows() -> None:
    rows = rng.randn(rng.generators([4]) * 3, 8)
    (gen,) = rng.generators([4])
    assert torch.equal(rows, torch.stack([torch.randn(8, generator=gen) for _ in range(3)]))


def test_labels_are_those_that_each_generator_draws_alone() -> None:
    seeds = range(300)
    weights = (0.0, 0.2, 0.5, 0.0, 0.3)
    edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    alone = rng.generators(seeds)
    uniform = [int(torch.randint(5, (), generator=gen)) for gen in alone]
    chances = [torch.rand((), generator=gen, dtype=torch.float64) * edges[-1] for gen in alone]
    weighted = [int((edges <= chance).sum()) for chance in chances]

    gens = rng.generators(seeds)
    assert LabelPlan().draw(0, 5, gens).tolist() == uniform
    assert LabelPlan(weights=weights).draw(0, 5, gens).tolist() == weighted
    assert set(weighted) == {1, 2, 4}
    assert LabelPlan((4, 0, 2)).draw(5, 5, gens[:4]).tolist() == [2, 4, 0, 2]


@pytest.mark.gpu
def test_numbers_drawn_for_a_gpu_are_those_of_the_cpu() -> None:
    seeds = range(64)
    cuda = torch.device("cuda")
    for _ in range(20):  # pinned memory is used again while copies may be on their way
        rows = [rng.randn(rng.generators(seeds), 1, 32, 32, device=cuda) for _ in range(5)]
        assert all(row.is_cuda for row in rows)
        for row in rows:
            assert torch.equal(row.cpu(), rng.randn(rng.generators(seeds), 1, 32, 32))
