"""The host's feature networks."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.features.preparation import Preparation, tuned
from studiogan_guidance.features.resize import filter_of
from studiogan_guidance.host import compat
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.inception import FILE, NAME, named, weights
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.modules import swapped
from studiogan_guidance.latents.base import weights_digest
from studiogan_guidance.progress import downloads

HOOKED = ("InceptionV3_torch", "ResNet50_torch", "SwAV_torch")  # their features are what enters the layer ``fc``


class HostBackbone:
    """A feature network of the host's LoadEvalModel as a Backbone, with our resizing, whose numbers are the host's.

    Weights come from torch's hub cache, or over the network; those of Inception also from a file.

    Args:
        name: the host's name of the network.
        checkout: the host.
        device: where the network runs.
        resizer: legacy, clean or friendly.
        resize_on: cpu, device, or auto (on ``device``); pixels are the same bits.
        channels_last: memory format of the network and its input.
        compile: run it through torch.compile.

    Raises:
        UserError: a network that the host does not know, or weights that cannot be loaded.
    """

    classifies = True  # the classes of ImageNet

    def __init__(
        self,
        name: str,
        checkout: Checkout,
        device: torch.device,
        resizer: str = "legacy",
        resize_on: str = "auto",
        channels_last: bool = False,
        compile: bool = False,
        inception: Path | None = None,
    ) -> None:
        # Load the host's network.
        file = inception if name == NAME else None
        called = named(file) if file else name
        host = _load(name, checkout, device, resizer, file)
        host.eval()
        host.model.requires_grad_(False)
        self.protocol = backbone_protocol(called, host.model, resizer)

        # Run it, and prepare its images, as the options say.
        self.device = device
        self._net = tuned(host.model, channels_last, compile)
        self._is_hooked = name in HOOKED
        self._inputs = host.save_output  # takes the inputs of ``fc`` where that is hooked
        self._prepare = Preparation(
            host.res, filter_of(resizer, name), host.mean, host.std, device, resize_on, channels_last
        )
        self.prepares_on_cpu = not self._prepare.on_device

    def prepare(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> [B, 3, 299, 299] or [B, 3, 224, 224]."""
        return self._prepare(images)

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, D] and class logits [B, K] of prepared images."""
        self._inputs.clear()  # a pass that ran out of memory leaves some
        outputs = self._net(prepared)
        if not self._is_hooked:
            self._inputs.clear()
            features, logits = outputs
            return features, logits

        # Take the features from the hook.
        features = self._inputs.outputs[0][0][: len(outputs)]
        self._inputs.clear()
        return features, outputs

    def soft(self, images: Tensor) -> Tensor:
        """Features [B, D] of images in [-1, 1], with gradients."""
        return self(self._prepare.soft(images))[0]


def _load(name: str, checkout: Checkout, device: torch.device, resizer: str, file: Path | None) -> Any:
    """The host's LoadEvalModel; UserError if it does not know the network or cannot load its weights."""
    shims = [shim for shim in compat.RUN_SHIMS if shim.name == "resnet50_key"]

    with inside(checkout), compat.active(shims), downloads(f"weights of {name}"), _weights_of(file):
        try:
            return module("metrics.preparation").LoadEvalModel(name, resizer, 1, False, device)
        except NotImplementedError as error:
            raise UserError(f"the host has no backbone '{name}': try InceptionV3_tf") from error
        except (urllib.error.URLError, OSError, RuntimeError, KeyError) as error:
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            if file:
                raise UserError(f"--inception {file} does not fit the host's Inception: {one_line(error)}") from error
            other = f", or give {FILE} as --inception FILE" if name == NAME else ""
            raise UserError(
                f"cannot load the weights of {name} ({one_line(error, 120)}): "
                f"download them on a machine with a network and copy them into {folder}{other}"
            ) from error


@contextmanager
def _weights_of(file: Path | None) -> Iterator[None]:
    """Within the host: its Inception takes the weights in a file, where it would download them."""
    if file is None:
        yield
        return
    state = weights(file)
    with swapped(module("metrics.inception_net"), "load_state_dict_from_url", lambda *_, **__: state):
        yield


def backbone_protocol(name: str, model: torch.nn.Module, resizer: str) -> dict[str, Any]:
    """Everything about a feature network that changes a metric."""
    return {"backbone": name, "backbone_sha256": weights_digest(model)[:16], "resizer": resizer}
