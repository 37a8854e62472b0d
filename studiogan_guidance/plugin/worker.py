"""The host's worker, guided: it writes down what it measures, guides interpolation and SeFa, and runs the stages."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studiogan_guidance import samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.evaluation import results, tables
from studiogan_guidance.host.backbone import backbone_protocol
from studiogan_guidance.host.compat import swapped
from studiogan_guidance.host.images import RealImages, fingerprint, held_out_split
from studiogan_guidance.host.imports import module
from studiogan_guidance.host.locate import Checkout, commit_of
from studiogan_guidance.host.networks import describe, snapshot
from studiogan_guidance.host.source import companions
from studiogan_guidance.latents import Networks
from studiogan_guidance.latents.base import Companions, weights_digest
from studiogan_guidance.plugin.seam import KEYS, Session, guides, now, sampler_of, stages_of
from studiogan_guidance.samplers import restat
from studiogan_guidance.training.stage import DiscriminatorStep, Stage, Trained

NAMES = {
    "FID": "fid",
    "IS": "is",
    "Improved_Precision": "precision",
    "Improved_Recall": "recall",
    "Density": "density",
    "Coverage": "coverage",
}


class GuidedWorker:
    """What comes in front of the host's WORKER, by inheritance: its images are those of the sampler of the YAML."""

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
    _in_training = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._extra = stages_of(self.RUN)
        now.seed, now.training = _shared(self.RUN.seed, self.DDP), False
        now.folder = _shared(self.RUN.ckpt_dir, self.DDP)
        now.beside, now.image_size = self._beside(), self.DATA.img_size
        self._evaluations = 0  # of those after the training, which --num_eval repeats
        if guides(self.RUN):  # what cannot work fails before the training
            now.training = True
            Session(self.gen_ctlr.generator, self.RUN, self.MODEL, self.DATA.num_classes, self.local_rank)
            now.training = False
        if self.RUN.sampler and self.global_rank == 0:
            self.logger.info(f"Sampler: {_said(self.RUN)}")
            module("wandb").config.update({key: getattr(self.RUN, key) for key in KEYS}, allow_val_change=True)
            if self.RUN.eval_metrics:
                self._measured_with  # noqa: B018  reads all file names once, before the training
        for stage in self._extra if self.RUN.train else ():
            stage.check(self._described(), module("utils.misc").peel_model(self.Dis), self._processes)
        if any(type(stage).discriminator_loss is not Stage.discriminator_loss for stage in self._extra):
            self._add_losses()

    def _add_losses(self) -> None:
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

        self.Dis.register_forward_hook(remember)  # also where it is wrapped: the wrapper sees whole batches
        self.LOSS.d_loss = d_loss

    @property
    def training(self) -> bool:
        return self._in_training

    @training.setter
    def training(self, value: bool) -> None:
        """The host sets this to true before its training loop, and to false once after it, in every process."""
        was, self._in_training = self._in_training, value
        now.training = value
        if value or not (self.DDP or (was and self._extra)):
            return
        self._load_best()
        if was and self._extra:
            run = self._trained()
            with torch.random.fork_rng(devices=[]):  # what the host does next is as without them
                for stage in self._extra:
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
        if self.DDP:
            for network in (self.Gen, self.Dis, self.Gen_ema):
                for value in network.state_dict().values() if network is not None else ():
                    whole = value.contiguous()
                    torch.distributed.broadcast(whole, 0)
                    value.copy_(whole)

    @property
    def _processes(self) -> int:
        return self.OPTIMIZATION.world_size if self.DDP else 1  # without -DDP the host counts GPUs there

    def _beside(self) -> Companions:
        run, peel = self.RUN, module("utils.misc").peel_model

        def held_out() -> RealImages:
            split = held_out_split(self.DATA.name)
            cfg = RunConfig(data=run.data_dir, reference=split, pre_resizer=run.pre_resizer)
            root = Path(module("config").__file__).parents[1]
            return RealImages(cfg, Checkout(root, None), self.DATA.name, self.DATA.img_size)

        return companions(
            discriminator=lambda: peel(self.Dis).eval(),  # the host, which has just done the same, sets it back
            held_out=held_out,
            snapshot=lambda path: snapshot(peel(self.gen_ctlr.generator), path, RunConfig()),
        )

    def _described(self) -> Networks:
        generator = module("utils.misc").peel_model(self.gen_ctlr.generator)
        device, folder = torch.device(self.local_rank), str(now.folder or self.RUN.ckpt_dir)
        return describe(generator, self.MODEL, self.DATA.num_classes, self.DATA.img_size, device, folder)

    def _trained(self) -> Trained:
        networks = self._described()
        return Trained(
            networks=dataclasses.replace(networks, digest=weights_digest(networks.generator)),
            discriminator=lambda: module("utils.misc").peel_model(self.Dis),
            real=self._real,
            folder=Path(networks.source),
            seed=now.seed or 0,
            rank=int(self.global_rank),
            world_size=self._processes,
            log=self.logger.info if self.logger else lambda line: None,
            record=lambda step, values: module("wandb").log({f"stage/{key}": value for key, value in values.items()}),
        )

    def _real(self, batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        share = batch_size // self._processes
        while True:
            for images, labels in self.train_dataloader:  # of as many images as all of the host's updates of a step
                for part, of_part in zip(images.split(share), labels.split(share)):
                    if len(part) == share or len(images) < share:
                        yield part, of_part

    def evaluate(self, step: Any, metrics: Any, writing: bool = True, training: bool = False) -> Any:
        misc, found, started = module("utils.misc"), {}, time.perf_counter()
        keep = misc.accm_values_convert_dict

        def catch(*args: Any, **kwargs: Any) -> Any:
            found.update(kwargs["value_dict"])
            return keep(*args, **kwargs)

        number = self.num_eval[self.RUN.ref_dataset]
        now.first = 0 if training else self._evaluations * number
        self._evaluations += not training
        with swapped(misc, "accm_values_convert_dict", catch):
            host: Any = super()
            is_best = host.evaluate(step=step, metrics=metrics, writing=writing, training=training)
        if self.RUN.sampler and self.global_rank == 0:
            self._write_down(step, found, time.perf_counter() - started)
        now.first = 0
        return is_best

    def _write_down(self, step: Any, found: Mapping[str, Any], seconds: float) -> None:
        path = Path(self.RUN.save_dir) / "results.jsonl"
        cost, sampler = now.per_image(), sampler_of(self.RUN)
        assert sampler is not None
        files = sampler.files(now.session.view) if now.session and guides(self.RUN) else {}
        row = results.row(
            sampler=self.RUN.sampler["name"],
            options=samplers.options(sampler),
            metrics={NAMES[name]: float(value) for name, value in found.items() if name in NAMES},
            protocol=self._protocol(),
            cost=cost,
            setup=dict(now.session.view.ledger.setup) if now.session else {},
            notes=now.means(),
            seconds=seconds,
            generator={
                "backbone": self.MODEL.backbone,
                "source": self.RUN.ckpt_dir,
                "sha256": weights_digest(module("utils.misc").peel_model(self.gen_ctlr.generator)),
                "step": step,
                **files,
            },
            config={"run_name": self.run_name, **{k: dict(vars(v)) for k, v in self._sections()}},
            device=f"{self.local_rank}" + (f", {self.OPTIMIZATION.world_size} processes" if self.DDP else ""),
        )
        results.append(path, [row])
        passes = ", ".join(f"{name} {count:g}" for name, count in cost.items()) or "the host's own"
        self.logger.info(f"Sampler: {_said(self.RUN)}; passes per image: {passes}; added to {path}")
        module("wandb").run.summary.update({f"sampler/{name} per image": count for name, count in cost.items()})

    def _sections(self) -> Iterator[tuple[str, Any]]:
        for name in ("DATA", "MODEL", "RUN"):
            yield name, getattr(self.cfgs, name)

    def _protocol(self) -> dict[str, Any]:
        run = self.RUN
        truncation = [value for value in (run.truncation_factor, run.truncation_cutoff) if value not in (None, -1)]
        return {
            "num": self.num_eval[run.ref_dataset],
            "num_real": len(self.eval_dataloader.dataset),
            "seed": (now.seed or 0) + now.first if guides(run) else f"the host's {run.seed}",
            "labels": "uniform",
            "noise_mode": "random",
            "statistics": _statistics(self),
            **({"truncation": truncation} if truncation else {}),
            "k": 5,
            "splits": 1,
            **self._measured_with,
        }

    @functools.cached_property
    def _measured_with(self) -> dict[str, Any]:
        run, data = self.RUN, self.DATA
        backbone = getattr(self.eval_model.model, "module", self.eval_model.model)
        root = Path(module("config").__file__).parents[1]
        return {
            **fingerprint(Path(run.data_dir), data.name, data.img_size, run.pre_resizer, run.ref_dataset),
            **backbone_protocol(run.eval_backbone, backbone, run.post_resizer),
            "host_commit": commit_of(root) or "unknown",
        }

    def run_linear_interpolation(self, *args: Any, **kwargs: Any) -> None:
        host: Any = super()
        with self._guided():
            host.run_linear_interpolation(*args, **kwargs)

    def run_semantic_factorization(self, *args: Any, **kwargs: Any) -> None:
        host: Any = super()
        with self._guided():
            host.run_semantic_factorization(*args, **kwargs)

    @contextmanager
    def _guided(self) -> Iterator[None]:
        with swapped(now, "direct", guides(self.RUN)):
            yield


def _said(run: Any) -> str:
    sampler = sampler_of(run)  # or what stands in for it
    options = tables.format_options(results.plain_data(samplers.options(sampler))) if sampler else ""
    return " ".join(filter(None, (run.sampler["name"], options, f"restat={run.restat}" if run.restat else "")))


def _statistics(worker: Any) -> str:
    run = worker.RUN
    if run.restat:
        return f"restat {run.restat}x{restat.BATCH_SIZE}"
    if run.batch_statistics:
        return f"batch {worker.OPTIMIZATION.batch_size}"
    if worker.gen_ctlr.standing_statistics:
        return f"standing {run.standing_step}x{run.standing_max_batch}, plain"
    return "checkpoint"


def _shared(value: Any, distributed: bool) -> Any:
    """Rank 0's value in every process: a resumed run has another seed in each, and a new one a folder in the first."""
    values = [value]
    if distributed:
        torch.distributed.broadcast_object_list(values)
    return values[0]
