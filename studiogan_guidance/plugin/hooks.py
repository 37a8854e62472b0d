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
import signal
import socket
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any
from urllib.error import URLError

import torch

from studiogan_guidance.devices import cpu_only
from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.host import compat
from studiogan_guidance.host.imports import inside, module, root
from studiogan_guidance.host.locate import COMMIT, Checkout, commit_of
from studiogan_guidance.host.modules import swapped
from studiogan_guidance.plugin import keys, preflight, seam
from studiogan_guidance.plugin.process import kept
from studiogan_guidance.plugin.worker import guided

EXPECTED = {"y_sampler", "truncation_factor", "batch_size", "is_train", "generator", "RUN", "MODEL", "LOSS", "device"}
GRACE = 5  # seconds that processes of -DDP have to end in
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
        _check_host()
        stack.enter_context(compat.active(compat.RUN_SHIMS))
        for owner, name, value in _replacements():
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


def _check_host() -> None:
    """Raise UserError unless a host that we know is importable."""
    try:
        for name in ("config", "loader", "metrics.features", "utils.misc"):
            module(name)
        parameters = set(inspect.signature(module("utils.sample").generate_images).parameters)
    except (UserError, AttributeError) as error:
        raise UserError(f"register() must be called where the host's src folder is importable: {error}") from error

    if not parameters >= EXPECTED:
        commit = commit_of(root()) or "an unknown commit"
        missing = ", ".join(sorted(EXPECTED - parameters))
        raise UserError(
            f"the host in {root()} is at {commit} and its generate_images lacks {missing}: "
            f"git -C {root()} checkout {COMMIT}"
        )


def _replacements() -> list[tuple[Any, str, Any]]:
    """Owner, name and new value of everything in the host, and in this process, that ``register`` swaps."""
    configurations = module("config").Configurations
    sample = module("utils.sample")
    features = module("metrics.features")
    misc = module("utils.misc")
    loader = module("loader")
    ckpt = module("utils.ckpt")
    controller = misc.GeneratorController
    features_of_images = features.generate_images_and_stack_features

    return [
        (configurations, "_overwrite_cfgs", keys.overwrite_cfgs(configurations._overwrite_cfgs)),
        (configurations, "check_compatability", keys.check_compatability(configurations.check_compatability)),
        (sample, "generate_images", seam.generate_images(sample.generate_images)),
        (features, "generate_images_and_stack_features", seam.in_blocks(features_of_images, "num_generate")),
        (misc, "save_images_png", seam.in_blocks(misc.save_images_png, "num_images")),
        (controller, "prepare_generator", seam.prepare(controller.prepare_generator)),
        (loader, "WORKER", guided(loader.WORKER)),
        (ckpt, "load_StudioGAN_ckpts", preflight.explained(ckpt.load_StudioGAN_ckpts)),
        (ckpt, "load_best_model", preflight.explained(ckpt.load_best_model)),
        (ArgumentParser, "parse_args", preflight.parse_args(ArgumentParser.parse_args)),
        (multiprocessing, "spawn", _spawn(multiprocessing.spawn)),
        (sys, "excepthook", _one_line(sys.excepthook)),
    ]


# ---------------------------------------------------------------------------- processes


def _spawn(original: Any) -> Any:
    def spawn(fn: Any, args: Any = (), nprocs: int = 1, join: bool = True, daemon: bool = False, **more: Any) -> Any:
        """The host's -DDP, with hooks and shims in the children, and a local meeting point if none is named."""
        nodes = getattr(getattr(args[0], "RUN", args[0]), "total_nodes", 1)
        if nodes == 1 and "MASTER_ADDR" not in os.environ:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))

        # A child finds the function by name, since ``fn`` may be of a ``__main__`` that it does not have.
        src = str(root() / "src")
        home = Path(sys.argv[0]).stem if fn.__module__ == "__main__" else fn.__module__
        context = original(_child, (src, home, fn.__name__, pickle.dumps(args)), nprocs, False, daemon, **more)
        context.join = _join_all(context)
        if join:
            context.join()
        return context

    return spawn


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _join_all(context: Any) -> Any:
    """A ``join`` that waits for all processes: the host calls it once, and kills whichever was not the first to end.

    Where this process is told to end, so are they.
    """
    join = context.join

    def join_all(*args: Any, **kwargs: Any) -> bool:
        try:
            while not join(*args, **kwargs):
                pass
        except (SystemExit, KeyboardInterrupt):
            for process in context.processes:
                process.terminate()
            for process in context.processes:
                process.join(GRACE)
                process.kill()
            raise
        return True

    return join_all


def _child(rank: int, src: str, home: str, name: str, arguments: bytes) -> None:
    """What a process of the host's -DDP runs: the function ``name`` of the module ``home``, with pickled arguments."""
    with ExitStack() as stack:
        # Enter the host, with hooks and shims.
        if not _registered:
            stack.enter_context(inside(Checkout(Path(src).parent, None), quiet=False))
            register()
            stack.callback(unregister)

        # Processes that load data inherit the shims (main.py asked for spawn, for this process).
        if sys.platform == "linux":
            multiprocessing.set_start_method("fork", force=True)

        # Call the function as the host would have.
        stack.enter_context(_ended_in_order())
        function = getattr(module(home), name)
        args = pickle.loads(arguments)
        function(compat.CpuRank(rank) if cpu_only() else rank, *args)


# ---------------------------------------------------------------------------- errors


def mistake(error: BaseException) -> str | None:
    """The message of a user's mistake, in this process or in one that it started; None if it is anything else."""
    last = str(error).strip().rpartition("\n")[2]

    # Ours, and those of processes.
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, multiprocessing.ProcessRaisedException):
        _, mark, message = last.partition(f"{UserError.__name__}: ")
        return message if mark else _torch_mistake(last)
    if isinstance(error, multiprocessing.ProcessExitedException):
        return (
            f"a process of -DDP was ended from outside ({' '.join(str(error).split())}): it may have run out of memory"
        )

    # Those of libraries.
    if isinstance(error, URLError):
        return f"a download failed ({one_line(error)}): start the host once where there is a network"
    if type(error).__module__.startswith("wandb") and type(error).__name__ == "UsageError":
        return f"W&B: {error}; log in, or export WANDB_MODE=disabled (or offline)"
    return _torch_mistake(last)


def _torch_mistake(text: str) -> str | None:
    """The message for an error of torch that is about the user's images or options; None for any other."""
    if "stack expects each tensor to be equal size" in text:
        return f"images have several sizes ({text.partition('but ')[2]}): set --pre_resizer (such as lanczos)"
    if "DataLoader worker" in text and "exited unexpectedly" in text:
        return f"a process that loads images was ended from outside ({text}): lower --num_workers"
    return None


def _one_line(original: Any) -> Any:
    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = mistake(error)
        if message is None:
            original(kind, error, trace)
            return
        print(f"Error: {message}", file=sys.stderr)
        raise SystemExit(2)

    return excepthook


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM ends the with-block as an exit does, so that no file stays half-written; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---------------------------------------------------------------------------- programs


def execute(path: Path, arguments: tuple[str, ...]) -> None:
    """Run a program of the host, which has been entered, as ``python path arguments`` would.

    Unlike with runpy, ``__main__`` stays this process's own program, which the processes that the host starts import.
    The host's log files are closed at the end.
    """
    main = ModuleType("__main__")
    main.__file__ = str(path)
    with swapped(sys, "argv", [str(path), *arguments]), _closed_loggers():
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), main.__dict__)


@contextmanager
def _closed_loggers() -> Iterator[None]:
    """The loggers that the host makes inside the with-block lose their files at its end."""
    log = module("utils.log")
    make = log.make_logger
    loggers: list[Any] = []

    def make_logger(*args: Any, **kwargs: Any) -> Any:
        logger = make(*args, **kwargs)
        loggers.append(logger)
        return logger

    try:
        with swapped(log, "make_logger", make_logger):
            yield
    finally:
        for logger in loggers:
            logger.propagate = True
            for handler in list(logger.handlers):
                handler.close()
                logger.removeHandler(handler)


def start(checkout: Checkout, script: str, arguments: tuple[str, ...]) -> None:
    """Run the host's ``src/<script>.py`` with ``arguments`` in this process, with shims and hooks, nothing patched.

    What the host changes in this process is put back at the end: see ``process.kept``.

    Raises:
        UserError: the host refuses the run, a process of its -DDP met a user's mistake, or W&B has no key.
        SystemExit: as the host's own argument parser does.
    """
    with kept(), inside(checkout, quiet=False):
        register()
        try:
            with _ended_in_order():
                execute(checkout.path / "src" / f"{script}.py", arguments)

        # What ended it, in a line if that is the user's mistake.
        except SystemExit as error:
            if error.code != 1:
                raise
            raise UserError(
                "the host has nothing to do: add -t, -metrics, -v, -sf or another of its analyses"
            ) from error
        except Exception as error:
            message = mistake(error)
            if message is None:
                raise
            raise UserError(message) from error
        finally:
            unregister()
