"""The host's worker, guided: it writes down what it measures, guides interpolation and SeFa, and runs the stages."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studiogan_guidance import samplers
from studiogan_guidance.config import RUN_KEYS, RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import results, tables
from studiogan_guidance.host.backbone import backbone_protocol
from studiogan_guidance.host.images import RealImages, fingerprint, held_out_split
from studiogan_guidance.host.imports import module, root
from studiogan_guidance.host.locate import Checkout, commit_of
from studiogan_guidance.host.modules import swapped
from studiogan_guidance.host.networks import describe, snapshot
from studiogan_guidance.host.source import companions
from studiogan_guidance.latents import Networks
from studiogan_guidance.latents.base import Companions, weights_digest
from studiogan_guidance.plugin.companions import attach, augmentation
from studiogan_guidance.plugin.keys import guides, has_loss, sampler_of, stages_of
from studiogan_guidance.plugin.seam import RunState, Session, active
from studiogan_guidance.rng import check_images
from studiogan_guidance.samplers import restat
from studiogan_guidance.training.stage import DiscriminatorStep, Trained, Training, has_companion

Loss = Callable[[DiscriminatorStep], "Tensor | None"]
METRIC_NAMES = {
    "FID": "fid",
    "IS": "is",
    "Improved_Precision": "precision",
    "Improved_Recall": "recall",
    "Density": "density",
    "Coverage": "coverage",
}


def guided(host: type) -> type:
    """The host's WORKER with ``GuidedWorker`` in front of it; each of its methods runs in the state of its worker."""
    methods = {
        name: _in_state(method)
        for name, method in vars(host).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    in_state = type("InState", (host,), methods)
    return type("WORKER", (GuidedWorker, in_state), {})


def _in_state(method: Any) -> Any:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with active(self.run_state):
            return method(self, *args, **kwargs)

    return call


class GuidedWorker:
    """What comes in front of the host's WORKER, by inheritance: its images are those of the sampler of the YAML.

    Attributes:
        run_state: what this worker knows of its run; two workers in one process have one each.
    """

    cfgs: Any
    RUN: Any
    DATA: Any
    MODEL: Any
    LOSS: Any
    OPTIMIZATION: Any
    Gen: Any
    Gen_ema: Any
    Dis: Any
    ema: Any
    DDP: bool
    gen_ctlr: Any
    eval_model: Any
    num_eval: Any
    train_dataloader: Any
    eval_dataloader: Any
    global_rank: Any
    local_rank: Any
    logger: Any
    run_name: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Let the host build its worker.
        self.run_state = RunState()
        super().__init__(*args, **kwargs)

        self._stages = stages_of(self.RUN)
        self._evaluations = 0  # of those after the training, which --num_eval repeats
        self._writes = bool(self.RUN.sampler) and self.global_rank == 0

        # Share what rank 0 knows of the run.
        self.run_state.seed = _shared(self.RUN.seed, self.DDP)
        self.run_state.folder = _shared(self.RUN.ckpt_dir, self.DDP)
        self.run_state.companions = self._companions()
        self.run_state.image_size = self.DATA.img_size

        # Check seeds, sampler and stages before the training.
        if guides(self.RUN):
            if self.RUN.eval_metrics:
                check_images(self.run_state.seed or 0, self.num_eval[self.RUN.ref_dataset] * self.RUN.num_eval)
            with swapped(self.run_state, "training", True):
                generator, device = self.gen_ctlr.generator, self.local_rank
                Session(self.run_state, generator, self.RUN, self.MODEL, self.DATA.num_classes, device)
        if self.RUN.train:
            for stage in self._stages:
                stage.check(self._networks(), self._discriminator(), self._processes)

        # Log the sampler.
        if self._writes:
            self.logger.info(f"Sampler: {self._sampler_line()}")
            module("wandb").config.update({key: getattr(self.RUN, key) for key in RUN_KEYS}, allow_val_change=True)
            if self.RUN.eval_metrics:
                self._protocol()  # reads all file names once, before the training

        # Add to the discriminator's loss.
        losses: list[Loss] = [stage.discriminator_loss for stage in self._stages if has_loss(stage)]
        if self.RUN.train and any(map(has_companion, self._stages)):
            losses += [companion.loss for companion in attach(self, self._stages, self._training()).values()]
        if losses:
            self._add_losses(losses)

    # ------------------------------------------------------------------------ networks and data of the run

    def _generator(self) -> Any:
        return module("utils.misc").peel_model(self.gen_ctlr.generator)

    def _discriminator(self) -> Any:
        return module("utils.misc").peel_model(self.Dis)

    def _companions(self) -> Companions:
        def held_out() -> RealImages:
            split = held_out_split(self.DATA.name)
            cfg = RunConfig(data=self.RUN.data_dir, reference=split, pre_resizer=self.RUN.pre_resizer)
            return RealImages(cfg, Checkout(root(), None), self.DATA.name, self.DATA.img_size)

        return companions(
            discriminator=lambda: self._discriminator().eval(),  # the host, which has just done so too, sets it back
            held_out=held_out,
            snapshot=lambda path: snapshot(self._generator(), path, RunConfig()),
        )

    def _networks(self) -> Networks:
        device = torch.device(self.local_rank)
        folder = str(self.run_state.folder or self.RUN.ckpt_dir)
        return describe(self._generator(), self.MODEL, self.DATA.num_classes, self.DATA.img_size, device, folder)

    @property
    def _processes(self) -> int:
        return self.OPTIMIZATION.world_size if self.DDP else 1  # without -DDP the host counts GPUs there

    # ------------------------------------------------------------------------ training and stages

    def _training(self) -> Training:
        """What is trained beside the discriminator sees this; the generator is the one that trains."""
        generator = module("utils.misc").peel_model(self.Gen)
        return Training(
            networks=dataclasses.replace(self._networks(), generator=generator),
            discriminator=self._discriminator(),
            optimiser=self.OPTIMIZATION.d_optimizer,
            augmentation=augmentation(self.cfgs.AUG),
            processes=self._processes,
            rank=int(self.global_rank),
            seed=self.run_state.seed or 0,
            log=self._log,
        )

    def _log(self, line: str) -> None:
        if self.logger:
            self.logger.info(line)

    def _add_losses(self, losses: Sequence[Loss]) -> None:
        """Add to the discriminator's loss; ``losses`` see its last two passes, on real and on fake images."""
        passes: list[tuple[Tensor, Tensor, Any]] = []
        loss = self.LOSS.d_loss

        def remember(network: Any, args: Any, outputs: Any) -> None:
            if self.run_state.training:
                passes[:] = [*passes[-1:], (args[0], args[1], outputs)]

        def d_loss(*args: Any, **kwargs: Any) -> Any:
            total = loss(*args, **kwargs)
            real, fake = passes
            for extra_loss in losses:
                extra = extra_loss(DiscriminatorStep(*real, *fake))
                if extra is not None:
                    total = total + extra
            passes.clear()
            return total

        self.Dis.register_forward_hook(remember)  # also where it is wrapped: the wrapper sees whole batches
        self.LOSS.d_loss = d_loss

    @property
    def training(self) -> bool:
        return self.run_state.training

    @training.setter
    def training(self, value: bool) -> None:
        """The host sets this to true before its training loop, and to false once after it, in every process."""
        has_trained = self.run_state.training and not value
        self.run_state.training = value
        stages = self._stages if has_trained else []
        if value or not (self.DDP or stages):
            return

        # Continue with the weights that will be evaluated.
        self._load_best()
        if stages:
            run = self._trained()
            with torch.random.fork_rng(devices=[]):  # what the host does next is as without them
                for stage in stages:
                    stage.after_training(run)

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
        if not self.DDP:
            return

        # The other processes get them from the first.
        networks = [network for network in (self.Gen, self.Dis, self.Gen_ema) if network is not None]
        for network in networks:
            for value in network.state_dict().values():
                whole = value.contiguous()
                torch.distributed.broadcast(whole, 0)
                value.copy_(whole)

    def _trained(self) -> Trained:
        networks = self._networks()
        return Trained(
            networks=dataclasses.replace(networks, digest=weights_digest(networks.generator)),
            discriminator=self._discriminator,
            real=self._real,
            folder=Path(networks.source),
            seed=self.run_state.seed or 0,
            rank=int(self.global_rank),
            world_size=self._processes,
            log=self._log,
            record=lambda step, values: module("wandb").log({f"stage/{key}": value for key, value in values.items()}),
        )

    def _real(self, batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless training images: this process's shares of batches, cut from the larger batches of the host."""
        share = batch_size // self._processes
        while True:
            for images, labels in self.train_dataloader:
                for part, part_labels in zip(images.split(share), labels.split(share)):
                    if len(part) == share or len(images) < share:
                        yield part, part_labels

    # ------------------------------------------------------------------------ evaluation

    def evaluate(self, step: Any, metrics: Any, writing: bool = True, training: bool = False) -> Any:
        """The host's evaluation; what it measured becomes a row of results.jsonl."""
        host: Any = super()
        misc = module("utils.misc")
        convert = misc.accm_values_convert_dict
        values: dict[str, Any] = {}

        def catch(*args: Any, **kwargs: Any) -> Any:
            values.update(kwargs["value_dict"])
            return convert(*args, **kwargs)

        # Repeated evaluations continue the sequence of seeds.
        first = 0 if training else self._evaluations * self.num_eval[self.RUN.ref_dataset]
        self._evaluations += not training

        # The host's own sampling moves spectral norms, so the weights are those before it.
        digest = weights_digest(self._generator()) if self._writes else ""
        with active(self.run_state), swapped(self.run_state, "first", first):
            started = time.perf_counter()
            with swapped(misc, "accm_values_convert_dict", catch):
                is_best = host.evaluate(step=step, metrics=metrics, writing=writing, training=training)
            if self._writes:
                self._write_down(self._row(step, values, time.perf_counter() - started, digest))
        return is_best

    def _row(self, step: Any, values: Mapping[str, Any], seconds: float, digest: str) -> dict[str, Any]:
        state = self.run_state
        sampler = sampler_of(self.RUN, state.training)
        assert sampler is not None
        view = state.session.view if state.session else None
        used = sampler.resolved(view) if view else sampler

        # The generator, as in rows of eval.
        generator = {
            "backbone": self.MODEL.backbone,
            "source": self.RUN.ckpt_dir,
            "sha256": digest,
            "model_sha256": self.cfgs.model_sha256,
            "step": step,
        }
        if view:
            generator.update(used.files(view))

        # The host's configuration takes the place of ours.
        config = {name: dict(vars(getattr(self.cfgs, name))) for name in ("DATA", "MODEL", "RUN")}
        processes = f", {self.OPTIMIZATION.world_size} processes" if self.DDP else ""

        return results.row(
            sampler=self.RUN.sampler["name"] if used is sampler else samplers.SAMPLERS.name_of(used),
            options=samplers.options(used),
            metrics={METRIC_NAMES[name]: float(value) for name, value in values.items() if name in METRIC_NAMES},
            protocol=self._protocol(),
            cost=state.per_image(),
            setup=dict(view.ledger.setup) if view else {},
            notes=state.means(),
            seconds=seconds,
            generator=generator,
            config={"run_name": self.run_name, **config},
            device=f"{self.local_rank}{processes}",
        )

    def _write_down(self, row: Mapping[str, Any]) -> None:
        """Append a row to results.jsonl, and what each image cost to the log and to W&B."""
        path = Path(self.RUN.save_dir) / results.FILE
        cost = row["cost"]
        results.append(path, [row])
        passes = ", ".join(f"{name} {count:g}" for name, count in cost.items()) or "the host's own"
        self.logger.info(f"Sampler: {self._sampler_line()}; passes per image: {passes}; added to {path}")
        module("wandb").run.summary.update({f"sampler/{name} per image": count for name, count in cost.items()})

    def _protocol(self) -> dict[str, Any]:
        run = self.RUN
        state = self.run_state
        protocol = {
            "num": self.num_eval[run.ref_dataset],
            "num_real": len(self.eval_dataloader.dataset),
            "seed": (state.seed or 0) + state.first if guides(run) else f"the host's {run.seed}",
            "labels": "uniform",
            "noise_mode": "random",
            "statistics": self._statistics(),
        }

        # Record the host's own truncation only where it is on.
        truncation = [value for value in (run.truncation_factor, run.truncation_cutoff) if value not in (None, -1)]
        if truncation:
            protocol["truncation"] = truncation
        return {**protocol, "k": 5, "splits": 1, **self._measured_with}

    @functools.cached_property
    def _measured_with(self) -> dict[str, Any]:
        """The part of the protocol about real images, feature network and host."""
        run, data = self.RUN, self.DATA
        backbone = getattr(self.eval_model.model, "module", self.eval_model.model)
        return {
            **fingerprint(Path(run.data_dir), data.name, data.img_size, run.pre_resizer, run.ref_dataset),
            **backbone_protocol(run.eval_backbone, backbone, run.post_resizer),
            "host_commit": commit_of(root()) or "unknown",
        }

    def _statistics(self) -> str:
        """What the batch norms use, as a protocol says it."""
        run = self.RUN
        if run.restat:
            return f"restat {run.restat}x{restat.BATCH_SIZE}"
        if run.batch_statistics:
            return f"batch {self.OPTIMIZATION.batch_size}"
        if self.gen_ctlr.standing_statistics:
            return f"standing {run.standing_step}x{run.standing_max_batch}, plain"
        return "checkpoint"

    def _sampler_line(self) -> str:
        """The present sampler and its options, for a log."""
        run = self.RUN
        words = [run.sampler["name"]]
        sampler = sampler_of(run, self.run_state.training)
        if sampler:
            words.append(tables.format_options(results.plain_data(samplers.options(sampler))))
        if run.restat:
            words.append(f"restat={run.restat}")
        return " ".join(filter(None, words))

    # ------------------------------------------------------------------------ analyses that call the generator

    def run_linear_interpolation(self, *args: Any, **kwargs: Any) -> None:
        host: Any = super()
        with swapped(self.run_state, "direct", guides(self.RUN)):
            host.run_linear_interpolation(*args, **kwargs)

    def run_semantic_factorization(self, *args: Any, **kwargs: Any) -> None:
        host: Any = super()
        with swapped(self.run_state, "direct", guides(self.RUN)):
            try:
                host.run_semantic_factorization(*args, **kwargs)
            except RuntimeError as error:
                if "Sizes of tensors" not in str(error):
                    raise
                raise UserError(f"-sefa_axis {self.RUN.num_semantic_axis} is more than the first layer has") from error


def _shared(value: Any, distributed: bool) -> Any:
    """Rank 0's value in every process: a resumed run has another seed in each, and a new one a folder in the first."""
    values = [value]
    if distributed:
        torch.distributed.broadcast_object_list(values)
    return values[0]
