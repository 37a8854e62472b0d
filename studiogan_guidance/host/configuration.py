"""The configuration of a run, which a checkpoint may name: by a YAML beside it, or by the name of its folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studiogan_guidance.config import RunConfig, load
from studiogan_guidance.errors import UserError, listed, notice
from studiogan_guidance.host import hub
from studiogan_guidance.host.locate import host_configuration, locate
from studiogan_guidance.options import expanded

RUN_NAME = re.compile(r"(?P<what>.+)-train-\d{4}(_\d\d){5}")  # the host's: data set, configuration, phase, time
YAML = (".yaml", ".yml")


def configuration(path: str | None, settings: Mapping[str, Any]) -> RunConfig:
    """``config.load``, with what a checkpoint and the host say beside it.

    Args:
        path: of a file, or a name inside the host's ``src/configs``. Without one, that of the checkpoint: the YAML in
            its folder, or the host's YAML that the name of the folder means.
        settings: see ``config.load``. A checkpoint on the hub is pinned to its commit.

    Raises:
        UserError: see ``config.load``; several YAMLs beside the checkpoint, or a name that no YAML of the host fits.
    """
    studiogan = settings.get("studiogan")
    settings = dict(settings)
    if hub.is_address(settings.get("ckpt")):
        settings["ckpt"] = str(hub.pinned(hub.Address.parse(str(settings["ckpt"]))))

    # The file.
    if path is not None:
        path = host_configuration(path, studiogan)
    elif settings.get("ckpt"):
        path = configuration_of(str(settings["ckpt"]), studiogan)
    cfg = load(path, settings)

    # A file may name a checkpoint on the hub, too.
    if cfg.ckpt and hub.is_address(cfg.ckpt):
        return dataclasses.replace(cfg, ckpt=str(hub.pinned(hub.Address.parse(cfg.ckpt))))
    return cfg


def configuration_of(ckpt: str, studiogan: str | None) -> str | None:
    """The path of the YAML that a checkpoint was trained with; None if nothing says it.

    Args:
        ckpt: a folder, a file, or a pinned address on the hub.
        studiogan: see ``locate``.

    Raises:
        UserError: several YAMLs beside the checkpoint, or a name of a run that no YAML of the host fits.
    """
    # What is beside it.
    address = hub.Address.parse(ckpt) if hub.is_address(ckpt) else None
    if address:
        folder = str(dataclasses.replace(address, file=""))
        run = address.name
        names = list(hub.listing(address).files)
    else:
        path = Path(expanded(ckpt))
        place = path if path.is_dir() else path.parent
        folder = str(place)
        run = place.resolve().name
        names = sorted(file.name for file in place.iterdir()) if path.exists() else []

    # The only YAML in the folder.
    files = [name for name in names if name.endswith(YAML)]
    if len(files) > 1:
        raise UserError(f"{folder} has {len(files)} configurations, {listed(files, 4)}: say -c with one of them")
    if files:
        return str(hub.download(address, files[0]) if address else Path(folder) / files[0])

    # The name of the folder.
    match = RUN_NAME.fullmatch(run)
    if match:
        return _of_host(match["what"], folder, studiogan)
    if address:
        raise UserError(f"{folder} has no YAML, and its name says none of the host's: add -c FILE")
    return None


def _of_host(what: str, folder: str, studiogan: str | None) -> str:
    """The path of the host's YAML for the data set and configuration that the name of a run begins with."""
    configs = locate(studiogan).path / "src" / "configs"
    files = sorted(configs.rglob("*.yaml"))
    for file in files:
        if f"{file.parent.name}-{file.stem}" == what:
            notice(f"{file.relative_to(configs)} of the host is the configuration, by the name of the folder")
            return str(file)

    # Other data sets have configurations of this name.
    near = [str(file.relative_to(configs)) for file in files if f"-{what}".endswith(f"-{file.stem}")]
    others = f"only {listed(near, 6)} for other data" if near else "and none of a similar name"
    raise UserError(f"the name of {folder} says {what}, for which the host has no YAML, {others}: add -c FILE")
