"""What ``tune --auto`` chose for a generator: kept by the fingerprint of its weights, and found by it again.

The file ``tuned.json`` beside a checkpoint comes first, so that a choice can be given away together with it; else the
last choice for these weights on this machine counts, from the cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studiogan_guidance.errors import UserError
from studiogan_guidance.files import cache_dir, replacing
from studiogan_guidance.latents.base import LatentView
from studiogan_guidance.latents.learned import fingerprint
from studiogan_guidance.options import Spec

FILE = "tuned.json"
FINGERPRINT = "generator_sha256"  # keys of that file
CHOICE = "choice"


def facts(view: LatentView, spec: Spec) -> dict[str, Any]:
    """The choice of a sampler for a generator, as ``tuned.json`` and the cache hold it."""
    return {FINGERPRINT: fingerprint(view.generator), CHOICE: spec.to_dict()}


def keep(choice: Mapping[str, Any]) -> None:
    """Keep a choice of ``facts`` in the cache, in place of an earlier one for the same weights."""
    with replacing(_kept(choice[FINGERPRINT])) as temporary:
        temporary.write_text(json.dumps(choice) + "\n", encoding="utf-8")


def find(view: LatentView) -> Spec:
    """The sampler that was chosen for the generator of a view; looked for once a view.

    Raises:
        UserError: there was no choice for these weights.
    """
    return view.bare.once("choice of tune", lambda: _find(view))


def _find(view: LatentView) -> Spec:
    source = Path(view.networks.source)
    beside = (source.parent if source.is_file() else source) / FILE
    weights = fingerprint(view.generator)

    # The file beside the checkpoint may be about another step of the same training.
    for path in (beside, _kept(weights)):
        content = _read(path)
        if content.get(FINGERPRINT) == weights:
            return Spec.parse(content.get(CHOICE), f"the choice in {path}")
    other = f" ({beside} is about other weights)" if beside.is_file() else ""
    raise UserError(
        f"scale=auto needs an earlier choice for {view.networks.source}, and there is none{other}: make it with "
        "'studiogan-guidance tune --auto' on this checkpoint"
    )


def _kept(weights: str) -> Path:
    return cache_dir() / "tuned" / f"{weights}.json"


def _read(path: Path) -> dict[str, Any]:
    """The content of a file of a choice; empty where there is none, or where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
