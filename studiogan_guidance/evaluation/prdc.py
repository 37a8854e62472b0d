"""Precision, recall, density and coverage by k-nearest-neighbour balls: float32 finds the close pairs, float64 decides.

Almost all pairs are far from any radius. Half squared distances h = a2/2 + b2/2 - a.b from a float32 matrix product,
with a rigorous bound of their error, settle those. The few others are settled by distances from float64 differences of
the original features, so the values are those of code that is float64 throughout.

The bound, with u = 2^-24 and a2, b2 the squared norms of centred features a, b: rounding these to float32 changes a.b
by at most u (a2 + b2); the product is off by at most Du / (1 - Du) |a||b| in any order of summation; rounding of
biases, thresholds and differences adds at most 3u (a2 + b2). The sum is less than e(a) + e(b) with
e(a) = (D + 16)u / (1 - (D + 16)u) a2 / 2. What underflows adds less than D 2^-120, since no |a_i| is above 1.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Follow = Callable[[list[slice]], Iterable[slice]]  # passes blocks of rows through, and shows how many are done
BLOCK = 1024  # rows and columns of a block of distances
SPARE = 8  # candidates for a radius beyond the k nearest
PAIRS = 64  # pairs, or rows, whose float64 features are held at a time
GPU = 8, 64  # how many times BLOCK and PAIRS a GPU takes; on a CPU they fit its caches
GROUP = 8  # columns that share one minimum in the first stage of a search for the smallest


class _Points(NamedTuple):
    """Centred float32 features [N, D], half their squared norms and bounds of the error, both float64 [N]."""

    points: Tensor
    half: Tensor
    error: Tensor


def prdc(
    real: NDArray[Any],
    fake: NDArray[Any],
    k: int = 5,
    real_radii: Array | None = None,
    device: str = "cpu",
    follow: Follow = iter,
) -> dict[str, float]:
    """How much of the fakes lies inside the real manifold, and the other way round.

    A ball around each image reaches to its k-th nearest neighbour among its own kind; "inside" is strict, as in the
    reference code. precision: share of fakes inside at least one real ball. recall: share of reals inside at least one
    fake ball. density: mean number of real balls around a fake, divided by k. coverage: share of real balls that hold
    a fake. Precision and recall: Kynkaanniemi et al. 2019, arXiv:1904.06991, eq. 1-2; density and coverage: Naeem et
    al. 2020, arXiv:2002.09797, eq. 3-4.

    Args:
        real: features [N, D], N > k, finite.
        fake: features [M, D], M > k, finite.
        k: neighbour whose distance is the radius, from 1 up; 5 is the usual choice for density and coverage.
        real_radii: what radii(real, k) returned, where it is known already.
        device: "cpu" or a CUDA device; it holds twice the features.
        follow: passes the blocks of rows through, to show how many are done.

    Returns:
        precision, recall and coverage in [0, 1]; density in [0, N / k].

    Raises:
        ValueError: too few images for k, features of different widths or not finite, or radii of another number.

    Example:
        >>> import numpy as np
        >>> points = np.random.default_rng(0).normal(size=(64, 2))
        >>> prdc(points, points + 100)["precision"]
        0.0
    """
    # Check what was given.
    real = np.asarray(real)
    fake = np.asarray(fake)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be [N, D] and [M, D], found {real.shape} and {fake.shape}")
    if k < 1 or min(len(real), len(fake)) <= k:
        raise ValueError(
            f"k = {k} needs more than {k} images of each kind, found {len(real)} real and {len(fake)} fake"
        )
    if real_radii is not None and np.shape(real_radii) != (len(real),):
        raise ValueError(f"real_radii must be [{len(real)}], one for each real image, found {np.shape(real_radii)}")

    # Count who is inside whose ball.
    real_radii = radii(real, k, device, follow) if real_radii is None else np.asarray(real_radii, np.float64)
    fake_radii = radii(fake, k, device, follow)
    around, recalled, covered = _cross(_tensor(real, device), _tensor(fake, device), real_radii, fake_radii, follow)
    return {
        "precision": float((around > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(1 / k * around.mean()),
        "coverage": float(covered.mean()),
    }


def radii(features: NDArray[Any], k: int, device: str = "cpu", follow: Follow = iter) -> Array:
    """Distance of each row of features [N, D] to its k-th nearest other row, [N] float64; see ``prdc`` for ``follow``.

    Raises:
        ValueError: features that are not [N, D] with N > k, or not finite.
    """
    features = np.asarray(features)
    if features.ndim != 2 or k < 1 or len(features) <= k:
        raise ValueError(f"k = {k} needs more than {k} rows of features, found {features.shape}")

    # Find copies: a row with k or more of them has radius 0, and any further ones change nobody's radius.
    copies: dict[bytes, list[int]] = {}
    for i, row in enumerate(np.ascontiguousarray(features)):
        copies.setdefault(hashlib.sha256(row.data).digest(), []).append(i)
    rows = sorted(i for same in copies.values() for i in same[: k + 1])

    # Take the radii of the rest.
    x = _tensor(features, device)
    out = np.zeros(len(features))
    out[rows] = _radii(x if len(rows) == len(x) else x[rows], k, follow).cpu().numpy()
    return out


def _radii(x: Tensor, k: int, follow: Follow) -> Tensor:
    """Radii [N] float64 of features [N, D] with at most k copies of a row."""
    # Bound the half squared distances to the nearest candidates from below and above.
    (a,) = _centred(x)
    lower, index = _candidates(a, k + SPARE, follow)
    upper = lower + 2 * (a.error[:, None] + a.error[index])

    # Bracket that to the k-th neighbour; a row is missed if points that are no candidates may be as near.
    least = lower[:, k - 1 : k]
    most = upper.sort(1).values[:, k - 1 : k]
    missed = (lower[:, -1:] <= most).flatten()

    # Measure the candidates that may be the k-th neighbour; those before it count as -inf.
    exact = torch.where(upper < least, -torch.inf, torch.inf).double()
    i, place = ((upper >= least) & (lower <= most) & ~missed[:, None]).nonzero(as_tuple=True)
    exact[i, place] = _distances(x, x, i, index[i, place])
    out = exact.sort(1).values[:, k - 1]

    # Measure all distances of the rows that were missed.
    if missed.any():
        for rows in missed.nonzero().flatten().split(BLOCK):
            out[rows] = _row_radii(x, rows, k)
    return out


def _candidates(a: _Points, count: int, follow: Follow) -> tuple[Tensor, Tensor]:
    """The ``count`` smallest lower bounds of half squared distances to other points, float64 [N, count], and to whom.

    The bound of points i and j is (half - error)_i + (half - error)_j - a_i . a_j; in the search the part of i, which
    is the same for all j, is left out. As it is symmetric, a block above the diagonal serves the one below.
    """
    # The nearest points so far, and how a block of bounds changes them.
    low = (a.half - a.error).float()
    nearest = torch.full((len(low), count), torch.inf, device=low.device)
    index = torch.zeros(nearest.shape, dtype=torch.int64, device=low.device)

    def merge(rows: slice, columns: slice, bounds: Tensor) -> None:
        values, places = _smallest(bounds, count)
        nearest[rows], order = torch.cat([nearest[rows], values], 1).topk(count, largest=False)
        index[rows] = torch.cat([index[rows], places + columns.start], 1).gather(1, order)

    # Compare each pair of blocks once.
    blocks = _blocks(a.points)
    for n, rows in enumerate(follow(blocks)):
        for columns in blocks[n:]:
            products = _products(a.points[rows], a.points[columns])
            bounds = low[columns] - products
            if columns == rows:
                bounds.fill_diagonal_(torch.inf)
            else:
                merge(columns, rows, (low[rows, None] - products).T.contiguous())
            merge(rows, columns, bounds)
    return nearest.double() + (a.half - a.error)[:, None], index


def _row_radii(x: Tensor, rows: Tensor, k: int) -> Tensor:
    """Radii of some rows by all their float64 distances."""
    nearest = torch.full((len(rows), k), torch.inf, dtype=torch.float64, device=x.device)
    for columns in _blocks(x):
        distances = _dense(x[rows], x[columns])
        distances[rows[:, None] == torch.arange(len(x), device=x.device)[columns]] = torch.inf
        nearest = torch.cat([nearest, distances], 1).topk(k, largest=False).values
    return nearest[:, -1]


class _Balls(NamedTuple):
    """Radii [N] float64, and half their squares in the units of centred features; -inf for empty balls, of radius 0."""

    radius: Tensor
    half: Tensor


def _balls(radii: Array, scale: float, device: torch.device) -> _Balls:
    radius = torch.from_numpy(radii).to(device)
    return _Balls(radius, torch.where(radius > 0, (radius * scale).square() / 2, -torch.inf))


def _cross(
    real: Tensor, fake: Tensor, real_radii: Array, fake_radii: Array, follow: Follow
) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Number of real balls around each fake; which reals are in a fake ball; which real balls hold a fake."""
    device = real.device
    a, b = _centred(real, fake)
    scale = _scale(real, fake)
    r = _balls(real_radii, scale, device)
    f = _balls(fake_radii, scale, device)
    a_low = a.half - a.error
    b_low = b.half - b.error
    a_bias, b_bias, r_least, f_least = (x.float() for x in (a_low, b_low, a_low - r.half, b_low - f.half))
    around = torch.zeros(len(fake), dtype=torch.int64, device=device)
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool, device=device)

    for rows in follow(_blocks(real)):
        late_i, late_j = torch.zeros(2, 0, dtype=torch.int64, device=device)
        for columns in _blocks(fake):
            # Select the pairs that may be inside a ball, but for reals that are recalled already.
            products = _products(a.points[rows], b.points[columns])
            perhaps = products - b_bias[columns] > r_least[rows, None]
            if not recalled[rows].all():
                perhaps |= (products - a_bias[rows, None] > f_least[columns]) & ~recalled[rows, None]
            i, j = perhaps.nonzero(as_tuple=True)

            # Take their half squared distances, and bound the errors.
            h = -products[i, j].double()
            i = i + rows.start
            j = j + columns.start
            h += a.half[i] + b.half[j]
            error = a.error[i] + b.error[j]

            # Recall reals that are inside the ball of a fake; leave unsure pairs until later columns have had a look.
            recalled[i[h + error < f.half[j]]] = True
            unsure = (h + error >= f.half[j]) & (h - error < f.half[j]) & ~recalled[i]
            late_i = torch.cat([late_i, i[unsure]])
            late_j = torch.cat([late_j, j[unsure]])

            # Count the real balls around each fake.
            inside = h + error < r.half[i]
            unsure = ~inside & (h - error < r.half[i])
            inside[unsure] = _distances(real, fake, i[unsure], j[unsure]) < r.radius[i[unsure]]
            covered[i[inside]] = True
            around += torch.bincount(j[inside], minlength=len(fake))

            # Measure the late pairs whose real is still not recalled.
            if columns.stop == len(fake) or len(late_i) > BLOCK**2:
                _recall(recalled, real, fake, f.radius, late_i, late_j)
                late_i, late_j = torch.zeros(2, 0, dtype=torch.int64, device=device)
    return around.double().cpu().numpy(), recalled.cpu().numpy(), covered.cpu().numpy()


def _recall(recalled: Tensor, real: Tensor, fake: Tensor, fake_radii: Tensor, i: Tensor, j: Tensor) -> None:
    """Mark the reals of pairs (i, j) that are inside the fake's ball; no distance is taken for reals marked before."""
    unsure = ~recalled[i]
    i = i[unsure]
    j = j[unsure]
    recalled[i[_distances(real, fake, i, j) < fake_radii[j]]] = True


def _tensor(features: NDArray[Any], device: str) -> Tensor:
    """Features as they are, or as float64 where they are neither float32 nor float64."""
    dtype = np.float32 if features.dtype == np.float32 else np.float64
    wide = np.ascontiguousarray(features, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an array is read-only: nothing is written
        out = torch.from_numpy(wide).to(device)

    if out.numel() and not all(bool(x.isfinite()) for x in out.aminmax()):
        raise ValueError("features must be finite, found nan or inf")
    return out


def _scale(*sets: Tensor) -> float:
    """The factor that brings the differences of any two features into [-1, 1]."""
    largest = max((float(x.abs()) for s in sets if s.numel() for x in s.aminmax()), default=0.0)
    return 0.5 / (largest or 1.0)


def _centred(*sets: Tensor) -> list[_Points]:
    """The sets, shifted by one centre and scaled to numbers of at most 1.

    The centre is the median of some rows of the first set, because outliers hardly move a median.
    """
    # Choose centre and scale.
    first = sets[0]
    scale = _scale(*sets)
    sample = first[:: max(1, len(first) // 256)].cpu().double()
    centre = sample.median(0).values.to(first.device)

    # Centre each set, a few rows at a time.
    out = []
    for x in sets:
        points = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        half = torch.empty(len(x), dtype=torch.float64, device=x.device)
        for start in range(0, len(x), _pairs(x)):
            rows = slice(start, start + _pairs(x))
            wide = (x[rows] - centre).mul_(scale)
            points[rows] = wide.float()
            half[rows] = wide.square_().sum(1) / 2
        out.append(_Points(points, half, _error(half, x.shape[1])))
    return out


def _error(half: Tensor, width: int) -> Tensor:
    """The bound e(a) of the head of this file for half squared norms [N] of ``width`` numbers."""
    c = (width + 16) * 2.0**-24
    return c / (1 - c) * half + width * 2.0**-120


def _blocks(x: Tensor) -> list[slice]:
    size = BLOCK * (GPU[0] if x.is_cuda else 1)
    return [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]


def _pairs(x: Tensor) -> int:
    return PAIRS * (GPU[1] if x.is_cuda else 1)


def _smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The smallest values of each row and their columns; they are in the groups whose minima are smallest."""
    rows, width = values.shape
    if width % GROUP or width < 4 * GROUP * count:
        least, columns = values.topk(min(count, width), largest=False)
        return least, columns

    # Choose the groups with the smallest minima.
    groups = values.view(rows, GROUP, -1)
    chosen = groups.amin(1).topk(count, largest=False, sorted=False).indices

    # Search their columns.
    offsets = torch.arange(0, width, width // GROUP, device=values.device)
    columns = (chosen[:, None] + offsets[:, None]).flatten(1)
    least, order = values.gather(1, columns).topk(count, largest=False)
    return least, columns.gather(1, order)


def _distances(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Distances of pairs of rows by float64 differences: the same bits for the same rows, whatever the other pairs."""
    out = torch.empty(len(i), dtype=torch.float64, device=x.device)
    size = _pairs(x)
    for start in range(0, len(i), 64 * size):
        pairs = slice(start, start + 64 * size)
        rows, at_row = i[pairs].unique(return_inverse=True)
        columns, at_column = j[pairs].unique(return_inverse=True)

        # Pairs that fill a rectangle are measured as one, scattered ones by themselves.
        if len(rows) * len(columns) <= 4 * len(at_row):
            out[pairs] = _dense(x[rows], y[columns])[at_row, at_column]
        else:
            parts = zip(i[pairs].split(size), j[pairs].split(size))
            out[pairs] = torch.cat([_dense(x[p, None], y[q, None]).flatten() for p, q in parts])
    return out


def _dense(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _products(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False), true_float32():
        return a @ b.T


@contextmanager
def true_float32() -> Iterator[None]:
    """Matrix products in float32 proper, neither TF32 nor bfloat16, whatever is set outside; restored at the end."""
    backends: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    by_backend = all(hasattr(backend, "fp32_precision") for backend in backends)  # torch from 2.9 on
    with _each_in_float32(backends) if by_backend else _all_in_float32():
        yield


@contextmanager
def _each_in_float32(backends: list[Any]) -> Iterator[None]:
    precisions = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, precisions):
            backend.fp32_precision = precision


@contextmanager
def _all_in_float32() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
