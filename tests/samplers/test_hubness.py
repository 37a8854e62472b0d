from __future__ import annotations

import pytest
import torch
from conftest import ToyGAN, identity_view
from sklearn.neighbors import NearestNeighbors

from studiogan_guidance import builtin, rng, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers import hubness
from studiogan_guidance.samplers.hubness import hub_counts


def view_of(z_dim: int, **more: object) -> LatentView:
    return identity_view(lambda x, c: x[:, 0], z_dim=z_dim, **more)


def draw(view: LatentView, seeds: range, batch: int, plan: LabelPlan | None = None, **options: object) -> torch.Tensor:
    stream = samplers.create("hubness", options).stream(view, seeds, batch, plan or LabelPlan())
    return torch.cat([samples.images.flatten(1) for samples in stream])


def gaussian(count: int, width: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def pool_of(number: int, count: int, width: int) -> torch.Tensor:
    gen = torch.Generator().manual_seed(rng.POOLS + number)
    return torch.stack([torch.randn(width, generator=gen) for _ in range(count)])


@pytest.mark.parametrize("metric", hubness.METRICS)
def test_counts_are_those_of_scikit_learns_graph(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors pass the points themselves to the graph, so each of them is in its own list."""
    points = gaussian(70, 6)
    search = NearestNeighbors(n_neighbors=3, metric=metric).fit(points.numpy())
    graph = search.kneighbors_graph(points.numpy())
    assert (graph.diagonal() == 1).all()
    expected = graph.toarray().sum(0).astype(int).tolist()
    assert hub_counts(points, 3, metric).tolist() == expected
    monkeypatch.setattr(hubness, "ROWS", 17)
    assert hub_counts(points, 3, metric).tolist() == expected
    assert sum(expected) == 70 * 3


def test_a_point_among_copies_of_itself_is_in_its_own_list() -> None:
    points = torch.ones(4, 3)
    assert hub_counts(points, 2).min() >= 1


def test_hubs_lie_near_the_centre_and_only_high_dimensions_have_them() -> None:
    points = gaussian(2000, 100)
    counts = hub_counts(points, 5)
    norms = points.norm(dim=1)
    assert norms[counts > 50].mean() < norms.mean() - norms.std()
    assert norms[counts > 50].mean() < norms[counts > 20].mean() < norms[counts > 5].mean() < norms.mean()
    assert counts.max() > 100 > 25 > hub_counts(gaussian(2000, 2), 5).max()


def test_images_of_a_block_are_the_hubs_of_its_pool_each_once() -> None:
    view, options = view_of(40), {"pool": 1500, "k": 5, "threshold": 15}
    pool = pool_of(3, 1500, 40)  # that of seeds 192 to 255
    counts = hub_counts(pool, 5)
    assert (counts == 15).any()
    hubs = pool[counts >= 15]
    assert len(hubs) >= 64

    # A block takes each of them once.
    z = draw(view, range(192, 256), 64, **options)
    assert len(torch.unique(z, dim=0)) == 64
    assert all((hubs == one).all(1).any() for one in z)
    batch = next(samplers.create("hubness", options).stream(view, range(192, 194), 2, LabelPlan()))
    torch.testing.assert_close(batch.notes["hubs"], torch.full((2,), len(hubs) / 1500))

    # Seeds on both sides of the border of two pools.
    both = draw(view, range(180, 204), 7, **options)
    assert torch.equal(both[12:], z[:12])
    assert torch.equal(both, draw(view, range(180, 204), 24, **options))
    assert not torch.equal(draw(view, range(128, 192), 64, **options), z)


def test_few_hubs_come_again_and_none_is_an_error() -> None:
    view = view_of(30)
    z = draw(view, range(64), 64, pool=300, threshold=20)
    counts = torch.unique(z, dim=0, return_counts=True)[1]
    assert 1 < len(counts) < 64
    assert counts.max() - counts.min() <= 1
    with pytest.raises(UserError, match=r"the largest hub of a pool of 300 is in \d+ lists: lower it"):
        draw(view, range(2), 2, pool=300, threshold=299)


def test_in_w_neighbours_are_counted_among_what_the_class_makes_of_the_pool(toy: ToyGAN, toy_view: LatentView) -> None:
    options = {"pool": 400, "threshold": 9}  # w is the default where there is one
    pool = pool_of(0, 400, 4)
    for label in (1, 4):
        w = toy.mapping(pool, torch.eye(5)[label].expand(400, -1))[:, 0]
        hubs = w[hub_counts(w, 5) >= 9]
        x = draw(toy_view, range(20), 20, LabelPlan((label,)), **options)
        assert torch.cdist(x, hubs, compute_mode="donot_use_mm_for_euclid_dist").amin(1).max() < 1e-5
    assert toy_view.ledger.cost["mapping"] == 2 * (400 + 20)
    whole = draw(toy_view, range(60, 70), 10, **options)
    torch.testing.assert_close(draw(toy_view, range(60, 70), 3, **options), whole)


def test_z_is_refused_where_its_norm_is_not_read() -> None:
    view = view_for(builtin.networks())
    for metric in hubness.METRICS:
        with pytest.raises(UserError, match="chooses by the norm of z, which builtin does not read: use space=w"):
            samplers.create("hubness", {"space": "z", "metric": metric}).check(view)
    samplers.create("hubness", {"space": "z", "threshold": None}).check(view)
    assert samplers.create("hubness").space_on(view) == "w"


def test_infogan_numbers_stay() -> None:
    view = view_of(20, info_discrete=1, info_discrete_dim=3, info_continuous=2)
    hubs, plain = draw(view, range(6), 6, pool=300, threshold=9), draw(view, range(6), 6, threshold=None)
    assert torch.equal(hubs[:, 20:], plain[:, 20:])
    assert not torch.isclose(hubs[:, :20], plain[:, :20]).all(1).any()


def test_only_some_pools_are_kept_and_lost_ones_come_back_the_same() -> None:
    view, sampler = view_of(3), samplers.create("hubness", {"pool": 12, "k": 2, "threshold": 1})
    first = sampler.hubs(view, 0, 0)[0]
    for number in range(hubness.STORED + 9):
        sampler.hubs(view, number, 1)  # z is the same for all classes
    made = view.ledger.cost["proposed"]
    assert made == 12 * (hubness.STORED + 9)
    sampler.hubs(view, hubness.STORED + 8, 0)
    assert view.ledger.cost["proposed"] == made
    assert torch.equal(sampler.hubs(view, 0, 0)[0], first)
    assert view.ledger.cost["proposed"] == made + 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 1}, "hubness.k must be a number from 2 up"),
        ({"pool": 4}, "hubness.pool must be a number from 5 up"),
        ({"threshold": -1}, "hubness.threshold must be a number from 0 up"),
        ({"space": "x"}, "hubness.space is 'x'"),
        ({"metric": "l1"}, "hubness.metric is 'l1'"),
        ({"space": "w"}, "space w needs a generator with w, identity has none"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        samplers.create("hubness", options).check(view_of(2))
