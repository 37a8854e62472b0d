"""A discriminator as features, logits for every class, and a calibrated log density ratio, whoever made it.

A logit is log p_data(x|c) / p_g(x|c) only for the logistic loss, at its optimum, and for the generator that it was
trained against. Hinge and Wasserstein critics, moving averages of generators and guided ones all need calibration: a
map from logits to log odds, fitted on held-out real images and fresh fakes of the very generator that will be sampled
(Turner et al. 2019, arXiv:1811.11357, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance import builtin, rng
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import LabelPlan, LatentView, weights_digest

COMPANIONS = 3  # of a minibatch statistic without a group size


class Critic:
    """``critic(images) -> (features [B, F], logits [B, K])`` of a discriminator, which is not changed by it.

    The logits are those of all C classes where the discriminator is conditional in its real-or-fake answer (projection,
    one head a class), else the one unconditional logit, K = 1. Gradients flow to the images.

    ``score(images, labels)`` is the logit of each image for its label. StyleGAN2's minibatch statistic, which makes the
    score of an image depend on its batch, is taken over the image and fixed companions, if ``accompany`` was called.

    Args:
        discriminator: the built-in's, or one of the host's.

    Raises:
        UserError: a way of conditioning without such logits (MH, PD on StyleGAN2), or a foreign network.
    """

    def __init__(self, discriminator: nn.Module) -> None:
        self.module = discriminator
        self._company: Tensor | None = None
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
                f"no score of single images in a discriminator with {what}: use what needs no discriminator"
            )

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self._logits == self._builtin:
            features = self._any.features(images)
            return features, self._logits(features, features)
        out = self._any(images, torch.zeros(len(images), dtype=torch.int64, device=images.device), eval=True)
        return out["h"], self._logits(out["h"], out["adv_output"].reshape(len(images)))

    def judge(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, F], and the adversarial logit of each image for its label (where it depends on it), [B].

        Gradients flow to the images.
        """
        if self._logits == self._builtin:
            features = self._any.features(images)
            return features, self._any.score(features, labels)
        if len(images) == 1 and self._logits == self._heads:  # the host's MD cannot answer about one image
            features, twice = self.judge(images.repeat(2, 1, 1, 1), labels.repeat(2))
            return features[:1], twice[:1]
        with self._accompanied(len(images)):
            out = self._any(images, labels, eval=True, adc_fake=False)
        logits: Tensor = out["adv_output"]
        return out["h"], logits.reshape(len(images))  # [B], [B, 1], or nothing at all for a batch of one

    @property
    def companions(self) -> int:
        """How many images share the minibatch statistic of a scored one; 0 without such a layer."""
        return 0 if self._group is None else int(self._group.group_size or COMPANIONS + 1) - 1

    def accompany(self, images: Tensor, labels: Tensor) -> None:
        """Let these images be the companions of every scored one from now on; as many as ``companions``."""
        assert self._group is not None
        seen: list[Tensor] = []
        handle = self._group.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.no_grad():
            times = 2 if len(images) == 1 else 1  # MD cannot answer about one image
            self._any(images.repeat(times, 1, 1, 1), labels.repeat(times), eval=True)
        handle.remove()
        self._company = seen[0][: len(images)]

    @property
    def _group(self) -> Any:
        return next((m for m in self.module.modules() if type(m).__name__ == "MinibatchStdLayer"), None)

    @contextmanager
    def _accompanied(self, count: int) -> Iterator[None]:
        company, layer = self._company, self._group
        if company is None or layer is None:
            yield
            return

        def join(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:  # groups are strided: image i, then its own
            return (torch.cat([args[0], company.repeat_interleave(count, 0)]),)

        size = layer.group_size
        layer.group_size = len(company) + 1
        handles = [
            layer.register_forward_pre_hook(join),
            layer.register_forward_hook(lambda module, args, out: out[:count]),
        ]
        try:
            yield
        finally:
            layer.group_size = size
            for handle in handles:
                handle.remove()

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


def of_view(view: LatentView) -> Critic:
    """The critic of a view's generator, opened once, with its companions.

    Raises:
        UserError: no discriminator beside the generator, or one without scores of single images.
    """
    bare = view.bare

    def opened() -> Critic:
        if bare.networks.companions is None:
            raise UserError(f"this sampler needs a discriminator, and there is none beside {bare.networks.source}")
        critic = Critic(bare.networks.companions.discriminator())
        if critic.companions:
            seeds = range(rng.PEERS, rng.PEERS + critic.companions)
            with bare.frozen(), torch.no_grad():
                inputs = bare.draw(seeds, 0, LabelPlan(), "const")
                critic.accompany(bare.decode(bare.encode(inputs.z, inputs.labels), inputs.z, None), inputs.labels)
        return critic

    return bare.once("critic", opened)


def digest_of(view: LatentView) -> str:
    """The hash of the weights of the discriminator beside a view's generator."""
    return view.bare.once("critic digest", lambda: weights_digest(of_view(view).module))
