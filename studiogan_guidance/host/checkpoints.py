"""Checkpoint files of the host: which file, what is in it, and how it goes into a network."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present as strip

from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, notice, typed
from studiogan_guidance.files import regular_file
from studiogan_guidance.weights import archives, forms, tables
from studiogan_guidance.weights.archives import is_finite
from studiogan_guidance.weights.makers import Dictionary, Odd

WHAT = "the checkpoint"
NAME = re.compile(r"model=(?P<model>G_ema|G|D)-(?P<when>best|current)-weights-step=(?P<step>\d+)")
DEPTH = 3  # levels of folders that are looked through for checkpoints
ENTRIES = 500  # names in them that are looked at
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.")  # torch puts them anywhere in a name


# ---------------------------------------------------------------------------- which file


def find(source: Path, model: str, which: tuple[str, ...] = (), advice: str = "give --which, or one file") -> Path:
    """The checkpoint file of ``model`` (G or D); for G the moving average is preferred.

    Args:
        source: the folder where the host saved its checkpoints, or one file, which is taken as it is.
        model: "G" or "D".
        which: any of best, current, ema, raw; what is not said is taken in the order best, current and ema, raw.
        advice: what to do, for the error, where the folder holds other checkpoints.

    Raises:
        UserError: no folder, no such file in it, a file that is not ``which``, or both ema and raw.
    """
    if not source.is_dir():
        return _file(source, which)

    name = choice(names_in(source), model, which)
    if name is None:
        raise UserError(f"no checkpoint {wanted(model, which)} in {source}; {_content(source, advice)}")
    return source / name


def choice(names: Sequence[str], model: str, which: Iterable[str]) -> str | None:
    """The name of the checkpoint among those of files, see ``find``; None if it is not there."""
    _check_which(which)
    for pattern in _patterns(model, which):
        matching = sorted(fnmatch.filter(names, pattern), key=lambda name: step(Path(name)))
        if matching:
            return matching[-1]
    return None


def wanted(model: str, which: Iterable[str]) -> str:
    """The names that ``choice`` looks for, for errors."""
    return " or ".join(_patterns(model, which))


def names_in(folder: Path) -> list[str]:
    """The names of the checkpoint files in a folder."""
    return [path.name for path in folder.glob("model=*-weights-step*.pth")]


def _patterns(model: str, which: Iterable[str]) -> list[str]:
    """The names to look for, the best first."""
    kinds = []
    if model == "G" and "raw" not in which:
        kinds.append("G_ema")
    if "ema" not in which:
        kinds.append(model)
    whens = [word for word in ("best", "current") if word in which] or ["best", "current"]
    return [f"model={kind}-{when}-weights-step*.pth" for when in whens for kind in kinds]


def _check_which(which: Iterable[str]) -> None:
    if {"ema", "raw"} <= set(which):
        raise UserError("--which has both ema and raw: keep one of them")


def _file(path: Path, which: Iterable[str]) -> Path:
    """One file as the checkpoint; UserError if it is not there, or is not ``which``."""
    if not os.path.lexists(path):
        raise UserError(
            f"--ckpt {path} is not a folder and no file: give the folder with the files model=G*-weights-step*.pth, "
            "or one of them"
        )
    check_words(path, which, str(path))
    return path


def check_words(path: Path, which: Iterable[str], shown: str) -> None:
    """Raise UserError for a file that is not ``which`` by its name; the error calls it ``shown``."""
    _check_which(which)
    words = facts(path)
    for word in which:
        if word not in (words.get("when"), "ema" if words.get("model") == "G_ema" else "raw"):
            raise UserError(
                f"--ckpt {shown} is one file, and not {word} by its name: leave out --which, or give a folder"
            )


def facts(path: Path) -> dict[str, str]:
    """model, when and step, as the name of a file says them; nothing for names that are not the host's."""
    match = NAME.fullmatch(path.stem)
    return match.groupdict() if match else {}


def step(path: Path) -> int:
    """The step in the name of a file; -1 where it has none."""
    digits = path.stem.rpartition("=")[2]
    return int(digits) if digits.isdigit() and digits.isascii() else -1


def _content(folder: Path, advice: str) -> str:
    """What a folder without the checkpoint holds, and what to do."""
    below = _folders_below(folder)
    if below:
        return f"folders below that hold some: {', '.join(map(str, below[:5]))}: give one of them"
    names = sorted(file.name for file in folder.iterdir())
    shown = [name for name in names if name.endswith(".pth")] or [name for name in names if name.startswith("model=")]
    if not shown:
        return "it holds no .pth file: give the one with the files model=G*-weights-step*.pth"
    if all(facts(Path(name)).get("model") == "D" for name in shown):
        return f"it holds {', '.join(shown[:4])} and no generator: give the folder with the files model=G*"
    return f"it holds {', '.join(shown[:4])}: {advice}"


def _folders_below(folder: Path) -> list[Path]:
    """The folders below with a generator in them, the nearest first; a few levels and names are looked at."""
    found: list[Path] = []
    level = [folder]
    entries = 0
    for _ in range(DEPTH):
        # The folders of the next level.
        following: list[Path] = []
        for entry in itertools.chain.from_iterable(map(_entries, level)):
            entries += 1
            if entries > ENTRIES:
                return found
            if entry.is_dir(follow_symlinks=False):
                following.append(Path(entry.path))

        found += [path for path in following if any(path.glob("model=G*-weights-step*.pth"))]
        level = following
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; nothing where it may not be read."""
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []


def beside(generator: Path, names: Sequence[str] | None = None) -> Path:
    """The discriminator's file of the same step as the generator's, in the same folder.

    Args:
        generator: its file.
        names: of the files that are beside it; by default those of its folder.

    Raises:
        UserError: none of that step, or a generator whose name says no step.
    """
    if not facts(generator):
        raise UserError(
            f"no discriminator is known beside {generator}: it is looked for as model=D-best-weights-step=N.pth beside "
            "model=G-best-weights-step=N.pth, so give the files these names"
        )

    # One of the same step, and of the same kind if there is one.
    number = step(generator)
    there = names_in(generator.parent) if names is None else names
    discriminators = [generator.parent / name for name in sorted(fnmatch.filter(there, "model=D-*-weights-step*.pth"))]
    matching = [path for path in discriminators if step(path) == number]
    for path in matching:
        if facts(path).get("when") == facts(generator)["when"]:
            return path
    if matching:
        notice(f"the discriminator {matching[0].name} is taken, which is of the step of {generator.name}")
        return matching[0]

    # Say what is there.
    if not discriminators:
        raise UserError(f"no checkpoint model=D-*-weights-step={number}.pth beside {generator}: the sampler needs one")
    found = ", ".join(path.name for path in discriminators[:4])
    raise UserError(
        f"no discriminator of step {number} beside {generator}, only {found}: give --which best or current, whichever "
        "has both"
    )


def announce(
    path: Path,
    source: str | Path,
    which: Iterable[str],
    averages: bool | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Say on stderr where ``find`` took a file that one may not expect.

    Args:
        path: what it took.
        source: the folder, or the file, that it was given.
        which: the words that it was given.
        averages: whether the configuration has a moving average (apply_g_ema); None if it is not known.
        names: of the files in ``source``; by default those of the folder, or none if it is a file.
    """
    if names is None:
        names = names_in(Path(source))
    words = facts(path)
    if not words:
        return

    # Another time, or another step.
    if names:
        same = [name for name in names if _kind(Path(name)) == _kind(path)]
        if len(same) > 1:
            notice(f"{source} holds {len(same)} files of this name, {path.name} is taken, which has the last step")
        if words["when"] == "current" and "current" not in which:
            notice(f"{source} holds no best checkpoint, {path.name} is taken")

    # Other weights than the host itself would evaluate.
    if words["model"] == "G" and averages and "raw" not in which and names:
        notice(f"the configuration has apply_g_ema, and {source} no moving average for {path.name}, which is taken")
    if words["model"] == "G_ema" and averages is False and "ema" not in which:
        notice(f"the configuration has no apply_g_ema, the moving average {path.name} is taken")


def _kind(path: Path) -> tuple[str | None, str | None]:
    words = facts(path)
    return words.get("model"), words.get("when")


# ---------------------------------------------------------------------------- what is in it


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content; no code of it runs. Its weights, ``state_dict``, are tensors on the CPU.

    A mapping of tensors without ``state_dict``, also one of safetensors, is taken as the weights.

    Raises:
        UserError: a file that cannot be read, that holds what is no data, or that is no checkpoint of the host;
            weights that are no plain real finite tensors.
    """
    content = _content_of(path)
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError(f"{path} is no checkpoint of the host: it has no state_dict{_parts(content)}")
    for key, value in state.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            state[key] = torch.from_numpy(value)
        if reason := _unusable(state[key]):
            raise UserError(f"{path} cannot be used: its weight {_shown(key)} {reason}")
    return dict(content)


def _content_of(path: Path) -> dict[str, Any]:
    """The content of a file, as a dictionary with state_dict if it has weights."""
    regular_file(path, WHAT)
    with path.open("rb") as file:
        start = file.read(9)
    if forms.is_safetensors(start, path.stat().st_size):
        return {"state_dict": tables.read(path, WHAT)[1]}
    content = archives.read(path, WHAT, only="state_dict")
    if not isinstance(content, dict):
        return {}
    if "state_dict" not in content and content and all(isinstance(value, (Tensor, Odd)) for value in content.values()):
        return {"state_dict": content}
    return content


def _parts(content: Mapping[Any, Any]) -> str:
    """The names of what a file holds instead of weights."""
    names = [_shown(key) for key in list(content)[:4]]
    if not names:
        return ""
    return f", only {', '.join(names)}: save the weights of the generator as {{'state_dict': ...}}"


def _unusable(value: Any) -> str | None:
    """Why a weight cannot be used; None if it can."""
    if isinstance(value, Odd):
        return f"is {value.kind}: save it as a plain tensor"
    if not isinstance(value, Tensor):
        return f"is no tensor but of type {type(value).__name__}: save tensors alone"
    if value.is_complex():
        return "has complex numbers: save real ones"
    if value.is_floating_point() and not is_finite(value):
        count = int((~torch.isfinite(value.float())).sum())
        return f"has {count} numbers that are NaN or infinite: the training diverged, take another"
    return None


def _shown(key: Any) -> str:
    """The name of a weight, as an error shows it."""
    text = str(key) if isinstance(key, (str, int, float)) else type(key).__name__
    return text if text.isprintable() and 0 < len(text) <= 100 else repr(text[:100])


# ---------------------------------------------------------------------------- into a network


def fill(network: torch.nn.Module, content: Mapping[str, Any], path: Path, cfg: RunConfig) -> None:
    """Load the weights of a checkpoint into a network.

    What wrappers put into the names (DataParallel, torch.compile) is taken out, and spectral norms of torch's
    parametrisations get the names of the host's.

    Raises:
        UserError: weights that do not fit; one that is missing, one that is not the network's, and the first of
            another shape are named.
    """
    own = network.state_dict()
    state = _renamed(content["state_dict"], own)
    name = cfg.host_config or "the configuration"

    # Whole numbers in place of real ones were quantised, by a scale that is not known.
    for key in own.keys() & state.keys():
        if own[key].is_floating_point() and not state[key].is_floating_point():
            raise UserError(f"{path} cannot be used: its weight {_shown(key)} has whole numbers, not real ones")

    # Counters of batch norms play no part in an evaluation, and converters drop them.
    for key in own:
        if key.endswith(".num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(own[key]))

    try:
        network.load_state_dict(state)
    except Exception as error:  # torch's own preparations meet whatever is in the file
        if is_out_of_memory(error):
            raise
        misfit = _misfit(state, own) or typed(error)
        raise UserError(f"{path} does not fit {name}: {misfit}: give the configuration of its training") from error


def _renamed(state: Mapping[str, Any], own: Mapping[str, Any]) -> Dictionary:
    """Weights under the names of a network, as far as these can be told."""
    # Take out wrappers, and write spectral norms as torch.nn.utils.spectral_norm does.
    found = Dictionary()
    for key, value in state.items():
        for wrapper in WRAPPERS:
            key = key.replace(wrapper, "")
        found[_old_name(key)] = value
    metadata = getattr(state, "_metadata", None)
    if metadata is not None and not any(wrapper in key for key in state for wrapper in WRAPPERS):
        found._metadata = dict(metadata)  # type: ignore[attr-defined]
    if "n_averaged" in found and "n_averaged" not in own:
        del found["n_averaged"]  # of torch.optim.swa_utils.AveragedModel

    # Strip what all names begin with and the network's do not.
    while found and not found.keys() & own.keys():
        prefix, dot, _ = next(iter(found)).partition(".")
        if not dot or not all(key.startswith(f"{prefix}.") for key in found):
            break
        strip(found, f"{prefix}.")
    return found


def _old_name(key: str) -> str:
    """The name that torch.nn.utils.spectral_norm has for a tensor of torch's parametrisation of it."""
    match = re.fullmatch(r"(?:(.*)\.)?parametrizations\.(\w+)\.(original|0\._u|0\._v)", key)
    if match is None:
        return key
    module, name, part = match.groups()
    ending = {"original": "orig", "0._u": "u", "0._v": "v"}[part]
    return f"{module}.{name}_{ending}" if module else f"{name}_{ending}"


def _misfit(state: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """How weights differ from those of a network, with one example of each kind."""
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of its {len(own)} weights are missing, such as {_shown(missing[0])}")
    if unknown:
        parts.append(f"{len(unknown)} of the file's {len(state)} are not its own, such as {_shown(unknown[0])}")

    # The first of another shape.
    shapes = [key for key in own if key in state and state[key].shape != own[key].shape]
    if shapes:
        key = shapes[0]
        count = f" (and {len(shapes) - 1} more differ)" if len(shapes) > 1 else ""
        parts.append(f"{_shown(key)} is {list(state[key].shape)} in the file and {list(own[key].shape)} there{count}")
    return ", ".join(parts)
