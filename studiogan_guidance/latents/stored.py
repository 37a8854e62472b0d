"""Files of small networks that belong to one generator: safetensors, with one JSON text of metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialized
from torch import Tensor, nn

from studiogan_guidance.errors import UserError
from studiogan_guidance.files import write_bytes
from studiogan_guidance.latents.base import LatentView
from studiogan_guidance.options import shown
from studiogan_guidance.weights import archives, tables


@dataclass(frozen=True)
class Kind:
    """One kind of such files.

    Attributes:
        what: it is, for errors, such as "learned joint".
        file: its name beside a checkpoint.
        key: of its metadata.
        stage: that writes it.
        option: that names it.
        format: of the file; it is raised when old ones can no longer be read.
    """

    what: str
    file: str
    key: str
    stage: str
    option: str
    format: int = 1

    def path(self, view: LatentView, given: str | None) -> Path:
        """The file that the option gives, by default the one beside the checkpoint."""
        source = Path(view.networks.source)
        folder = source.parent if source.is_file() else source
        return Path(given) if given else folder / self.file

    def write(self, path: Path, network: nn.Module, metadata: Mapping[str, object]) -> None:
        """Write a network with ``metadata``, plain data, whole or not at all.

        The metadata are one JSON text, because several keys would be written in any order: the same network makes the
        same file, byte for byte.
        """
        state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        text = json.dumps({"format": self.format, **metadata})
        write_bytes(path, serialized(state, {self.key: text}))

    def read(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Metadata and tensors of a file.

        Raises:
            UserError: a missing or damaged file, or one of another kind or format.
        """
        if not path.exists() and not path.is_symlink():
            raise UserError(
                f"no {self.what} {path}: make it with 'studiogan-guidance train --stage {self.stage}', or give "
                f"{self.option}"
            )
        texts, state = tables.read(path, f"the {self.what}")
        try:
            metadata = json.loads(texts.get(self.key, "{}"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"cannot read the {self.what} {path}: its metadata are no JSON: copy it again") from error

        if not isinstance(metadata, dict) or "generator_sha256" not in metadata:
            raise UserError(f"{path} is no {self.what}: give the {self.file} that 'train --stage {self.stage}' wrote")
        if metadata.get("format") != self.format:
            raise UserError(
                f"{path} has format {str(metadata.get('format'))[:20]}, this version reads {self.format}: train it "
                "again"
            )
        return metadata, state

    def refuse_damage(self, path: Path, reason: str | None) -> None:
        """Raise UserError where there is a reason, such as "it lacks the tensor unit"."""
        if reason:
            raise UserError(f"the {self.what} {path} is damaged: {reason}: copy it again, or train it again")


def wrong_size(metadata: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """What is wrong with the sizes in metadata, whole numbers from 0 up; None if nothing is."""
    for key in keys:
        size = metadata.get(key)
        if type(size) is not int or size < 0:
            return f"its {key} is {shown(size)}, no whole number from 0 up"
    return None


def wrong_tensor(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """What is wrong with the tensors of a file, which should have the shapes ``expected``; None if nothing is."""
    for key in {**expected, **state}:
        if key not in state:
            return f"it lacks the tensor {key}"
        if key not in expected:
            return f"it has a tensor too many, {shown(key)}"
        if tuple(state[key].shape) != expected[key]:
            return f"its {key} is {list(state[key].shape)}, by its metadata it should be {list(expected[key])}"
        if state[key].dtype != torch.float32:
            return f"its {key} is {str(state[key].dtype).removeprefix('torch.')}, not float32"
        if not archives.is_finite(state[key]):
            return f"its {key} has numbers that are not finite"
    return None
