"""Any TorchScript file as a feature network."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studiogan_guidance.errors import UserError
from studiogan_guidance.features.preparation import _line, _sha256
from studiogan_guidance.features.stats import to_uint8


class TorchScript:
    """A TorchScript file as a Backbone; it resizes and normalises by itself."""

    classifies = False

    def __init__(self, path: Path, device: torch.device) -> None:
        self.device, self._path, digest = device, path, _sha256(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is deprecated; files of it will live on
                self._net: Any = torch.jit.load(str(path), map_location=device).eval()
                arguments = [argument.name for argument in self._net.forward.schema.arguments]
        except (RuntimeError, ValueError, AttributeError) as error:
            raise UserError(
                f"--backbone {path} is not a TorchScript module ({_line(error)}): save one there"
            ) from error
        self._options = {"return_features": True} if "return_features" in arguments else {}
        self.protocol = {"backbone": f"torchscript:{path.name}", "backbone_sha256": digest, "resizer": "own"}

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> uint8."""
        return to_uint8(images.to(self.device))

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            found = self._net(prepared, **self._options)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, torch.jit.Error) as error:  # what its interpreter makes of all others
            if "out of memory" in str(error):
                raise torch.OutOfMemoryError(str(error).strip().splitlines()[-1]) from error
            raise UserError(
                f"{self._path} failed on uint8 images {list(prepared.shape)} ({_line(error, -1)}): it must take them"
            ) from error
        features, logits = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        for value in (features, features if logits is None else logits):
            if not (isinstance(value, Tensor) and value.dim() == 2 and len(value) == len(prepared)):
                raise UserError(
                    f"{self._path} returned {_shape(found)} for {len(prepared)} images: it must return features "
                    "[B, D], or features and class logits [B, K]"
                )
        return features, logits


def _shape(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor {list(found.shape)}"
    return f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__
