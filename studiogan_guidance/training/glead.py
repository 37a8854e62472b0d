"""The stage ``glead``: the generator sets the discriminator a task while the host trains both.

A decoder turns the discriminator's features of an image into a latent of the generator, whose upper blocks make the
image again; how far it is from the image is added to the discriminator's loss. So the discriminator must know what is
in an image, and not only whether it is real.

Bai et al. 2023, "GLeaD: Improving GANs with A Generator-Leading Task" (arXiv:2212.03752), is about StyleGAN2 without
labels. Labels, and the BigGAN family, are our own addition.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.latents.base import Networks
from studiogan_guidance.latents.joint import OURS
from studiogan_guidance.samplers.base import check_finite
from studiogan_guidance.training.decoder import DiscriminatorFeatures, LatentDecoder, Maps
from studiogan_guidance.training.perceptual import NAMES, distance
from studiogan_guidance.training.stage import STAGES, DiscriminatorStep, Stage, Training
from studiogan_guidance.training.upper_blocks import Latent, UpperBlocks, upper_blocks, usual_resolution

COSINE_WEIGHT = 10.0  # of the fake term between features, as published
STYLE_BACKBONE = "stylegan2"
EQUALISED_LR, EQUALISED_BETAS = 2.5e-3, (0.0, 0.99)  # StyleGAN2's, for layers of equalised learning rate
CHOICES = {"fake_term": ("image", "cosine"), "distance": NAMES, "noise": ("random", "const")}


@STAGES.register("glead", "lets G set D a task (GLeaD); with labels and for BigGAN ours", OURS)
@dataclass(frozen=True)
class GLeaD(Stage):
    """Add to the discriminator's loss, in each of its steps,

        real dist(G'(h(D(x))), x) + fake dist(G'(h(D(G(z)))), G(z)),

    where D(x) are the discriminator's features, h is a decoder that trains beside it, and G' are the blocks of the
    present generator above ``resolution``, frozen. Images are those that the discriminator sees, augmented where the
    host augments. Each term is evaluated once a step; the authors' code evaluates the real one in the steps of R1 as
    well, so that its weight is about twice as large there. Without labels for h: the w of StyleGAN2 is decoded from
    the image; the blocks of BigGAN read the embedding of the true label, and the part of z that they need is decoded.

    With both weights 0 nothing is built, and the host trains as without the stage, bit for bit. The decoder is saved
    beside the host's checkpoints, and a run that is resumed goes on with it.

    Args:
        real: weight of the term of real images; None: that of the distance (LPIPS: 10, as published).
        fake: weight of the term of generated images; None: that of the distance (LPIPS: 3), or 10 for the cosine.
        fake_term: image (as above), or cosine: one minus the cosine between the generator's own feature of an image
            and the decoded one, over channels, averaged over pixels; not where images are augmented.
        resolution: of the latent; 0: a quarter of the image, at least 8 (published: 64 and 32 of 256).
        decoder_resolution: of the decoder's last level; 0: that of the latent.
        distance: lpips, pixels, or auto: lpips where its weights are on this machine.
        alexnet: file of torchvision's AlexNet for LPIPS; by default the one in torch's cache.
        noise: of StyleGAN2's layers in a reconstruction: random, as in the authors' code, or const.
        lr: of the decoder's Adam; None: the discriminator's for StyleGAN2, 0.0025 for the BigGAN family.

    Raises:
        UserError: values out of range, a generator that has no such blocks, a resolution that the networks lack, a
            cosine term with augmentation, weights of LPIPS that cannot be read.

    Example:
        >>> from studiogan_guidance.training import STAGES
        >>> STAGES.create("glead", {"fake_term": "cosine"}).fake is None
        True
    """

    real: float | None = None
    fake: float | None = None
    fake_term: str = "image"
    resolution: int = 0
    decoder_resolution: int = 0
    distance: str = "auto"
    alexnet: str = ""
    noise: str = "random"
    lr: float | None = None

    def __post_init__(self) -> None:
        for name, values in CHOICES.items():
            value = getattr(self, name)
            if value not in values:
                raise UserError(f"glead.{name} is '{value}': {nearest(value, values)}")

        # Numbers.
        for name in ("real", "fake", "lr"):
            value = getattr(self, name)
            if value is not None:
                check_finite(f"glead.{name}", value)
        if self.lr == 0:
            raise UserError("glead.lr is 0, at which the decoder learns nothing: give a number above 0")
        for name in ("real", "fake", "lr", "resolution", "decoder_resolution"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"glead.{name} is {value}: give a number from 0 up")

    def networks(
        self, networks: Networks, discriminator: nn.Module, seed: int = 0
    ) -> tuple[UpperBlocks, DiscriminatorFeatures, LatentDecoder]:
        """The blocks that reconstruct, what is decoded, and the decoder with fresh weights of ``seed``."""
        blocks = upper_blocks(networks, self.resolution or usual_resolution(networks.image_size))
        features = DiscriminatorFeatures(networks, discriminator)
        decoder = LatentDecoder(
            features.channels,
            blocks.channels,
            blocks.has_image,
            blocks.code_width,
            self.decoder_resolution or blocks.resolution,
            blocks.resolution,
            seed,
        )
        return blocks, features, decoder.to(networks.device)

    def companion(self, run: Training) -> Reconstruction | None:
        """The decoder and its losses; None where both weights are 0."""
        if self.real == 0 and self.fake == 0:
            return None
        if self.fake_term == "cosine" and self.fake != 0 and run.augmentation:
            raise UserError(
                f"fake_term cosine compares features pixel by pixel, and {run.augmentation} moves the images: use "
                "fake_term=image, fake=0, or no augmentation"
            )
        return Reconstruction(self, run)


class Reconstruction:
    """The decoder that trains beside the discriminator; see ``stage.Companion``.

    Args:
        stage: its options.
        run: the training.
    """

    def __init__(self, stage: GLeaD, run: Training) -> None:
        # Networks.
        self._blocks, self._features, decoder = stage.networks(run.networks, run.discriminator, run.seed)
        self._decoder = decoder
        self.network: nn.Module = decoder
        self.losses: Mapping[str, Tensor] = {}

        # The distance, which is no part of what is saved.
        measure = distance(stage.distance, stage.alexnet, run.networks.device)
        self._measure: Callable[[Tensor, Tensor], Tensor] = measure
        real, fake = measure.weights
        self._is_cosine = stage.fake_term == "cosine"
        fake = COSINE_WEIGHT if self._is_cosine else fake
        self._real = real if stage.real is None else stage.real
        self._fake = fake if stage.fake is None else stage.fake
        self._noise = stage.noise

        # The optimiser.
        discriminator = run.optimiser.param_groups[0]
        is_style = run.networks.backbone == STYLE_BACKBONE
        rate = discriminator["lr"] if is_style else EQUALISED_LR
        self.optimiser: torch.optim.Optimizer = torch.optim.Adam(
            decoder.parameters(),
            lr=rate if stage.lr is None else stage.lr,
            betas=discriminator["betas"] if is_style else EQUALISED_BETAS,
            eps=discriminator["eps"] if is_style else 1e-8,
        )

        # What the present step has shown: features of real and generated images, and latents of the latter.
        self._passes: deque[Maps] = deque(maxlen=2)
        self._latents: list[Latent] = []
        run.log(
            f"glead: {measure.name}, weights {self._real:g} (real) and {self._fake:g} "
            f"({'cosine' if self._is_cosine else 'fake'}), latents at {self._blocks.resolution}"
        )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the with-block, it hears the passes of the discriminator and, for the cosine, of the generator."""
        with ExitStack() as stack:
            stack.enter_context(self._features.listening(self._passes, self._decoder.largest))
            if self._is_cosine:
                self._latents = stack.enter_context(self._blocks.listening())
            try:
                yield
            finally:
                self._passes.clear()
                self._latents = []

    def loss(self, step: DiscriminatorStep) -> Tensor:
        """The weighted terms of this step; gradients reach discriminator and decoder, not the generator."""
        real, fake = self._passes
        terms: dict[str, Tensor] = {}

        # Real images.
        total = torch.zeros((), device=step.real_images.device)
        if self._real:
            terms["real"] = self._distance(real, step.real_images, step.real_labels)
            total = total + self._real * terms["real"]

        # Generated ones.
        if self._fake and self._is_cosine:
            terms["cosine"] = _angle(self._decoder(fake).feature, self._latents[-1].feature)
            total = total + self._fake * terms["cosine"]
        elif self._fake:
            terms["fake"] = self._distance(fake, step.fake_images, step.fake_labels)
            total = total + self._fake * terms["fake"]

        # Let the graphs go.
        self.losses = {name: term.detach() for name, term in terms.items()}
        self._passes.clear()
        self._latents.clear()
        return total

    def _distance(self, features: Maps, images: Tensor, labels: Tensor) -> Tensor:
        """The mean distance of images to what the generator makes of their features."""
        made = self._blocks(self._decoder(features), labels, self._noise)
        return self._measure(made, images.detach())


def _angle(decoded: Tensor, feature: Tensor) -> Tensor:
    """One minus the mean cosine over channels, of maps [B, C, r, r] (Lee et al. 2022, arXiv:2207.13320)."""
    return 1 - F.cosine_similarity(decoded, feature.detach().float(), dim=1).mean()
