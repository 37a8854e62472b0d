"""The weights of the host's Inception from a file that the user names, known by its hash."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from studiogan_guidance.errors import UserError, notice_once
from studiogan_guidance.files import file_digest, regular_file
from studiogan_guidance.weights import archives

NAME = "InceptionV3_tf"  # the host's name of the network
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
FILE = URL.rpartition("/")[2]
SHA256 = "6726825d"  # the first digits, which the name of the file carries, as names of torch's hub do
OWN_HASH = re.compile(r"-([0-9a-f]{8,64})\.")


def named(path: Path) -> str:
    """What rows call the network with the weights of a file: by the host's name alone if they are the host's.

    Other weights are taken only where the name of their file ends in the first digits of its SHA-256
    (``mine-0123abcd.pth``); rows then have that name, too.

    Raises:
        UserError: a file that cannot be read, or one of another hash.
    """
    digest = file_digest(regular_file(path, "--inception"))
    if digest.startswith(SHA256):
        return NAME
    own = OWN_HASH.search(path.name)
    if own and digest.startswith(own[1]):
        notice_once(f"{path.name} is not the host's Inception: a distance in its features is not the literature's FID")
        return f"{NAME}:{path.name}"
    raise UserError(
        f"--inception {path} is not the host's Inception: its SHA-256 begins with {digest[:8]}, not with {SHA256}: "
        f"download {URL}"
    )


def weights(path: Path) -> dict[str, Any]:
    """The weights in a file; no code of it runs. UserError if it holds none."""
    state = archives.read(path, "--inception")
    if not isinstance(state, dict):
        raise UserError(f"--inception {path} holds no weights: download {URL}")
    return state
