"""The host's YAML sections, checked by name before anything is built: what the host calls KeyError is one sentence."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from typing import Any

from studiogan_guidance.config import RUN_KEYS
from studiogan_guidance.errors import UserError, nearest, typed
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import COMMIT, Checkout
from studiogan_guidance.latents import VIEWS
from studiogan_guidance.options import shown

NONE = "N/A"  # the host's word for a key that has no meaning
STYLE = ("stylegan2", "stylegan3")
DEEP = ("big_resnet_deep_legacy", "big_resnet_deep_studiogan")
BIG = ("big_resnet", *DEEP)
BUILT_FROM = ("DATA", "MODEL", "STYLEGAN")  # the sections that networks are built from; the others are for training
OLD_BACKBONES = {"deep_big_resnet": "big_resnet_deep_legacy", "big_resnet_deep": "big_resnet_deep_legacy"}
ACTIVATIONS = ("ReLU", "Leaky_ReLU", "ELU", "GELU")
CHOICES: dict[str, tuple[str, ...]] = {
    "MODEL.d_cond_mtd": ("W/O", "AC", "PD", "MH", "MD", "2C", "D2DCE", "SPD"),
    "MODEL.aux_cls_type": ("W/O", "TAC", "ADC"),
    "MODEL.z_prior": ("gaussian", "uniform"),
    "MODEL.info_type": (NONE, "discrete", "continuous", "both"),
    "MODEL.g_info_injection": (NONE, "concat", "cBN"),
}
MOST = 2**20  # of a width or a number of classes: beyond it, one layer fills any memory
MOST_LAYERS = 1000  # of a depth
LAYERS = ("MODEL.g_depth", "MODEL.d_depth", "STYLEGAN.mapping_network")
STYLE_SIZES = tuple(2**power for power in range(2, 14))
DEEP_CONV_SIZE = 32  # its layers are fixed
BARE_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # YAML 1.1 wants a dot and a sign: 3.0e-7

Sections = Mapping[str, Mapping[str, Any]]


def check_sections(sections: Mapping[str, Any], checkout: Checkout, training: bool = False) -> Sections:
    """The sections with the host's defaults, if the host can work with them; no network is built.

    Args:
        sections: the host's own of a YAML, as ``networks.host_yaml`` returns them.
        checkout: the host.
        training: whether the run trains, so that the sections of losses and optimisers matter, too.

    Raises:
        UserError: the first section or key that the host could not work with.
    """
    defaults = default_sections(checkout)
    _check_names(sections, defaults)

    # What is given is of the kind of the host's default.
    for name in defaults if training else BUILT_FROM:
        for key, value in sections.get(name, {}).items():
            _check_kind(f"{name}.{key}", value, defaults[name][key])

    # What the backbone needs is there.
    whole = {name: {**keys, **sections.get(name, {})} for name, keys in defaults.items()}
    _check_words(whole)
    for key in _needed(whole):
        _check_number(key, _value(whole, key), f"backbone {whole['MODEL']['backbone']} needs it")
    _check_size(whole, checkout)
    return whole


def default_sections(checkout: Checkout) -> dict[str, dict[str, Any]]:
    """The host's sections with the values that its ``Configurations`` has before any YAML is read.

    Raises:
        UserError: a checkout of another time.
    """
    advice = f"use the one of 'studiogan-guidance setup', or git checkout {COMMIT}"
    source = (checkout.path / "src" / "config.py").read_text(encoding="utf-8", errors="replace")
    if missing := [name for name in BUILT_FROM if f"self.{name} " not in source]:
        raise UserError(
            f"{checkout.path} is a PyTorch-StudioGAN from before February 2022, or a fork of one (its configurations "
            f"have no section {' and '.join(missing)}): {advice}"
        )

    try:
        with inside(checkout):
            configurations = module("config").Configurations
            empty = configurations.__new__(configurations)
            empty.load_base_cfgs()
            return {name: dict(vars(section)) for name, section in empty.super_cfgs.items()}
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{checkout.path} is no PyTorch-StudioGAN of 2022 or later ({typed(error)}): {advice}"
        ) from error


# ---------------------------------------------------------------------------- names


def _check_names(sections: Mapping[str, Any], defaults: Sections) -> None:
    for name, content in sections.items():
        if name == "STYLEGAN2" and name not in defaults:
            raise UserError("section STYLEGAN2 is of a YAML from before February 2022: name it STYLEGAN")
        if name not in defaults:
            raise UserError(f"the host has no section {name}: {nearest(name, defaults)}")
        if not isinstance(content, Mapping):
            what = "nothing" if content is None else shown(content)
            raise UserError(f"section {name} must be a mapping of keys, found {what}: give it keys, or take it out")
        for key in content:
            if key not in defaults[name]:
                raise UserError(f"the host has no key {name}.{key}: {_home(str(key), name, defaults)}")


def _home(key: str, name: str, defaults: Sections) -> str:
    """Where an unknown ``key`` of section ``name`` belongs, or the nearest that this section has."""
    homes = [other for other, keys in defaults.items() if key in keys]
    if homes:
        return f"it belongs to section {homes[0]}"
    keys = defaults[name] or RUN_KEYS  # a YAML has nothing of the host's in RUN
    return nearest(key, keys, 12)


# ---------------------------------------------------------------------------- kinds


def _check_kind(key: str, value: Any, default: Any) -> None:
    """Raise UserError unless ``value`` is of the kind of the host's default; N/A is for keys without a meaning."""
    if isinstance(value, str) and BARE_EXPONENT.fullmatch(value):
        raise UserError(f"{key} is the text '{value}', as YAML wants a dot and a sign: write {_exponent(value)}")
    if isinstance(default, bool):
        _check(key, value, value in (True, False), "true or false")
    elif isinstance(default, list):
        _check(key, value, isinstance(value, list), "a list such as [2]")
    elif isinstance(default, int):
        _check(key, value, value == NONE or _is_count(value), "a whole number from 1 up")
    elif isinstance(default, float):
        _check(key, value, _is_number(value), "a number")
    elif key == "DATA.name":
        _check(key, value, isinstance(value, (str, int)), "a name")
    elif default != NONE:
        _check(key, value, isinstance(value, str), "a word")
    else:
        _check(key, value, not isinstance(value, (list, dict)), "one value")


def _exponent(text: str) -> str:
    """A number as YAML 1.1 reads it, such as 3.0e-7."""
    mantissa, exponent = text.lower().split("e")
    dot = "" if "." in mantissa else ".0"
    sign = "" if exponent[0] in "+-" else "+"
    return f"{mantissa}{dot}e{sign}{exponent}"


def _check(key: str, value: Any, fits: bool, what: str) -> None:
    if not fits:
        raise UserError(f"{key} must be {what}, found {shown(value)}")


def _check_number(key: str, value: Any, why: str) -> None:
    most = MOST_LAYERS if key in LAYERS else MOST
    if not _is_count(value) or value > most:
        raise UserError(f"{key} must be a whole number from 1 to {most}, found {shown(value)}: {why}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# ---------------------------------------------------------------------------- what a backbone needs


def _check_words(whole: Sections) -> None:
    """Raise UserError for a word that the host does not know, or not with this backbone."""
    backbone = whole["MODEL"]["backbone"]
    backbones = [entry.name for entry in VIEWS if entry.name != "builtin"]
    if backbone in OLD_BACKBONES and backbone not in backbones:
        raise UserError(
            f"MODEL.backbone '{backbone}' is of a YAML from before February 2022: its name is {OLD_BACKBONES[backbone]}"
        )
    if backbone not in backbones:
        raise UserError(f"no view of backbone '{backbone}': {nearest(backbone, backbones)}")

    # The host ignores a way of conditioning that its backbone does not have.
    style = backbone in STYLE
    choices = {
        **CHOICES,
        "MODEL.g_cond_mtd": ("W/O", "cAdaIN") if style else ("W/O", "cBN"),
        "MODEL.g_act_fn": (*ACTIVATIONS, "Auto") if style else ACTIVATIONS,
        "MODEL.d_act_fn": (*ACTIVATIONS, "Auto") if style else ACTIVATIONS,
    }
    if style:
        choices["STYLEGAN.d_architecture"] = ("orig", "skip", "resnet")
    if backbone == "stylegan3":
        choices["STYLEGAN.stylegan3_cfg"] = ("stylegan3-t", "stylegan3-r")

    for key, words in choices.items():
        word = _value(whole, key)
        if word not in words:
            raise UserError(f"{key} is {word!r}, with backbone {backbone}: {nearest(str(word), words)}")


def _value(whole: Sections, key: str) -> Any:
    section, _, name = key.partition(".")
    return whole[section][name]


def _needed(whole: Sections) -> list[str]:
    """The keys that must be whole numbers, since a network of this backbone is built from them."""
    model = whole["MODEL"]
    backbone = model["backbone"]
    discrete = model["info_type"] in ("discrete", "both")
    continuous = model["info_type"] in ("continuous", "both")
    shares = model["g_cond_mtd"] != "W/O" or model["g_info_injection"] == "cBN"

    conditions = {
        "DATA.img_size": True,
        "DATA.num_classes": True,
        "DATA.img_channels": True,
        "MODEL.z_dim": True,
        "MODEL.g_conv_dim": backbone == "resnet" or backbone in BIG,
        "MODEL.d_conv_dim": backbone == "resnet" or backbone in BIG,
        "MODEL.g_shared_dim": backbone in BIG and shares,
        "MODEL.g_depth": backbone in DEEP,
        "MODEL.d_depth": backbone in DEEP,
        "MODEL.w_dim": backbone in STYLE,
        "STYLEGAN.mapping_network": backbone in STYLE,
        "STYLEGAN.d_epilogue_mbstd_group_size": backbone in STYLE,
        "MODEL.d_embed_dim": model["d_cond_mtd"] in ("2C", "D2DCE"),
        "MODEL.info_num_discrete_c": discrete,
        "MODEL.info_dim_discrete_c": discrete,
        "MODEL.info_num_conti_c": continuous,
    }
    return [key for key, needed in conditions.items() if needed]


def _check_size(whole: Sections, checkout: Checkout) -> None:
    """Raise UserError for a size of images that the backbone has no layers for, or noise that it cannot split."""
    backbone = whole["MODEL"]["backbone"]
    size = whole["DATA"]["img_size"]
    blocks = image_sizes(backbone, checkout)
    if size not in blocks:
        sizes = ", ".join(map(str, blocks))
        raise UserError(f"DATA.img_size is {size}: the host builds {backbone} for images of {sizes} pixels")

    chunks = blocks[size] + 1
    z_dim = whole["MODEL"]["z_dim"]
    if backbone == "big_resnet" and z_dim % chunks:
        raise UserError(
            f"MODEL.z_dim is {z_dim}: {backbone} splits noise into {chunks} parts at {size} pixels, so give a multiple "
            f"of {chunks}"
        )


def image_sizes(backbone: str, checkout: Checkout) -> dict[int, int]:
    """The sizes of images that the host builds a backbone for, in pixels, each with its number of blocks.

    They are read in the source of the backbone, whose tables of channels have a size as their key.
    """
    if backbone in STYLE:
        return dict.fromkeys(STYLE_SIZES, 0)
    if backbone == "deep_conv":
        return {DEEP_CONV_SIZE: 0}

    source = (checkout.path / "src" / "models" / f"{backbone}.py").read_text(encoding="utf-8")
    tables: list[dict[int, int]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            items = zip(node.keys, node.values)
            table = {int(ast.literal_eval(key)): _length(value) for key, value in items if key and _is_digits(key)}
            tables += [table] if table else []
    common = set.intersection(*map(set, tables))
    return {size: blocks for size, blocks in tables[0].items() if size in common}


def _is_digits(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isdigit()


def _length(node: ast.expr) -> int:
    return len(node.elts) if isinstance(node, ast.List) else 0
