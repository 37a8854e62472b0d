"""What our keys in the host's YAML mean: ``sampler``, ``stages`` and ``restat``.

They are kept in the host's RUN section, so that they are in its log and in W&B. Unknown names and combinations without
a meaning are refused before any work is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studiogan_guidance import samplers
from studiogan_guidance.config import RUN_KEYS, RunConfig, read
from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.evaluation import results
from studiogan_guidance.host.imports import root
from studiogan_guidance.host.locate import Checkout, host_configuration
from studiogan_guidance.host.networks import describe, host_sections, yaml_file
from studiogan_guidance.host.sections import STYLE, check_sections
from studiogan_guidance.host.source import model_digest
from studiogan_guidance.latents import learned
from studiogan_guidance.options import Spec
from studiogan_guidance.plugin import preflight
from studiogan_guidance.rng import check_images
from studiogan_guidance.samplers import Sampler, Truncation
from studiogan_guidance.samplers.base import BasedSampler, Chosen
from studiogan_guidance.samplers.ratio import GradientSampler
from studiogan_guidance.training.stage import STAGES, Stage, has_companion

BY_CLASS = {"interpolation": "-itp", "intra_class_fid": "-ifid"}  # flags that need classes, by their names in RUN


# ---------------------------------------------------------------------------- what the YAML names


def sampler_of(run: Any, training: bool = False) -> Sampler | None:
    """The sampler that the YAML names, None if it names none.

    Args:
        run: the host's RUN section.
        training: whether the host's training loop is running. If one of its stages will learn the joint, ``class_mean``
            replaces the learned joint until then, and plain sampling replaces learned moves.
    """
    if not getattr(run, "sampler", None):
        return None
    spec = Spec.parse(run.sampler)
    names = [Spec.parse(stage).name for stage in getattr(run, "stages", None) or ()]
    joint = spec.options.get("joint")
    stage = "joint" if joint == "learned" else joint
    is_learned = joint in learned.TRAINED and not spec.options.get("joint_ckpt")
    if training and run.train and stage in names and is_learned:
        plain = {} if stage == "joint" else {"scale": 1.0}  # the scale of a move is no strength of guidance
        return samplers.create(spec, {"joint": "class_mean", "strengths": False, **plain})
    return samplers.create(spec)


def guides(run: Any, training: bool = False) -> bool:
    """Whether the images of an evaluation come from us: there is a sampler, and it is not the host's own sampling."""
    sampler = sampler_of(run, training)
    return sampler is not None and (not sampler.neutral or bool(run.restat))


def stages_of(run: Any) -> list[Stage]:
    """The stages that the YAML names."""
    return [STAGES.create(spec) for spec in getattr(run, "stages", None) or ()]


def has_loss(stage: Stage) -> bool:
    """Whether a stage adds to the discriminator's loss."""
    return type(stage).discriminator_loss is not Stage.discriminator_loss


def truncation_of(model: Any, factor: float, cutoff: int | None) -> Truncation:
    """What --truncation_factor means for a generator: psi of w, or a truncated-normal z; none for a uniform prior."""
    is_style = model.backbone in STYLE
    if factor == -1 or (not is_style and model.z_prior != "gaussian"):
        return Truncation()
    if not is_style:
        return Truncation(threshold=factor)
    if not 0 <= factor <= 1:
        raise UserError(f"--truncation_factor is {factor}: for {model.backbone} it lies between 0 and 1 (none)")
    return Truncation(psi=factor, cutoff=cutoff)


# ---------------------------------------------------------------------------- the host's Configurations


def overwrite_cfgs(original: Any) -> Any:
    """``Configurations._overwrite_cfgs`` that keeps our keys in RUN and gives the host the rest of the file.

    ``model_sha256`` of the Configurations is the hash of the sections that the generator is built from.
    """

    def overwrite(self: Any, cfg_file: str) -> None:
        # Split the file into our keys and the host's sections.
        values = read(Path(host_configuration(cfg_file, str(root()))))
        foreign = sorted(key for key in set(values) - {"host", "host_config", *RUN_KEYS} if values[key] != ())
        if foreign:
            raise UserError(
                f"{cfg_file} has {', '.join(foreign)}, which only 'studiogan-guidance sample' and 'eval' read: in a "
                "host run the host's own options decide; take the keys out"
            )
        sections = host_sections(values["host"], values.get("host_config"), root())
        check_sections(sections, Checkout(root(), None))

        # Let the host read its sections.
        try:
            with yaml_file(sections) as path:
                original(self, path)
        except (AttributeError, KeyError) as error:
            raise UserError(f"the host rejects {cfg_file}: {one_line(error)}") from error

        # Keep our keys in RUN.
        RunConfig(restat=values.get("restat", 0), stages=values["stages"])  # checks their types
        for key in RUN_KEYS:
            setattr(self.RUN, key, values.get(key))
        self.sections = sections
        self.model_sha256 = model_digest(sections)

    return overwrite


def check_compatability(original: Any) -> Any:
    """The host's own check, then ours: unknown names and senseless combinations fail before any work is done."""

    def check(self: Any) -> None:
        check_sections(self.sections, Checkout(root(), None), training=bool(self.RUN.train))
        preflight.check_options(self)
        try:
            original(self)
        except AssertionError as error:
            raise UserError(f"the host refuses this run: {one_line(error)}") from error
        _check_training(self)
        _check_sampler(self)
        if not guides(self.RUN):
            preflight.check_average(self)
        preflight.check(self)

    return check


def _check_training(cfgs: Any) -> None:
    run = cfgs.RUN
    steps = cfgs.OPTIMIZATION.total_steps
    starts_anew = run.ckpt_dir is None or run.freezeD > -1
    if run.train and starts_anew and run.save_freq > steps + 1:
        raise UserError(f"--save_freq {run.save_freq} is more than the {steps} steps of the run: nothing is saved")
    stages = stages_of(run)
    if any(has_loss(stage) or has_companion(stage) for stage in stages) and cfgs.LOSS.adv_loss == "MH":
        raise UserError("stages with a discriminator loss do not work with the multi-hinge loss (adv_loss MH)")

    # What trains beside the discriminator.
    for name in [STAGES.name_of(stage) for stage in stages if has_companion(stage)] if run.train else []:
        _check_companion(cfgs, name)


def _check_companion(cfgs: Any, name: str) -> None:
    """Raise UserError where the companion of the stage ``name`` cannot train."""
    run = cfgs.RUN
    gpus = cfgs.OPTIMIZATION.world_size
    if [Spec.parse(stage).name for stage in run.stages].count(name) > 1:
        raise UserError(f"stages has '{name}' more than once: it trains one network beside the discriminator")
    if gpus > 1 and not run.distributed_data_parallel:
        raise UserError(
            f"stage '{name}' needs a process for each GPU, found one for {gpus}: add -DDP, or CUDA_VISIBLE_DEVICES=0"
        )
    tracks = run.distributed_data_parallel and run.mixed_precision and run.synchronized_bn
    if tracks and cfgs.MODEL.backbone not in STYLE:
        raise UserError(
            f"stage '{name}' does not go together with -DDP, -mpc and -sync_bn, with which the host's batch norms "
            "follow every pass: drop one of the three"
        )


def _check_sampler(cfgs: Any) -> None:
    run = cfgs.RUN
    sampler = sampler_of(run)
    if sampler is None:
        if run.restat:
            raise UserError("restat needs a sampler: add sampler to the YAML (plain, for statistics of plain images)")
        return

    if isinstance(sampler, Chosen) and run.train:
        raise UserError(
            "scale=auto stands for a choice for finished weights, and this run trains: give a scale, or train first"
        )

    # Keep the sampler with all its options, for the log.
    name = Spec.parse(run.sampler).name
    run.sampler = {"name": name, **results.plain_data(samplers.options(sampler))}
    if not guides(run):
        return
    check_images(max(run.seed, 0), run.save_fake_images_num if run.save_fake_images else 1)

    # Refuse what guidance cannot work with.
    networks = describe(torch.nn.Module(), cfgs.MODEL, cfgs.DATA.num_classes, 0, torch.device("cpu"), "this generator")
    samplers.check_classes(sampler, networks)
    for word, flag in BY_CLASS.items():
        if getattr(run, word):
            networks.check_conditional(flag, "drop it, or the sampler")
    for conflict in CONFLICTS:
        if conflict.applies(cfgs, sampler):
            flag = conflict.flag.format(backbone=cfgs.MODEL.backbone)
            raise UserError(f"{flag} cannot be combined with sampler '{name}': drop one of the two")
    truncation_of(cfgs.MODEL, run.truncation_factor, run.truncation_cutoff)


@dataclass(frozen=True)
class Conflict:
    """An option of the host that does not go together with a sampler that guides.

    Attributes:
        flag: the option, as the message calls it.
        applies: whether the host's Configurations and the sampler have both.
    """

    flag: str
    applies: Callable[[Any, Sampler], Any]


def _latent_optimisation(cfgs: Any, sampler: Sampler) -> Any:
    return cfgs.LOSS.apply_lo and cfgs.LOSS.lo_steps4eval


def _truncates_twice(cfgs: Any, sampler: Sampler) -> Any:
    return cfgs.RUN.truncation_factor != -1 and isinstance(sampler, (Truncation, GradientSampler))


def _on_a_base(flag: str) -> Callable[[Any, Sampler], Any]:
    return lambda cfgs, sampler: getattr(cfgs.RUN, flag) and isinstance(sampler, BasedSampler)


def _with_restat(flag: str) -> Callable[[Any, Sampler], Any]:
    return lambda cfgs, sampler: cfgs.RUN.restat and getattr(cfgs.RUN, flag)


CONFLICTS = (
    Conflict("-lgv (Langevin sampling)", lambda cfgs, sampler: cfgs.RUN.langevin_sampling),
    Conflict("LOSS.apply_lo (latent optimisation)", _latent_optimisation),
    Conflict("-itp (which mixes classes)", _on_a_base("interpolation")),
    Conflict("-sefa", _on_a_base("semantic_factorization")),
    Conflict("--truncation_factor", _truncates_twice),
    Conflict("-std_stat, when restat is on,", _with_restat("standing_statistics")),
    Conflict("-batch_stat, when restat is on,", _with_restat("batch_statistics")),
    Conflict("-sync_bn, when restat is on,", _with_restat("synchronized_bn")),
    Conflict(
        "restat ({backbone} has no batch norms)",
        lambda cfgs, sampler: cfgs.RUN.restat and cfgs.MODEL.backbone in STYLE,
    ),
)
