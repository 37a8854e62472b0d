"""The opponent of the stage ``amortised``: a head with labels, and a distance, on all that a discriminator sees."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.critics.critic import Critic
from studiogan_guidance.critics.maps import PooledMaps
from studiogan_guidance.devices import to_device
from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.training.loop import frozen_parameters
from studiogan_guidance.training.objectives import energy_descent
from studiogan_guidance.training.stage import Trained

LABEL_DISTANCE = 2.0  # between images of two classes that look the same; features at random are sqrt 2 apart


class LabelHead(nn.Module):
    """Logits of features [B, F] that an image is real for its label, zero at first, and a classifier.

    The features are standardised by ``centre`` and ``unit``, [F], which is at least a hundredth of the former. With x
    the features and g one hidden layer of them, the logit is a.g + b + u_c.g + v_c.x / F (a projection discriminator:
    Miyato and Koyama 2018, arXiv:1802.05637).

    Args:
        centre, unit: mean and standard deviation of the features.
        num_classes: C.
        hidden: units of the hidden layer.
    """

    def __init__(self, centre: Tensor, unit: Tensor, num_classes: int, hidden: int) -> None:
        super().__init__()
        width = len(centre)
        self.register_buffer("centre", centre)
        self.register_buffer("unit", torch.maximum(unit, 0.01 * centre.abs()).clamp_min(1e-6))
        self.first = nn.Sequential(nn.Linear(width, hidden), nn.LeakyReLU(0.2))
        self.last = nn.Linear(hidden, 1)
        self.of_hidden = nn.Embedding(num_classes, hidden)
        self.of_features = nn.Embedding(num_classes, width)
        self.classifier = nn.Linear(width, num_classes)
        for layer in (self.last, self.of_hidden, self.of_features, self.classifier):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.last.bias)

    def standard(self, features: Tensor) -> Tensor:
        """The standardised features."""
        return (features - self.get_buffer("centre")) / self.get_buffer("unit")

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        x = self.standard(features)
        g = self.first(x)
        of_class = (self.of_hidden(labels) * g).sum(1) + (self.of_features(labels) * x).mean(1)
        logits: Tensor = self.last(g).squeeze(1) + of_class
        return logits

    def classes(self, features: Tensor) -> Tensor:
        """Logits of the classes, [B, C]."""
        logits: Tensor = self.classifier(self.standard(features))
        return logits


class Memory(nn.Module):
    """The latest rows [N, D] of two kinds, at most ``size`` of each; they are part of the state of a run.

    Args:
        size: largest N.
        width: D.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(2, size, width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def put(self, first: Tensor, second: Tensor) -> None:
        """Remember rows [B, D] of both kinds, and forget the oldest."""
        rows, count = self.get_buffer("rows"), self.get_buffer("count")
        fresh = torch.stack([first.detach(), second.detach()])
        rows.copy_(torch.cat([fresh, rows], 1)[:, : rows.shape[1]])
        count.add_(fresh.shape[1]).clamp_(max=rows.shape[1])

    def parts(self) -> tuple[Tensor, Tensor]:
        """The rows of both kinds, [N, D] each."""
        first, second = self.get_buffer("rows")[:, : int(self.get_buffer("count"))]
        return first, second


class Opponent:
    """A ``LabelHead`` on the maps of the run's discriminator, and the real images that it learns from.

    Args:
        run: opens the discriminator and the real images.
        view: the generator.
        group: the processes of the run.
        inputs: of this process's share of a batch, whose plain images give the head its units.
        batch: images of a step, of all processes.
        hidden: units of the head's hidden layer.
        memory: real images, and moved ones, whose features are remembered for the energy distance.

    Raises:
        UserError: real images that fill no batch; a discriminator without scores of single images, or one that cannot
            take this many images.
    """

    def __init__(
        self, run: Trained, view: LatentView, group: Group, inputs: Inputs, batch: int, hidden: int, memory: int
    ) -> None:
        run.real(batch)  # fails where there are too few
        self.discriminator = run.discriminator()
        self.maps = PooledMaps(Critic(self.discriminator))
        self.group = group
        self.num_classes = view.num_classes
        self.head = self._new_head(view, group, inputs, hidden, run.seed)
        width = len(self.head.get_buffer("centre")) + view.num_classes
        self.memory = Memory(memory, width).to(view.device)
        self._batches = functools.partial(run.real, batch)

    def _new_head(self, view: LatentView, group: Group, inputs: Inputs, hidden: int, seed: int) -> LabelHead:
        """A head for the features of a batch of generated images, alike in all processes."""
        with frozen_parameters(self.discriminator), torch.no_grad(), torch.random.fork_rng(devices=[]):
            # Features of a batch of generated images.
            images = view.images(inputs)
            try:
                features = self.maps(images)
            except (RuntimeError, IndexError) as error:
                if is_out_of_memory(error):
                    raise
                raise UserError(
                    f"the discriminator cannot take {len(images)} images at once ({one_line(error, 120)}): make the "
                    "option batch a multiple of its minibatch groups, for each process"
                ) from error

            # Their mean and variance over all processes.
            centre, power = features.mean(0), features.square().mean(0)
            group.average([centre, power])
            unit = (power - centre.square()).clamp_min(0).sqrt()

            torch.default_generator.manual_seed(seed)
            return LabelHead(centre, unit, view.num_classes, hidden).to(view.device)

    def start(self, first: int) -> None:
        """Open the real images at step ``first``."""
        self._real = self._batches(first)

    def examine(self, images: Tensor) -> Tensor:
        """The features of images, [B, F]; gradients flow to them."""
        return self.maps(images)

    def move_losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The losses of moved images: -log sigmoid(logit), cross-entropy of their classes, and the energy distance.

        The last is that of (features, label) to those of real images, up to a constant; 0 where none are remembered.
        """
        own = self._rows(features, labels)
        moved, real = self.memory.parts()
        return {
            "deceive": F.softplus(-self.head(features, labels).float()).mean(),
            "classify": F.cross_entropy(self.head.classes(features).float(), labels),
            "energy": energy_descent(own, moved, real) if len(real) else 0 * own.sum(),
        }

    def head_losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The head's logistic loss on moved images and the next real ones, and the classifier's on the real ones.

        Both are remembered.
        """
        images, classes = (to_device(part, features.device) for part in next(self._real))
        with torch.no_grad():
            real = self.examine(images)
            pair = self._rows(features, labels), self._rows(real, classes)
            self.memory.put(*(self.group.all_rows(rows) for rows in pair))

        on_real = F.softplus(-self.head(real, classes).float()).mean()
        on_moved = F.softplus(self.head(features, labels).float()).mean()
        classifier = F.cross_entropy(self.head.classes(real).float(), classes)
        return {"head": on_real + on_moved, "classifier": classifier}

    def _rows(self, features: Tensor, labels: Tensor) -> Tensor:
        """Standard features and labels as rows [B, F + C] for the energy distance; the former have length 1 or so."""
        x = self.head.standard(features.float()) / features.shape[1] ** 0.5
        one_hot = F.one_hot(labels, self.num_classes) * (LABEL_DISTANCE / 2**0.5)
        return torch.cat([x, one_hot.to(x)], 1)
