"""Checks of everything that a run may need, each with the command that would fix it."""

from __future__ import annotations

import configparser
import importlib.metadata
import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from studiogan_guidance import __version__
from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.files import cache_dir
from studiogan_guidance.host.inception import FILE as INCEPTION
from studiogan_guidance.host.inception import URL

CLONE = Path(__file__).parent.parent  # where the package runs from a clone, its repository


@dataclass(frozen=True)
class Check:
    """``status`` is ok, warn (something optional is missing) or fail; ``fix`` is what to do about it."""

    name: str
    status: str
    found: str
    fix: str = ""


def run(studiogan: str | None = None) -> list[Check]:
    """All checks, in the order in which one would follow their fixes."""
    checks: list[Callable[[], Check]] = [
        _python,
        _torch,
        _cache,
        _builtin,
        lambda: _checkout(studiogan),
        _host_packages,
        _plugins,
        _inception,
        _lpips,
    ]
    return [check() for check in checks]


def as_text(checks: Sequence[Check]) -> str:
    """Checks as text for a terminal, a line each, with the fix below it."""
    lines = []
    for check in checks:
        lines.append(f"{check.status:<4}  {check.name:<18} {check.found}")
        if check.fix:
            lines.append(f"      fix: {check.fix}")
    return "\n".join(lines)


def _python() -> Check:
    ok = sys.version_info >= (3, 10)
    found = f"{platform.python_version()} on {platform.platform()}, studiogan-guidance {__version__}"
    return Check("python", "ok" if ok else "fail", found, "" if ok else "install Python 3.10 or newer")


def _torch() -> Check:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["no GPU: runs on the CPU"]
    return Check("torch", "ok", f"{torch.__version__}; {', '.join(devices)}")


def _cache() -> Check:
    from studiogan_guidance.evaluation.results import writable

    try:
        return Check("cache folder", "ok", str(writable(cache_dir())))
    except UserError as error:
        return Check("cache folder", "fail", str(error), "export STUDIOGAN_GUIDANCE_CACHE=/a/folder/you/can/write")


def _builtin() -> Check:
    from studiogan_guidance import builtin

    try:
        return Check("built-in GAN", "ok", f"weights {builtin.networks().digest[:16]}")
    except Exception as error:  # safetensors has errors of its own
        fix = "install the package again, from its folder: pip install --force-reinstall --no-deps ."
        return Check("built-in GAN", "fail", one_line(error), fix)


def _checkout(studiogan: str | None) -> Check:
    from studiogan_guidance.host.locate import COMMIT, locate

    try:
        checkout = locate(studiogan)
    except UserError as error:
        return Check("host checkout", "warn", str(error), "studiogan-guidance setup")
    found = f"{checkout.path} at {(checkout.commit or 'an unknown commit')[:7]}"
    if checkout.is_pinned:
        return Check("host checkout", "ok", found)
    return Check("host checkout", "warn", f"{found}; tested with {COMMIT}", f"git -C {checkout.path} checkout {COMMIT}")


def missing_host_packages() -> list[str]:
    """Packages of the ``studiogan`` extra that are not installed."""
    installed = {(d.name or "").lower().replace("_", "-") for d in importlib.metadata.distributions()}
    names = [re.split(r"[^\w.-]", requirement)[0].lower() for requirement in _host_requirements()]
    return [name for name in names if name not in installed]


def _host_requirements() -> list[str]:
    """Requirements of the ``studiogan`` extra: of the installed package, or of the clone that this module is in."""
    try:
        requirements = importlib.metadata.requires("studiogan-guidance") or []
        return [requirement for requirement in requirements if re.search("extra.*studiogan", requirement)]
    except importlib.metadata.PackageNotFoundError:
        settings = configparser.ConfigParser()
        settings.read(CLONE / "setup.cfg")
        return settings.get("options.extras_require", "studiogan", fallback="torchvision").strip().splitlines()


def _host_packages() -> Check:
    if missing := missing_host_packages():
        return Check("host packages", "warn", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("host packages", "ok", f"torchvision {importlib.metadata.version('torchvision')} and the rest")


def _plugins() -> Check:
    from studiogan_guidance.latents.joint import JOINTS
    from studiogan_guidance.samplers import SAMPLERS
    from studiogan_guidance.training import STAGES

    if broken := (*SAMPLERS.broken(), *JOINTS.broken(), *STAGES.broken()):
        return Check("other packages", "warn", "; ".join(broken), "update or uninstall what cannot be imported")
    return Check("other packages", "ok", "all that they register can be imported")


def _inception() -> Check:
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if path.exists():
        return Check("Inception weights", "ok", str(path))
    fix = f"the first eval downloads it; offline: get {URL} elsewhere, and copy it there or give it as --inception FILE"
    return Check("Inception weights", "warn", f"{path} is missing", fix)


def _lpips() -> Check:
    from studiogan_guidance.training.perceptual import cached_alexnet, missing_for_lpips

    if missing := missing_for_lpips():
        found, fix = missing
        return Check("LPIPS weights", "warn", found, f"{fix}; the stage glead takes another distance without it")
    return Check("LPIPS weights", "ok", str(cached_alexnet()))
