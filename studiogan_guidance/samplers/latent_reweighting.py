"""Latent reweighting: draw latents with a density that a small network has learned, without a pass of the generator."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import importance
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.latents.importance import ImportanceWeights
from studiogan_guidance.latents.learned import fingerprint
from studiogan_guidance.samplers.base import (
    SAMPLERS,
    BasedSampler,
    Sampled,
    check_at_least,
    check_choice,
    check_positive,
    options,
)

MODES = ("rejection", "resampling")
DRAWS = 2048  # of the prior, behind the bound of a class


@SAMPLERS.register(
    "latent_reweighting",
    "draws latents with importance weights that a small network has learned",
    "Issenhuth et al. 2022, arXiv:2110.09803",
    family="prior",
    needs=("weights",),
    neutral={"proposals": 1},
)
@dataclass(frozen=True)
class LatentReweighting(BasedSampler):
    """Draw latents from w(z, c) p(z) for the weights w of a file, and make images of these alone.

    ``rejection`` (the paper's latentRS): propose latents until one is accepted, with probability w / bound, at most 1.
    Where none of the proposals of an image is accepted, one of them is taken as in resampling. ``resampling`` (our
    addition, whose cost is known beforehand): take one of the proposals with probability w / sum of w. The first
    proposal is the plain latent, so weights that are all alike leave every image as it is. A rejected proposal costs a
    pass of the small network, none of the generator; layer noise stays, InfoGAN's numbers are a part of the latent.

    With ``ascent`` (latentRS+GA) the latent that was taken follows the gradient of w to latents of more weight, which
    leaves the density that was learned for fewer poor images.

    Paper: Issenhuth et al., "Latent reweighting, an almost free improvement for GANs", WACV 2022, arXiv:2110.09803. The
    weights come from the stage ``latent_reweighting``.

    Args:
        proposals: number of latents of an image, at most (rejection) or always (resampling), from 1 (neutral, without
            ascent) up.
        mode: rejection or resampling.
        percentile: 0 to 100: the bound of a class is this percentile of w over 2048 latents of the prior; at 100, their
            maximum, rejection is exact but for weights beyond it; less accepts sooner, and treats all above it alike.
        bound: of the weights of all classes instead, positive (in the paper the weight from which training holds them
            down, 3 by default of the stage).
        ascent: number of gradient steps z <- z + rate grad w(z, c), from 0 up; InfoGAN's numbers stay.
        rate: of these steps, positive.
        weights_ckpt: file of the weights; None: ``latent_reweighting.safetensors`` beside the checkpoint.
        base: see ``BasedSampler``; the one that the weights were learned on.

    Notes of each image: ``weight``, the w of its latent; ``tries``, its number of proposals; ``accepted``, whether one
    of them was accepted by rejection (in resampling, 1).

    Raises:
        UserError: values out of range, no file of weights, or one of another generator or base.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> from studiogan_guidance.latents import importance
        >>> view = view_for(builtin.networks())
        >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
        >>> importance.save(path, importance.create(view), view, {})
        >>> sampler = samplers.create("latent_reweighting", {"weights_ckpt": str(path)})
        >>> batch = next(sampler.stream(view, range(4), 4, LabelPlan()))
        >>> batch.cost["synthesis"], batch.cost["accepted"], batch.cost["weights"] == batch.cost["proposed"]
        (4, 4, True)
    """

    proposals: int = 100
    mode: str = "rejection"
    percentile: float = 100.0
    bound: float | None = None
    ascent: int = 0
    rate: float = 0.05
    weights_ckpt: str | None = None
    _network: ImportanceWeights | None = dataclasses.field(default=None, init=False, repr=False)  # see ``with_weights``

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, mode=MODES)
        check_at_least(self, proposals=1, ascent=0, percentile=0)
        check_positive("latent_reweighting.rate", self.rate, "0.05 is usual")
        if self.bound is not None:
            check_positive("latent_reweighting.bound", self.bound, "3 is usual")
        if self.percentile > 100:
            raise UserError(f"latent_reweighting.percentile must be at most 100, found {self.percentile}: 100 is usual")

    def with_weights(self, network: ImportanceWeights) -> LatentReweighting:
        """The same sampler with weights in memory in place of a file, as while they are trained."""
        sampler = copy.copy(self)
        object.__setattr__(sampler, "_network", network)
        return sampler

    @property
    def _is_identity(self) -> bool:
        return self.proposals == 1 and self.ascent == 0

    def files(self, view: LatentView) -> dict[str, str]:
        files = super().files(view)
        return files if self._is_identity else files | {"weights_sha256": fingerprint(self.network(view))}

    def check(self, view: LatentView) -> None:
        super().check(view)
        if self._is_identity:
            return
        learned_on = self.network(view).base
        base = options(self)["base"]
        if json.dumps(learned_on) != json.dumps(base):
            raise UserError(
                f"latent_reweighting.base is {base}, but the weights were learned on {learned_on}: give that as base, "
                "or train others"
            )

    def network(self, view: LatentView) -> ImportanceWeights:
        """The weights, in memory or of the file."""
        return self._network or importance.of_view(view, self.weights_ckpt)

    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        z, notes = self.resampled(view, inputs) if self.mode == "resampling" else self.accepted(view, inputs)
        view.ledger.cost["proposed"] += int(notes["tries"].sum())
        view.ledger.cost["accepted"] += len(z)
        if self.ascent:
            z, notes["weight"] = self.ascended(view, z, inputs.labels)
        return Sampled(view.images(dataclasses.replace(inputs, z=z)), {key: note.cpu() for key, note in notes.items()})

    def accepted(self, view: LatentView, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents [B, Z] by rejection, and notes about them."""
        z = inputs.z.clone()
        bounds = self.bounds(view, inputs.labels)
        tries = torch.zeros(len(z))
        weight = torch.zeros(len(z))

        # The choice among the proposals so far, for rows where none is accepted.
        total = torch.zeros(len(z), dtype=torch.float64)
        rows = torch.arange(len(z))
        for number in range(self.proposals):
            gens = [inputs.generators[row] for row in rows.tolist()]
            proposal = _latents(view, gens).to(z) if number else z[rows]
            w = self.weights(view, proposal, inputs.labels[rows]).cpu()

            # Replace the choice with the probability of its share, and accept with w / bound.
            total[rows] += w.double()
            chosen = rng.unit(gens, dtype=torch.float64) * total[rows] < w
            accepted = rng.unit(gens) < w / bounds[rows]
            kept = chosen | accepted
            z[rows[kept]] = proposal[kept]
            weight[rows[kept]] = w[kept]
            tries[rows] += 1

            # Go on with the open rows.
            rows = rows[~accepted]
            if not len(rows):
                break

        taken = torch.ones(len(z))
        taken[rows] = 0
        return z, {"weight": weight, "tries": tries, "accepted": taken}

    def resampled(self, view: LatentView, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents [B, Z], each chosen among a fixed number by their weights, and notes about them."""
        z = inputs.z.clone()
        weight = self.weights(view, z, inputs.labels).cpu()
        total = weight.double()
        for _ in range(self.proposals - 1):
            # Replace the choice so far with the probability of the share of the new proposal.
            proposal = _latents(view, inputs.generators).to(z)
            w = self.weights(view, proposal, inputs.labels).cpu()
            total += w.double()
            chosen = rng.unit(inputs.generators, dtype=torch.float64) * total < w
            z[chosen] = proposal[chosen]
            weight = torch.where(chosen, w, weight)

        count = torch.full((len(z),), float(self.proposals))
        return z, {"weight": weight, "tries": count, "accepted": torch.ones(len(z))}

    def ascended(self, view: LatentView, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [B, Z] after the steps of gradient ascent, and their weights [B]."""
        prior, info = view.split(z)
        for _ in range(self.ascent):
            with torch.enable_grad():
                prior = prior.detach().requires_grad_()
                w = self.weights(view, torch.cat([prior, info], 1), labels)
                (slope,) = torch.autograd.grad(w.sum(), prior)
            prior = prior.detach() + self.rate * slope
            if view.networks.z_prior == "uniform":
                prior = prior.clamp(-1, 1)

        z = torch.cat([prior, info], 1)
        return z, self.weights(view, z, labels)

    def weights(self, view: LatentView, z: Tensor, labels: Tensor) -> Tensor:
        """w [B] of latents [B, Z]; the ledger counts the passes."""
        view.ledger.cost["weights"] += len(z)
        found: Tensor = self.network(view)(z, labels)
        return found

    def bounds(self, view: LatentView, labels: Tensor) -> Tensor:
        """The bound of each image, [B], on the CPU."""
        if self.bound is not None:
            return torch.full((len(labels),), self.bound)
        return torch.tensor([self.quantile(view, label) for label in labels.tolist()])

    def quantile(self, view: LatentView, label: int) -> float:
        """The percentile of w over latents of the prior of a class, computed once."""

        def measure() -> float:
            gens = rng.generators([rng.PILOTS + label]) * DRAWS  # all from one generator
            z = _latents(view, gens).to(view.device)
            labels = torch.full((DRAWS,), label, device=view.device)
            return float(self.weights(view, z, labels).cpu().quantile(self.percentile / 100))

        # Weights that are in training change in place.
        return view.once(f"bound {label} of {self}", measure, self.network(view).last.weight)


def _latents(view: LatentView, gens: Sequence[torch.Generator]) -> Tensor:
    """Fresh latents from the prior, InfoGAN's numbers included, [B, Z] on the CPU."""
    return torch.cat([view.prior(gens), view.info(gens)], 1)
