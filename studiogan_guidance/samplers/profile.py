"""Which blocks of a generator are guided, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import LatentView


def shares(profile: tuple[float, ...], places: int) -> Tensor:
    """The number of ``profile`` for each of some places in equal groups, float64 [places]."""
    return torch.tensor([profile[place * len(profile) // places] for place in range(places)], dtype=torch.float64)


@dataclass(frozen=True)
class Profile:
    """The scale of each block of a view: rows of w, or conditional blocks of generators without w.

    Args:
        scale: of guidance; 1 is plain.
        layers: blocks [low, high) to guide; None: all.
        groups: shares p of scale - 1 in equal groups of blocks, each guided by 1 + (scale - 1) p; None: all 1.
    """

    scale: float
    layers: tuple[int, int] | None = None
    groups: tuple[float, ...] | None = None

    @property
    def tells_blocks_apart(self) -> bool:
        """Whether blocks may have different codes."""
        return self.layers is not None or self.groups is not None

    def check(self, view: LatentView) -> None:
        """Raise UserError where layers or groups of them do not fit the blocks of a view."""
        blocks = f"{view.blocks} {'blocks' if view.rows is None else 'w rows'}"
        if self.layers is not None:
            low, high = self.layers
            if not 0 <= low < high <= view.blocks:
                raise UserError(
                    f"gandance.layers is {low}-{high}, but this generator has {blocks}: give a part of 0-{view.blocks}"
                )
        if self.groups is not None and not 1 <= len(self.groups) <= view.blocks:
            count = len(self.groups)
            raise UserError(f"gandance.profile has {count} groups, but this generator has {blocks}: give fewer")

    def scales(self, view: LatentView) -> float | Tensor:
        """The scale, or with groups that of each block, [blocks, 1]; ``layers`` have no part in it."""
        groups = self.groups
        if groups is None:
            return self.scale
        return view.once(("profile", self), lambda: self._of_blocks(view, groups))

    def _of_blocks(self, view: LatentView, groups: tuple[float, ...]) -> Tensor:
        table = 1 + (self.scale - 1) * shares(groups, view.blocks)
        return table.float().to(view.device)[:, None]

    def within_layers(self, view: LatentView, scale: float | Tensor) -> Tensor:
        """A scale, that of blocks [..., blocks, 1] or of all, with 1 outside of ``layers``."""
        scale = torch.as_tensor(scale, device=view.device)
        if self.layers is None:
            return scale
        block = torch.arange(view.blocks, device=view.device)[:, None]
        return torch.where((block >= self.layers[0]) & (block < self.layers[1]), scale, 1)

    def kept(self, code: Tensor, guided: Tensor) -> Tensor:
        """Guided codes [B, blocks, D] with the plain ones outside of ``layers``."""
        if self.layers is None:
            return guided
        low, high = self.layers
        return torch.cat([code[:, :low], guided[:, low:high], code[:, high:]], 1)

    def spread_out(self, view: LatentView, code: Tensor) -> Tensor:
        """Codes [B, D] of a view without w for each block, [B, blocks, D], where they may differ; others stay."""
        if view.rows is None and code.dim() == 2 and self.tells_blocks_apart:
            return code[:, None].expand(-1, view.blocks, -1)
        return code
