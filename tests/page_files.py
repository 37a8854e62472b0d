"""What the pages name, as small as it can be: a checkpoint of the host, its configuration, images, feature networks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from host_models import narrow_networks
from PIL import Image
from torch import Tensor, nn
from training_runs import EXTRA, train, write

from studiogan_guidance.host.locate import Checkout

CLASSES = list("ABCDEFGHIJKLMN")
COUNTS = {"train": 8, "valid": 7, "test": 7}  # images of a class: as many as its precision and recall need
SIZE = 32
NETWORKS = ("inception", "letters", "letters-a", "letters-b", "efficientnet")
DATA = {"name": "Mine", "img_size": SIZE, "num_classes": len(CLASSES)}
TRAINING_FLAGS = ("--save_freq", "1", "--print_freq", "1", "--num_workers", "0")


class Features(nn.Module):
    """Sixteen features of uint8 images, and logits of the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 16, 5, stride=2)
        self.classifier = nn.Linear(16, len(CLASSES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.convolution(x.float() / 127.5 - 1).relu().mean((2, 3))
        return features, self.classifier(features)


def networks(folder: Path) -> None:
    """The feature networks, with random weights of their own each."""
    for seed, name in enumerate(NETWORKS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            torch.jit.script(Features()).save(str(folder / f"{name}.pt"))  # type: ignore[no-untyped-call]


def images(folder: Path) -> None:
    """A folder of images with the splits of ``COUNTS``: noise around a colour of the class."""
    rng = np.random.default_rng(0)
    colours = rng.integers(64, 192, (len(CLASSES), 3))
    for split, count in COUNTS.items():
        for name, colour in zip(CLASSES, colours):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = colour + rng.integers(-60, 60, (SIZE, SIZE, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")


def checkpoint(folder: Path, name: str, real: Path, checkout: Checkout) -> None:
    """Two steps of the host's own training: ``my.yaml`` is its configuration, ``checkpoint`` what it saved."""
    folder.mkdir()
    changes = {section: values for section, values in EXTRA[name].items() if section != "AUG"}
    path = write(folder / "my.yaml", name, changes={name: {**changes, "DATA": DATA}}, total_steps=1)
    with narrow_networks(checkout):
        saved = train(checkout, path, real, folder / "run", *TRAINING_FLAGS)
    shutil.move(saved, folder / "checkpoint")
    shutil.rmtree(folder / "run")

    # As if an evaluation had found it to be the best.
    for path in list((folder / "checkpoint").glob("model=*")):
        shutil.copy(path, path.with_name(path.name.replace("-current-", "-best-")))
