"""The hubness prior: latents that are among the nearest neighbours of unusually many others."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from studiogan_guidance import rng
from studiogan_guidance.batches import Halving
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.progress import track
from studiogan_guidance.samplers import spaces
from studiogan_guidance.samplers.base import SAMPLERS, BasedSampler, Sampled, check_at_least, check_choice

METRICS = ("l2", "cosine")
SPACES = ("auto", *spaces.SPACES)
ROWS = 1024  # rows of the table of distances that are held at a time, and of a mapping call
BLOCK = 64  # consecutive seeds that share a pool, and number of hubs of a pool that are stored
STORED = 256  # pools whose hubs are stored
Hubs = tuple[Tensor, float]  # z [H, z_dim], share of the pool


def hub_counts(points: Tensor, k: int, metric: str = "l2") -> Tensor:
    """How many points of [N, D] have each of them among their ``k`` nearest, int64 [N]; the sum is N k.

    Each point is the nearest to itself, so its list holds it and k - 1 others, as in the code of Liang et al. 2022,
    arXiv:2206.06014 (scikit-learn's graph of neighbours). A part of the N x N table of distances is held at a time.
    """
    points = F.normalize(points) if metric == "cosine" else points
    half_norms = points.square().sum(1) / 2
    counts = torch.zeros(len(points), dtype=torch.int64)
    for start in track(range(0, len(points), ROWS), "neighbours in the pool", len(points), ROWS):
        # (|x - y|^2 - |x|^2) / 2 of some x and all y, below all others for x itself.
        part = points[start : start + ROWS]
        distances = half_norms - part @ points.T
        numbers = torch.arange(len(part))
        distances[numbers, start + numbers] = -torch.inf

        neighbours = distances.topk(k, largest=False).indices.flatten().cpu()
        counts += torch.bincount(neighbours, minlength=len(points))
    return counts


@SAMPLERS.register(
    "hubness",
    "replaces z by hubs, draws that are near neighbours of many others",
    "Liang et al. 2022, arXiv:2206.06014",
    family="pool",
    neutral={"threshold": None},
)
@dataclass(frozen=True)
class Hubness(BasedSampler):
    """Replace the prior noise by hubs of a pool: draws that many others have among their nearest neighbours.

    Hubs lie near the centre of the space, so this is a sharper truncation without a threshold on the norm. In z that
    needs a generator that reads the norm of z: one that normalises z sees directions only, and of those none is more
    central than another. The image of seed s takes hub number s % 64, in a fixed random order, of pool number s // 64.
    So no hub of a pool is used twice (unless there are fewer than 64), and no image depends on another. Only the prior
    part of z is replaced; InfoGAN's numbers and layer noise stay.

    Paper: Liang et al., "Exploring and exploiting hubness priors for high-quality GAN latent sampling", ICML 2022,
    arXiv:2206.06014; space, k, threshold and the way of counting are those of its code.

    Args:
        pool: N, number of draws among which neighbours are counted; at least k.
        k: length of the lists of neighbours, from 2 up; each point is in its own list.
        threshold: a hub is in at least ``threshold`` lists, from 0 up; None is plain (neutral). Counts have mean k, and
            a long tail in high dimensions only: lower the threshold below about 30 dimensions.
        space: where neighbours are counted: w of the image's class, the mean over layers; z; or auto, w where there is
            one, else z. w costs N mapping passes for each class among 64 seeds, so sample class by class.
        metric: l2 or cosine.
        base: see ``BasedSampler``; ``space=w`` uses w of the base.

    Notes of each image: ``hubs``, the share of its pool that are hubs.

    Raises:
        UserError: values out of range, space w without w, space z where z is normalised, a pool without hubs.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("hubness", {"pool": 500, "threshold": 12})
        >>> batch = next(sampler.stream(view, range(4), 4, LabelPlan(classes=(3,))))
        >>> bool((batch.notes["hubs"] < 0.2).all())
        True
    """

    pool: int = 10_000
    k: int = 5
    threshold: float | None = 50.0
    space: str = "auto"
    metric: str = "l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, k=2, pool=self.k, threshold=0)
        check_choice(self, space=SPACES, metric=METRICS)

    @property
    def _is_identity(self) -> bool:
        return self.threshold is None

    def check(self, view: LatentView) -> None:
        super().check(view)
        space = self.space_on(view)
        spaces.check_space(view, space)
        if space == "z" and view.normalises_z and not self._is_identity:
            raise UserError(
                f"hubness in z chooses by the norm of z, which {view.networks.backbone} does not read: use space=w"
            )

    def space_on(self, view: LatentView) -> str:
        """z or w."""
        if self.space == "auto":
            return "z" if view.rows is None else "w"
        return self.space

    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        hubs: list[Tensor] = []
        shares: list[float] = []
        for seed, label in zip(inputs.seeds.tolist(), inputs.labels.tolist()):
            pool_hubs, share = self.hubs(view, seed // BLOCK, label)
            hubs.append(pool_hubs[seed % BLOCK % len(pool_hubs)])
            shares.append(share)

        _, info = view.split(inputs.z)
        z = torch.cat([torch.stack(hubs).to(inputs.z), info], 1)
        images = view.images(dataclasses.replace(inputs, z=z))
        return Sampled(images, {"hubs": torch.tensor(shares)})

    def hubs(self, view: LatentView, number: int, label: int) -> Hubs:
        """Up to 64 hubs of a pool (in w: of the pool as the class maps it), and which share of it are hubs."""
        stored: OrderedDict[tuple[int, int], Hubs] = view.once(f"hubs of {self}", OrderedDict)
        key = (number, label if self.space_on(view) == "w" else 0)
        if key not in stored:
            stored[key] = self._search(view, number, label)
        stored.move_to_end(key)
        if len(stored) > STORED:
            stored.popitem(last=False)
        return stored[key]

    def _search(self, view: LatentView, number: int, label: int) -> Hubs:
        """The hubs of a pool, as ``hubs`` stores them."""
        assert self.threshold is not None

        # The pool: draws of one generator, and the fixed random order of its members.
        gens = rng.generators([rng.POOLS + number % 2**30]) * self.pool
        z = view.prior(gens)
        info = view.info(gens)
        order = torch.randperm(self.pool, generator=gens[0])

        # Members in at least ``threshold`` lists of neighbours.
        in_z = self.space_on(view) == "z"
        points = z.to(view.device) if in_z else self._mean_codes(view, torch.cat([z, info], 1), label)
        counts = hub_counts(points, self.k, self.metric)
        hubs = order[counts[order] >= self.threshold]
        if not len(hubs):
            raise UserError(
                f"hubness.threshold is {self.threshold:g}, but the largest hub of a pool of {self.pool} is in "
                f"{int(counts.max())} lists: lower it"
            )
        view.ledger.cost.update(proposed=self.pool, accepted=len(hubs))
        return z[hubs[:BLOCK]], len(hubs) / self.pool

    def _mean_codes(self, view: LatentView, z: Tensor, label: int) -> Tensor:
        """The mean over layers of w of noise [N, Z] for a class, [N, w_dim]."""
        halving = Halving()
        codes: list[Tensor] = []

        def encode(part: Tensor) -> Tensor:
            labels = torch.full((len(part),), label, device=view.device)
            return view.encode(part, labels).mean(1)

        for part in z.to(view.device).split(ROWS):
            codes += halving(encode, part)
        return torch.cat(codes)
