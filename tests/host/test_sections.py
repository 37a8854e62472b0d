"""Sections of the host's YAML: what is wrong is named by its key before a network is built."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from host_models import BACKBONES, CONFIGS, sections

from studiogan_guidance.errors import UserError
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.networks import build, build_both, check_sections
from studiogan_guidance.host.sections import image_sizes

pytestmark = pytest.mark.studiogan


def changed(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The sections of one of ``CONFIGS`` with other values, by keys such as MODEL.z_dim."""
    found = copy.deepcopy(sections(name))
    for key, value in changes.items():
        section, _, inner = key.partition(".")
        if inner:
            found.setdefault(section, {})[inner] = value
        else:
            found[section] = value
    return found


def refusal(found: dict[str, Any], checkout: Checkout, training: bool = False) -> str:
    with pytest.raises(UserError) as error:
        check_sections(found, checkout, training)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_host_builds_passes(name: str, checkout: Checkout) -> None:
    check_sections(sections(name), checkout)
    check_sections(sections(name), checkout, training=True)


def test_every_configuration_of_the_host_passes(checkout: Checkout) -> None:
    files = sorted((checkout.path / "src" / "configs").rglob("*.yaml"))
    assert files
    for file in files:
        check_sections(yaml.safe_load(file.read_text()), checkout)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        # sizes
        ("big_resnet", {"DATA.img_size": 96}, "img_size is 96: the host builds big_resnet for images of 32, 64, 128"),
        ("resnet", {"DATA.img_size": 33}, "img_size is 33: the host builds resnet for images of 32, 64, 128, 256, 512"),
        ("deep_conv", {"DATA.img_size": 64}, "img_size is 64: the host builds deep_conv for images of 32 pixels"),
        ("stylegan2", {"DATA.img_size": 24}, "img_size is 24: the host builds stylegan2 for images of 4, 8, 16, 32"),
        ("stylegan3", {"DATA.img_size": 24}, "img_size is 24: the host builds stylegan3 for images of 4, 8, 16, 32"),
        ("big_resnet", {"DATA.img_size": "32"}, "DATA.img_size must be a whole number from 1 up, found '32'"),
        ("big_resnet", {"DATA.img_size": [32, 32]}, "DATA.img_size must be a whole number from 1 up, found "),
        ("big_resnet", {"DATA.img_size": -32}, "DATA.img_size must be a whole number from 1 up, found -32"),
        ("big_resnet", {"DATA.img_size": 32.0}, "DATA.img_size must be a whole number from 1 up, found 32.0"),
        ("big_resnet", {"MODEL.z_dim": 18}, "MODEL.z_dim is 18: big_resnet splits noise into 4 parts at 32 pixels"),
        # numbers that a backbone needs
        ("big_resnet", {"MODEL.g_shared_dim": "N/A"}, "MODEL.g_shared_dim must be a whole number .* found 'N/A': back"),
        (
            "big_resnet_deep_legacy",
            {"MODEL.g_depth": "N/A"},
            "MODEL.g_depth must be .* big_resnet_deep_legacy needs it",
        ),
        ("big_resnet_deep_studiogan", {"MODEL.d_depth": 10**6}, "MODEL.d_depth must be a whole number from 1 to 1000"),
        ("resnet", {"MODEL.g_conv_dim": "N/A"}, "MODEL.g_conv_dim must be a whole number .* backbone resnet needs it"),
        ("resnet", {"MODEL.z_dim": "N/A"}, "MODEL.z_dim must be a whole number from 1 to 1048576, found 'N/A'"),
        (
            "resnet",
            {"MODEL.z_dim": 10**12},
            "MODEL.z_dim must be a whole number from 1 to 1048576, found 1000000000000",
        ),
        ("resnet", {"MODEL.z_dim": -80}, "MODEL.z_dim must be a whole number from 1 up, found -80"),
        ("resnet", {"MODEL.d_cond_mtd": "2C"}, "MODEL.d_embed_dim must be a whole number .* found 'N/A'"),
        ("stylegan2", {"MODEL.w_dim": "N/A"}, "MODEL.w_dim must be a whole number .* backbone stylegan2 needs it"),
        ("stylegan2", {"STYLEGAN": {}}, "STYLEGAN.d_architecture is 'N/A', with backbone stylegan2: known: orig"),
        (
            "stylegan2",
            {"STYLEGAN.mapping_network": 2.5},
            "STYLEGAN.mapping_network must be a whole number .* found 2.5",
        ),
        ("big_resnet+info", {"MODEL.info_num_discrete_c": "N/A"}, "MODEL.info_num_discrete_c must be a whole number"),
        ("resnet", {"DATA.num_classes": 0}, "DATA.num_classes must be a whole number from 1 up, found 0"),
        ("resnet", {"DATA.num_classes": "ten"}, "DATA.num_classes must be a whole number from 1 up, found 'ten'"),
        ("resnet", {"DATA.num_classes": True}, "DATA.num_classes must be a whole number from 1 up, found True"),
        ("resnet", {"DATA.num_classes": None}, "DATA.num_classes must be a whole number from 1 up, found None"),
        # kinds
        ("big_resnet", {"MODEL.attn_g_loc": 2}, r"MODEL.attn_g_loc must be a list such as \[2\], found 2"),
        ("big_resnet", {"MODEL.attn_d_loc": "2"}, r"MODEL.attn_d_loc must be a list such as \[2\], found '2'"),
        ("big_resnet", {"MODEL.apply_attn": "False"}, "MODEL.apply_attn must be true or false, found 'False'"),
        ("big_resnet", {"MODEL.apply_g_sn": "N/A"}, "MODEL.apply_g_sn must be true or false, found 'N/A'"),
        ("resnet", {"MODEL.g_act_fn": 3}, "MODEL.g_act_fn must be a word, found 3"),
        ("resnet", {"MODEL.backbone": None}, "MODEL.backbone must be a word, found None"),
        ("resnet", {"MODEL.g_shared_dim": [8]}, "MODEL.g_shared_dim must be one value"),
        ("resnet", {"DATA.name": None}, "DATA.name must be a name, found None"),
        # words
        ("resnet", {"MODEL.z_prior": "foo"}, "MODEL.z_prior is 'foo', with backbone resnet: known: gaussian, uniform"),
        ("resnet", {"MODEL.g_cond_mtd": "CBN"}, "MODEL.g_cond_mtd is 'CBN', .* did you mean 'cBN'"),
        (
            "resnet",
            {"MODEL.g_cond_mtd": "cAdaIN"},
            "MODEL.g_cond_mtd is 'cAdaIN', with backbone resnet: known: W/O, cBN",
        ),
        ("stylegan2", {"MODEL.g_cond_mtd": "cBN"}, "MODEL.g_cond_mtd is 'cBN', with backbone stylegan2"),
        ("resnet", {"MODEL.g_act_fn": "Auto"}, "MODEL.g_act_fn is 'Auto', with backbone resnet"),
        ("stylegan3", {"STYLEGAN.stylegan3_cfg": "stylegan3"}, "did you mean 'stylegan3-t'"),
        ("resnet", {"MODEL.backbone": "resnett"}, "no view of backbone 'resnett': did you mean 'resnet'"),
        ("resnet", {"MODEL.backbone": "deep_big_resnet"}, "before February 2022: its name is big_resnet_deep_legacy"),
        # names
        ("resnet", {"MODEL.g_conv_dims": 8}, "the host has no key MODEL.g_conv_dims: did you mean 'g_conv_dim'"),
        ("resnet", {"MODEL.img_size": 32}, "the host has no key MODEL.img_size: it belongs to section DATA"),
        ("resnet", {"LOSS.tac_dis_labmda": 1.0}, "no key LOSS.tac_dis_labmda: did you mean 'tac_dis_lambda'"),
        ("resnet", {"MODEL": {3: 4}}, "the host has no key MODEL.3: known"),
        ("resnet", {"RUN.seed": 3}, "the host has no key RUN.seed: known: restat, sampler, stages"),
        ("resnet", {"MODL.z_dim": 3}, "the host has no section MODL: did you mean 'MODEL'"),
        (
            "stylegan2",
            {"STYLEGAN2.g_reg_interval": 4},
            "STYLEGAN2 is of a YAML from before February 2022: name it STYLE",
        ),
        (
            "resnet",
            {"DATA": None},
            "section DATA must be a mapping of keys, found nothing: give it keys, or take it out",
        ),
        ("resnet", {"DATA": [1]}, r"section DATA must be a mapping of keys, found \[1\]"),
        ("resnet", {"OPTIMIZATION": 3}, "section OPTIMIZATION must be a mapping of keys, found 3"),
    ],
)
def test_what_the_host_cannot_build_is_named_by_its_key(
    name: str, changes: dict[str, Any], message: str, checkout: Checkout
) -> None:
    found = changed(name, changes)
    with pytest.raises(UserError, match=message):
        check_sections(found, checkout)
    with pytest.raises(UserError, match=message):  # before the host is asked
        build(found, checkout, torch.device("cpu"))
    assert refusal(found, checkout, training=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"OPTIMIZATION.g_lr": "2e-4"}, "OPTIMIZATION.g_lr is the text '2e-4', .* write 2.0e-4"),
        ({"LOSS.lecam_lambda": "3.e7"}, r"LOSS.lecam_lambda is the text '3.e7', .* write 3.e\+7"),
        ({"OPTIMIZATION.g_lr": "fast"}, "OPTIMIZATION.g_lr must be a number, found 'fast'"),
        ({"OPTIMIZATION.total_steps": 1.5}, "OPTIMIZATION.total_steps must be a whole number from 1 up, found 1.5"),
        ({"LOSS.apply_gp": "no, thanks"}, "LOSS.apply_gp must be true or false"),
    ],
)
def test_losses_and_optimisers_matter_to_a_run_that_trains(
    changes: dict[str, Any], message: str, checkout: Checkout
) -> None:
    found = changed("resnet", changes)
    check_sections(found, checkout)
    with pytest.raises(UserError, match=message):
        check_sections(found, checkout, training=True)
    if "write" in message:  # and what the error says to write is a number
        advised = message.rpartition("write ")[2].replace("\\", "")
        assert isinstance(yaml.safe_load(advised), float)


@pytest.mark.parametrize("name", [name for name in BACKBONES if "resnet" in name])
def test_the_sizes_named_are_those_that_the_host_builds(name: str, checkout: Checkout) -> None:
    sizes = image_sizes(name, checkout)
    assert 32 in sizes
    for size, blocks in sizes.items():
        small = changed(name, {"DATA.img_size": size, "MODEL.z_dim": 4 * (blocks + 1), "MODEL.apply_attn": False})
        if (name, size) == ("big_resnet_deep_studiogan", 512):  # the host has a table for it, and an assertion against
            continue
        nets, _ = build_both(small, checkout, torch.device("cpu"))
        assert len(nets.generator.in_dims) == blocks
        with inside(checkout), pytest.raises(KeyError):
            module(f"models.{name}").Generator(
                z_dim=16,
                g_shared_dim=8,
                img_size=size + 1,
                g_conv_dim=1,
                apply_attn=False,
                attn_g_loc=[],
                g_cond_mtd="cBN",
                num_classes=2,
                g_init="ortho",
                g_depth=1,
                mixed_precision=False,
                MODULES=None,
                MODEL=None,
            )


def test_a_host_of_another_time_is_called_so(checkout: Checkout, tmp_path: Path) -> None:
    for mark in ("src/models/model.py", "src/utils/sample.py"):
        (tmp_path / mark).parent.mkdir(parents=True)
        (tmp_path / mark).touch()
    old = tmp_path / "src" / "config.py"
    old.write_text("self.DATA = self.MODEL = self.STYLEGAN2 = misc.make_empty_object()")
    with pytest.raises(UserError, match=r"before February 2022.* have no section STYLEGAN\): use the one of"):
        check_sections(sections("resnet"), Checkout(tmp_path, None))
    old.write_text("class Configurations: pass  # self.DATA self.MODEL self.STYLEGAN ")
    with pytest.raises(UserError, match="no PyTorch-StudioGAN of 2022 or later .AttributeError"):
        check_sections(sections("resnet"), Checkout(tmp_path, None))
    check_sections(sections("resnet"), checkout)  # and the other is forgotten


@pytest.mark.parametrize("commit", ["d59af33", "a235021", "ebbac18"])
def test_a_real_checkout_of_2021_is_called_so(commit: str, checkout: Checkout, tmp_path: Path) -> None:
    old = tmp_path / "old"
    command = ["git", "-C", str(checkout.path), "archive", "--format=tar", "-o", str(tmp_path / "old.tar"), commit]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the checkout has no history")
    old.mkdir()
    subprocess.run(["tar", "-xf", str(tmp_path / "old.tar"), "-C", str(old)], check=True)
    with pytest.raises(UserError, match="before February 2022"):
        check_sections(sections("resnet"), Checkout(old, None))
