"""Collaborative sampling: refine a feature map inside the generator by the discriminator's gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from studiogan_guidance import rng
from studiogan_guidance.critics.log_ratio import LogRatio
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.samplers.base import SAMPLERS, Sampled, check_at_least, check_choice, check_positive
from studiogan_guidance.samplers.ratio import GradientSampler, with_facts

LOSSES = ("log_sigmoid", "logit")
MODES = ("deterministic", "probabilistic")


@contextmanager
def replaced(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While inside, ``layer`` returns ``change(a)`` for its feature map a; its other outputs (RGB) stay."""

    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def scale_free(slope: Tensor, a: Tensor) -> Tensor:
    """``slope`` [B, ...] scaled to the root mean square of ``a``, image by image."""
    factor = _rms(a) / _rms(slope)
    return slope * factor.view(-1, *[1] * (a.dim() - 1))


def _rms(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1).sqrt().clamp_min(1e-12)


@SAMPLERS.register(
    "collaborative",
    "refines a feature map of the generator by the gradient of the log ratio",
    "Liu, Kothari, Alahi 2020, arXiv:1902.00813",
    family="discriminator",
    needs=("discriminator", "gradient"),
    neutral={"steps": 0},
)
@dataclass(frozen=True)
class Collaborative(GradientSampler):
    """Climb the log ratio d by moving one feature map a of the generator, and keep the image with the highest d.

    v <- momentum v + grad_a log sigmoid(d); a <- a + rate v, from the plain a (v = 0). The gradient is sigmoid(-d)
    grad_a d, which dies out as d grows: it stops where the discriminator is convinced. The layers after a see the
    refined map; the generator is not changed. The image is never worse than the plain one by d. This maximises d and
    samples no law, so the number of steps is the only other restraint.

    Paper: Liu, Kothari, Alahi, "Collaborative sampling in generative adversarial networks", AAAI 2020,
    arXiv:1902.00813, section 3, without discriminator shaping, which trains the discriminator further. Loss, modes and
    momentum are those of its code; layer, steps and rate are among those of its scripts. Its d is the logit as it is,
    as here with calibration=none.

    Args:
        layer: number of the block whose output is refined, coarse to fine, from 0 up.
        steps: from 0 (neutral) up; each is a pass through generator and discriminator and back to the layer.
        rate: eta, positive.
        momentum: from 0 up, below 1.
        loss: log_sigmoid climbs log sigmoid(d), logit climbs d itself, without end.
        mode: deterministic keeps the step with the highest d; probabilistic stops each image after a random number of
            steps, uniform from 0 to ``steps``, by its own generator (the code refines so while it shapes the
            discriminator), and may be worse than the plain image.
        relative: rescale each grad_a d to the root mean square of a, so that rate is a share of a, whatever the
            network and its logits are like (start with 0.001, as momentum adds steps up); off by default.
        base, calibration, calibration_images: see ``RatioSampler``.

    Notes of each image: ``score`` and ``score_start``, the log ratio at both ends; ``best_step``, the number of steps
    behind the image.

    Raises:
        UserError: values out of range, a layer that the generator does not have or whose output leads to no image, no
            discriminator.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> sampler = samplers.create("collaborative", {"steps": 2, "calibration_images": 100})
        >>> batch = next(sampler.stream(view, range(2), 2, LabelPlan()))
        >>> batch.cost["backward"], bool((batch.notes["score"] >= batch.notes["score_start"]).all())
        (4, True)
    """

    layer: int = 1
    steps: int = 50
    rate: float = 0.1
    momentum: float = 0.9
    loss: str = "log_sigmoid"
    mode: str = "deterministic"
    relative: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, layer=0, steps=0, momentum=0)
        check_choice(self, loss=LOSSES, mode=MODES)
        check_positive("collaborative.rate", self.rate, "0.1 is usual")
        if not self.momentum < 1:
            raise UserError(f"collaborative.momentum must be below 1, found {self.momentum}: 0.9 is usual")

    @property
    def _is_identity(self) -> bool:
        return self.steps == 0

    def check(self, view: LatentView) -> None:
        super().check(view)
        count = len(view.layers())
        if not self._is_identity and self.layer >= count:
            has = f"layers 0-{count - 1}" if count else "no layers that are known: use ddls or dgflow"
            raise UserError(f"collaborative.layer is {self.layer}, but this {view.networks.backbone} has {has}")

    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        ratio = self.ratio(view, inputs.noise_mode)
        code = view.encode(inputs.z, inputs.labels)
        a, images, d = self._forward(view, ratio, inputs, code, None)

        # Start at the plain image.
        start = d.detach()
        score = start
        best = images.detach().clone()
        best_step = torch.zeros(len(d))
        velocity = torch.zeros_like(a)
        stop = self._stops(inputs).to(d.device)
        for step in range(1, self.steps + 1):
            # Climb with momentum.
            velocity = self.momentum * velocity + self._slope(a, d)
            view.ledger.cost["backward"] += len(d)
            a, images, d = self._forward(view, ratio, inputs, code, a.detach() + self.rate * velocity)

            # Remember the image of each row that is the best so far, or the one at its stop.
            better = stop == step if self.mode == "probabilistic" else d.detach() > score
            best[better] = images.detach()[better]
            best_step[better.cpu()] = float(step)
            score = torch.where(better, d.detach(), score)
        return Sampled(best, with_facts(ratio, score=score, score_start=start, best_step=best_step))

    def _stops(self, inputs: Inputs) -> Tensor:
        """The number of steps after which each image stops by chance, int64 [B] in [0, steps]; 0 for all otherwise."""
        if self.mode == "probabilistic":
            return rng.randint(inputs.generators, self.steps + 1)
        return torch.zeros(len(inputs.z), dtype=torch.int64)

    def _forward(
        self, view: LatentView, ratio: LogRatio, inputs: Inputs, code: Tensor, refined: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The feature map a, images [B, 3, H, W] and their log ratio d [B], with gradients by a.

        The map is ``refined``, or that of the layer itself.
        """
        maps: list[Tensor] = []

        def put(output: Tensor) -> Tensor:
            torch.set_grad_enabled(True)  # from here on, until the end of the block below
            a = output if refined is None else refined
            maps.append(a.detach().requires_grad_())
            return maps[0].clone()  # which the generator may change in place

        with torch.no_grad(), replaced(view.layers()[self.layer], put):
            images = view.decode(code, inputs.z, inputs.noise)
            d = ratio(images, inputs.labels)
        return maps[0], images, d

    def _slope(self, a: Tensor, d: Tensor) -> Tensor:
        """The gradient by a of what is climbed: d, or log sigmoid(d).

        Raises:
            UserError: d does not depend on a.
        """
        slope = None
        if d.requires_grad:
            (slope,) = torch.autograd.grad(d, a, torch.ones_like(d), allow_unused=True)
        if slope is None:
            raise UserError(
                f"no image follows from the output of layer {self.layer}: choose a lower collaborative.layer"
            )

        # The share of a step comes after its scale, so that it dies out in relative steps, too.
        if self.relative:
            slope = scale_free(slope, a.detach())
        if self.loss == "log_sigmoid":
            slope = slope * torch.sigmoid(-d.detach()).view(-1, *[1] * (a.dim() - 1))
        return slope
