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
import dataclasses
import inspect
import math
import os
import pickle
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from studiogan_guidance import rng, samplers
from studiogan_guidance.common import UserError
from studiogan_guidance.config import RunConfig, read
from studiogan_guidance.evaluation import report
from studiogan_guidance.host import compat
from studiogan_guidance.host.compat import swapped
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import COMMIT, Checkout, commit_of
from studiogan_guidance.host.metrics import backbone_protocol, fingerprint
from studiogan_guidance.host.networks import describe, host_sections, weights_digest
from studiogan_guidance.latents import LabelPlan, view_for
from studiogan_guidance.latents.base import Inputs
from studiogan_guidance.samplers import Sampler, Truncation, restat
from studiogan_guidance.training.base import STAGES, DiscriminatorStep, Stage, Trained

KEYS = ("sampler", "stages", "restat")  # of the YAML, kept in the host's RUN
NAMES = {
    "FID": "fid",
    "IS": "is",
    "Improved_Precision": "precision",
    "Improved_Recall": "recall",
    "Density": "density",
    "Coverage": "coverage",
}
SEAM = {"y_sampler", "truncation_factor", "batch_size", "is_train", "generator", "RUN", "MODEL", "LOSS", "device"}

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
            seam = set(inspect.signature(sample.generate_images).parameters)
        except (UserError, AttributeError) as error:
            raise UserError(f"register() must be called where the host's src folder is importable: {error}") from error
        if not seam >= SEAM:
            root = Path(sample.__file__).parents[2]
            raise UserError(
                f"the host in {root} is at {commit_of(root) or 'an unknown commit'} and lacks {sorted(SEAM - seam)} in "
                f"generate_images: git -C {root} checkout {COMMIT}"
            )
        stack.enter_context(compat.active(compat.RUN_SHIMS))
        host = config.Configurations
        for owner, name, value in (
            (host, "_overwrite_cfgs", _overwrite_cfgs(host._overwrite_cfgs)),
            (host, "check_compatability", _check_compatability(host.check_compatability)),
            (sample, "generate_images", _generate_images(sample.generate_images)),
            (features, "generate_images_and_stack_features", _stack(features.generate_images_and_stack_features)),
            (misc.GeneratorController, "prepare_generator", _prepare(misc.GeneratorController.prepare_generator)),
            (loader, "WORKER", _worker(loader.WORKER)),
            (torch.multiprocessing, "spawn", _spawn(torch.multiprocessing.spawn)),
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


# ---------------------------------------------------------------------------- the configuration


def _overwrite_cfgs(original: Any) -> Any:
    def overwrite(self: Any, cfg_file: str) -> None:
        values = read(Path(cfg_file))
        foreign = sorted(set(values) - {"host", "host_config", *KEYS})
        if foreign:
            raise UserError(
                f"{cfg_file} has {', '.join(foreign)}, which only 'studiogan-guidance sample' and 'eval' read: in a "
                "host run the host's own options decide; take the keys out"
            )
        import yaml

        sections = host_sections(values["host"], values.get("host_config"), Path(module("config").__file__).parents[1])
        handle, path = tempfile.mkstemp(suffix=".yaml")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                yaml.safe_dump(dict(sections), file)
            original(self, path)
        except (AttributeError, KeyError) as error:
            raise UserError(f"the host rejects {cfg_file}: {' '.join(str(error).split())}") from error
        finally:
            os.unlink(path)
        RunConfig(restat=values.get("restat", 0), stages=values["stages"])  # checks their types
        for key in KEYS:
            setattr(self.RUN, key, values.get(key))

    return overwrite


def _check_compatability(original: Any) -> Any:
    def check(self: Any) -> None:
        try:
            original(self)
        except AssertionError as error:
            raise UserError(f"the host refuses this run: {' '.join(str(error).split())}") from error
        run, steps = self.RUN, self.OPTIMIZATION.total_steps
        if run.train and run.ckpt_dir is None and run.save_freq > steps + 1:
            raise UserError(f"--save_freq {run.save_freq} is more than the {steps} steps of the run: nothing is saved")
        _stages(run)
        sampler = _sampler(run)
        if sampler is None:
            if run.restat:
                raise UserError(
                    "restat needs a sampler: add sampler to the YAML (plain, for statistics of plain images)"
                )
            return
        run.sampler = {"name": run.sampler["name"], **report.plain_data(samplers.options(sampler))}  # defaults included
        if not _guides(run):
            return
        name = run.sampler["name"]
        for asked, flag in (
            (run.langevin_sampling, "-lgv (Langevin sampling)"),
            (self.LOSS.apply_lo and self.LOSS.lo_steps4eval, "LOSS.apply_lo (latent optimisation)"),
            (run.truncation_factor != -1 and isinstance(sampler, Truncation), "--truncation_factor"),
            (run.restat and run.standing_statistics, "-std_stat, when restat is on,"),
            (run.restat and run.batch_statistics, "-batch_stat, when restat is on,"),
        ):
            if asked:
                raise UserError(f"{flag} cannot be combined with sampler '{name}': drop one of the two")
        _truncation(self.MODEL, run.truncation_factor, run.truncation_cutoff)

    return check


def _sampler(run: Any) -> Sampler | None:
    spec = getattr(run, "sampler", None)
    return samplers.create(spec["name"], {k: v for k, v in spec.items() if k != "name"}) if spec else None


def _guides(run: Any) -> bool:
    """Whether the images of an evaluation come from us: there is a sampler, and it is not the host's own sampling."""
    sampler = _sampler(run)
    return sampler is not None and (not sampler.neutral or bool(run.restat))


def _stages(run: Any) -> list[Stage]:
    specs = getattr(run, "stages", None) or ()
    return [STAGES.create(spec["name"], {k: v for k, v in spec.items() if k != "name"}) for spec in specs]


def _truncation(model: Any, factor: float, cutoff: int | None) -> Truncation:
    """What --truncation_factor means for a generator: psi of w, or a truncated-normal z; none for a uniform prior."""
    if factor == -1 or (model.backbone not in ("stylegan2", "stylegan3") and model.z_prior != "gaussian"):
        return Truncation()
    if model.backbone not in ("stylegan2", "stylegan3"):
        return Truncation(threshold=factor)
    if not 0 <= factor <= 1:
        raise UserError(f"--truncation_factor is {factor}: for {model.backbone} it lies between 0 and 1 (none)")
    return Truncation(psi=factor, cutoff=cutoff)


# ---------------------------------------------------------------------------- images


class _Session:
    """One analysis of the host: its generator as a view, its sampler, and what batch norms use."""

    def __init__(self, generator: Any, run: Any, model: Any, num_classes: int, device: Any) -> None:
        network = getattr(generator, "module", generator)  # out of DataParallel or DistributedDataParallel
        networks = describe(network, model, num_classes, 0, torch.device(device), "the host's generator")
        digest = "" if _now.training or model.backbone not in ("stylegan2", "stylegan3") else weights_digest(network)
        self.bare = view_for(dataclasses.replace(networks, batch_statistics=run.batch_statistics, digest=digest))
        self.view = _truncation(model, run.truncation_factor, run.truncation_cutoff).of(self.bare)
        sampler = _sampler(run)
        assert sampler is not None
        sampler.check(self.view)
        self.generator, self.sampler, self.restat = generator, sampler, run.restat
        self.seed = run.seed if _now.seed is None else _now.seed
        self._statistics: restat.Statistics | None = None

    def statistics(self) -> restat.Statistics:
        if self._statistics is None:
            size = _now.batch_size
            self._statistics = restat.accumulate(self.view, self.sampler, self.restat, size) if self.restat else {}
        return self._statistics

    def images(self, count: int, plan: LabelPlan) -> tuple[Tensor, Tensor]:
        """The next ``count`` images [count, 3, H, W] and their labels; chosen labels go round from the first image."""
        seeds = range(self.seed + _now.position, self.seed + _now.position + count)
        _now.position += count
        with restat.applied(self.statistics()):
            (batch,) = self.sampler.stream(self.view, seeds, count, plan)
        _now.cost.append((count, batch.cost))
        return batch.images, batch.labels

    def decode(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images of given noise [B, Z] and labels [B] or class weights [B, C]."""
        seeds = range(self.seed + _now.position, self.seed + _now.position + len(z))
        _now.position += len(z)
        inputs = Inputs(torch.tensor(seeds), z, labels, None, rng.generators(seeds))
        with torch.no_grad(), self.bare.frozen(), restat.applied(self.statistics()):
            return self.sampler.images(self.bare, inputs)


@dataclasses.dataclass
class _Now:
    """What the analysis that is going on has reached."""

    session: _Session | None = None
    position: int = 0
    training: bool = False
    direct: bool = False
    seed: int | None = None
    batch_size: int = 64
    cost: list[tuple[int, dict[str, int]]] = dataclasses.field(default_factory=list)

    def per_image(self) -> dict[str, float]:
        names = sorted({name for _, cost in self.cost for name in cost})
        total = sum(count for count, _ in self.cost) or 1
        return {name: sum(cost.get(name, 0) for _, cost in self.cost) / total for name in names}


_now = _Now()


def _generate_images(original: Any) -> Any:
    signature = inspect.signature(original)

    def generate_images(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        run = given["RUN"]
        if given["is_train"] or not _guides(run):
            return original(*args, **kwargs)
        count, classes, wish = given["batch_size"], given["num_classes"], given["y_sampler"]
        if _now.session is None or _now.session.generator is not given["generator"]:
            _now.session = _Session(given["generator"], run, given["MODEL"], classes, given["device"])
        plan = LabelPlan()
        if wish != "totally_random":
            labels = module("utils.sample").sample_y(wish, count, classes, given["device"]).tolist()
            plan, count = LabelPlan(tuple(labels)), len(labels)
        images, labels = _now.session.images(count, plan)
        return images, labels, None, None, None, None, None

    return generate_images


def _stack(original: Any) -> Any:
    signature = inspect.signature(original)

    def stack(*args: Any, **kwargs: Any) -> Any:
        """Processes take consecutive blocks, so that the host, which joins them by rank, sees one run's images."""
        given = signature.bind(*args, **kwargs).arguments
        start, block, ranks = _now.position, 0, 1
        if given["DDP"]:
            batches = math.ceil(given["num_generate"] / given["batch_size"]) // given["world_size"] + 1
            block, ranks = batches * given["batch_size"], given["world_size"]
            _now.position = start + block * torch.distributed.get_rank()
        found = original(*args, **kwargs)
        if given["DDP"]:
            _now.position = start + block * ranks
        return found

    return stack


def _prepare(original: Any) -> Any:
    def prepare_generator(self: Any) -> Any:
        """Every analysis of the host begins with this call: so does the run of seeds."""
        _now.session, _now.position, _now.cost = None, 0, []
        generator, mapping, synthesis = original(self)
        if _now.direct:
            cfgs = self.cfgs
            session = _Session(generator, cfgs.RUN, cfgs.MODEL, cfgs.DATA.num_classes, self.device)
            return _Guided(generator, session), mapping, synthesis
        return generator, mapping, synthesis

    return prepare_generator


class _Guided:
    """A generator as the host's interpolation and SeFa call it, with guided codes; all else is the generator's own.

    ``shared`` gives class weights instead of embeddings, so that interpolated classes reach the view as weights.
    """

    def __init__(self, generator: Any, session: _Session) -> None:
        self._generator, self._session = getattr(generator, "module", generator), session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def shared(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self._session.view.num_classes).float()

    def __call__(self, z: Tensor, labels: Tensor | None, shared_label: Tensor | None = None, eval: bool = False) -> Any:
        chosen = labels if shared_label is None else shared_label
        assert chosen is not None
        return self._session.decode(z, chosen)


# ---------------------------------------------------------------------------- the worker


def _worker(original: Any) -> Any:
    class Worker(original):  # type: ignore[misc]
        """The host's worker; its images come from the sampler of the YAML."""

        _in_training = False

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._extra = _stages(self.RUN)
            _now.seed, _now.training = _shared(self.RUN.seed, self.DDP), False
            _now.batch_size = self.OPTIMIZATION.batch_size * (self.OPTIMIZATION.world_size if self.DDP else 1)
            if _guides(self.RUN):  # what cannot work fails before the training
                _now.training = True
                _Session(self.gen_ctlr.generator, self.RUN, self.MODEL, self.DATA.num_classes, self.local_rank)
                _now.training = False
            if self.RUN.sampler and self.global_rank == 0:
                self.logger.info(f"Sampler: {_said(self.RUN)}")
                module("wandb").config.update({key: getattr(self.RUN, key) for key in KEYS}, allow_val_change=True)
            if any(type(stage).discriminator_loss is not Stage.discriminator_loss for stage in self._extra):
                self._add_losses()

        def _add_losses(self) -> None:
            if self.LOSS.adv_loss == "MH":
                raise UserError("stages with a discriminator loss do not work with the multi-hinge loss (adv_loss MH)")
            seen: list[tuple[Tensor, Tensor, Any]] = []
            loss = self.LOSS.d_loss

            def remember(network: Any, args: Any, outputs: Any) -> None:
                if self._in_training:
                    seen[:] = [*seen[-1:], (args[0], args[1], outputs)]

            def d_loss(*args: Any, **kwargs: Any) -> Any:
                total = loss(*args, **kwargs)
                for stage in self._extra:
                    extra = stage.discriminator_loss(DiscriminatorStep(*seen[0], *seen[1]))
                    total = total if extra is None else total + extra
                seen.clear()
                return total

            module("utils.misc").peel_model(self.Dis).register_forward_hook(remember)
            self.LOSS.d_loss = d_loss

        @property
        def training(self) -> bool:
            return self._in_training

        @training.setter
        def training(self, value: bool) -> None:
            """The host sets this to true before its training loop, and to false once after it, in every process."""
            was, self._in_training = self._in_training, value
            _now.training = value
            if value or not (self.DDP or (was and self._extra)):
                return
            self._load_best()
            if was:
                for stage in self._extra:
                    stage.after_training(self._trained())

        def _load_best(self) -> None:
            """The weights that will be evaluated, in every process (the host itself loads them in the first only)."""
            if self.global_rank == 0:
                module("utils.ckpt").load_best_model(
                    ckpt_dir=self.RUN.ckpt_dir,
                    Gen=self.Gen,
                    Dis=self.Dis,
                    apply_g_ema=self.MODEL.apply_g_ema,
                    Gen_ema=self.Gen_ema,
                    ema=self.ema,
                )
            if self.DDP:
                for network in (self.Gen, self.Dis, self.Gen_ema):
                    for value in network.state_dict().values() if network is not None else ():
                        whole = value.contiguous()
                        torch.distributed.broadcast(whole, 0)
                        value.copy_(whole)

        def _trained(self) -> Trained:
            generator = module("utils.misc").peel_model(self.gen_ctlr.generator)
            device = torch.device(self.local_rank)
            networks = describe(
                generator, self.MODEL, self.DATA.num_classes, self.DATA.img_size, device, self.RUN.ckpt_dir
            )
            return Trained(
                networks=dataclasses.replace(networks, digest=weights_digest(generator)),
                discriminator=module("utils.misc").peel_model(self.Dis),
                real=lambda: iter(self.train_dataloader),
                folder=Path(self.RUN.ckpt_dir or "."),
                seed=_now.seed or 0,
                rank=int(self.global_rank),
                world_size=self.OPTIMIZATION.world_size,
                log=self.logger.info if self.logger else lambda line: None,
            )

        def evaluate(self, step: Any, metrics: Any, writing: bool = True, training: bool = False) -> Any:
            misc, found, started = module("utils.misc"), {}, time.perf_counter()
            keep = misc.accm_values_convert_dict

            def catch(*args: Any, **kwargs: Any) -> Any:
                found.update(kwargs["value_dict"])
                return keep(*args, **kwargs)

            with swapped(misc, "accm_values_convert_dict", catch):
                is_best = super().evaluate(step=step, metrics=metrics, writing=writing, training=training)
            if self.RUN.sampler and self.global_rank == 0:
                self._write_down(step, found, time.perf_counter() - started)
            return is_best

        def _write_down(self, step: Any, found: Mapping[str, Any], seconds: float) -> None:
            path = Path(self.RUN.save_dir) / "results.jsonl"
            cost = _now.per_image()
            row = report.row(
                sampler=self.RUN.sampler["name"],
                options={key: value for key, value in self.RUN.sampler.items() if key != "name"},
                metrics={NAMES[name]: float(value) for name, value in found.items() if name in NAMES},
                protocol=self._protocol(),
                cost=cost,
                seconds=seconds,
                generator={"backbone": self.MODEL.backbone, "source": self.RUN.ckpt_dir, "step": step},
                config={"run_name": self.run_name, **{k: dict(vars(v)) for k, v in self._sections()}},
                device=f"{self.local_rank}" + (f", {self.OPTIMIZATION.world_size} processes" if self.DDP else ""),
            )
            report.append(path, [row])
            passes = ", ".join(f"{name} {count:g}" for name, count in cost.items()) or "the host's own"
            self.logger.info(f"Sampler: {_said(self.RUN)}; passes per image: {passes}; added to {path}")
            module("wandb").run.summary.update({f"sampler/{name} per image": count for name, count in cost.items()})

        def _sections(self) -> Iterator[tuple[str, Any]]:
            for name in ("DATA", "MODEL", "RUN"):
                yield name, getattr(self.cfgs, name)

        def _protocol(self) -> dict[str, Any]:
            run, data = self.RUN, self.DATA
            truncation = {"truncation": run.truncation_factor} if run.truncation_factor != -1 else {}
            backbone = getattr(self.eval_model.model, "module", self.eval_model.model)
            root = Path(module("config").__file__).parents[1]
            return {
                "num": self.num_eval[run.ref_dataset],
                "num_real": len(self.eval_dataloader.dataset),
                "seed": _now.seed if _guides(run) else f"the host's {run.seed}",
                "labels": "uniform",
                "noise_mode": "random",
                "statistics": _statistics(self),
                **truncation,
                "k": 5,
                "splits": 1,
                **fingerprint(Path(run.data_dir), data.name, data.img_size, run.pre_resizer, run.ref_dataset),
                **backbone_protocol(run.eval_backbone, backbone, run.post_resizer),
                "metric_functions": "host",
                "host_commit": commit_of(root) or "unknown",
            }

        def run_linear_interpolation(self, *args: Any, **kwargs: Any) -> None:
            with self._guided():
                super().run_linear_interpolation(*args, **kwargs)

        def run_semantic_factorization(self, *args: Any, **kwargs: Any) -> None:
            with self._guided():
                super().run_semantic_factorization(*args, **kwargs)

        @contextmanager
        def _guided(self) -> Iterator[None]:
            with swapped(_now, "direct", _guides(self.RUN)):
                yield

    return Worker


def _said(run: Any) -> str:
    options = report.short({key: value for key, value in run.sampler.items() if key != "name"})
    return " ".join(filter(None, (run.sampler["name"], options, f"restat={run.restat}" if run.restat else "")))


def _statistics(worker: Any) -> str:
    run = worker.RUN
    if run.restat:
        return f"restat {run.restat}x{_now.batch_size}"
    if run.batch_statistics:
        return f"batch {worker.OPTIMIZATION.batch_size}"
    if worker.gen_ctlr.standing_statistics:
        return f"standing {run.standing_step}x{run.standing_max_batch}, plain"
    return "checkpoint"


def _shared(seed: int, distributed: bool) -> int:
    """Rank 0's seed in every process: a resumed host run has another one in each."""
    seeds = [seed]
    if distributed:
        torch.distributed.broadcast_object_list(seeds)
    return seeds[0]


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
        except torch.multiprocessing.ProcessRaisedException as error:
            last = str(error).strip().rpartition("\n")[2]
            if (mark := f"{UserError.__name__}: ") in last:
                raise UserError(last.partition(mark)[2]) from error
            raise
        except module("wandb").errors.UsageError as error:
            raise UserError(f"W&B: {error}; log in, or export WANDB_MODE=disabled (or offline)") from error
        finally:
            unregister()
