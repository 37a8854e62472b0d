"""The process that a program of the host runs in: what it changes is put back, and W&B's mode is chosen."""

from __future__ import annotations

import configparser
import netrc
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from studiogan_guidance.errors import notice

FLAGS = (  # owner and name
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
)


@contextmanager
def kept() -> Iterator[None]:
    """Put everything process-wide back at the end that the host's programs change.

    That is: the environment, the flags of cuDNN, the random states (of GPUs, too, where CUDA is in use), how processes
    are started, and the current folder. What stays are the libraries that were imported, with their loggers, and W&B's
    own thread and handlers at exit.
    """
    multiprocessing: Any = torch.multiprocessing

    # Remember how everything is.
    environment = dict(os.environ)
    folder = os.getcwd()
    flags = [(owner, name, getattr(owner, name)) for owner, name in FLAGS]
    start_method = multiprocessing.get_start_method(allow_none=True)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    try:
        yield
    finally:
        # Put it back.
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        for owner, name, value in flags:
            setattr(owner, name, value)
        if multiprocessing.get_start_method(allow_none=True) != start_method:
            multiprocessing.set_start_method(start_method, force=True)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if gpu_states is not None:
            torch.cuda.set_rng_state_all(gpu_states)


def offline_without_key() -> None:
    """Let W&B run offline, and say so, where it has neither a key nor a mode; no network is asked."""
    if _says_mode() or _has_key():
        return
    os.environ["WANDB_MODE"] = "offline"
    notice(
        "W&B has no key, so WANDB_MODE is offline: what it logs stays below -save ('wandb login' before the run, or "
        "'wandb sync' after it, uploads it; WANDB_MODE=disabled logs nothing)"
    )


def _says_mode() -> bool:
    settings = _settings()
    return bool(os.environ.get("WANDB_MODE") or settings.get("mode") or settings.get("disabled"))


def _has_key() -> bool:
    """Whether W&B would find a key where it looks for one: in the environment, a netrc file, or its settings."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or _settings().get("api_key"):
        return True

    # A netrc file has it under the name of the server.
    chosen = os.environ.get("NETRC")
    files = [chosen] if chosen else ["~/.netrc", "~/_netrc"]
    url = os.environ.get("WANDB_BASE_URL") or _settings().get("base_url") or ""
    for file in files:
        try:
            servers = netrc.netrc(os.path.expanduser(file)).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        if any(server == urlsplit(url).netloc or "wandb" in server or "coreweave" in server for server in servers):
            return True
    return False


def _settings() -> dict[str, str]:
    """What the settings files of W&B say: those of the user, then those of the current folder."""
    home = os.environ.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb")
    here = os.path.join(os.environ.get("WANDB_DIR") or ".", "wandb")
    parser = configparser.ConfigParser(default_section="none", interpolation=None)
    try:
        parser.read([os.path.join(folder, "settings") for folder in (home, here)], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if "default" in parser else {}
