"""What several benchmarks share: the machine's name, the host's networks on the built-in's digits, and a checkpoint."""

from __future__ import annotations

import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from studiogan_guidance import __version__, builtin, config, samplers
from studiogan_guidance.builtin import data as digits
from studiogan_guidance.config import RunConfig, read_yaml
from studiogan_guidance.doctor import INCEPTION
from studiogan_guidance.errors import UserError
from studiogan_guidance.features.stats import to_uint8
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout, locate
from studiogan_guidance.host.modules import swapped
from studiogan_guidance.host.networks import build
from studiogan_guidance.latents import LabelPlan, view_for

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
        "style_mixing_p": 0.0,
        "pl_weight": 0,
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
    """What times were taken on: the GPU or the CPU, torch, CUDA, cores, and the commits of the host and of ours."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    try:
        host = locate().commit or "unknown"
    except UserError:
        host = "none"
    rest = f"{cores} cores, the host {host[:7]}, ours {commit()}"
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
        return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, {rest}"

    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    cpu = next((line.split(":")[-1].strip() for line in lines if "model name" in line), platform.machine())
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}, {rest}"


def commit() -> str:
    """The commit of this folder, with + if files were changed since; the version where git knows none."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return __version__


def command() -> str:
    """The command line of this program, for the table of its results."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


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
    subprocess.run([*program(), *training(device), *map(str, (*arguments, *flags))], check=True, env=silent())


def program(channels: int = 0) -> list[str]:
    """The command line of this package, with a StyleGAN2 of at most so many channels, if any are given."""
    if channels:
        return [sys.executable, str(Path(__file__).with_name("narrow.py")), str(channels)]
    return [sys.executable, "-m", "studiogan_guidance"]


def training(device: str) -> list[str]:
    """The words of the command line before the host's own, for a training."""
    return ["run", "--device", device, "--", "-t"]


def silent(**more: str) -> dict[str, str]:
    """The environment, without W&B unless it says otherwise, and ``more``."""
    return {"WANDB_MODE": "disabled", **os.environ, **more}


def biggan(work: Path, num_real: int, width: int = 0, **more: Any) -> RunConfig:
    """A run on the host's CIFAR10 BigGAN with fresh weights, against images of the built-in GAN.

    Time does not depend on weights. The checkpoint, by the host's own saver, the real images, the caches and, where
    torch's hub has no trained Inception, one with random weights are made in ``work``, unless they are there.

    Args:
        work: the folder.
        num_real: real images.
        width: g_conv_dim; by default the configuration's.
        more: keys of the run.
    """
    os.environ["STUDIOGAN_ROOT"] = str(locate().path)
    os.environ["STUDIOGAN_GUIDANCE_CACHE"] = str(work / "cache")
    checkout = locate()
    inception(work / "torch", checkout)
    data = real_images(work / f"real-{num_real}", num_real)
    path = checkpoint(work / f"biggan-{width}", checkout, width)
    keys = {"ckpt": str(path.parent), "data": str(data), "out": str(work / "rows"), "compare_plain": False}
    return config.load(str(path), {**keys, **more})


def checkpoint(folder: Path, checkout: Checkout, width: int) -> Path:
    """The YAML beside a checkpoint of the host's CIFAR10 BigGAN with fresh weights."""
    path = folder / "BigGAN.yaml"
    if path.exists():
        return path

    # The host's configuration, for images in folders.
    keys = read_yaml(checkout.path / "src" / "configs" / "CIFAR10" / "BigGAN.yaml")
    keys["DATA"]["name"] = "Benchmark"
    if width:
        keys["MODEL"]["g_conv_dim"] = width

    # Save both.
    folder.mkdir(parents=True)
    state = build(keys, checkout, torch.device("cpu")).generator.state_dict()
    with inside(checkout):
        module("utils.misc").save_model("G", "current", 1, str(folder), {"state_dict": state, "optimizer": {}})
    path.write_text(yaml.safe_dump(keys))
    return path


def real_images(folder: Path, count: int) -> Path:
    """An ImageFolder with ``count`` images of the built-in GAN to train; it is there whole or not at all."""
    if folder.exists():
        return folder
    partial = folder.with_name(f"{folder.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    view = view_for(builtin.networks("cuda" if torch.cuda.is_available() else "cpu"))
    for batch in samplers.create("plain").stream(view, range(count), 256, LabelPlan()):
        pixels = to_uint8(batch.images).permute(0, 2, 3, 1).cpu().numpy()
        for image, label, seed in zip(pixels, batch.labels.tolist(), batch.seeds.tolist()):
            path = partial / "train" / str(label) / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, compress_level=1)
    return partial.rename(folder)


def inception(home: Path, checkout: Checkout) -> None:
    """Where torch's hub has no Inception, make ``home`` its folder, with one of random weights.

    Its batch norms fit digits, and magnify no channel more than most, so that features are neither zero nor huge.
    """
    if (Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION).exists():
        return
    os.environ["TORCH_HOME"] = str(home)
    path = home / "hub" / "checkpoints" / INCEPTION
    if path.exists():
        return

    # The host's network, without its download.
    found: list[torch.nn.Module] = []
    load = lambda self, *args, **kwargs: found.append(self)  # noqa: E731
    with inside(checkout), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        host = module("metrics.inception_net")
        with (
            swapped(host, "load_state_dict_from_url", lambda *args, **kwargs: {}),
            swapped(torch.nn.Module, "load_state_dict", load),
        ):
            host.fid_inception_v3()

    # Fit the batch norms.
    network = found[0].train()
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    images = digits.digits("train")[0][:16]
    with torch.no_grad():
        network(torch.nn.functional.interpolate(images, size=(299, 299), mode="bilinear"))
    for norm in norms:
        norm.running_var.clamp_(min=norm.running_var.mean().item())
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
