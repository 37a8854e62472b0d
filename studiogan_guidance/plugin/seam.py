"""What our keys in the host's YAML mean, and the one place where the host's evaluations get their images.

``generate_images`` is intercepted where ``is_train`` is false; training calls pass straight through. A sampler at its
neutral value (scale 1) leaves everything to the host's own code, bit for bit.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from studiogan_guidance import rng, samplers
from studiogan_guidance.config import RunConfig, read
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import results
from studiogan_guidance.host.imports import module
from studiogan_guidance.host.networks import describe, host_sections
from studiogan_guidance.latents import LabelPlan, view_for
from studiogan_guidance.latents.base import Companions, Inputs, weights_digest
from studiogan_guidance.samplers import Sampler, Truncation, restat
from studiogan_guidance.samplers.base import BasedSampler
from studiogan_guidance.samplers.ratio import GradientSampler
from studiogan_guidance.training.stage import STAGES, Stage

STYLE = ("stylegan2", "stylegan3")
KEYS = ("sampler", "stages", "restat")  # of the YAML, kept in the host's RUN


def overwrite_cfgs(original: Any) -> Any:
    """``Configurations._overwrite_cfgs`` that keeps our keys in RUN and gives the host the rest of the file."""

    def overwrite(self: Any, cfg_file: str) -> None:
        values = read(Path(cfg_file))
        foreign = sorted(key for key in set(values) - {"host", "host_config", *KEYS} if values[key] != ())
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


def check_compatability(original: Any) -> Any:
    """The host's own check, then ours: unknown names and senseless combinations fail before any work is done."""

    def check(self: Any) -> None:
        try:
            original(self)
        except AssertionError as error:
            raise UserError(f"the host refuses this run: {' '.join(str(error).split())}") from error
        run, steps = self.RUN, self.OPTIMIZATION.total_steps
        starts_anew = run.ckpt_dir is None or run.freezeD > -1
        if run.train and starts_anew and run.save_freq > steps + 1:
            raise UserError(f"--save_freq {run.save_freq} is more than the {steps} steps of the run: nothing is saved")
        adds_loss = any(type(stage).discriminator_loss is not Stage.discriminator_loss for stage in stages_of(run))
        if adds_loss and self.LOSS.adv_loss == "MH":
            raise UserError("stages with a discriminator loss do not work with the multi-hinge loss (adv_loss MH)")
        sampler = sampler_of(run)
        if sampler is None:
            if run.restat:
                raise UserError(
                    "restat needs a sampler: add sampler to the YAML (plain, for statistics of plain images)"
                )
            return
        run.sampler = {
            "name": run.sampler["name"],
            **results.plain_data(samplers.options(sampler)),
        }  # with defaults
        if not guides(run):
            return
        if self.MODEL.g_cond_mtd == "W/O":
            raise UserError("guidance needs a conditional generator, but MODEL.g_cond_mtd is 'W/O': drop the sampler")
        name = run.sampler["name"]
        for asked, flag in (
            (run.langevin_sampling, "-lgv (Langevin sampling)"),
            (self.LOSS.apply_lo and self.LOSS.lo_steps4eval, "LOSS.apply_lo (latent optimisation)"),
            (run.interpolation and isinstance(sampler, BasedSampler), "-itp (which mixes classes)"),
            (run.semantic_factorization and isinstance(sampler, BasedSampler), "-sefa"),
            (run.truncation_factor != -1 and isinstance(sampler, (Truncation, GradientSampler)), "--truncation_factor"),
            (run.restat and run.standing_statistics, "-std_stat, when restat is on,"),
            (run.restat and run.batch_statistics, "-batch_stat, when restat is on,"),
            (run.restat and run.synchronized_bn, "-sync_bn, when restat is on,"),
            (run.restat and self.MODEL.backbone in STYLE, f"restat ({self.MODEL.backbone} has no batch norms)"),
        ):
            if asked:
                raise UserError(f"{flag} cannot be combined with sampler '{name}': drop one of the two")
        truncation_of(self.MODEL, run.truncation_factor, run.truncation_cutoff)

    return check


def sampler_of(run: Any) -> Sampler | None:
    """The sampler that the YAML names, None if it names none.

    While a training goes on whose stages will learn the joint, ``class_mean`` stands in for it.
    """
    spec = getattr(run, "sampler", None)
    if not spec:
        return None
    options = {key: value for key, value in spec.items() if key != "name"}
    learns = any(stage["name"] == "joint" for stage in getattr(run, "stages", None) or ())
    if now.training and run.train and learns and options.get("joint") == "learned" and not options.get("joint_ckpt"):
        options = {**options, "joint": "class_mean", "strengths": False}
    return samplers.create(spec["name"], options)


def guides(run: Any) -> bool:
    """Whether the images of an evaluation come from us: there is a sampler, and it is not the host's own sampling."""
    sampler = sampler_of(run)
    return sampler is not None and (not sampler.neutral or bool(run.restat))


def stages_of(run: Any) -> list[Stage]:
    """The stages that the YAML names."""
    specs = getattr(run, "stages", None) or ()
    return [STAGES.create(spec) for spec in specs]


def truncation_of(model: Any, factor: float, cutoff: int | None) -> Truncation:
    """What --truncation_factor means for a generator: psi of w, or a truncated-normal z; none for a uniform prior."""
    if factor == -1 or (model.backbone not in STYLE and model.z_prior != "gaussian"):
        return Truncation()
    if model.backbone not in STYLE:
        return Truncation(threshold=factor)
    if not 0 <= factor <= 1:
        raise UserError(f"--truncation_factor is {factor}: for {model.backbone} it lies between 0 and 1 (none)")
    return Truncation(psi=factor, cutoff=cutoff)


class Session:
    """One analysis of the host: its generator as a view, its sampler, and what batch norms use."""

    def __init__(self, generator: Any, run: Any, model: Any, num_classes: int, device: Any) -> None:
        network = getattr(generator, "module", generator)  # out of DataParallel or DistributedDataParallel
        folder = str(now.folder or run.ckpt_dir)
        networks = describe(network, model, num_classes, now.image_size, torch.device(device), folder)
        networks = dataclasses.replace(networks, companions=now.beside)
        digest = "" if now.training or model.backbone not in STYLE else weights_digest(network)
        self.bare = view_for(dataclasses.replace(networks, batch_statistics=run.batch_statistics, digest=digest))
        self.bare.on_disk = False  # pools do not know of --truncation_factor and statistics
        self.view = truncation_of(model, run.truncation_factor, run.truncation_cutoff).while_drawing(self.bare)
        sampler = sampler_of(run)
        assert sampler is not None
        sampler.check(self.view)
        self.generator, self.sampler, self.restat = generator, sampler, run.restat
        self.seed = run.seed if now.seed is None else now.seed
        self._statistics: restat.Statistics | None = None

    def statistics(self) -> restat.Statistics:
        """What batch norms use instead of the checkpoint's; accumulated once."""
        if self._statistics is None:
            self._statistics = restat.accumulate(self.view, self.sampler, self.restat) if self.restat else {}
        return self._statistics

    def images(self, count: int, plan: LabelPlan) -> tuple[Tensor, Tensor]:
        """The next ``count`` images [count, 3, H, W] and their labels; chosen labels go round from the first image."""
        seeds = range(self.seed + now.position, self.seed + now.position + count)
        now.position += count
        with restat.applied(self.statistics()):
            batches = list(self.sampler.stream(self.view, seeds, self._at_once(count), plan))
        now.cost += [(len(batch.images), batch.cost) for batch in batches]
        now.notes += [batch.notes for batch in batches]
        return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])

    def _at_once(self, count: int) -> int:
        """Without -DDP the host splits a batch among all GPUs; here it goes through the first in as many parts."""
        if torch.distributed.is_initialized() or self.bare.networks.batch_statistics:
            return count
        return math.ceil(count / max(1, torch.cuda.device_count()))

    def decode(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images of given noise [B, Z] and labels [B] or class weights [B, C]."""
        seeds = range(self.seed + now.position, self.seed + now.position + len(z))
        now.position += len(z)
        inputs = Inputs(torch.tensor(seeds), z, labels, None, rng.generators(seeds))
        with torch.no_grad(), self.bare.frozen(), restat.applied(self.statistics()):
            return self.sampler.images(self.bare, inputs)


@dataclasses.dataclass
class Now:
    """What the analysis that is going on has reached; ``first`` is the position of its first image.

    ``seed`` and ``folder`` (of the checkpoints) are those of rank 0: a new run has a folder in the first process only.
    ``beside`` opens the discriminator of the run and the like.
    """

    session: Session | None = None
    position: int = 0
    training: bool = False
    direct: bool = False
    seed: int | None = None
    folder: str | None = None
    beside: Companions | None = None
    image_size: int = 0
    first: int = 0
    cost: list[tuple[int, dict[str, int]]] = dataclasses.field(default_factory=list)
    notes: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)

    def per_image(self) -> dict[str, float]:
        """Passes through each network for an image made so far, and the share of proposals that were accepted."""
        names = sorted({name for _, cost in self.cost for name in cost})
        total = sum(count for count, _ in self.cost) or 1
        found = {name: sum(cost.get(name, 0) for _, cost in self.cost) / total for name in names}
        return found | ({"acceptance": found["accepted"] / found["proposed"]} if found.get("proposed") else {})

    def means(self) -> dict[str, float]:
        """Mean of each note over the images made so far."""
        names = sorted({name for notes in self.notes for name in notes})
        return {name: float(torch.cat([notes[name] for notes in self.notes if name in notes]).mean()) for name in names}


now = Now()


def generate_images(original: Any) -> Any:
    """``generate_images`` whose evaluation calls are answered by the sampler: images, labels and five times None."""
    signature = inspect.signature(original)

    def generate_images(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        run = given["RUN"]
        if given["is_train"] or not guides(run):
            return original(*args, **kwargs)
        count, classes, wish = given["batch_size"], given["num_classes"], given["y_sampler"]
        if now.session is None or now.session.generator is not given["generator"]:
            now.session = Session(given["generator"], run, given["MODEL"], classes, given["device"])
        plan = LabelPlan()
        if wish != "totally_random":
            labels = module("utils.sample").sample_y(wish, count, classes, given["device"]).tolist()
            plan, count = LabelPlan(tuple(labels)), len(labels)
        images, labels = now.session.images(count, plan)
        return images, labels, None, None, None, None, None

    return generate_images


def in_blocks(original: Any, count: str) -> Any:
    """A function of the host that makes ``count`` images, with consecutive blocks of seeds for the processes of -DDP.

    Where the host joins features by rank and cuts off the end, it sees exactly the images of one process.
    """
    signature = inspect.signature(original)

    def call(*args: Any, **kwargs: Any) -> Any:
        given, start = signature.bind(*args, **kwargs).arguments, now.position
        if torch.distributed.is_initialized():
            batches = math.ceil(given[count] / given["batch_size"]) // torch.distributed.get_world_size() + 1
            now.position += torch.distributed.get_rank() * batches * given["batch_size"]
        found = original(*args, **kwargs)
        now.position = start + given[count]
        return found

    return call


def prepare(original: Any) -> Any:
    """``prepare_generator``, with which every analysis of the host begins: so does the run of seeds."""

    def prepare_generator(self: Any) -> Any:
        now.session, now.position, now.cost, now.notes = None, now.first, [], []
        generator, mapping, synthesis = original(self)
        if now.direct:
            cfgs = self.cfgs
            session = Session(generator, cfgs.RUN, cfgs.MODEL, cfgs.DATA.num_classes, self.device)
            return Guided(generator, session), mapping, synthesis
        return generator, mapping, synthesis

    return prepare_generator


class Guided:
    """A generator as the host's interpolation and SeFa call it, with guided codes; all else is the generator's own.

    ``shared`` gives class weights instead of embeddings, so that interpolated classes reach the view as weights.
    """

    def __init__(self, generator: Any, session: Session) -> None:
        self._generator, self._session = getattr(generator, "module", generator), session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def shared(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self._session.view.num_classes).float()

    def __call__(self, z: Tensor, labels: Tensor | None, shared_label: Tensor | None = None, eval: bool = False) -> Any:
        chosen = labels if shared_label is None else shared_label
        assert chosen is not None
        return self._session.decode(z, chosen)
