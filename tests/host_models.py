"""Tiny host networks of every backbone, freshly initialised and saved by the host's own saver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.modules import swapped
from studiogan_guidance.host.networks import build_both
from studiogan_guidance.latents import Networks

DATA = {"name": "Tiny", "img_size": 32, "num_classes": 4}
CBN = {
    "g_cond_mtd": "cBN",
    "d_cond_mtd": "PD",
    "apply_g_sn": True,
    "apply_d_sn": True,
    "g_conv_dim": 8,
    "d_conv_dim": 8,
}
SHARED = {**CBN, "z_dim": 16, "g_shared_dim": 8}
STYLE = {
    "g_conv_dim": "N/A",
    "d_conv_dim": "N/A",
    "g_cond_mtd": "cAdaIN",
    "d_cond_mtd": "SPD",
    "g_act_fn": "Auto",
    "d_act_fn": "Auto",
    "z_dim": 16,
    "w_dim": 16,
}
STYLE_RUN = {
    "g_reg_interval": 1,
    "d_reg_interval": 1,
    "mapping_network": 2,
    "style_mixing_p": 0.0,
    "d_epilogue_mbstd_group_size": 2,
    "d_architecture": "orig",
}
INFO = {"info_type": "both", "info_num_discrete_c": 2, "info_dim_discrete_c": 3, "info_num_conti_c": 2}
INFO_LOSS = {"infoGAN_loss_discrete_lambda": 0.1, "infoGAN_loss_conti_lambda": 1.0}

CONFIGS: dict[str, dict[str, Any]] = {
    "big_resnet": {"MODEL": {**SHARED, "apply_attn": True, "attn_g_loc": [2], "attn_d_loc": [1]}},
    "big_resnet_deep_legacy": {"MODEL": {**SHARED, "g_depth": 2, "d_depth": 2}},
    "big_resnet_deep_studiogan": {"MODEL": {**SHARED, "g_depth": 2, "d_depth": 2}},
    "resnet": {"MODEL": {**CBN, "z_dim": 16, "z_prior": "uniform"}},
    "deep_conv": {"MODEL": {**CBN, "z_dim": 16, "g_conv_dim": "N/A", "d_conv_dim": "N/A"}},
    "stylegan2": {"MODEL": STYLE, "STYLEGAN": STYLE_RUN, "DATA": {**DATA, "img_size": 16}},
    "stylegan3": {
        "MODEL": STYLE,
        "STYLEGAN": {**STYLE_RUN, "stylegan3_cfg": "stylegan3-t"},
        "DATA": {**DATA, "img_size": 16},
    },
    "big_resnet+info": {"MODEL": {**SHARED, **INFO, "g_info_injection": "cBN"}, "LOSS": INFO_LOSS},
    "resnet+info": {"MODEL": {**CBN, "z_dim": 16, **INFO, "g_info_injection": "cBN"}, "LOSS": INFO_LOSS},
    "deep_conv+info": {
        "MODEL": {**CBN, "z_dim": 16, **INFO, "g_info_injection": "concat", "g_conv_dim": "N/A", "d_conv_dim": "N/A"},
        "LOSS": INFO_LOSS,
    },
    "stylegan2+info": {
        "MODEL": {**STYLE, **INFO, "g_info_injection": "concat"},
        "STYLEGAN": STYLE_RUN,
        "LOSS": INFO_LOSS,
        "DATA": {**DATA, "img_size": 16},
    },
}
BACKBONES = [name for name in CONFIGS if "+" not in name]
WITHOUT_LABELS = {"g_cond_mtd": "W/O", "d_cond_mtd": "W/O"}
UNCONDITIONAL = {  # the same networks without labels, where the host can run them
    f"{name}+unconditional": {**config, "MODEL": {**config["MODEL"], **WITHOUT_LABELS}}
    for name, config in CONFIGS.items()
    if "deep_" not in name or "deep_conv" in name
}


def sections(name: str, **model: Any) -> dict[str, Any]:
    """The host's YAML sections of one of ``CONFIGS`` or ``UNCONDITIONAL``."""
    found = {"DATA": DATA, "LOSS": {"adv_loss": "hinge"}, **{**CONFIGS, **UNCONDITIONAL}[name]}
    return {**found, "MODEL": {"backbone": name.partition("+")[0], **found["MODEL"], **model}}


@contextmanager
def narrow_networks(checkout: Checkout) -> Iterator[None]:
    """Inside the with-block, the host builds StyleGAN2 and StyleGAN3 with at most 16 channels; they had 512."""
    with inside(checkout):
        second = module("models.stylegan2")
        third = module("models.stylegan3")

    def generator(whole: Any) -> Any:
        return lambda *args, synthesis_kwargs, **kwargs: whole(
            *args, synthesis_kwargs={**synthesis_kwargs, "channel_max": 16}, **kwargs
        )

    def discriminator(whole: Any) -> Any:
        return lambda *args, channel_max, **kwargs: whole(*args, channel_max=16, **kwargs)

    with (
        swapped(second, "Generator", generator(second.Generator)),
        swapped(second, "Discriminator", discriminator(second.Discriminator)),
        swapped(third, "Generator", generator(third.Generator)),
    ):
        yield


def networks(name: str, checkout: Checkout, device: str = "cpu") -> Networks:
    """A generator in which nothing is trivially zero: noise strengths, w_avg and statistics are all set."""
    return both(name, checkout, device)[0]


def both(name: str, checkout: Checkout, device: str = "cpu", **model: Any) -> tuple[Networks, torch.nn.Module]:
    """``networks``, and the discriminator beside it; ``model`` goes into the MODEL section.

    On any device they have the weights that they have on the CPU.
    """
    if device != "cpu":
        ours = both(name, checkout, **model)
        moved = build_both(sections(name, **model), checkout, torch.device(device))
        moved[0].generator.load_state_dict(ours[0].generator.state_dict())
        moved[1].load_state_dict(ours[1].state_dict())
        return moved

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made, discriminator = build_both(sections(name, **model), checkout, torch.device("cpu"))
        for key, value in made.generator.state_dict().items():
            if key.endswith(("noise_strength", "w_avg", "running_mean", "sigma")):
                value.copy_(torch.randn_like(value) * 0.3)
            if key.endswith("running_var"):
                value.copy_(torch.rand_like(value) + 0.5)
        if "stylegan" not in name:  # let the spectral norms find their vectors, as any training does
            made.generator.train()
            width = made.z_dim + made.info_discrete * made.info_discrete_dim + made.info_continuous
            for _ in range(5):
                made.generator(torch.randn(4, width), torch.arange(4))
            made.generator.eval()
            discriminator.train()
            for _ in range(5):
                discriminator(torch.randn(4, 3, made.image_size, made.image_size), torch.arange(4))
            discriminator.eval()
    return made, discriminator


def save(name: str, checkout: Checkout, folder: Path) -> tuple[Path, Path]:
    """(YAML, checkpoint folder): current G and G_ema that differ, and D, written by the host's own saver."""
    folder.mkdir(parents=True, exist_ok=True)
    nets, discriminator = both(name, checkout)
    made = nets.generator
    with inside(checkout):
        misc = module("utils.misc")
        misc.save_model("G_ema", "current", 7, str(folder), {"state_dict": made.state_dict()})
        raw = {key: value * 0.9 if key.endswith("weight") else value for key, value in made.state_dict().items()}
        misc.save_model("G", "current", 7, str(folder), {"state_dict": raw, "optimizer": {}})
        misc.save_model("D", "current", 7, str(folder), {"state_dict": discriminator.state_dict(), "optimizer": {}})
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(sections(name)))
    return path, folder


def write_yaml(path: Path, name: str, extra: str = "", **optimization: Any) -> Path:
    """A YAML of the host for a short run, with lines of ours below."""
    chosen = {"batch_size": 8, "total_steps": 3, "beta1": 0.0, "d_updates_per_step": 1, **optimization}
    path.write_text(yaml.safe_dump({**sections(name), "OPTIMIZATION": chosen}) + extra)
    return path


def assert_same_images(images: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the rounding of networks at other batch sizes: 1e-5 of the largest pixel (of 1, if all are less)."""
    torch.testing.assert_close(images, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=0)
