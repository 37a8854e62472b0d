"""What a sampler sees of a generator: a code that holds the condition, and a way from the code to the image.

A view makes one architecture family look like ``encode(z, labels) -> code`` and ``decode(code, z, noise) -> images``.
Samplers know views; only views know architectures.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from studiogan_guidance import rng
from studiogan_guidance.devices import to_device
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.ledger import Ledger

V = TypeVar("V")


@dataclass(frozen=True)
class Companions:
    """The companions of a generator that some samplers need. Each of them is loaded when it is asked for.

    Attributes:
        discriminator: the discriminator of the same step, in evaluation mode, its parameters frozen.
        held_out: up to n real images that it was not trained on, float [N, 3, H, W] in [-1, 1], and labels int64 [N].
        held_out_name: what those images are, for results.
        snapshot: the generator with the weights of another checkpoint of the same run, by its path.
        held_out_classes: how many classes the held-out images have; None where they are those of the generator.
    """

    discriminator: Callable[[], nn.Module]
    held_out: Callable[[int], tuple[Tensor, Tensor]]
    held_out_name: Callable[[], str]
    snapshot: Callable[[str], nn.Module]
    held_out_classes: Callable[[], int] | None = None


@dataclass(frozen=True)
class Networks:
    """A loaded GAN and the few facts about it that views need.

    Attributes:
        generator: the network.
        backbone: the name of its architecture, which chooses the view.
        num_classes: C; 1 for an unconditional generator, whose images all have label 0.
        z_dim: width of the prior noise.
        image_size: side of the images.
        device: where the generator is.
        digest: the hash of the weights; if it is empty, nothing about them is cached on disk.
        source: the checkpoint, for messages.
        z_prior: "gaussian" or "uniform".
        g_cond_mtd: the host's word for how the generator takes labels; "W/O" is unconditional.
        info_discrete: number of InfoGAN's one-hot vectors, which follow the prior noise in z.
        info_discrete_dim: width of each of them.
        info_continuous: number of InfoGAN's numbers in [-1, 1], which follow the one-hot vectors.
        batch_statistics: batch norms keep their mode, so that a host can use the statistics of each batch.
        companions: opens the discriminator and the like.
    """

    generator: nn.Module
    backbone: str
    num_classes: int
    z_dim: int
    image_size: int
    device: torch.device
    digest: str
    source: str
    z_prior: str = "gaussian"
    g_cond_mtd: str = "cAdaIN"
    info_discrete: int = 0
    info_discrete_dim: int = 0
    info_continuous: int = 0
    batch_statistics: bool = False
    companions: Companions | None = None

    @property
    def is_conditional(self) -> bool:
        """Whether the generator takes a class."""
        return self.g_cond_mtd != "W/O"

    def check_conditional(self, what: str, advice: str) -> None:
        """Raise UserError, with ``advice``, unless the generator takes the classes that ``what`` needs."""
        if not self.is_conditional:
            raise UserError(
                f"{what} needs a conditional generator, but {self.source} is unconditional (MODEL.g_cond_mtd 'W/O'): "
                f"{advice}"
            )


@dataclass(frozen=True)
class Inputs:
    """The random part of a batch: everything that does not depend on the sampler's options.

    Attributes:
        seeds: int64 [B].
        z: prior noise, InfoGAN numbers included, [B, Z].
        labels: int64 [B], or float [B, C] with a weight for every class.
        noise: StyleGAN2's per-layer noise, one [B, 1, r, r] tensor a layer; None for its constant noise.
        generators: each image's own generator, for what else a sampler draws.
    """

    seeds: Tensor
    z: Tensor
    labels: Tensor
    noise: list[Tensor] | None
    generators: list[Generator]

    @property
    def noise_mode(self) -> str:
        """The mode that gives fresh draws the same kind of layer noise: "random" or "const"."""
        return "random" if self.noise else "const"

    def put(self, rows: Tensor, other: Inputs) -> None:
        """Overwrite noise and layer noise by those of ``other`` where the mask ``rows``, bool [B], says so."""
        rows = rows.to(self.z.device)
        self.z[rows] = other.z[rows]
        for layer, fresh in zip(self.noise or [], other.noise or []):
            layer[rows] = fresh[rows]


@dataclass(frozen=True)
class LabelPlan:
    """The label of image i: one of ``classes`` in turn; else a random one, uniform or with ``weights`` [C]."""

    classes: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def draw(self, first: int, num_classes: int, gens: Sequence[Generator]) -> Tensor:
        """The labels of the images from position ``first`` of the run on, int64 [len(gens)], one a generator."""
        if self.classes:
            return torch.tensor([self.classes[(first + i) % len(self.classes)] for i in range(len(gens))])
        if self.weights:
            draws = rng.unit(gens, dtype=torch.float64) * self._edges[-1]
            return torch.searchsorted(self._edges, draws, right=True).clamp(max=num_classes - 1)
        return rng.randint(gens, num_classes)

    @cached_property
    def _edges(self) -> Tensor:
        return torch.tensor(self.weights, dtype=torch.float64).cumsum(0)


class LatentView(ABC):
    """One architecture family, seen through ``encode`` and ``decode``.

    Attributes:
        rows: number of w rows of a code; None where codes are no w.
        blocks: number of places, coarse to fine, that a code may differ in: the rows of w, or the conditional blocks of
            generators without w, which take codes [B, blocks, D] as well as [B, D]; 0 where there are none.
        noise_chunks: number of equal parts of the prior noise, coarse to fine, that go to different blocks.
        channels_last: whether fast mode lays the generator's weights out with the channels last.
        networks: the generator and its facts; ``generator``, ``num_classes`` and ``device`` are shortcuts to it.
        ledger: what sampling has cost so far.
        memo: what is computed once for this view; see ``once``.
        on_disk: whether what is computed once may be cached on disk.
        bare: the view of the generator itself, where this one is altered by a sampler; else this view.
        class_weights: how often each class is drawn, [C], sum 1; None where all are alike. See ``weigh_classes``.
    """

    rows: int | None = None
    blocks: int = 0
    noise_chunks: int = 1
    class_weights: Tensor | None = None
    channels_last = True

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self.generator = networks.generator
        self.num_classes = networks.num_classes
        self.device = networks.device
        self.ledger = Ledger(device=networks.device)
        self.memo: dict[Hashable, tuple[object, ...]] = {}
        self.on_disk = bool(networks.digest)
        self.bare: LatentView = self

    @property
    def normalises_z(self) -> bool:
        """Whether images stay the same when the prior noise is multiplied by a positive number."""
        return False

    @abstractmethod
    def encode(self, z: Tensor, labels: Tensor) -> Tensor:
        """Code of each image, [B, ...], for labels int64 [B], or class weights float [B, C]; differentiable.

        A view whose code takes a pass through a network counts it in ``ledger.cost["mapping"]``.
        """

    @abstractmethod
    def decode(self, code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] from codes, prior noise and (StyleGAN2) per-layer noise, differentiable.

        It counts its passes in ``ledger.cost["synthesis"]``.
        """

    def images(self, inputs: Inputs) -> Tensor:
        """The plain images of a batch, [B, 3, H, W]: decode(encode(z, labels), z, noise)."""
        return self.decode(self.encode(inputs.z, inputs.labels), inputs.z, inputs.noise)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [B, Z] as the prior noise [B, z_dim] and InfoGAN's numbers [B, Z - z_dim]."""
        width = self.networks.z_dim
        return z[:, :width], z[:, width:]

    def noise_sizes(self) -> list[int]:
        """Side of each per-image noise input, in the order in which they are drawn; empty for most families."""
        return []

    def layers(self) -> list[nn.Module]:
        """Modules whose outputs are the generator's feature maps, coarse to fine; empty where there are none."""
        blocks = getattr(self.generator, "blocks", ())
        return [block[-1] if isinstance(block, nn.ModuleList) else block for block in blocks]

    def unit_vectors(self) -> Tensor:
        """The one-hot vectors of all classes, float [C, C]; indexing them reads no label on the CPU."""
        return self.once("unit vectors", lambda: torch.eye(self.num_classes, device=self.device))

    def class_codes(self) -> Tensor | None:
        """The table [C, ...] whose rows are the codes of the classes, where codes ignore z; None where they do not."""
        return None

    def weigh_classes(self, plan: LabelPlan) -> None:
        """Let means over classes be those of the labels that a plan draws; chosen classes leave all alike."""
        drawn = None if plan.classes or len(set(plan.weights)) < 2 else torch.tensor(plan.weights, device=self.device)
        if drawn is not None or self.class_weights is not None:
            self.class_weights = None if drawn is None else drawn / drawn.sum()
            self.forget()

    def encode_with_class_mean(self, z: Tensor, labels: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``encode(z, labels)``, and the mean of ``encode(z, c)`` over all classes c; both [B, ...].

        ``weights`` are those of the classes in the mean, [C]; None: all alike.
        """
        classes = torch.arange(self.num_classes, device=self.device).expand(len(z), -1)
        every = None if weights is None else weights.expand(len(z), -1)
        return self.encode(z, labels), self.mean_over_classes(z, classes, every)

    def class_means(self) -> Tensor:
        """Mean code of every class over the prior noise, [C, ...].

        This default is for codes that ignore z (it encodes an empty z); views whose code uses z override it, together
        with ``global_mean`` and ``mean_over_classes``.
        """
        labels = torch.arange(self.num_classes, device=self.device)
        return self.encode(torch.zeros(self.num_classes, 0, device=self.device), labels)

    def global_mean(self) -> Tensor:
        """The one mean code over noise and classes, [...]."""
        return self.class_means().mean(0)

    def mean_over_classes(self, z: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean of ``encode(z, c)`` for the same z over each image's classes ``labels`` [B, K]; [B, ...].

        ``weights`` are those of these classes in the mean, [B, K]; None: all alike.
        """
        if weights is None:
            weights = torch.ones((), device=self.device).expand_as(labels)
            total: int | Tensor = labels.shape[1]
        else:
            total = weights.sum(1, keepdim=True)

        # The weights of all classes.
        means = self.class_means()
        table = torch.zeros(len(labels), self.num_classes, device=self.device)
        mean: Tensor = table.scatter_add_(1, labels, weights) @ means.flatten(1) / total
        return mean.view(len(labels), *means.shape[1:])

    def draw(self, seeds: Sequence[int], first: int, plan: LabelPlan, noise_mode: str = "random") -> Inputs:
        """Draw a batch. Each image's generator gives, in this order: z, label, InfoGAN numbers, layer noise.

        Of an unconditional generator all labels are 0, whatever the plan, and none takes a number.

        Args:
            seeds: one seed an image.
            first: position in the run of the first of them (chosen classes go round by position).
            plan: where labels come from.
            noise_mode: "random" for per-image layer noise, "const" for the generator's own constant noise.
        """
        # Noise and labels.
        gens = rng.generators(seeds)
        prior = self.prior(gens)
        labels = self._labels(plan, first, gens)
        z = torch.cat([prior, self.info(gens)], 1)

        # Layer noise.
        sizes = self.noise_sizes() if noise_mode == "random" else []
        noise = [rng.randn(gens, 1, size, size, device=self.device) for size in sizes]
        z = to_device(z, self.device)
        return Inputs(torch.tensor(seeds), z, to_device(labels, self.device), noise or None, gens)

    def _labels(self, plan: LabelPlan, first: int, gens: Sequence[Generator]) -> Tensor:
        if not self.networks.is_conditional:
            return torch.zeros(len(gens), dtype=torch.int64)
        return plan.draw(first, self.num_classes, gens)

    def redraw(self, inputs: Inputs) -> Inputs:
        """Fresh noise for the same labels: z, InfoGAN numbers and layer noise from each image's generator."""
        gens = inputs.generators
        z = torch.cat([self.prior(gens), self.info(gens)], 1)
        noise = [rng.randn(gens, *layer.shape[1:], device=layer.device) for layer in inputs.noise or []]
        return dataclasses.replace(inputs, z=to_device(z, inputs.z.device), noise=noise or None)

    def prior(self, gens: Sequence[Generator]) -> Tensor:
        """Prior noise on the CPU, [B, z_dim]: standard normal, or uniform in [-1, 1)."""
        draw = rng.randn if self.networks.z_prior == "gaussian" else rng.uniform
        return draw(gens, self.networks.z_dim)

    def info(self, gens: Sequence[Generator]) -> Tensor:
        """InfoGAN's numbers on the CPU: one-hot vectors, then uniform numbers in [-1, 1); [B, 0] for other GANs."""
        net = self.networks
        if not (net.info_discrete or net.info_continuous):
            return torch.empty(len(gens), 0)

        width = max(net.info_discrete_dim, 1)
        choices = rng.randint(gens, width, net.info_discrete)
        one_hot = F.one_hot(choices, width).flatten(1).float()
        return torch.cat([one_hot, rng.uniform(gens, net.info_continuous)], 1)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Evaluation mode inside the with-block, so that spectral and batch norms do not move; then as before."""
        modes = {module: module.training for module in self.generator.modules()}
        for module in modes:
            if not (self.networks.batch_statistics and isinstance(module, _BatchNorm)):
                module.training = False
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def once(self, key: Hashable, build: Callable[[], V], source: Tensor | None = None) -> V:
        """The value of ``build()``, computed once for this view; the ledger counts its passes as ``setup``.

        A value that was computed from ``source`` is computed anew when that is another tensor or changed in place.
        """
        state = None if source is None or source.is_inference() else source._version
        known = self.memo.get(key)
        if known is None or known[1] is not source or known[2] != state:
            with self.ledger.setting_up():
                known = build(), source, state
            self.memo[key] = known
        return cast(V, known[0])

    def forget(self) -> None:
        """Empty the memo and that of the bare view, as when batch norms got other statistics since they were filled."""
        self.memo.clear()
        self.bare.memo.clear()

    def altered(
        self,
        encode: Callable[[Tensor, Tensor], Tensor] | None = None,
        decode: Callable[[Tensor, Tensor, list[Tensor] | None], Tensor] | None = None,
        class_means: Callable[[], Tensor] | None = None,
        prior: Callable[[Sequence[Generator]], Tensor] | None = None,
    ) -> LatentView:
        """A view of the same generator with some methods replaced; None keeps a method.

        It shares the ledger and has a memo of its own.
        """
        view = copy.copy(self)
        view.memo = {}
        methods: dict[str, object] = {"encode": encode, "decode": decode, "class_means": class_means, "prior": prior}

        # Shortcuts past the method that is replaced.
        if encode is not None:
            methods["class_codes"] = lambda: None
            methods["encode_with_class_mean"] = partial(LatentView.encode_with_class_mean, view)

        for name, method in methods.items():
            if method is not None:
                setattr(view, name, method)
        return view


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()
