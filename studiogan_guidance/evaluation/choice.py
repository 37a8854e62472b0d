"""What a search leaves behind: a configuration of its choice, and everything that it measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from studiogan_guidance.config import INPUTS, RunConfig, resolved
from studiogan_guidance.evaluation import results
from studiogan_guidance.files import replacing
from studiogan_guidance.options import Spec

# Keys that tuned.yaml lacks.
UNPORTABLE = ("sampler", "options", "host", "out", "seed", "num", "reference", "reference_stats", "metrics", "judges")


def written(folder: Path, cfg: RunConfig, spec: Spec, result: dict[str, Any]) -> dict[str, Any]:
    """The result with the path of the configuration; writes tuned.yaml, which names ``spec``, and tuned.json."""
    result = {**result, "config": str(folder / "tuned.yaml")}
    choice = yaml.safe_dump(portable(cfg, spec), sort_keys=False)
    data = json.dumps(results.plain_data(result), indent=1) + "\n"
    for name, text in (("tuned.yaml", choice), ("tuned.json", data)):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return result


def portable(cfg: RunConfig, spec: Spec) -> dict[str, Any]:
    """What ``eval`` needs to use a sampler from any folder; seeds, split and number of images are left to it."""
    defaults, values = (results.plain_data(config.to_dict()) for config in (RunConfig(), cfg))
    changed = {key: value for key, value in values.items() if key not in UNPORTABLE and value != defaults[key]}

    # Paths that do not depend on the current folder; host_config is absolute, or a name inside the host.
    for key in INPUTS:
        if key in changed and Path(changed[key]).exists():
            changed[key] = str(Path(changed[key]).resolve())
    for key in ("backbone", "classifier"):
        if key in changed:
            changed[key] = resolved(changed[key])

    options = {key: value for key, value in spec.options.items() if value is not None}
    return {"sampler": {"name": spec.name, **results.plain_data(options)}, **changed, **values["host"]}
