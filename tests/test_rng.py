import torch

from studiogan_guidance import rng


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
