"""What the stage ``frechet`` judges features by: the Gaussian of real ones joined with labels, and a classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.training.objectives import frechet

FIT = 60  # iterations of the classifier's fit
DECAY = 1e-4  # ridge of its slopes


class Memory(nn.Module):
    """Rows of the latest batches, [N, W], the oldest first; part of the state of a run."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("latest", torch.zeros(size, width))

    @property
    def rows(self) -> Tensor:
        """All of them."""
        return self.get_buffer("latest")

    def put(self, rows: Tensor) -> None:
        """Put new rows in the place of as many of the oldest."""
        latest = self.rows
        if len(latest):
            latest.copy_(torch.cat([latest[len(rows) :], rows.detach().to(latest.dtype)]))


class Classifier:
    """Multinomial logistic regression of features, fitted to real images without any chance.

    Args:
        features: of real images, [N, F].
        labels: int64 [N], their classes.
        num_classes: C.
        weights: of the images, [N], of sum 1.

    Attributes:
        level: mean cross-entropy on these images.
    """

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int, weights: Tensor) -> None:
        self._centre = weights @ features
        self._unit = (weights @ (features - self._centre).square()).sqrt().clamp_min(1e-6)
        self._slopes = torch.zeros(features.shape[1], num_classes, device=features.device)
        self._offsets = torch.zeros(num_classes, device=features.device)
        self._fit(features, labels, weights)
        self.level = float(self.entropies(features, labels) @ weights)

    def entropies(self, features: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of each image for its label, [B]."""
        standard = (features - self._centre) / self._unit
        return F.cross_entropy(standard @ self._slopes + self._offsets, labels, reduction="none")

    def excess(self, features: Tensor, labels: Tensor) -> Tensor:
        """How far the mean cross-entropy is above that of the real images; 0 where it is below."""
        return (self.entropies(features, labels).mean() - self.level).clamp_min(0)

    @torch.enable_grad()
    def _fit(self, features: Tensor, labels: Tensor, weights: Tensor) -> None:
        learning = [self._slopes.requires_grad_(True), self._offsets.requires_grad_(True)]
        search = torch.optim.LBFGS(learning, max_iter=FIT, line_search_fn="strong_wolfe")

        def loss() -> float:
            search.zero_grad()
            value = self.entropies(features, labels) @ weights + DECAY * self._slopes.square().sum()
            value.backward(inputs=learning)
            return float(value.detach())

        search.step(loss)
        for value in learning:
            value.requires_grad_(False)


class Judge:
    """The Gaussian of real images, in their features joined with their labels, and a classifier of the features.

    Args:
        features: of real images, [N, F]; a feature that is the same for all of them says nothing.
        labels: int64 [N], their classes.
        num_classes: C.
        alpha: weight of the labels; 0: the Gaussian is of the features alone.

    Attributes:
        mean: of the joined rows, [W].
        factor: L [W, W] with L L^T their covariance.
        classifier: of the features.
    """

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int, alpha: float) -> None:
        self.alpha = alpha
        self.num_classes = num_classes
        self.width = features.shape[1]

        # All classes weigh the same.
        weights = 1 / torch.bincount(labels, minlength=num_classes)[labels].double()
        weights = weights / weights.sum()

        # A unit, so that a feature is of order 1.
        wide = features.double()
        variances = weights @ (wide - weights @ wide).square()
        self._unit = float(variances.mean().sqrt().clamp_min(1e-12))

        # The Gaussian of real images.
        rows = self.joined(wide, labels)
        mean = weights @ rows
        bias = 1 - weights.square().sum()  # 1 - 1 / N where all images weigh the same
        values, vectors = torch.linalg.eigh((rows - mean).T @ (weights[:, None] * (rows - mean)) / bias)
        self.mean = mean.float()
        self.factor = (vectors * values.clamp_min(0).sqrt()).float()
        self.classifier = Classifier(features, labels, num_classes, weights.float())

    def joined(self, features: Tensor, labels: Tensor) -> Tensor:
        """Features [B, F] over their unit, and one-hot labels times ``alpha``; [B, W]."""
        parts = [features / self._unit]
        if self.alpha:
            parts.append(self.alpha * F.one_hot(labels, self.num_classes).to(features.dtype))
        return torch.cat(parts, 1)

    def distance(self, rows: Tensor) -> Tensor:
        """The Frechet distance of joined rows [N, W] from the real ones, over the number of features."""
        return frechet(rows, self.mean, self.factor) / self.width
