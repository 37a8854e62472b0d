"""Any TorchScript file as a feature network."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.devices import to_device
from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.features.preparation import weights_sha256
from studiogan_guidance.features.stats import checked, to_uint8
from studiogan_guidance.files import regular_file
from studiogan_guidance.weights import archives, forms
from studiogan_guidance.weights.makers import Damaged


class TorchScript:
    """A TorchScript file as a Backbone; it resizes and normalises by itself.

    Such a file is a program: use those whose origin is known. A pickle in its place is refused, and does not run.

    Args:
        path: a module that takes uint8 images [B, 3, H, W] and returns features [B, D], or them and class logits
            [B, K]; a flag ``return_features`` of its forward is set to true.
        device: where it runs.

    Raises:
        UserError: the file is no such module; when it is called, that it fails, or returns something else.
    """

    classifies = True

    def __init__(self, path: Path, device: torch.device) -> None:
        self.device = device
        self._path = path
        _check_archive(path)
        digest = weights_sha256(path)

        # Open the module.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is deprecated; files of it will live on
                self._net: Any = torch.jit.load(str(path), map_location=device).eval()
                arguments = [argument.name for argument in self._net.forward.schema.arguments]
        except (RuntimeError, ValueError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"--backbone {path} is not a TorchScript module ({one_line(error)}): save one there"
            ) from error

        # Ask for features where it has a choice.
        self._options = {"return_features": True} if "return_features" in arguments else {}
        self.protocol = {"backbone": f"torchscript:{path.name}", "backbone_sha256": digest, "resizer": "own"}

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> uint8."""
        return to_device(to_uint8(images), self.device)

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor | None]:
        # Run it; its interpreter raises errors of its own for whatever went wrong inside.
        try:
            output = self._net(prepared, **self._options)
        except (RuntimeError, torch.jit.Error) as error:
            if is_out_of_memory(error):
                raise torch.OutOfMemoryError(_last_line(error)) from error
            raise UserError(
                f"{self._path} failed on uint8 images {list(prepared.shape)} ({_last_line(error)}): it must take them"
            ) from error

        # Check what it returned.
        pair = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
        return checked(pair, len(prepared), str(self._path))


def _check_archive(path: Path) -> None:
    """Raise UserError for a file that is no archive of TorchScript; torch's own words about these do not help."""
    regular_file(path, "--backbone")

    # Refuse what is something else.
    words = forms.form(path)
    if words is not None and not words.startswith(forms.TORCHSCRIPT):
        raise UserError(f"--backbone {path} is not a TorchScript module: it is {words}")
    if words is None:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        kind = "a file of torch.save" if is_zip else "no archive of one"
        raise UserError(
            f"--backbone {path} is not a TorchScript module: it is {kind}: save one there by torch.jit.save"
        )

    # Refuse what grows without bounds.
    try:
        with zipfile.ZipFile(path) as archive:
            archives.check_sizes(archive)
    except (Damaged, zipfile.BadZipFile) as error:
        raise UserError(f"--backbone {path} is not a TorchScript module: {error}: {forms.AGAIN}") from error


def _last_line(error: BaseException) -> str:
    """The reason of an error of TorchScript's interpreter, which a traceback of the script stands before."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip()[:160] if lines else type(error).__name__
