"""Every configuration of the host: which build and sample at a small width, and which are refused by what sentence."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from studiogan_guidance import rng, samplers
from studiogan_guidance.config import read_yaml
from studiogan_guidance.errors import UserError
from studiogan_guidance.files import json_digest
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.networks import build, check_sections
from studiogan_guidance.latents import LabelPlan, LatentView, view_for

CPU = torch.device("cpu")
SECTIONS = ("DATA", "MODEL", "STYLEGAN")  # of what a generator is built
SMALL = {"g_conv_dim": 8, "d_conv_dim": 8, "g_shared_dim": 8, "z_dim": 40, "w_dim": 16, "g_depth": 2, "d_depth": 2}
CLASSES = 10  # at most, so that a joint over all of them is a small batch
SAMPLED = "sampled"
GUIDED = "sampled, also guided"


def reduced(path: Path) -> dict[str, Any]:
    """The sections of a configuration that a generator is built from, with fewer channels, classes and pixels."""
    content = read_yaml(path)
    sections = {name: dict(content.get(name) or {}) for name in SECTIONS}
    data, model, style = (sections[name] for name in SECTIONS)

    # Numbers only; channels are numbers where nothing is said.
    numbers = {"g_conv_dim": 0, "d_conv_dim": 0, **model}
    model.update({key: small for key, small in SMALL.items() if isinstance(numbers.get(key), int)})
    is_style = model.get("backbone", "").startswith("stylegan")
    data["img_size"] = min(data["img_size"], 16 if is_style else 32)
    data["num_classes"] = min(data["num_classes"], CLASSES)
    if is_style:
        style["mapping_network"] = 2
    return {**sections, "LOSS": content.get("LOSS") or {}}


def generator_digest(sections: dict[str, Any]) -> str:
    """A hash of what a generator is built from: not of the losses, nor of the discriminator's keys."""
    model = {key: value for key, value in sections["MODEL"].items() if not key.startswith("d_")}
    return json_digest([sections["DATA"], model, sections["STYLEGAN"]])


def images(view: LatentView, sampler: str) -> torch.Tensor:
    """An image of a sampler at its defaults."""
    stream = samplers.checked(samplers.create(sampler), view).stream(view, range(1), 1, LabelPlan((0,)))
    return torch.cat([batch.images for batch in stream])


def settled(view: LatentView) -> LatentView:
    """Let the spectral norms find their vectors, as any training does; without them numbers run off."""
    generator = view.generator
    gens = rng.generators(range(2))
    z = torch.cat([view.prior(gens), view.info(gens)], 1)
    if not view.networks.backbone.startswith("stylegan"):
        generator.train()
        for _ in range(3):
            generator(z, torch.zeros(len(z), dtype=torch.int64))
        generator.eval()
    return view


def outcome(sections: dict[str, Any], checkout: Checkout) -> str:
    """What becomes of a reduced configuration: ``SAMPLED``, ``GUIDED``, or the sentence that refuses it."""
    try:
        torch.manual_seed(1)
        view = settled(view_for(build(sections, checkout, CPU)))
        plain = images(view, "plain")
        assert plain.shape == (1, 3, view.networks.image_size, view.networks.image_size)
        if not view.networks.is_conditional:
            with pytest.raises(UserError, match="sampler 'gandance' needs a conditional generator"):
                samplers.checked(samplers.create("gandance"), view)
            return SAMPLED
        assert not torch.equal(images(view, "gandance"), plain)
    except UserError as error:
        return str(error)
    return GUIDED


@pytest.mark.studiogan
def test_every_configuration_of_the_host_builds_and_samples(checkout: Checkout) -> None:
    """All of them, 26 without a condition; no image has more than 32 pixels a side."""
    root = checkout.path / "src" / "configs"
    by_digest: dict[str, str] = {}  # equal generators are built once
    by_file: dict[str, str] = {}
    for path in sorted(root.rglob("*.yaml")):
        # Its own sections, at full size, are checked; smaller ones are built.
        check_sections({key: value for key, value in read_yaml(path).items() if key.isupper()}, checkout)
        sections = reduced(path)
        digest = generator_digest(sections)
        if digest not in by_digest:
            by_digest[digest] = outcome(sections, checkout)
        by_file[str(path.relative_to(root))] = by_digest[digest]

    counts = Counter(by_file.values())
    print(f"{len(by_file)} configurations, {len(by_digest)} of them different at this size: {dict(counts)}")
    refused = {name: sentence for name, sentence in by_file.items() if sentence not in (SAMPLED, GUIDED)}
    assert not refused
    assert counts == {GUIDED: len(by_file) - 26, SAMPLED: 26}
