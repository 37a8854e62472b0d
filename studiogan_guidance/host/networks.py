"""A generator from the host's YAML and a folder of its checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.config import RunConfig, read_yaml
from studiogan_guidance.errors import UserError, nearest, typed
from studiogan_guidance.host import compat
from studiogan_guidance.host.checkpoints import announce, fill, read
from studiogan_guidance.host.hub import is_address
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.sections import check_sections as check_sections
from studiogan_guidance.host.stored import discriminator_file, generator_file, names_at
from studiogan_guidance.latents.base import Networks, weights_digest


def load(
    cfg: RunConfig, checkout: Checkout, device: torch.device, sections: Mapping[str, Any] | None = None
) -> Networks:
    """The generator that ``cfg`` names, with its weights, in evaluation mode on ``device``.

    ``sections`` are the host's own of the configuration, if they have been read already: see ``host_yaml``.

    Raises:
        UserError: a configuration that the host rejects, a missing, damaged or foreign checkpoint, a backbone or a way
            of conditioning without a view.
    """
    if not cfg.ckpt:
        raise UserError(
            "this configuration needs a checkpoint: add --ckpt DIR, the folder of model=G*-weights-step*.pth"
        )

    # Read the checkpoint.
    path = generator_file(cfg.ckpt, cfg.which)
    state = read(path)

    # Build its network.
    sections = sections or host_yaml(cfg, checkout)
    model = sections.get("MODEL")
    averages = bool(model.get("apply_g_ema")) if isinstance(model, Mapping) else False
    announce(path, cfg.ckpt, cfg.which, averages, names_at(cfg.ckpt))
    networks = build(sections, checkout, device)
    fill(networks.generator, state, path, cfg)
    return dataclasses.replace(networks, digest=weights_digest(networks.generator), source=str(path))


def snapshot(generator: torch.nn.Module, path: str, cfg: RunConfig) -> torch.nn.Module:
    """A copy of ``generator`` with the weights of another checkpoint of its run: a .pth file, or a folder with some.

    Both may be on the hub.
    """
    file = Path(path)
    if file.is_dir() or is_address(path):
        file = generator_file(path, cfg.which)
        announce(file, path, cfg.which, names=names_at(path))
    other = copy.deepcopy(generator)
    fill(other, read(file), file, cfg)
    return other.eval().requires_grad_(False)


def load_discriminator(
    cfg: RunConfig, checkout: Checkout, device: torch.device, sections: Mapping[str, Any] | None = None
) -> torch.nn.Module:
    """The discriminator beside the generator that ``load`` gives, in evaluation mode on ``device``.

    Raises:
        UserError: as ``load``; a folder without model=D-* of the generator's step.
    """
    path = discriminator_file(cfg.ckpt or "", cfg.which)
    state = read(path)
    _, discriminator = build_both(sections or host_yaml(cfg, checkout), checkout, device)
    fill(discriminator, state, path, cfg)
    return discriminator


def build(sections: Mapping[str, Any], checkout: Checkout, device: torch.device) -> Networks:
    """A freshly initialised generator for the host's YAML sections; the global random state is left as it was."""
    return build_both(sections, checkout, device)[0]


def build_both(
    sections: Mapping[str, Any], checkout: Checkout, device: torch.device
) -> tuple[Networks, torch.nn.Module]:
    """``build``, and the discriminator of the same sections.

    Raises:
        UserError: a configuration that the host rejects or cannot build, or a backbone without a view.
    """
    check_sections(sections, checkout)
    with inside(checkout), torch.random.fork_rng(devices=[]):
        host = configurations(sections)
        model = host.MODEL

        # The host checks nothing here, so whatever it still raises is about the configuration.
        try:
            generator, _, _, discriminator, *_ = module("models.model").load_generator_discriminator(
                host.DATA, host.OPTIMIZATION, model, host.STYLEGAN, host.MODULES, host.RUN, device, None
            )
        except UserError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"the host cannot build this configuration: {typed(error)}") from error

        # Compile plug-ins while the host is within reach; it announces that on stdout, which is for results.
        module("utils.custom_ops").verbosity = "none"
        if device.type == "cuda":
            compat.compile_plugins(model.backbone)

    # Describe both as they will be used.
    for network in (generator, discriminator):
        network.eval().requires_grad_(False)
    source = "a freshly initialised one"
    return describe(generator, model, host.DATA.num_classes, host.DATA.img_size, device, source), discriminator


def describe(
    generator: torch.nn.Module, model: Any, num_classes: int, image_size: int, device: torch.device, source: str
) -> Networks:
    """A generator of the host as Networks; ``model`` is the MODEL section of its configuration. The digest is empty.

    ``num_classes`` is that of the data; an unconditional generator has one class.
    """
    has_discrete = model.info_type in ("discrete", "both")
    has_continuous = model.info_type in ("continuous", "both")

    return Networks(
        generator=generator,
        backbone=model.backbone,
        num_classes=1 if model.g_cond_mtd == "W/O" else num_classes,
        z_dim=model.z_dim,
        image_size=image_size,
        device=device,
        digest="",
        source=source,
        z_prior=model.z_prior,
        g_cond_mtd=model.g_cond_mtd,
        info_discrete=model.info_num_discrete_c if has_discrete else 0,
        info_discrete_dim=model.info_dim_discrete_c if has_discrete else 0,
        info_continuous=model.info_num_conti_c if has_continuous else 0,
    )


def host_yaml(cfg: RunConfig, checkout: Checkout) -> Mapping[str, Any]:
    """The host's own sections of a configuration."""
    return host_sections(cfg.host, cfg.host_config, checkout.path)


def host_sections(sections: Mapping[str, Any], host_config: str | None, root: Path) -> Mapping[str, Any]:
    """The host's own sections: those in our file, or those of the file that ``host_config`` names.

    Args:
        sections: the sections in our file.
        host_config: an absolute path (``config.read`` makes one of a file in its folder), or a name inside the host's
            ``src/configs``; the current folder is never searched.
        root: the checkout.

    Raises:
        UserError: no such file.
    """
    if not host_config:
        return sections
    configs = root / "src" / "configs"
    path = configs / host_config
    if os.path.isfile(path):
        content = {key: value for key, value in read_yaml(path).items() if key.isupper()}
        if not content:
            raise UserError(f"host_config {path} has no section of the host, such as MODEL: give a YAML of the host")
        return content

    # Name those that are there.
    names = [str(file.relative_to(configs)) for file in configs.rglob("*.yaml")]
    raise UserError(
        f"no host_config {host_config} beside the file that names it or in {configs}: {nearest(host_config, names, 6)}"
    )


def configurations(sections: Mapping[str, Any]) -> Any:
    """The host's Configurations object for YAML sections; only within ``inside``. Its optimisers are not built."""
    try:
        with yaml_file(sections) as path:
            host = module("config").Configurations(path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the host rejects the configuration: {typed(error)}") from error
    host.RUN.mixed_precision = False  # sampling runs in float32, as the host's evaluation does without -mpc
    host.MODEL.apply_g_ema = False  # whichever weights were chosen go into one generator
    return host


@contextmanager
def yaml_file(sections: Mapping[str, Any]) -> Iterator[str]:
    """The path of a temporary YAML file with these sections, since the host reads files only."""
    import yaml

    handle, path = tempfile.mkstemp(suffix=".yaml")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yaml.safe_dump(dict(sections), file)
        yield path
    finally:
        os.unlink(path)
