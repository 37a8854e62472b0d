"""A discriminator as its features and its logits for every class, whoever made it: the built-in's or the host's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance import builtin
from studiogan_guidance.common import UserError


class Critic:
    """``critic(images) -> (features [B, F], logits [B, K])`` of a discriminator, which is not changed by it.

    The logits are those of all C classes where the discriminator is conditional in its real-or-fake answer (projection,
    one head a class), else the one unconditional logit, K = 1. Gradients flow to the images.

    Args:
        discriminator: the built-in's, or one of the host's.

    Raises:
        UserError: a way of conditioning without such logits (MH, PD on StyleGAN2), or a foreign network.
    """

    def __init__(self, discriminator: nn.Module) -> None:
        self.module = discriminator
        kind = getattr(discriminator, "d_cond_mtd", None)
        if isinstance(discriminator, builtin.network.Discriminator):
            self._logits: Callable[[Tensor, Tensor], Tensor] = self._builtin
        elif kind in ("W/O", "AC", "2C", "D2DCE", "MD", "SPD") or (
            kind == "PD" and hasattr(discriminator, "embedding")
        ):
            self._logits = {"PD": self._projection, "SPD": self._style, "MD": self._heads}.get(kind, self._single)
        else:
            what = f"d_cond_mtd {kind}" if kind else type(discriminator).__name__
            raise UserError(
                f"no unconditional score in a discriminator with {what}: use another objective than its own"
            )

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self._logits == self._builtin:
            features = self._any.features(images)
            return features, self._logits(features, features)
        out = self._any(images, torch.zeros(len(images), dtype=torch.int64, device=images.device), eval=True)
        return out["h"], self._logits(out["h"], out["adv_output"].reshape(len(images)))

    def marginal(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, F] and log mean_c exp(logit_c) [B]: the logit without a label, under uniform classes.

        With logits log p(x|c) / q(x|c), and q alike for all c, this is log p(x) / q(x).
        """
        features, logits = self(images)
        return features, logits.logsumexp(1) - math.log(logits.shape[1])

    @property
    def _any(self) -> Any:
        return self.module

    def _builtin(self, features: Tensor, _: Tensor) -> Tensor:
        logits: Tensor = self._any.out(features) + features @ self._any.embed.T / math.sqrt(features.shape[1])
        return logits

    def _single(self, features: Tensor, adversarial: Tensor) -> Tensor:
        return adversarial[:, None]

    def _projection(self, features: Tensor, adversarial: Tensor) -> Tensor:
        table: Tensor = self._any.embedding(torch.arange(self._any.num_classes, device=features.device))
        return (adversarial - features @ table[0])[:, None] + features @ table.T  # ``adversarial`` is that of class 0

    def _style(self, features: Tensor, _: Tensor) -> Tensor:
        labels = torch.arange(self._any.num_classes, device=features.device)
        proxies: Tensor = self._any.mapping(None, F.one_hot(labels, self._any.num_classes))
        logits: Tensor = self._any.linear1(features) @ proxies.T / math.sqrt(proxies.shape[1])
        return logits

    def _heads(self, features: Tensor, _: Tensor) -> Tensor:
        logits: Tensor = self._any.linear1(features)
        return logits
