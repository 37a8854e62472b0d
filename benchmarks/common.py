"""What several benchmarks share: the machine's name, and the host's networks on the built-in's digits."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from studiogan_guidance.builtin import data as digits

CBN = {"g_cond_mtd": "cBN", "d_cond_mtd": "PD", "apply_g_sn": True, "apply_d_sn": True, "z_dim": 40}
EMA = {"apply_g_ema": True, "g_ema_decay": 0.999, "g_ema_start": 100}
ADAM = {"batch_size": 32, "g_lr": 4e-4, "d_lr": 4e-4, "beta1": 0.0, "beta2": 0.9, "d_updates_per_step": 1}
STYLE = {
    "LOSS": {"adv_loss": "logistic", "apply_r1_reg": True, "r1_lambda": 0.01, "r1_place": "outside_loop"},
    "MODEL": {
        "backbone": "stylegan2",
        "g_cond_mtd": "cAdaIN",
        "d_cond_mtd": "SPD",
        "g_act_fn": "Auto",
        "d_act_fn": "Auto",
        "z_dim": 512,
        "w_dim": 512,
        "g_conv_dim": "N/A",
        "d_conv_dim": "N/A",
        "apply_g_ema": True,
    },
    "STYLEGAN": {
        "mapping_network": 2,
        "d_epilogue_mbstd_group_size": 8,
        "d_architecture": "resnet",
        "g_reg_interval": 4,
        "d_reg_interval": 16,
        "g_ema_kimg": 20,
        "g_ema_rampup": 0.05,
    },
}
SPLITS = (  # folder, split of the folder, split of the digits
    ("digits", "train", "train"),
    ("digits", "valid", "valid"),
    ("digits-test", "valid", "test"),
)


def machine(device: str) -> str:
    """What times were taken on: the GPU, or the CPU and the number of threads; and the version of torch."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    cpu = next((line.split(":")[-1].strip() for line in lines if "model name" in line), platform.machine())
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def sections(name: str, width: int, steps: int) -> dict[str, Any]:
    """The host's YAML for one of its generators at 32x32: BigGAN, ResNet or StyleGAN2."""
    yaml: dict[str, Any] = {
        "DATA": {"name": "MNIST32", "img_size": 32, "num_classes": 10},
        "OPTIMIZATION": {**ADAM, "total_steps": steps},
    }
    if name == "StyleGAN2":
        yaml["OPTIMIZATION"].update({"g_lr": 2.5e-3, "d_lr": 2.5e-3, "beta2": 0.99})
        return {**yaml, **STYLE}

    backbone = {"backbone": "big_resnet", "g_shared_dim": 32} if name == "BigGAN" else {"backbone": "resnet"}
    widths = {"g_conv_dim": width, "d_conv_dim": width}
    return {**yaml, "LOSS": {"adv_loss": "hinge"}, "MODEL": {**backbone, **CBN, **widths, **EMA}}


def folders(out: Path) -> tuple[Path, Path]:
    """Two ImageFolders of digits: one with train and valid, and one whose valid is the test split."""
    for folder, part, split in SPLITS:
        for i, (image, label) in enumerate(zip(*digits.digits(split))):
            path = out / folder / part / str(int(label)) / f"{i:05d}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0)
                Image.fromarray(pixels.numpy()).save(path)
    return out / "digits", out / "digits-test"


def run_host(device: str, save_every: int, *arguments: object) -> None:
    """A training by the host's own program, in a process of its own; it wants to print where it saves."""
    flags = ["--num_workers", 1, "--save_freq", save_every, "--print_freq", math.gcd(100, save_every)]
    command = [sys.executable, "-m", "studiogan_guidance", "run", "--device", device, "--", "-t", *arguments, *flags]
    subprocess.run(list(map(str, command)), check=True, env={"WANDB_MODE": "disabled", **os.environ})
