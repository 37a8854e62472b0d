"""Short trainings of tiny networks by the host, in this process, or in one that is killed after a save."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from conftest import digit_images
from host_models import narrow_networks as narrow_networks
from host_models import sections
from PIL import Image
from torch import Tensor

from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.plugin import hooks

HERE = Path(__file__).parent


def write_images(folder: Path) -> Path:
    """An ImageFolder of digits, 4 classes: 8 of each to train, 3 to validate."""
    for split, count in (("train", 8), ("valid", 3)):
        for label, i, image in digit_images(split, count):
            path = folder / split / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


EXTRA: dict[str, dict[str, dict[str, Any]]] = {
    "big_resnet": {
        "MODEL": {"apply_g_ema": True, "g_ema_decay": 0.9, "g_ema_start": 1},
        "PRE": {"apply_rflip": True},
    },
    "stylegan2": {
        "MODEL": {"apply_g_ema": True},
        "PRE": {"apply_rflip": False},
        "LOSS": {"adv_loss": "logistic", "apply_r1_reg": True, "r1_lambda": 0.1, "r1_place": "outside_loop"},
        "AUG": {
            "apply_ada": True,
            "ada_aug_type": "blit",
            "ada_initial_augment_p": 0.5,
            "ada_target": 0.6,
            "ada_kimg": 1,
            "ada_interval": 3,
        },
        "STYLEGAN": {
            "g_ema_kimg": 1,
            "g_ema_rampup": 0.05,
            "apply_pl_reg": True,
            "pl_weight": 2,
            "d_reg_interval": 2,
            "g_reg_interval": 2,
        },
    },
}


def write(
    path: Path, name: str, stages: Sequence[Any] = (), changes: Any = EXTRA, batch: int = 8, **optimization: Any
) -> Path:
    """A YAML of the host with ``stages``, and with parts of the host that have a state of their own."""
    made = sections(name)
    for section, values in changes.get(name, {}).items():
        made[section] = {**made.get(section, {}), **values}
    made["OPTIMIZATION"] = {
        "batch_size": batch,
        "total_steps": 5,
        "beta1": 0.0,
        "d_updates_per_step": 1,
        **optimization,
    }
    path.write_text(yaml.safe_dump({**made, "stages": list(stages)} if stages else made))
    return path


def flags(cfg: Path, images: Path, out: Path, *more: object) -> list[str]:
    arguments = ["-t", "-metrics", "none", "--print_freq", 1, "--save_freq", 3, "--num_workers", 0, "--seed", 3]
    arguments += ["-cfg", cfg, "-data", images, "-save", out, "-ref", "valid", "--pre_resizer", "lanczos", *more]
    return list(map(str, arguments))


def train(checkout: Checkout, cfg: Path, images: Path, out: Path, *more: object) -> Path:
    """A run in this process; returns its folder of checkpoints."""
    hooks.start(checkout, "main", tuple(flags(cfg, images, out, *more)))
    return next((out / "checkpoints").iterdir())


def losses(out: Path) -> Any:
    return np.load(next(out.rglob("losses.npy")), allow_pickle=True).item()


def weights(folder: Path) -> dict[str, Tensor]:
    """All weights of the current checkpoints of a folder, with optimisers, and of the companions."""
    tree: dict[str, Any] = {}
    for kind in ("G", "D", "G_ema"):
        (path,) = folder.glob(f"model={kind}-current-*.pth")
        saved = torch.load(path, weights_only=False)
        tree[kind] = {"network": saved["state_dict"], "optimiser": saved.get("optimizer", {})}
    for path in folder.glob("stages-*.pt"):
        tree |= torch.load(path)["companions"]

    # As one dictionary.
    found: dict[str, Tensor] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[name] = value
        for key, item in value.items() if isinstance(value, dict) else ():
            collect(f"{name}/{key}", item)

    collect("", tree)
    return found


def assert_same(folder: Path, other: Path) -> None:
    first, second = weights(folder), weights(other)
    assert set(first) == set(second)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


SCRIPT = f"""
import os, signal, sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE / "plugin")!r}]
import conftest, host_models
from studiogan_guidance.cli import main
from studiogan_guidance.plugin import resuming
resuming.remove_others = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
with host_models.narrow_networks(conftest.CHECKOUT):
    main(sys.argv[1:])
"""


def killed(arguments: Sequence[str], before: str = "") -> None:
    """A run in a process that executes ``before`` and is killed when its first checkpoint has been saved."""
    command = [sys.executable, "-c", before + SCRIPT, "run", "--device", "cpu", "--", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
