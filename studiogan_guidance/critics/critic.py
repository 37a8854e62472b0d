"""A discriminator as features and logits for every class, the same for all ways of conditioning it.

A logit is log p_data(x|c) / p_g(x|c) only for the logistic loss, at its optimum, and for the generator that it was
trained against. Hinge and Wasserstein critics, moving averages of generators and guided ones need the calibration of
``calibration``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance import rng
from studiogan_guidance.critics.minibatch import MinibatchPeers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import LabelPlan, LatentView, weights_digest

NO_CRITIC = "use a sampler that needs no discriminator (see 'list')"
Scores = tuple[Tensor, Tensor]  # features [B, F], then logits [B, K] or [B]


class Adapter(Protocol):
    """One way of conditioning a discriminator."""

    def every_class(self, images: Tensor) -> Scores:
        """Features [B, F] and logits [B, K] of all classes, or K = 1 without a condition."""

    def of_labels(self, images: Tensor, labels: Tensor) -> Scores:
        """Features [B, F] and the logit of each image for its label, [B]."""

    def class_term(self, features: Tensor, labels: Tensor) -> Tensor | float:
        """What the label adds to the logit, [B]; 0 where the logit is not a sum with a term of the class."""


class Critic:
    """``critic(images) -> (features [B, F], logits [B, K])`` of a discriminator, which is not changed by it.

    The logits are those of all C classes where the discriminator is conditional in its real-or-fake answer (projection,
    one head a class), else the one unconditional logit, K = 1. Gradients flow to the images.

    Args:
        discriminator: one of the host's, or one with methods ``features(images)``, ``score(features, labels)`` and
            ``class_logits(features)``, as the built-in's.

    Raises:
        UserError: a way of conditioning without such logits (MH, PD on StyleGAN2), or a foreign network.

    Example:
        >>> import torch
        >>> from studiogan_guidance import builtin
        >>> critic = Critic(builtin.networks().companions.discriminator())
        >>> features, logits = critic(torch.zeros(2, 3, 32, 32))
        >>> features.shape, logits.shape
        (torch.Size([2, 96]), torch.Size([2, 10]))
    """

    def __init__(self, discriminator: nn.Module) -> None:
        self.module = discriminator
        self.minibatch = MinibatchPeers(discriminator)
        self._adapter: Adapter
        if hasattr(discriminator, "class_logits"):
            self._adapter = MethodsAdapter(discriminator)
        else:
            self._adapter = HostAdapter(discriminator, self.minibatch)

    def __call__(self, images: Tensor) -> Scores:
        return self._adapter.every_class(images)

    @property
    def is_conditional(self) -> bool:
        """Whether the logit of an image depends on its class."""
        return getattr(self.module, "d_cond_mtd", None) in ("PD", "SPD", "MD") or hasattr(self.module, "class_logits")

    def judge(self, images: Tensor, labels: Tensor) -> Scores:
        """Features [B, F], and the logit of each image for its label (where it depends on it), [B].

        StyleGAN2's minibatch statistic, which makes the logit of an image depend on its batch, is taken over the image
        and its fixed peers, if ``fix_peers`` was called.
        """
        return self._adapter.of_labels(images, labels)

    def judge_without_class(self, images: Tensor, labels: Tensor) -> Scores:
        """As ``judge``, without what the label adds to the logit of a projection discriminator."""
        features, logits = self.judge(images, labels)
        return features, logits - self._adapter.class_term(features, labels)

    def marginal(self, images: Tensor) -> Scores:
        """Features [B, F] and log mean_c exp(logit_c) [B]: the logit without a label, under uniform classes.

        With logits log p(x|c) / q(x|c), and q alike for all c, this is log p(x) / q(x).
        """
        features, logits = self(images)
        return features, logits.logsumexp(1) - math.log(logits.shape[1])

    def fix_peers(self, images: Tensor, labels: Tensor) -> None:
        """Let these images, as many as ``minibatch.count``, be the peers of every image in ``judge``."""
        times = 2 if len(images) == 1 else 1  # MD cannot answer about one image
        network: Any = self.module
        self.minibatch.fix(len(images), lambda: network(images.repeat(times, 1, 1, 1), labels.repeat(times), eval=True))


class MethodsAdapter:
    """A discriminator with the methods ``features``, ``score`` and ``class_logits``, as the built-in's."""

    def __init__(self, discriminator: Any) -> None:
        self.discriminator = discriminator

    def every_class(self, images: Tensor) -> Scores:
        features = self.discriminator.features(images)
        return features, self.discriminator.class_logits(features)

    def of_labels(self, images: Tensor, labels: Tensor) -> Scores:
        features = self.discriminator.features(images)
        return features, self.discriminator.score(features, labels)

    def class_term(self, features: Tensor, labels: Tensor) -> Tensor | float:
        term = getattr(self.discriminator, "class_term", None)
        return 0.0 if term is None else term(features, labels)


def unconditional_logits(discriminator: Any, features: Tensor, logit: Tensor) -> Tensor:
    """The one logit, [B, 1]."""
    return logit[:, None]


def projection_logits(discriminator: Any, features: Tensor, logit: Tensor) -> Tensor:
    """l(h) + h . e_c, where ``logit`` is that of class 0, [B, C]."""
    table: Tensor = discriminator.embedding(torch.arange(discriminator.num_classes, device=features.device))
    return (logit - features @ table[0])[:, None] + features @ table.T


def style_projection_logits(discriminator: Any, features: Tensor, logit: Tensor) -> Tensor:
    """l(h) . m(c) / sqrt(D), m the mapping network of StyleGAN2's discriminator, [B, C]."""
    labels = torch.arange(discriminator.num_classes, device=features.device)
    proxies: Tensor = discriminator.mapping(None, F.one_hot(labels, discriminator.num_classes))
    logits: Tensor = discriminator.linear1(features) @ proxies.T / math.sqrt(proxies.shape[1])
    return logits


def head_logits(discriminator: Any, features: Tensor, logit: Tensor) -> Tensor:
    """One head a class, [B, C]."""
    logits: Tensor = discriminator.linear1(features)
    return logits


CLASS_LOGITS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {  # by d_cond_mtd
    "PD": projection_logits,
    "SPD": style_projection_logits,
    "MD": head_logits,
    "W/O": unconditional_logits,
    "AC": unconditional_logits,
    "2C": unconditional_logits,
    "D2DCE": unconditional_logits,
}


class HostAdapter:
    """A discriminator of the host: (images, labels) -> {"h": features, "adv_output": the logit of each label, ...}.

    Raises:
        UserError: a ``d_cond_mtd`` without logits of single images, or none.
    """

    def __init__(self, discriminator: Any, minibatch: MinibatchPeers) -> None:
        self.discriminator = discriminator
        self.minibatch = minibatch
        kind = getattr(discriminator, "d_cond_mtd", None)
        if kind not in CLASS_LOGITS or (kind == "PD" and not hasattr(discriminator, "embedding")):
            what = f"d_cond_mtd {kind}" if kind else type(discriminator).__name__
            raise UserError(f"discriminators with {what} have no real-or-fake logit of an image: {NO_CRITIC}")
        self.kind: str = kind

    def every_class(self, images: Tensor) -> Scores:
        label = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        out = self.discriminator(images, label, eval=True)
        logit = out["adv_output"].reshape(len(images))
        return out["h"], CLASS_LOGITS[self.kind](self.discriminator, out["h"], logit)

    def of_labels(self, images: Tensor, labels: Tensor) -> Scores:
        if len(images) == 1 and self.kind == "MD":  # the host's MD cannot answer about one image
            features, twice = self.of_labels(images.repeat(2, 1, 1, 1), labels.repeat(2))
            return features[:1], twice[:1]

        with self.minibatch.joined(len(images)):
            out = self.discriminator(images, labels, eval=True, adc_fake=False)
        logits: Tensor = out["adv_output"]  # [B], [B, 1], or [] for a batch of one
        return out["h"], logits.reshape(len(images))

    def class_term(self, features: Tensor, labels: Tensor) -> Tensor | float:
        if self.kind != "PD":
            return 0.0
        term: Tensor = (features * self.discriminator.embedding(labels)).sum(1)
        return term


def of_view(view: LatentView) -> Critic:
    """The critic of a view's generator, opened once, with its minibatch peers.

    Raises:
        UserError: no discriminator beside the generator, or one without scores of single images.
    """
    bare = view.bare
    return bare.once("critic", lambda: _open(bare))


def digest_of(view: LatentView) -> str:
    """The hash of the weights of the discriminator beside a view's generator."""
    return view.bare.once("critic digest", lambda: weights_digest(of_view(view).module))


def _open(view: LatentView) -> Critic:
    if view.networks.companions is None:
        raise UserError(f"this needs a discriminator, and there is none beside {view.networks.source}")
    return opened(view, view.networks.companions.discriminator())


def opened(view: LatentView, discriminator: nn.Module) -> Critic:
    """The critic of a discriminator, with the peers that images of a view's generator give it.

    Raises:
        UserError: a discriminator without scores of single images, or one that judges by classes that there are not.
    """
    critic = Critic(discriminator)
    if critic.is_conditional:
        view.networks.check_conditional("this discriminator, which judges images by their class,", NO_CRITIC)

    # Draw its peers, fakes of the plain generator.
    if critic.minibatch.count:
        seeds = range(rng.PEERS, rng.PEERS + critic.minibatch.count)
        with view.frozen(), torch.no_grad():
            inputs = view.draw(seeds, 0, LabelPlan(), "const")
            critic.fix_peers(view.images(inputs), inputs.labels)
    return critic
