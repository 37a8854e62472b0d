"""A discriminator as features, logits for every class, and a calibrated log density ratio, whoever made it.

A logit is log p_data(x|c) / p_g(x|c) only for the logistic loss, at its optimum, and for the generator that it was
trained against. Hinge and Wasserstein critics, moving averages of generators and guided ones all need calibration: a
map from logits to log odds, fitted on held-out real images and fresh fakes of the very generator that will be sampled
(Turner et al. 2019, arXiv:1811.11357, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance import builtin, rng
from studiogan_guidance.common import UserError
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView, weights_digest
from studiogan_guidance.samplers import pool
from studiogan_guidance.samplers.base import Stacked, least, one_of

Array = NDArray[Any]
Flags = NDArray[np.bool_]
BATCH_SIZE = 64  # of what is computed once
COMPANIONS = 3  # of a minibatch statistic without a group size
FEWEST = 10  # held-out images that a calibration needs
CALIBRATIONS = ("logistic", "isotonic", "head", "none")


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
        if bare.networks.beside is None:
            raise UserError(f"this sampler needs a discriminator, and there is none beside {bare.networks.source}")
        critic = Critic(bare.networks.beside.discriminator())
        if critic.companions:
            seeds = range(rng.COMPANIONS, rng.COMPANIONS + critic.companions)
            with bare.frozen(), torch.no_grad():
                inputs = bare.draw(seeds, 0, LabelPlan(), "const")
                critic.accompany(bare.decode(bare.encode(inputs.z, inputs.labels), inputs.z, None), inputs.labels)
        return critic

    return bare.once("critic", opened)


def digest_of(view: LatentView) -> str:
    """The hash of the weights of the discriminator beside a view's generator."""
    return view.bare.once("critic digest", lambda: weights_digest(of_view(view).module))


def logistic_map(evidence: Array, real: Flags) -> tuple[Array, float]:
    """(weights [K], offset) of the log odds ``evidence @ weights + offset`` that an image is real, for [N, K] and [N].

    Without a penalty for K = 1 (Platt scaling); else with an L2 penalty that is chosen by cross-validation.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    centre, unit = evidence.mean(0), np.maximum(evidence.std(0), 1e-12)
    model = LogisticRegression(C=1e6, class_weight="balanced", max_iter=1000)
    if evidence.shape[1] > 1:
        grid = {"C": [1e-4, 1e-3, 1e-2, 1e-1, 1.0]}
        search = GridSearchCV(model, grid, scoring="neg_log_loss", cv=_folds(len(real))).fit(
            (evidence - centre) / unit, real
        )
        model = search.best_estimator_
    else:
        model.fit((evidence - centre) / unit, real)
    weights = model.coef_[0] / unit
    return weights, float(model.intercept_[0] - weights @ centre)


def _folds(count: int) -> list[tuple[Array, Array]]:
    numbers = np.arange(count)
    return [(numbers[numbers % 5 != fold], numbers[numbers % 5 == fold]) for fold in range(5)]


def isotonic_map(scores: Array, real: Flags) -> tuple[Array, Array]:
    """Knots (scores, log odds) of a non-decreasing map, constant beyond its ends; log odds are finite.

    Probabilities of 0 and 1 become 1 / (N + 2) and 1 less that.
    """
    from sklearn.isotonic import IsotonicRegression

    weights = np.where(real, 0.5 / max(real.sum(), 1), 0.5 / max((~real).sum(), 1))
    fit = IsotonicRegression(out_of_bounds="clip").fit(scores, real.astype(float), weights)
    floor = 1 / (len(scores) + 2)
    p = np.clip(fit.y_thresholds_, floor, 1 - floor)
    return fit.X_thresholds_, np.log(p) - np.log1p(-p)


def calibration_statistic(log_odds: Array, real: Flags) -> float:
    """Z = sum(y - p) / sqrt(sum p (1 - p)), about N(0, 1) if the probabilities p are calibrated; y is 1 for real.

    Turner et al. 2019, arXiv:1811.11357, section 4 (after Dawid 1997). ``log_odds`` and ``real`` are [N].
    """
    p = 1 / (1 + np.exp(-log_odds))
    return float((real - p).sum() / max(np.sqrt((p * (1 - p)).sum()), 1e-12))


@dataclass(frozen=True)
class LogRatio:
    """``ratio(images, labels) -> log p_data(x|c) / p_g(x|c)`` [B], as what a calibrated discriminator says.

    Attributes:
        view: whose generator is sampled; passes are booked there.
        critic: the discriminator.
        weights: of the evidence, [K]: of the logit, or also of the discriminator's features before it.
        offset: added to that.
        knots: logits and log odds of an isotonic map instead, [N] each.
        facts: how good it is: ``calibration_z`` (each half of the images judged by the map of the other),
            ``calibration_z_raw`` (the same for logits as they are), and ``auc``, the chance that a held-out real image
            gets more than a fake, likewise crossed.
        real: log ratios of the held-out real images and their labels, [N] each, if it was calibrated.
    """

    view: LatentView
    critic: Critic
    weights: Tensor
    offset: float = 0.0
    knots: tuple[Tensor, Tensor] | None = None
    facts: dict[str, float] = field(default_factory=dict)
    real: tuple[Tensor, Tensor] | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.of_evidence(self.evidence(images, labels))

    def evidence(self, images: Tensor, labels: Tensor) -> Tensor:
        """The logit as it is, or the logit and the features, [B, K]."""
        self.view.cost["discriminator"] += len(images)
        features, logits = self.critic.judge(images, labels)
        return logits[:, None] if len(self.weights) == 1 else torch.cat([logits[:, None], features], 1)

    def of_evidence(self, evidence: Tensor) -> Tensor:
        """The log ratio of evidence [N, K], [N]."""
        if self.knots is None:
            return evidence @ self.weights.to(evidence) + self.offset
        xs, ys = (knot.to(evidence) for knot in self.knots)
        score = evidence[:, 0].contiguous()
        right = torch.searchsorted(xs, score).clamp(1, max(len(xs) - 1, 1))
        left, right = right - 1, right.clamp(max=len(xs) - 1)
        share = ((score - xs[left]) / (xs[right] - xs[left]).clamp_min(1e-12)).clamp(0, 1)
        return torch.lerp(ys[left], ys[right], share)


@dataclass(frozen=True)
class Judged(Stacked):
    """A sampler that asks the discriminator about images of its base.

    Args:
        calibration: what makes a log density ratio of the discriminator: ``logistic`` (Platt scaling of its logit),
            ``isotonic`` (the same by a monotone map, for samplers without gradients), ``head`` (its last layer fitted
            anew, on its logit and features: for a logit that tells real images from fakes no longer), or ``none`` (the
            logit as it is: right only for the logistic loss, at its optimum).
        calibration_images: number of held-out real images to calibrate on, at most; as many fakes of the base are made.
    """

    calibration: str = "logistic"
    calibration_images: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, calibration=CALIBRATIONS)
        least(self, calibration_images=FEWEST)

    def files(self, view: LatentView) -> dict[str, str]:
        files, beside = super().files(view), view.networks.beside
        if self._still:
            return files
        files["discriminator_sha256"] = digest_of(view)
        return files if self.calibration == "none" or not beside else files | {"calibrated_on": beside.held_out_name()}

    def check(self, view: LatentView) -> None:
        super().check(view)
        if self._still:
            return
        of_view(view)
        if self.calibration != "none" and view.networks.beside:
            view.networks.beside.held_out_name()  # what is missing is missed before any work is done

    def ratio(self, view: LatentView, mode: str = "random") -> LogRatio:
        """The calibrated log density ratio for the generator of a view of the base, made once for it.

        ``mode`` is that of the layer noise of its images.
        """
        key = f"ratio {self.calibration} {self.calibration_images} {mode}"
        return view.once(key, lambda: self._calibrated(view, mode))

    def _calibrated(self, view: LatentView, mode: str) -> LogRatio:
        from sklearn.metrics import roc_auc_score

        critic, beside = of_view(view), view.networks.beside
        plain = LogRatio(view, critic, torch.ones(1))
        if self.calibration == "none" or beside is None:
            return plain
        images, labels = beside.held_out(self.calibration_images)
        if len(labels) < FEWEST:
            raise UserError(
                f"there are {len(labels)} held-out images ({beside.held_out_name()}), and calibrating needs {FEWEST}: "
                "give --held-out DIR with more, or say -o calibration=none"
            )
        if int(labels.max()) >= view.num_classes:
            raise UserError(
                f"a held-out image has class {int(labels.max())}, this generator {view.num_classes} classes"
            )
        wide = plain if self.calibration != "head" else LogRatio(view, critic, torch.ones(2))
        real = _evidence(wide, zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE)))
        seen = torch.cat([real, _evidence(wide, fakes(view, rng.FAKES, labels.tolist(), mode))])
        is_real = np.arange(len(seen)) < len(real)
        crossed = np.empty(len(seen))
        for half in (0, 1):
            own = np.arange(len(seen)) % 2 == half
            crossed[own] = self._map(plain, seen[~own], is_real[~own]).of_evidence(seen[own]).numpy()
        made = self._map(plain, seen, is_real)
        if self.calibration == "logistic" and made.weights[0] <= 0:
            raise UserError(
                f"the discriminator beside {view.networks.source} ranks fakes above held-out real images (slope "
                f"{float(made.weights[0]):.3g}), so following it makes no sense: try -o calibration=head"
            )
        facts = {
            "calibration_z": calibration_statistic(crossed, is_real),
            "calibration_z_raw": calibration_statistic(seen[:, 0].numpy(), is_real),
            "auc": float(roc_auc_score(is_real, crossed)),
        }
        return replace(made, facts=facts, real=(made.of_evidence(real), labels))

    def _map(self, ratio: LogRatio, evidence: Tensor, is_real: Flags) -> LogRatio:
        if self.calibration == "isotonic":
            xs, ys = isotonic_map(evidence[:, 0].numpy(), is_real)
            return replace(ratio, knots=(torch.from_numpy(xs), torch.from_numpy(ys)))
        weights, offset = logistic_map(evidence.numpy(), is_real)
        return replace(ratio, weights=torch.from_numpy(weights), offset=offset)

    def scores(self, view: LatentView, label: int, size: int, mode: str) -> Array:
        """Log ratios [size] of fakes of a class, ``drawn(view, label, size, range(size), mode)``; kept on disk."""
        ratio = self.ratio(view, mode)
        key = {"class": label, "base": str(self.base), "critic": self.files(view), "by": self.calibration_images}
        key["noise"] = mode

        def compute(draws: range) -> Tensor:
            inputs = drawn(view, label, size, draws, mode)
            images = view.decode(view.encode(inputs.z, inputs.labels), inputs.z, inputs.noise)
            return ratio(images, inputs.labels).double()

        return pool.values(view, "scores of fakes", {**key, "calibration": self.calibration, "of": size}, size, compute)

    def note(self, view: LatentView, ratio: LogRatio, **notes: Tensor) -> None:
        """Leave notes about each image, [B], and how well the discriminator is calibrated."""
        count = len(next(iter(notes.values())))
        view.notes.update({key: value.detach().float().cpu() for key, value in notes.items()})
        view.notes.update({key: torch.full((count,), value) for key, value in ratio.facts.items()})


@dataclass(frozen=True)
class Climbing(Judged):
    """A ``Judged`` sampler that follows gradients of the log ratio: isotonic maps, which are flat, make no sense."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration == "isotonic":
            raise UserError("calibration=isotonic has no gradient to follow: use logistic")


def drawn(view: LatentView, label: int, size: int, draws: Sequence[int], mode: str = "random") -> Inputs:
    """Members ``draws`` of the pool of ``size`` draws of a class, each by a seed of its own, with layer noise."""
    seeds = [rng.POOLS + (label * size + draw) % 2**30 for draw in draws]
    return view.draw(seeds, 0, LabelPlan((label,)), mode)


def noise_mode(inputs: Inputs) -> str:
    """The mode that gives fresh inputs the same kind of layer noise."""
    return "random" if inputs.noise else "const"


def fakes(view: LatentView, first: int, labels: Sequence[int], mode: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of a view from seed ``first`` on, one a label, and their labels, in batches; ``mode`` of layer noise."""
    with view.frozen(), torch.no_grad():
        for start in range(0, len(labels), BATCH_SIZE):
            some = tuple(labels[start : start + BATCH_SIZE])
            inputs = view.draw(range(first + start, first + start + len(some)), 0, LabelPlan(some), mode)
            yield view.decode(view.encode(inputs.z, inputs.labels), inputs.z, inputs.noise), inputs.labels


def _evidence(ratio: LogRatio, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    device = ratio.view.device
    with torch.no_grad():
        found = [ratio.evidence(images.to(device), labels.to(device)).cpu() for images, labels in batches]
    return torch.cat(found).double()
