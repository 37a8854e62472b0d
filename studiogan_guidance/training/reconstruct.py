"""``sample --reconstruct``: images beside what the generator makes of the discriminator's features of them."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from studiogan_guidance import samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.critics.minibatch import MinibatchPeers
from studiogan_guidance.errors import UserError, notice, torchrun_number
from studiogan_guidance.evaluation import pictures, results
from studiogan_guidance.evaluation.generation import CPU_BATCH
from studiogan_guidance.evaluation.labels import check_folders, check_labels, resolved_classes
from studiogan_guidance.evaluation.source import Source, current_device, open_source
from studiogan_guidance.features.images import Real, images_at
from studiogan_guidance.features.stats import to_uint8
from studiogan_guidance.files import replacing
from studiogan_guidance.host.checkpoints import facts, fill
from studiogan_guidance.host.stored import generator_file
from studiogan_guidance.latents import LabelPlan, Networks, view_for
from studiogan_guidance.progress import track
from studiogan_guidance.training.decoder import DiscriminatorFeatures
from studiogan_guidance.training.perceptual import Distance, distance
from studiogan_guidance.training.stage import STAGES
from studiogan_guidance.training.upper_blocks import UpperBlocks
from studiogan_guidance.weights import archives
from studiogan_guidance.weights.archives import is_finite

STAGE = "glead"
DEFAULT_COUNT = 16  # images
COLUMNS = 8  # of the picture


@dataclass(frozen=True)
class Pairs:
    """Images and their reconstructions.

    Attributes:
        images: float [N, 3, H, W] in [-1, 1], on the CPU.
        reconstructions: what the generator makes of the discriminator's features of them, of the same shape.
        labels: int64 [N].
        loss: the mean distance between both, without the weight that it has in the training.
    """

    images: Tensor
    reconstructions: Tensor
    labels: Tensor
    loss: float


class Reconstructor:
    """Generator, discriminator and decoder of a training with the stage glead, as one map from images to images.

    Networks are in evaluation mode and layer noise is constant; batch norms of BigGAN use the statistics of the batch,
    as in the training, since those of the checkpoint are of generated images and fit no reconstruction. So there, an
    image's reconstruction depends a little on the others of its batch.

    Args:
        networks: the generator.
        discriminator: of the same step.
        decoder: of the same step, from the discriminator's features to the latent of ``blocks``.
        blocks: the part of the generator that makes an image of that latent.
        measure: the distance between an image and its reconstruction.
    """

    def __init__(
        self,
        networks: Networks,
        discriminator: nn.Module,
        decoder: nn.Module,
        blocks: UpperBlocks,
        measure: Distance,
    ) -> None:
        self.networks = networks
        self.discriminator = discriminator
        self.decoder = decoder.to(networks.device).eval()
        self.blocks = blocks
        self.measure = measure
        self._features = DiscriminatorFeatures(networks, discriminator)
        self._group = max(2, MinibatchPeers(discriminator).count + 1)  # MD cannot answer about one image

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The reconstructions of images [B, 3, H, W] with labels int64 [B], on the device of the networks."""
        # Fill the last group of StyleGAN2's minibatch statistic, which features do not depend on.
        count = math.ceil(len(images) / self._group) * self._group
        rows = torch.arange(count, device=images.device) % len(images)
        passes: deque[dict[int, Tensor]] = deque(maxlen=1)
        with self._features.listening(passes):
            self.discriminator(images[rows], labels[rows])

        features = {side: maps[: len(images)] for side, maps in passes[-1].items()}
        with batch_statistics(self.networks.generator):
            return self.blocks(self.decoder(features), labels, noise="const")

    def pairs(self, images: Tensor, labels: Tensor, batch_size: int = CPU_BATCH) -> Pairs:
        """Images [N, 3, H, W] with labels int64 [N], their reconstructions, and the mean distance between both."""
        made = []
        total = 0.0
        with torch.no_grad():
            batches = zip(images.split(batch_size), labels.split(batch_size))
            for part, of in track(batches, "reconstructions", len(images), batch_size):
                targets = part.to(self.networks.device)
                made.append(self(targets, of.to(self.networks.device)))
                total += float(self.measure(made[-1], targets)) * len(part)
        return Pairs(images.cpu(), torch.cat(made).cpu(), labels.cpu(), total / len(images))


@contextmanager
def batch_statistics(generator: nn.Module) -> Iterator[None]:
    """Inside the with-block, batch norms of a network in evaluation mode use the statistics of the batch."""
    norms = [module for module in generator.modules() if isinstance(module, _BatchNorm)]
    try:
        for norm in norms:
            norm.training = True
        yield
    finally:
        for norm in norms:
            norm.training = False


# ---------------------------------------------------------------------------- the networks of a checkpoint


def opened(cfg: RunConfig, source: Source) -> Reconstructor:
    """The networks of a checkpoint of the host that was trained with the stage glead.

    The stage's options are those of the configuration's ``stages``, or its defaults.

    Args:
        cfg: the run, its generator as ``trained_with`` gives it.
        source: of ``cfg``.

    Raises:
        UserError: no such checkpoint, weights that cannot be read or do not fit, a generator that the stage refuses.
    """
    # What the stage learned, before larger files are read.
    path = beside(generator_file(cfg.ckpt or "", cfg.which))
    weights = read(path)

    # The networks.
    networks = source.networks(current_device(cfg.device))
    spec = next((spec for spec in cfg.stages if spec["name"] == STAGE), STAGE)
    stage: Any = STAGES.create(spec)
    discriminator = source.discriminator(networks.device)
    blocks, _, decoder = stage.networks(networks, discriminator)
    fill(decoder, {"state_dict": weights}, path, cfg)
    return Reconstructor(
        networks, discriminator, decoder, blocks, distance(stage.distance, stage.alexnet, networks.device)
    )


def trained_with(cfg: RunConfig) -> RunConfig:
    """``cfg`` with the generator that the decoder was trained with: that of the training, not its moving average.

    A checkpoint that is one file is taken as it is, and so is a moving average that ``which`` asks for.

    Raises:
        UserError: the built-in GAN, no checkpoint.
    """
    if not cfg.uses_host or not cfg.ckpt:
        missing = "--ckpt DIR" if cfg.uses_host else "-c FILE and --ckpt DIR"
        raise UserError(f"--reconstruct is for a checkpoint of the host that was trained with {STAGE}: add {missing}")
    path = generator_file(cfg.ckpt, cfg.which)
    if facts(path).get("model") != "G_ema" or "ema" in cfg.which or not Path(cfg.ckpt).is_dir():
        return cfg

    # The same step.
    twin = path.with_name(path.name.replace("model=G_ema-", "model=G-"))
    if twin.is_file():
        return dataclasses.replace(cfg, ckpt=str(twin), which=())
    notice(f"there is no {twin.name} beside {path}: the moving average is taken, which {STAGE} was not trained with")
    return cfg


def beside(generator: Path) -> Path:
    """The file of what stages learned up to the step of a generator, in the same folder.

    Raises:
        UserError: none of that step, or a generator whose name says no step.
    """
    step = facts(generator).get("step")
    if step is None:
        raise UserError(
            f"what {STAGE} learned is looked for as stages-step=N.pt beside model=G-current-weights-step=N.pth, and "
            f"{generator} says no step: give the files these names"
        )
    path = generator.with_name(f"stages-step={int(step)}.pt")
    if path.exists():
        return path

    # Say what is there.
    others = sorted(file.name for file in generator.parent.glob("stages-step=*.pt"))
    if others:
        raise UserError(
            f"no {path.name} beside {generator}, only {', '.join(others[:4])}: give --which best or current, whichever "
            "has both"
        )
    raise UserError(
        f"the checkpoint was trained without the stage {STAGE}: no {path.name} is beside {generator}; train with "
        f"stages: [{STAGE}]"
    )


def read(path: Path) -> dict[str, Tensor]:
    """The weights of the stage's network in a file of what stages learned.

    Raises:
        UserError: a file that cannot be read, of other stages, or with weights that are no finite tensors.
    """
    content = archives.read(path, "the stages' weights", only="companions")
    companions = content.get("companions") if isinstance(content, dict) else None
    if not isinstance(companions, dict):
        raise UserError(f"{path} is damaged: it holds no companions; take another checkpoint")
    if STAGE not in companions:
        there = ", ".join(map(str, companions)) or "nothing"
        raise UserError(f"the checkpoint was trained without the stage {STAGE}: {path} holds {there}")

    # Its weights.
    saved = companions[STAGE]
    weights = saved.get("network") if isinstance(saved, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} is damaged: the network of {STAGE} is no mapping of tensors; take another checkpoint")
    for key, value in weights.items():
        if not is_finite(value):
            raise UserError(f"{path}: {key} has numbers that are NaN or infinite: the training diverged, take another")
    return weights


# ---------------------------------------------------------------------------- the command


def reconstruct(cfg: RunConfig) -> dict[str, Any]:
    """Write DIR/reconstructions.png and DIR/reconstructions.npz: real and generated images, and what became of them.

    Real images are drawn by ``cfg.seed`` from the split ``cfg.reference``, by default from the one that was not trained
    on, if it is there. Generated ones have the seeds from ``cfg.seed`` on and constant layer noise. ``cfg.classes``
    chooses among both.

    Args:
        cfg: the run; ``num`` defaults to 16.

    Returns:
        The files written, the split, the number of images, the name of the distance, and the mean distance between real
        (generated) images and their reconstructions.

    Raises:
        UserError: several processes, a checkpoint that was trained without the stage, what the configuration lacks, or
            a folder that cannot be written.
    """
    if torchrun_number("WORLD_SIZE", 1) > 1:
        raise UserError("sample runs in one process, found WORLD_SIZE > 1: start it without torchrun")
    cfg = trained_with(cfg)
    if not cfg.data:
        raise UserError("--reconstruct shows real images: add --data DIR, a folder with train/<class>/*")
    folder = results.writable(Path(cfg.out))

    # Open networks and images.
    source = open_source(cfg)
    reconstructor = opened(cfg, source)
    networks = reconstructor.networks
    check_labels(cfg, networks)
    real = real_images(cfg, source, networks)
    numbers = chosen(real, cfg)
    size = cfg.batch_size or CPU_BATCH

    # Reconstruct.
    images, labels = images_at(real, numbers)
    if not networks.is_conditional:
        labels = torch.zeros_like(labels)
    of_real = reconstructor.pairs(images, labels, size)
    of_generated = reconstructor.pairs(*generated(cfg, networks, real, len(numbers)), size)

    # Write the files.
    arrays: dict[str, Any] = {
        "numbers": np.asarray(numbers, np.int64),
        "seeds": np.arange(cfg.seed, cfg.seed + len(numbers), dtype=np.int64),
        **_arrays("real", of_real),
        **_arrays("generated", of_generated),
    }
    with replacing(folder / "reconstructions.npz") as temporary:
        np.savez(temporary, **arrays)
    pictures.save_png(folder / "reconstructions.png", picture(arrays))
    return {
        "picture": str(folder / "reconstructions.png"),
        "reconstructions": str(folder / "reconstructions.npz"),
        "generator": networks.source,
        "split": real.fingerprint["reference"],
        "images": len(numbers),
        "distance": reconstructor.measure.name,
        "real": of_real.loss,
        "generated": of_generated.loss,
    }


def real_images(cfg: RunConfig, source: Source, networks: Networks) -> Real:
    """The real images of the run's split and classes; the split of the training only where there is no other."""
    held_out = source.held_out_split
    split = cfg.reference or (held_out if held_out in source.splits else source.default_split)
    real = source.real(split, networks.image_size)
    check_folders(real, networks, "leave out --reconstruct")
    classes = resolved_classes(cfg, networks.num_classes, real.class_names)
    return source.real(split, networks.image_size, classes) if classes else real


def chosen(real: Real, cfg: RunConfig) -> list[int]:
    """The positions of ``cfg.num`` real images, drawn by ``cfg.seed``, in their order; all where there are fewer."""
    wanted = cfg.num or DEFAULT_COUNT
    count = min(wanted, len(real))
    if count < wanted:
        notice(f"there are {count} real images, and {wanted} were asked for: all are shown")
    numbers: list[int] = np.random.default_rng(cfg.seed).choice(len(real), count, replace=False).tolist()
    return sorted(numbers)


def generated(cfg: RunConfig, networks: Networks, real: Real, count: int) -> tuple[Tensor, Tensor]:
    """Plain images of the seeds from ``cfg.seed`` on with constant layer noise, [N, 3, H, W], and their labels [N]."""
    plan = LabelPlan(resolved_classes(cfg, networks.num_classes, real.class_names))
    size = cfg.batch_size or CPU_BATCH
    stream = samplers.create("plain").stream(view_for(networks), range(cfg.seed, cfg.seed + count), size, plan, "const")
    batches = [(batch.images.cpu(), batch.labels.cpu()) for batch in stream]
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def _arrays(name: str, pairs: Pairs) -> dict[str, NDArray[Any]]:
    """Pairs as arrays: images and reconstructions uint8 [N, H, W, 3], and labels int64 [N]."""
    return {
        name: to_uint8(pairs.images).permute(0, 2, 3, 1).numpy(),
        f"{name}_reconstructions": to_uint8(pairs.reconstructions).permute(0, 2, 3, 1).numpy(),
        f"{name}_labels": pairs.labels.numpy(),
    }


def picture(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Rows of images with a row of their reconstructions below each, first the real ones, then the generated.

    Args:
        arrays: ``real`` and ``real_reconstructions``, ``generated`` and ``generated_reconstructions``, all uint8
            [N, H, W, 3].
    """
    # Enlarge all alike.
    keys = ("real", "real_reconstructions", "generated", "generated_reconstructions")
    large = dict(zip(keys, pictures.enlarged(np.stack([arrays[key] for key in keys]))))
    columns = min(COLUMNS, len(large["real"]))

    # A row of images, and the row below.
    rows = []
    names = []
    for name in ("real", "generated"):
        for start in range(0, len(large[name]), columns):
            for key, shown in ((name, name), (f"{name}_reconstructions", "reconstructed")):
                rows.append(pictures.grid(large[key][start : start + columns], columns))
                names.append(shown)
    return pictures.named_rows(np.concatenate(rows), names)
