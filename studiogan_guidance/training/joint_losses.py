"""Losses of the stage ``joint`` that need no images: between joints h and codes w."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from studiogan_guidance.devices import to_device
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.latents import gaussian
from studiogan_guidance.latents.base import LatentView
from studiogan_guidance.training.loop import step_seeds
from studiogan_guidance.training.objectives import energy_distance, sliced_wasserstein

DISTANCES = ("energy", "sliced")
DIRECTIONS = 64  # of the sliced Wasserstein distance


class Marginal:
    """How far the distribution of joints is from that of codes, whichever joint goes with which code.

    Args:
        kind: one of ``DISTANCES``.
        unit: the spread of the class means, in which both are measured.
        group: the processes, whose rows count together.
        seed: of the run.
    """

    def __init__(self, kind: str, unit: Tensor, group: Group, seed: int) -> None:
        self.kind = kind
        self.unit = unit
        self.group = group
        self.seed = seed

    def __call__(self, h: Tensor, codes: Tensor, step: int) -> Tensor:
        """The distance between joints and codes of other inputs, both [B, D].

        It is that of the rows of all processes; the gradients of this one's are scaled for the mean over processes.
        """
        with torch.autocast(h.device.type, enabled=False):
            x = self.group.all_rows((h / self.unit).float())
            y = self.group.all_rows((codes / self.unit).float())
            distance = self._distance(x, y, step)
            others = self.group.size - 1
            return distance + others * (distance - distance.detach()) if others else distance

    def _distance(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        """The distance of step ``step`` between two sets of rows, [B, D]."""
        if self.kind == "energy":
            return energy_distance(x, y)

        gen = torch.Generator().manual_seed(step_seeds(1, self.seed, step, 1)[0])
        directions = F.normalize(torch.randn(DIRECTIONS, x.shape[1], generator=gen))
        return sliced_wasserstein(x, y, to_device(directions, x.device))


class Coupling:
    """How far each joint is from the very code that is guided away from it: mean of |(h - w_c) A|^2 / D.

    A whitens w over all classes; codes that ignore z are in units of the spread of the class means. Of all joints with
    one distribution, this is least for those that move each code along with itself, the optimal transport. A joint that
    has the right distribution but nothing to do with its code adds a random offset to it: within-class variance
    s^2 S_W + (s - 1)^2 (S_W + S_B) in place of S_W.
    """

    def __init__(self, view: LatentView, unit: Tensor) -> None:
        self.matrix = None if view.rows is None else gaussian.whitening(view)
        self.unit = unit

    def __call__(self, h: Tensor, codes: Tensor) -> Tensor:
        """The loss of joints and their codes, both [B, D]."""
        with torch.autocast(h.device.type, enabled=False):
            difference = (h - codes).float()
            whitened = difference / self.unit if self.matrix is None else difference @ self.matrix
            return whitened.square().mean()


def first_row(codes: Tensor) -> Tensor:
    """Codes [B, D], of those with rows the first, as all are equal."""
    return codes[:, 0] if codes.dim() == 3 else codes
