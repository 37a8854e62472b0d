"""A checkpoint of the host as a source of networks and real images, behind one checkout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.features.images import Real, split_digest, spread_images
from studiogan_guidance.files import json_digest
from studiogan_guidance.host import images, networks
from studiogan_guidance.host.images import RealImages
from studiogan_guidance.host.locate import Checkout, locate
from studiogan_guidance.host.sections import check_sections
from studiogan_guidance.latents.base import Companions, Networks

MODEL_SECTIONS = ("DATA", "MODEL", "STYLEGAN")  # of the host's YAML: what a generator is built from


class HostSource:
    """What a configuration of the host points at; see ``evaluation.source.Source``.

    The checkout is located, and the host's YAML is read, at the first use and only then.
    """

    default_split = "train"
    default_backbone = "host:InceptionV3_tf"

    def __init__(self, cfg: RunConfig) -> None:
        self.cfg = cfg
        self._networks: dict[torch.device, Networks] = {}
        self._real: dict[tuple[str, int], RealImages] = {}

    @cached_property
    def checkout(self) -> Checkout:
        """The host's checkout; UserError if there is none."""
        return locate(self.cfg.studiogan)

    @cached_property
    def sections(self) -> Mapping[str, Any]:
        """The host's own sections of the configuration."""
        return networks.host_yaml(self.cfg, self.checkout)

    @cached_property
    def _whole(self) -> Mapping[str, Mapping[str, Any]]:
        """The sections with the host's defaults, checked."""
        return check_sections(self.sections, self.checkout)

    @property
    def protocol(self) -> dict[str, Any]:
        """The commit of the host."""
        return {"host_commit": self.checkout.commit or "unknown"}

    @property
    def model_digest(self) -> str:
        """A hash of the sections of the host's YAML that a generator is built from."""
        return model_digest(self.sections)

    @property
    def data_name(self) -> str:
        """The host's name of the data set."""
        return str(self._whole["DATA"]["name"])

    @property
    def num_classes(self) -> int:
        """Classes that the generator takes; 0 if it takes none."""
        is_conditional = self._whole["MODEL"]["g_cond_mtd"] != "W/O"
        return int(self._whole["DATA"]["num_classes"]) if is_conditional else 0

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of real images that are in ``cfg.data``."""
        return images.splits(Path(self.cfg.data), self.data_name) if self.cfg.data else ()

    @property
    def image_size(self) -> int:
        """Side of the images."""
        return int(self._whole["DATA"]["img_size"])

    @property
    def validation_split(self) -> str:
        """The split to choose options on."""
        return images.validation_split(self.data_name)

    @property
    def held_out_split(self) -> str:
        """The split that the discriminator was not trained on."""
        return images.held_out_split(self.data_name)

    def networks(self, device: torch.device) -> Networks:
        """The generator of the checkpoint and its companions, loaded once for each device."""
        if device not in self._networks:
            loaded = networks.load(self.cfg, self.checkout, device, self.sections)
            built = companions(
                discriminator=lambda: self.discriminator(device),
                held_out=lambda: self._held_out(loaded.image_size),
                snapshot=lambda path: networks.snapshot(loaded.generator, path, self.cfg),
            )
            self._networks[device] = dataclasses.replace(loaded, companions=built)
        return self._networks[device]

    def discriminator(self, device: torch.device) -> torch.nn.Module:
        """The discriminator of the checkpoint, loaded anew."""
        return networks.load_discriminator(self.cfg, self.checkout, device, self.sections)

    def real(self, split: str, image_size: int, classes: Collection[int] = ()) -> RealImages:
        """The images of one split in ``cfg.data``, by default of all classes; their files are listed once."""
        if (split, image_size) not in self._real:
            self._real[split, image_size] = self._images(self.cfg.data, split, image_size)
        whole = self._real[split, image_size]
        return whole.of(classes) if classes else whole

    def _held_out(self, image_size: int) -> RealImages:
        folder = self.cfg.held_out or self.cfg.data
        if not folder:
            raise UserError(
                "this sampler calibrates the discriminator on held-out real images: add --held-out DIR (or --data "
                "DIR), or say -o calibration=none"
            )
        return self._images(folder, self.held_out_split, image_size)

    def _images(self, folder: str | None, split: str, image_size: int) -> RealImages:
        cfg = dataclasses.replace(self.cfg, data=folder, reference=split)
        return RealImages(cfg, self.checkout, self.data_name, image_size)


def companions(
    discriminator: Callable[[], torch.nn.Module],
    held_out: Callable[[], Real],
    snapshot: Callable[[str], torch.nn.Module],
) -> Companions:
    """The companions of a generator of the host, in an evaluation and inside a host run alike.

    Args:
        discriminator: opens the discriminator.
        held_out: opens the held-out real images; it is called once, when they are first asked for.
        snapshot: the generator with the weights of another checkpoint.
    """
    real = functools.cache(held_out)
    return Companions(
        discriminator=discriminator,
        held_out=lambda count: spread_images(real(), count),
        held_out_name=lambda: split_digest(real()),
        snapshot=snapshot,
        held_out_classes=lambda: len(real().class_names),
    )


def model_digest(sections: Mapping[str, Any]) -> str:
    """A hash of the sections of the host's YAML that a generator is built from."""
    built_from = {key: sections.get(key) for key in MODEL_SECTIONS}
    return json_digest(built_from, 16)
