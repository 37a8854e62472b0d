"""Inside a host run: the sampler of its YAML makes every image of an evaluation, stages follow its training loop.

``register`` swaps a handful of names in the host's modules and ``unregister`` puts them back:

- ``Configurations`` learns the keys ``sampler``, ``stages`` and ``restat`` (they end up in ``RUN``, so in the log);
- ``generate_images`` is intercepted where ``is_train`` is false; training calls pass straight through;
- ``WORKER`` becomes a subclass that guides the two analyses which call the generator by themselves, runs the stages and
  writes down what was measured.

A sampler at its neutral value (scale 1) leaves all of it to the host's own code, bit for bit.
"""

from __future__ import annotations

import atexit
import inspect
import os
import pickle
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import torch

from studiogan_guidance.common import UserError
from studiogan_guidance.host import compat, seam
from studiogan_guidance.host.compat import swapped
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import COMMIT, Checkout, commit_of
from studiogan_guidance.host.worker import GuidedWorker

EXPECTED = {"y_sampler", "truncation_factor", "batch_size", "is_train", "generator", "RUN", "MODEL", "LOSS", "device"}

multiprocessing: Any = torch.multiprocessing
_registered: ExitStack | None = None


def register() -> None:
    """Teach the host, whose ``src`` must be importable, the sampler and the stages. A second call does nothing.

    Raises:
        UserError: no host is importable, or one whose ``generate_images`` is not the one that we know.
    """
    global _registered
    if _registered:
        return
    with ExitStack() as stack:
        stack.enter_context(compat.active())
        try:
            config, sample, loader = module("config"), module("utils.sample"), module("loader")
            features, misc = module("metrics.features"), module("utils.misc")
            found = set(inspect.signature(sample.generate_images).parameters)
        except (UserError, AttributeError) as error:
            raise UserError(f"register() must be called where the host's src folder is importable: {error}") from error
        if not found >= EXPECTED:
            root = Path(sample.__file__).parents[2]
            commit, missing = commit_of(root) or "an unknown commit", ", ".join(sorted(EXPECTED - found))
            raise UserError(
                f"the host in {root} is at {commit} and its generate_images lacks {missing}: "
                f"git -C {root} checkout {COMMIT}"
            )
        stack.enter_context(compat.active(compat.RUN_SHIMS))
        host = config.Configurations
        for owner, name, value in (
            (host, "_overwrite_cfgs", seam.overwrite_cfgs(host._overwrite_cfgs)),
            (host, "check_compatability", seam.check_compatability(host.check_compatability)),
            (sample, "generate_images", seam.generate_images(sample.generate_images)),
            (features, "generate_images_and_stack_features", seam.stack(features.generate_images_and_stack_features)),
            (misc.GeneratorController, "prepare_generator", seam.prepare(misc.GeneratorController.prepare_generator)),
            (loader, "WORKER", type("WORKER", (GuidedWorker, loader.WORKER), {})),
            (multiprocessing, "spawn", _spawn(multiprocessing.spawn)),
            (sys, "excepthook", _one_line(sys.excepthook)),
        ):
            stack.enter_context(swapped(owner, name, value))
        _registered = stack.pop_all()
        atexit.register(unregister)


def unregister() -> None:
    """Put everything back that ``register`` swapped; does nothing if nothing is registered."""
    global _registered
    stack, _registered = _registered, None
    if stack:
        stack.close()
        atexit.unregister(unregister)


# ---------------------------------------------------------------------------- processes and errors


def _spawn(original: Any) -> Any:
    def spawn(fn: Any, args: Any = (), nprocs: int = 1, join: bool = True, daemon: bool = False, **more: Any) -> Any:
        """The host's -DDP, with hooks and shims in the children, and a local meeting point if none is named."""
        if "MASTER_ADDR" not in os.environ:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
        src = str(Path(module("config").__file__).parent)
        return original(_child, (src, pickle.dumps((fn, args))), nprocs, join, daemon, **more)

    return spawn


def _child(rank: int, src: str, call: bytes) -> None:
    with ExitStack() as stack:
        if not _registered:
            stack.enter_context(inside(Checkout(Path(src).parent, None), quiet=False))
            register()
            stack.callback(unregister)
        fn, args = pickle.loads(call)
        fn(rank if torch.cuda.is_available() else compat.CpuRank(rank), *args)


def _one_line(original: Any) -> Any:
    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, UserError):
            original(kind, error, trace)
            return
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2)

    return excepthook


def execute(path: Path, arguments: tuple[str, ...]) -> None:
    """Run a program of the host, which has been entered, as ``python path arguments`` would.

    Unlike with runpy, ``__main__`` stays this process's own program, which the processes that the host starts import.
    The host's log files are closed at the end.
    """
    log, loggers = module("utils.log"), []
    make = log.make_logger

    def make_logger(*args: Any, **kwargs: Any) -> Any:
        loggers.append(make(*args, **kwargs))
        return loggers[-1]

    main = ModuleType("__main__")
    main.__file__ = str(path)
    try:
        with swapped(sys, "argv", [str(path), *arguments]), swapped(log, "make_logger", make_logger):
            exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), main.__dict__)
    finally:
        for logger in loggers:
            logger.propagate = True
            for handler in list(logger.handlers):
                handler.close()
                logger.removeHandler(handler)


def start(checkout: Checkout, script: str, arguments: tuple[str, ...]) -> None:
    """Run the host's ``src/<script>.py`` with ``arguments`` in this process, with shims and hooks, nothing patched.

    Raises:
        UserError: the host refuses the run, or a process of its -DDP met a user's mistake.
        SystemExit: as the host's own argument parser does.
    """
    with inside(checkout, quiet=False):
        register()
        try:
            execute(checkout.path / "src" / f"{script}.py", arguments)
        except multiprocessing.ProcessRaisedException as error:
            last = str(error).strip().rpartition("\n")[2]
            if (mark := f"{UserError.__name__}: ") in last:
                raise UserError(last.partition(mark)[2]) from error
            raise
        except module("wandb").errors.UsageError as error:
            raise UserError(f"W&B: {error}; log in, or export WANDB_MODE=disabled (or offline)") from error
        finally:
            unregister()
