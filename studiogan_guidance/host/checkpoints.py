"""Checkpoint files of the host: which file, what is in it, and how it goes into a network."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, typed
from studiogan_guidance.host import compat


def find(folder: Path, model: str, which: tuple[str, ...] = ()) -> Path:
    """The checkpoint file of ``model`` (G or D) in a folder; for G the moving average is preferred.

    Args:
        folder: where the host saved its checkpoints.
        model: "G" or "D".
        which: any of best, current, ema, raw; what is not said is taken in the order best, current and ema, raw.

    Raises:
        UserError: no folder, no such file in it, or both ema and raw.
    """
    if not folder.is_dir():
        raise UserError(f"--ckpt {folder} is not a folder: give the one with the files model=G*-weights-step*.pth")
    if {"ema", "raw"} <= set(which):
        raise UserError("--which has both ema and raw: keep one of them")

    # The names to look for, the best first.
    kinds = []
    if model == "G" and "raw" not in which:
        kinds.append("G_ema")
    if "ema" not in which:
        kinds.append(model)
    whens = [word for word in ("best", "current") if word in which] or ["best", "current"]
    patterns = [f"model={kind}-{when}-weights-step*.pth" for when in whens for kind in kinds]

    # Take the last step of the first name that is there.
    for pattern in patterns:
        files = sorted(folder.glob(pattern), key=step)
        if files:
            return files[-1]
    present = sorted(file.name for file in folder.glob("*.pth"))[:4]
    raise UserError(
        f"no checkpoint {' or '.join(patterns)} in {folder}; it holds {', '.join(present) or 'no .pth file'}"
    )


def step(path: Path) -> int:
    digits = path.stem.rpartition("=")[2]
    return int(digits) if digits.isdigit() else -1


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU, by the weights-only unpickler and ``compat.ALLOWED``: no code runs.

    Raises:
        UserError: a file that cannot be read, that holds more than weights, or that is no checkpoint of the host.
    """
    # Read weights, and nothing else.
    try:
        with torch.serialization.safe_globals(compat.ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol, just before the refusal
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if path.read_bytes()[:64].lstrip().startswith(b"<"):
            raise UserError(f"{path} is a web page, not a checkpoint: download it again") from error
        raise UserError(
            f"refused the checkpoint {path}: it holds more than weights, or is no checkpoint ({_refused(error)})"
        ) from error
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise UserError(f"cannot read the checkpoint {path}: damaged or truncated ({typed(error)})") from error

    # Check that they are those of a network.
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError(f"{path} is no checkpoint of the host: it has no state_dict")
    return dict(content)


def fill(network: torch.nn.Module, state: Mapping[str, Any], path: Path, cfg: RunConfig) -> None:
    """Load weights into a network; the first line that torch says about a misfit goes into the error."""
    try:
        network.load_state_dict(state["state_dict"])
    except (RuntimeError, TypeError) as error:
        name = cfg.host_config or "the configuration"
        lines = [line.strip() for line in str(error).splitlines()]
        misfit = " ".join(lines[1:2] or lines)[:200]  # the first line names the class only
        raise UserError(f"{path.name} does not fit {name}: {misfit}") from error


def _refused(error: BaseException) -> str:
    """The line of the unpickler's long message that names what it refused."""
    for line in str(error).splitlines():
        if "GLOBAL" in line or line.startswith("Unsupported"):
            return line[:160]
    return "not a PyTorch file"
