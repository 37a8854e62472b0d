"""Checkpoints of the host on the Hugging Face hub: only the files that are needed, of one commit, kept in its cache."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from studiogan_guidance import progress
from studiogan_guidance.config import HUB
from studiogan_guidance.errors import UserError, is_said, nearest, notice_once, one_line
from studiogan_guidance.files import cache_dir, file_digest, json_digest, write_bytes

FORM = f"{HUB}OWNER/REPO[@REVISION]/FOLDER"
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
OWNER = r"[\w.-]+"
REVISION = r"[^@/\s]+"
ADDRESS = re.compile(rf"{HUB}(?P<repository>{OWNER}/{OWNER})(@(?P<revision>{REVISION}))?(/(?P<path>.*))?")
FILES = (".pth", ".pt", ".safetensors")  # endings of the last part of an address that make it a file
MOST = 5000  # entries of a folder that are looked at
TIMEOUT = 10.0  # seconds until a server that says nothing counts as out of reach


@dataclass(frozen=True)
class Address:
    """A folder of a repository on the hub, or one file in it (``file`` is empty for a folder)."""

    repository: str
    revision: str
    folder: str
    file: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """An address as ``FORM`` has it, with ``/FILE`` or without.

        Raises:
            UserError: a text of another form, or a path with parts such as "..".

        Example:
            >>> Address.parse("hf://me/gans@v1/CIFAR10/BigGAN")
            Address(repository='me/gans', revision='v1', folder='CIFAR10/BigGAN', file='')
        """
        match = ADDRESS.fullmatch(text)
        path = urllib.parse.unquote(match["path"] or "").strip("/") if match else ""
        parts = path.split("/") if path else []
        if match is None or not all(map(_is_name, parts)):
            raise UserError(f"--ckpt {text!r} is no address on the hub: write {FORM}")
        file = parts.pop() if parts and parts[-1].endswith(FILES) else ""
        revision = urllib.parse.unquote(match["revision"] or "main")
        return cls(match["repository"], revision, "/".join(parts), file)

    def __str__(self) -> str:
        path = "".join(f"/{part}" for part in (self.folder, self.file) if part)
        revision = urllib.parse.quote(self.revision, safe="")
        return f"{HUB}{self.repository}@{revision}{path}"

    @property
    def name(self) -> str:
        """The name of the folder."""
        return PurePosixPath(self.folder).name


@dataclass(frozen=True)
class Listing:
    """What is in a folder on the hub: names of files, and of folders."""

    files: tuple[str, ...]
    folders: tuple[str, ...]


def is_address(text: object) -> bool:
    return str(text).startswith(HUB)


def pinned(address: Address) -> Address:
    """``address`` at the commit that its revision is at; of a commit, nothing is asked.

    Where the hub cannot be reached, it is the commit of the last time.

    Raises:
        UserError: no such repository or revision, no right to read it, or the hub is out of reach the first time.
    """
    if COMMIT.fullmatch(address.revision):
        return address
    key = {"repository": address.repository, "revision": address.revision}

    # Ask the hub, or remember.
    try:
        with _errors(address):
            answer = _api().model_info(address.repository, revision=address.revision, expand=["sha"], timeout=TIMEOUT)
    except OutOfReach as error:
        known = _recall(key)
        if known is None:
            raise
        if not error.offline:
            notice_once(f"the hub is out of reach: {address.repository} is taken as it was the last time")
        return replace(address, revision=str(known["commit"]))

    # Keep the answer.
    commit = str(answer.sha)
    if not COMMIT.fullmatch(commit):
        raise UserError(f"the hub named no commit for {address}: see whether HF_ENDPOINT is a server of the hub")
    _remember(key, {"commit": commit})
    return replace(address, revision=commit)


def listing(address: Address) -> Listing:
    """What is in the folder of a pinned address. It is asked once, for the content of a commit never changes.

    Raises:
        UserError: no such folder, where those that are there are named; the hub is out of reach.
    """
    key = {"repository": address.repository, "commit": address.revision, "folder": address.folder}
    known = _recall(key)
    if known is None:
        known = _content(address)
        if known is None:
            raise UserError(f"no folder {address.folder} in {_place(address)}: {_folders_above(address)}")
        _remember(key, known)
    return Listing(tuple(known["files"]), tuple(known["folders"]))


def download(address: Address, name: str) -> Path:
    """The file of this name in the folder of a pinned address, on this disk.

    A file that is there already is not asked for. The library resumes a broken connection where it broke; a file whose
    SHA-256 is not the hub's is thrown away.

    Raises:
        UserError: no such file, no right to read it, the hub is out of reach, or a damaged file.
    """
    hub = client()
    path = f"{address.folder}/{name}" if address.folder else name
    known = hub.try_to_load_from_cache(address.repository, path, revision=address.revision)
    if isinstance(known, str):
        return Path(known)

    # Load it.
    shown = partial(progress.Download, f"download of {name}")
    with _library_says(is_said() and progress.on_terminal()), _errors(replace(address, file=name)):
        file = Path(hub.hf_hub_download(address.repository, path, revision=address.revision, tqdm_class=shown))

    # Large files are kept under their SHA-256.
    content = file.resolve()
    if SHA256.fullmatch(content.name) and file_digest(content) != content.name:
        for damaged in (file, content):
            damaged.unlink(missing_ok=True)
        raise UserError(f"{replace(address, file=name)} arrived damaged (its SHA-256 is another): run this again")
    return file


@contextmanager
def _library_says(says: bool) -> Iterator[None]:
    """Let the library say its warnings in a with-block, or not."""
    logging = client().utils.logging
    verbosity = logging.get_verbosity()
    if not says:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def client() -> Any:
    """The package huggingface_hub; UserError if it is missing."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise UserError(
            f"an address {HUB}... needs the package huggingface_hub, which is missing: "
            "pip install 'studiogan-guidance[hub]', or pip install huggingface_hub"
        ) from error
    return huggingface_hub


# ---------------------------------------------------------------------------- what the hub says


class OutOfReach(UserError):
    """The hub cannot be reached; ``offline``: because it was told not to be."""

    offline = False


@contextmanager
def _errors(address: Address) -> Iterator[None]:
    """Say in one line what the library's errors mean; EntryNotFoundError is passed on where a folder is asked for."""
    errors = client().errors
    site = f"{client().constants.ENDPOINT}/{address.repository}"
    try:
        yield

    # The repository.
    except errors.GatedRepoError as error:
        raise UserError(
            f"{address.repository} is gated: ask for access at {site}, then log in (hf auth login, or HF_TOKEN)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"the hub has no repository {address.repository}, or it is private: check the name, or log in "
            "(hf auth login, or HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{address.repository} has no revision {address.revision}: give a branch, a tag or a whole commit, or "
            "leave it out for main"
        ) from error

    # The file.
    except errors.LocalEntryNotFoundError as error:
        raise _out_of_reach(address, error) from error
    except errors.EntryNotFoundError as error:
        if not address.file:
            raise
        raise UserError(f"no file {address.file} in {replace(address, file='')}: see what is at {site}") from error

    # The connection.
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise UserError(f"the hub refuses {address} ({code}): log in (hf auth login, or HF_TOKEN)") from error
        raise _out_of_reach(address, error) from error
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the library has used three others for HTTP, each with errors of its own
        raise _out_of_reach(address, error) from error


def _out_of_reach(address: Address, error: BaseException) -> OutOfReach:
    hub = client()
    offline = isinstance(error, hub.errors.OfflineModeIsEnabled) or hub.constants.HF_HUB_OFFLINE
    if offline:
        found = OutOfReach(f"{address} is not in the cache, and HF_HUB_OFFLINE is set: unset it once")
    else:
        found = OutOfReach(
            f"cannot load {address} from {hub.constants.ENDPOINT} ({one_line(error, 100)}): run this again, it goes on "
            "where it was"
        )
    found.offline = bool(offline)
    return found


def _api() -> Any:
    return client().HfApi()


def _content(address: Address) -> dict[str, list[str]] | None:
    """The names in a folder; None if there is no such folder."""
    try:
        with _errors(replace(address, file="")):
            tree = _api().list_repo_tree(
                address.repository, address.folder or None, revision=address.revision, recursive=False
            )
            entries = list(islice(tree, MOST))
    except client().errors.EntryNotFoundError:
        return None

    # Take plain names of what is in this very folder, and nothing else that a server may say.
    content: dict[str, list[str]] = {"files": [], "folders": []}
    prefix = f"{address.folder}/" if address.folder else ""
    for entry in entries:
        name = str(entry.path).removeprefix(prefix)
        if str(entry.path) == f"{prefix}{name}" and _is_name(name):
            content["folders" if type(entry).__name__ == "RepoFolder" else "files"].append(name)
    return {key: sorted(names) for key, names in content.items()}


def _is_name(name: str) -> bool:
    """Whether a text is the name of a file or folder, and no path or anything that acts on a terminal."""
    return name not in ("", ".", "..") and name.isprintable() and not set(name) & set("/\\")


def _folders_above(address: Address) -> str:
    """The folders in the nearest one above that is there."""
    above = PurePosixPath(address.folder)
    while above.name:
        wanted = above.name
        above = above.parent
        folder = "" if above == PurePosixPath(".") else str(above)
        content = _content(replace(address, folder=folder, file=""))
        if content is not None:
            where = f"{folder} has the folders" if folder else "it has the folders"
            return f"{where}: {nearest(wanted, content['folders'], 6)}"
    return "it is empty"


def _place(address: Address) -> str:
    return str(replace(address, folder="", file=""))


# ---------------------------------------------------------------------------- what is known from the last time


def _record(key: Mapping[str, str]) -> Path:
    """Where the cache keeps what the hub said about a ``key``."""
    whole = {"version": 1, "endpoint": client().constants.ENDPOINT, **key}
    return cache_dir() / "hub" / f"{json_digest(whole)}.json"


def _remember(key: Mapping[str, str], value: Mapping[str, Any]) -> None:
    with suppress(UserError):  # a cache that cannot be written keeps nothing
        write_bytes(_record(key), json.dumps(value).encode(), sync=False)


def _recall(key: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        value = json.loads(_record(key).read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
