"""Find a checkout of the host, or make one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from studiogan_guidance.config import packaged
from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.files import cache_dir

COMMIT = "947b35e"  # of PyTorch-StudioGAN: what this package is written and tested against
SOURCE = "https://github.com/POSTECH-CVLab/PyTorch-StudioGAN.git"
NAME = "PyTorch-StudioGAN"
LANDMARKS = ("src/config.py", "src/models/model.py", "src/utils/sample.py")


@dataclass(frozen=True)
class Checkout:
    """A folder that holds the host, and the commit it is at (None: not a git repository)."""

    path: Path
    commit: str | None

    @property
    def is_pinned(self) -> bool:
        return bool(self.commit and self.commit.startswith(COMMIT))


def locate(option: str | None = None) -> Checkout:
    """The first checkout of these: ``option``, ``$STUDIOGAN_ROOT``, the cache folder, the current folder, its parents.

    Raises:
        UserError: a folder named on purpose (the first two) is no checkout, or there is none; all places are listed.
    """
    tried: dict[str, list[str]] = {}
    for place, path, on_purpose in _places(option):
        if all((path / mark).is_file() for mark in LANDMARKS):
            return Checkout(path.resolve(), commit_of(path))
        if on_purpose:
            raise UserError(
                f"{place} is {path}, but no PyTorch-StudioGAN checkout is there ({LANDMARKS[0]} is missing)"
            )
        tried.setdefault(place, []).append(str(path))

    places = "; ".join(f"{place}: {', '.join(paths)}" for place, paths in tried.items())
    raise UserError(
        f"no PyTorch-StudioGAN checkout found: --studiogan and $STUDIOGAN_ROOT are not set; {places}; "
        "run 'studiogan-guidance setup'"
    )


def _places(option: str | None) -> Iterator[tuple[str, Path, bool]]:
    """The name of each place, its folder, and whether the user named it."""
    if option:
        yield "--studiogan", Path(option).expanduser(), True
    if root := os.environ.get("STUDIOGAN_ROOT"):
        yield "$STUDIOGAN_ROOT", Path(root).expanduser(), True
    yield "the cache folder", cache_dir() / NAME, False
    for folder in (Path.cwd(), *Path.cwd().parents):
        yield "the current folder and its parents", folder, False


def host_configuration(name: str, option: str | None = None) -> str:
    """``name``, or the path of the host's YAML of that name in ``src/configs``, if nothing of our own is called so.

    Args:
        name: of a configuration, such as CIFAR10/BigGAN.yaml.
        option: see ``locate``.

    Raises:
        UserError: nothing has this name in the current folder, in the package and in the host; the nearest is named.
    """
    if os.path.exists(name) or name in packaged():
        return name
    try:
        configs = locate(option).path / "src" / "configs"
    except UserError:
        return name  # whoever reads it says that there is none

    files = {str(file.relative_to(configs)): file for file in sorted(configs.rglob("*.yaml"))}
    if name not in files:
        hint = nearest(name, [*packaged(), *files], 6)
        raise UserError(f"no configuration {name} here, in the package or in {configs}: {hint}")
    return str(files[name])


def _git(*args: str, cwd: Path | None = None) -> str:
    """What git prints; CalledProcessError if it fails, UserError if it is not installed."""
    try:
        finished = subprocess.run(["git", *args], cwd=cwd, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise UserError("git is not installed: install it, or unpack a checkout and set STUDIOGAN_ROOT") from error
    return finished.stdout.strip()


def commit_of(path: Path) -> str | None:
    """The commit that a folder's own git repository is at, or None if it is none."""
    if not (path / ".git").exists():  # do not report the commit of a repository around it
        return None
    try:
        return _git("rev-parse", "HEAD", cwd=path)
    except (UserError, subprocess.CalledProcessError):
        return None


def setup(source: str | None = None) -> Checkout:
    """Clone ``source`` (a git URL or a folder) at the pinned commit into the cache folder, whole or not at all.

    Raises:
        UserError: a cache folder that cannot be written, or git that fails.
    """
    target = cache_dir() / NAME
    if target.exists():
        return locate(str(target))

    # Clone into a temporary folder of the same file system.
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=target.parent))
    except OSError as error:
        raise UserError(f"cannot write into {target.parent}: {error.strerror}; set STUDIOGAN_GUIDANCE_CACHE") from error
    clone = temporary / NAME
    try:
        _git("clone", "--quiet", "--no-checkout", source or SOURCE, str(clone))
        _git("-c", "advice.detachedHead=false", "checkout", "--quiet", COMMIT, cwd=clone)
        locate(str(clone))
        clone.rename(target)
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split()) or "git failed"
        raise UserError(f"cannot set up {source or SOURCE} at {COMMIT}: {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return locate(str(target))
