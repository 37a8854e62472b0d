"""Checkpoints that are known, and what is known about each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

HOME = "hf://Mingguksky/PyTorch-StudioGAN/studiogan_official_ckpt"
NOT_TRIED = "not tried: only its address is known, from public code"


@dataclass(frozen=True)
class Model:
    """A checkpoint.

    Attributes:
        name: for people.
        data: the host's name of its data set.
        backbone: of its generator.
        address: what ``--ckpt`` takes; empty for the built-in.
        configuration: what ``-c`` takes, which the name of the folder says, too.
        size: of the generator's file in bytes, if it is known.
        tried: whether this project ran it.
    """

    name: str
    data: str
    backbone: str
    address: str
    configuration: str
    size: int | None
    tried: str


MODELS = (
    Model("built-in", "digits, 32x32", "builtin", "", "", None, "tried: it is in the package, and tests run it"),
    Model(
        "CIFAR10 DCGAN, without labels",
        "CIFAR10",
        "deep_conv",
        f"{HOME}/CIFAR10_tailored/CIFAR10-DCGAN-train-2022_01_11_20_32_07",
        "CIFAR10/DCGAN.yaml",
        None,
        NOT_TRIED,
    ),
    Model(
        "CIFAR10 SNGAN",
        "CIFAR10",
        "resnet",
        f"{HOME}/CIFAR10_tailored/CIFAR10-SNGAN-train-2022_03_06_02_24_46",
        "CIFAR10/SNGAN.yaml",
        None,
        NOT_TRIED,
    ),
    Model(
        "CIFAR10 MHGAN",
        "CIFAR10",
        "big_resnet",
        f"{HOME}/CIFAR10_tailored/CIFAR10-MHGAN-train-2022_02_14_18_23_18",
        "CIFAR10/MHGAN.yaml",
        None,
        NOT_TRIED,
    ),
    Model(
        "ImageNet SNGAN",
        "ImageNet",
        "resnet",
        f"{HOME}/ImageNet_tailored/ImageNet-SNGAN-256-train-2022_03_06_03_53_44",
        "ImageNet/SNGAN-256.yaml",
        None,
        NOT_TRIED,
    ),
    Model(
        "ImageNet StyleGAN3",
        "ImageNet",
        "stylegan3",
        f"{HOME}/ImageNet_tailored/ImageNet-StyleGAN3-t-SPD-train-2022_02_16_12_40_58",
        "ImageNet/StyleGAN3-t-SPD.yaml",
        None,
        NOT_TRIED,
    ),
)


def as_data() -> list[dict[str, Any]]:
    return [dataclasses.asdict(model) for model in MODELS]


def as_text() -> str:
    """All models, with what one would type."""
    blocks = []
    for model in MODELS:
        lines = [f"{model.name}: {model.data}, {model.backbone}"]
        if model.address:
            lines += [f"  --ckpt {model.address}", f"  -c {model.configuration} (found by the name of the folder)"]
        else:
            lines.append("  what commands take without -c and --ckpt")
        if model.size is not None:
            lines.append(f"  {model.size / 1e6:.1f} MB")
        blocks.append("\n".join([*lines, f"  {model.tried}"]))
    return "\n\n".join([*blocks, f"More: {HOME}, whose folders an error names where one is not there."])


def as_markdown() -> str:
    """All models as a table in Markdown."""
    rows = ["| name | data | backbone | `--ckpt` | `-c` | tried |", "|---|---|---|---|---|---|"]
    for model in MODELS:
        address = f"`{model.address}`" if model.address else "-"
        configuration = f"`{model.configuration}`" if model.configuration else "-"
        cells = [model.name, model.data, f"`{model.backbone}`", address, configuration, model.tried]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
