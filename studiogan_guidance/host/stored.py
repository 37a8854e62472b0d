"""Checkpoint files of a run, in a folder of this machine or on the hub, by the same choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studiogan_guidance.errors import UserError, listed
from studiogan_guidance.host import hub
from studiogan_guidance.host.checkpoints import beside, check_words, choice, find, names_in, wanted


def generator_file(source: str, which: tuple[str, ...] = ()) -> Path:
    """The generator's file, see ``checkpoints.find``; on the hub, it is downloaded, and nothing else is.

    Args:
        source: a folder, a file, or an address on the hub.
        which: any of best, current, ema, raw.

    Raises:
        UserError: no such file; see also ``hub``.
    """
    if not hub.is_address(source):
        return find(Path(source), "G", which)
    address = hub.pinned(hub.Address.parse(source))
    if address.file:
        check_words(Path(address.file), which, source)
        return hub.download(address, address.file)

    # Choose among the names.
    content = hub.listing(address)
    name = choice(content.files, "G", which)
    if name is None:
        raise UserError(f"no checkpoint {wanted('G', which)} in {address}; {_content(content)}")
    return hub.download(address, name)


def discriminator_file(source: str, which: tuple[str, ...] = ()) -> Path:
    """The discriminator's file beside the generator that ``generator_file`` gives, see ``checkpoints.beside``."""
    generator = generator_file(source, which)
    if not hub.is_address(source):
        return beside(generator)
    address = hub.pinned(hub.Address.parse(source))
    return hub.download(address, beside(generator, hub.listing(address).files).name)


def names_at(source: str) -> Sequence[str]:
    """The names of the files in a folder, here or on the hub; none for a file."""
    if not hub.is_address(source):
        return names_in(Path(source))
    address = hub.pinned(hub.Address.parse(source))
    return () if address.file else hub.listing(address).files


def _content(content: hub.Listing) -> str:
    """What a folder without the checkpoint holds, and what to do."""
    if content.folders:
        return f"it has the folders {listed(content.folders)}: give one of them"
    if not content.files:
        return "it holds no file"
    return f"it holds {listed(content.files, 4)}: give --which, or one file"
