"""What a run of the host would find out late: counts, folders and checkpoints; looked at before it starts.

Nothing is kept, no image is decoded, and folders are listed only as far as the answer needs.
"""

from __future__ import annotations

import functools
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studiogan_guidance.config import RunConfig
from studiogan_guidance.devices import cpu_only
from studiogan_guidance.errors import UserError, listed, nearest, notice, typed
from studiogan_guidance.evaluation import results
from studiogan_guidance.files import regular_file
from studiogan_guidance.host import checkpoints
from studiogan_guidance.host.compat.kept import rank
from studiogan_guidance.host.image_folders import class_names, count
from studiogan_guidance.host.imports import module
from studiogan_guidance.host.sections import STYLE
from studiogan_guidance.plugin.process import offline_without_key

METRICS = ("fid", "is", "prdc", "none")
NEIGHBOURS = 5  # of the host's precision and recall
PERPLEXITY = 40  # of the host's t-SNE
CIFAR = ("CIFAR10", "CIFAR100")
SEEDS = 2**32  # below it is what NumPy takes
ON_REAL = ("save_real_images", "k_nearest_neighbor", "frequency_analysis", "tsne_analysis", "intra_class_fid")
BY_CLASS = ("save_real_images", "k_nearest_neighbor", "tsne_analysis", "intra_class_fid")
ON_TRAINING = ("train", "GAN_train", "GAN_test")


def check(cfgs: Any) -> None:
    """Raise UserError for what cannot end well, from the host's Configurations; no W&B key means offline.

    Args:
        cfgs: after the host's own check, before it has written or built anything.
    """
    run = cfgs.RUN
    _check_save(Path(run.save_dir))
    if run.sampler:
        results.appendable(Path(run.save_dir) / results.FILE)
    if run.ckpt_dir is not None:
        _check_checkpoints(Path(run.ckpt_dir), run.load_best, cfgs.MODEL.apply_g_ema)
    _check_data(cfgs)
    offline_without_key()


def parse_args(original: Any) -> Any:
    """``ArgumentParser.parse_args``, after which the options of the host's evaluate.py are checked."""

    @functools.wraps(original)
    def parse(self: Any, *args: Any, **kwargs: Any) -> Any:
        options = original(self, *args, **kwargs)
        if hasattr(options, "dset2") and hasattr(options, "dset1_moments"):
            _check_evaluate(options)
        return options

    return parse


# ---------------------------------------------------------------------------- options


def check_options(cfgs: Any) -> None:
    """Raise UserError for options that the host takes and then fails with."""
    run = cfgs.RUN
    _check_least(run, num_workers=0, num_eval=1, print_freq=1, save_freq=1)
    if run.save_fake_images and run.save_fake_images_num < 1:
        raise UserError(f"-sf_num is {run.save_fake_images_num}: give a whole number from 1 up")
    _check_seed(run)
    backends = [name for name in torch.distributed.Backend.backend_list if name != "undefined"]
    if run.distributed_data_parallel and run.backend not in backends:
        raise UserError(f"--backend is '{run.backend}': {nearest(run.backend, backends)}")
    if run.distributed_data_parallel and run.backend == "nccl" and cpu_only():
        raise UserError("-DDP without a GPU needs --backend gloo, found nccl")

    # What is asked for half only.
    if run.standing_statistics and (run.standing_max_batch < cfgs.OPTIMIZATION.world_size or run.standing_step < 1):
        raise UserError(
            f"-std_stat needs -std_max and -std_step, found {run.standing_max_batch} and {run.standing_step}: give the "
            "largest batch and the number of batches (such as -std_max 64 -std_step 64)"
        )
    if run.langevin_sampling and min(run.langevin_rate, run.langevin_noise_std, run.langevin_steps) < 0:
        raise UserError("-lgv needs -lgv_rate, -lgv_std and -lgv_steps: give all three")
    factor = run.truncation_factor
    if factor != -1 and (factor < 0 or (factor == 0 and cfgs.MODEL.backbone not in STYLE)):
        raise UserError(f"--truncation_factor is {factor}: give a number above 0, or -1 (none)")
    if run.calc_is_ref_dataset and "none" in run.eval_metrics:
        raise UserError("--calc_is_ref_dataset needs a feature network: give -metrics is, in place of none")
    for flag in ("GAN_train", "GAN_test"):
        if getattr(run, flag) and cfgs.DATA.name not in cfgs.MISC.cas_setting:
            known = ", ".join(cfgs.MISC.cas_setting)
            raise UserError(f"--{flag} has settings for {known} only, and DATA.name is {cfgs.DATA.name}")
    _check_canvas(cfgs)


def check_average(cfgs: Any) -> None:
    """Raise UserError for a StyleGAN without a moving average, by which the host's own code makes all its images."""
    if cfgs.MODEL.backbone in STYLE and not cfgs.MODEL.apply_g_ema:
        raise UserError(
            f"MODEL.apply_g_ema is {cfgs.MODEL.apply_g_ema}: the host makes images of {cfgs.MODEL.backbone} by its "
            "moving average, so set it to true"
        )


def _check_least(options: Any, **least: int) -> None:
    """Raise UserError for an option below its least value; one that is not there has it."""
    for key, number in least.items():
        value = getattr(options, key, number)
        if value < number:
            raise UserError(f"--{key} is {value}: give a whole number from {number} up")


def _check_seed(options: Any) -> None:
    if options.seed != -1 and not 0 <= options.seed < SEEDS:
        raise UserError(f"--seed is {options.seed}: give a whole number from 0 to {SEEDS - 1}, or -1 (drawn)")


def _check_canvas(cfgs: Any) -> None:
    """The host draws canvases of 8 images a class during a training, and with -v."""
    draws = cfgs.RUN.train or cfgs.RUN.vis_fake_images
    each = batch_size(cfgs)
    if not draws or not each % 8:
        return
    kind = module("utils.misc").define_sampler(cfgs.DATA.name, cfgs.MODEL.d_cond_mtd, each, cfgs.DATA.num_classes)
    if kind == "acending_some":
        raise UserError(
            f"OPTIMIZATION.batch_size gives {each} images to a process, and the canvases of {cfgs.DATA.num_classes} "
            "classes need a multiple of 8"
        )


def batch_size(cfgs: Any) -> int:
    """Images of a batch in one process."""
    shares = cfgs.OPTIMIZATION.world_size if cfgs.RUN.distributed_data_parallel else 1
    whole = cfgs.OPTIMIZATION.batch_size
    if not isinstance(whole, int):
        raise UserError(f"OPTIMIZATION.batch_size must be a whole number, found {whole!r}")
    if whole < shares:
        raise UserError(f"OPTIMIZATION.batch_size is {whole}, for {shares} processes: raise it")
    return whole // shares


# ---------------------------------------------------------------------------- folders


def _check_save(folder: Path) -> None:
    """Raise UserError unless ``folder`` can be written, or made; nothing stays."""
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UserError(f"-save {folder}: {place} is no folder; give another one")
    try:
        os.rmdir(tempfile.mkdtemp(dir=place))
    except OSError as error:
        raise UserError(f"-save {folder}: cannot write into {place}: {error.strerror}; give another one") from error


def _check_checkpoints(folder: Path, best: bool, average: bool) -> None:
    """Raise UserError unless the files that the host will open are there, and begin as checkpoints do."""
    if not folder.is_dir():
        advice = (
            f"its folder, {folder.parent}" if folder.is_file() else "the one with the files model=G*-weights-step*.pth"
        )
        raise UserError(f"-ckpt {folder} is not a folder: give {advice}")
    when = "best" if best else "current"
    advice = "with -best a run takes the best ones, without it the current ones"
    kinds = {"G": ("G", "raw"), "D": ("D", "raw"), **({"G_ema": ("G", "ema")} if average else {})}
    for model, word in kinds.values():
        checkpoints.find(folder, model, (when, word), advice)

    # The files that the host takes, see the shim one_step.
    files = [max(folder.glob(f"model={kind}-{when}-weights-step*.pth"), key=rank) for kind in kinds]
    for path in files:
        regular_file(path, "the checkpoint")
        if not _begins_well(path):
            checkpoints.read(path)  # says what it is in place of a checkpoint
    steps = [checkpoints.step(path) for path in files]
    if len(set(steps)) > 1:
        names = ", ".join(path.name for path in files)
        notice(f"the checkpoints in {folder} are of different steps: {names}")


def _begins_well(path: Path) -> bool:
    """Whether a file is an archive with a whole directory, or begins as a pickle."""
    with path.open("rb") as file:
        start = file.read(2)
    return zipfile.is_zipfile(path) if start == b"PK" else start[:1] == b"\x80"


def explained(original: Any) -> Any:
    """A function of the host that loads checkpoints, whose errors say which file is damaged, or does not fit."""

    @functools.wraps(original)
    def load(ckpt_dir: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(ckpt_dir, *args, **kwargs)
        except UserError:
            raise
        except Exception as error:
            _explain(Path(ckpt_dir), kwargs)
            raise UserError(f"the host cannot load the checkpoints in {ckpt_dir}: {typed(error)}") from error

    return load


def _explain(folder: Path, networks: Mapping[str, Any]) -> None:
    """Raise UserError for the first checkpoint that cannot be read, or does not fit its network."""
    peel = module("utils.misc").peel_model
    for name, model, which in (("Gen", "G", ("raw",)), ("Dis", "D", ()), ("Gen_ema", "G", ("ema",))):
        if networks.get(name) is not None:
            path = checkpoints.find(folder, model, which)
            state = checkpoints.read(path)
            checkpoints.fill(peel(networks[name]), state, path, RunConfig())


# ---------------------------------------------------------------------------- images


def _check_data(cfgs: Any) -> None:
    """Raise UserError for splits that are not there, and for too few images."""
    run = cfgs.RUN
    trains = any(getattr(run, flag) for flag in ON_TRAINING)
    metrics = [] if "none" in run.eval_metrics else list(run.eval_metrics)
    measures = bool(metrics) or any(getattr(run, flag) for flag in ON_REAL)
    if not (trains or measures):
        return
    if run.data_dir is None:
        raise UserError("this run reads real images: add -data DIR, a folder with train/<class>/* or valid/<class>/*")

    # CIFAR is large enough for all, and downloaded where it is missing.
    folder = Path(run.data_dir)
    if cfgs.DATA.name in CIFAR:
        name = "cifar-10-batches-py" if cfgs.DATA.name == "CIFAR10" else "cifar-100-python"
        if folder.name == name:
            raise UserError(f"{folder} is the folder of {cfgs.DATA.name} itself: give its parent, {folder.parent}")
        return
    if run.ref_dataset not in ("train", "valid"):
        raise UserError(
            f"-ref {run.ref_dataset}: the host would read {folder / 'valid'}; give -ref train or -ref valid, or "
            f"measure another split by 'studiogan-guidance eval --reference {run.ref_dataset}'"
        )

    # Each split that is read.
    splits = {"train": trains and not _has_hdf5(cfgs), run.ref_dataset: measures}
    if trains and run.ref_dataset == "train":
        splits["train"] = measures or not _has_hdf5(cfgs)
    for split, is_read in splits.items():
        if is_read:
            _check_classes(cfgs, folder, split)
    if trains and splits["train"]:
        _check_basket(cfgs, folder / "train")
    if measures:
        _check_counts(cfgs, folder / run.ref_dataset, metrics)


def _has_hdf5(cfgs: Any) -> bool:
    """Whether training images come from an HDF5 file that is there already; the folder may be gone."""
    if not cfgs.RUN.load_train_hdf5:
        return False
    return any(Path(cfgs.RUN.data_dir).glob(f"{cfgs.DATA.name}_{cfgs.DATA.img_size}*_train.hdf5"))


def _check_classes(cfgs: Any, folder: Path, split: str) -> None:
    """Raise UserError unless the split has as many folders as the configuration has classes, where labels matter."""
    names = class_names(str(folder / split), [])
    classes = cfgs.DATA.num_classes
    if len(names) == classes:
        return
    fact = f"{folder / split} has {len(names)} classes ({listed(names, 4)}), and DATA.num_classes is {classes}"
    is_conditional = (cfgs.MODEL.g_cond_mtd, cfgs.MODEL.d_cond_mtd) != ("W/O", "W/O")
    trains = is_conditional and any(getattr(cfgs.RUN, flag) for flag in ON_TRAINING)
    if trains or any(getattr(cfgs.RUN, flag) for flag in BY_CLASS):
        raise UserError(f"{fact}: make them equal")
    if is_conditional:
        notice(fact)


def _check_basket(cfgs: Any, root: Path) -> None:
    """Raise UserError unless the training images fill one basket of each process."""
    optimization = cfgs.OPTIMIZATION
    each = batch_size(cfgs)
    basket = each * optimization.acml_steps * optimization.d_updates_per_step
    processes = optimization.world_size if cfgs.RUN.distributed_data_parallel else 1

    images = count(str(root), basket * processes)
    if images < basket * processes:
        shares = f", in each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"{root} has {images} images, and a step takes {basket} (a batch of {each} x d_updates_per_step "
            f"{optimization.d_updates_per_step} x acml_steps {optimization.acml_steps}){shares}: add images, or lower "
            "these"
        )


def _check_counts(cfgs: Any, root: Path, metrics: list[str]) -> None:
    """Raise UserError unless there are as many real images as the metrics and analyses need."""
    run = cfgs.RUN
    each = batch_size(cfgs)
    needs = {
        "-metrics fid": 2 * ("fid" in metrics),
        "-metrics prdc": (NEIGHBOURS + 2) * ("prdc" in metrics),
        "-fa": ((each - 1) * each + 1) * run.frequency_analysis,  # it wants as many batches as a batch has images
        "-tsne": (PERPLEXITY // each + 1) * each * run.tsne_analysis,
    }
    images = count(str(root), max(1, *needs.values()))
    if not images:
        raise UserError(f"{root} has no images (files such as .png or .jpg in a folder for each class)")
    for what, least in needs.items():
        if images < least:
            raise UserError(f"{root} has {images} images, and {what} needs {least}: add images, or drop it")

    # Some need images of each class.
    least = 2 if run.intra_class_fid else 1
    if run.intra_class_fid or run.k_nearest_neighbor:
        for name in class_names(str(root), []):
            images = count(str(root / name), least)
            if images < least:
                what = "-ifid" if run.intra_class_fid else "-knn"
                raise UserError(
                    f"{root / name} has {images} images, and {what} needs {least} of each class: add images, or drop it"
                )


# ---------------------------------------------------------------------------- evaluate.py


def _check_evaluate(options: Any) -> None:
    """Raise UserError for options of the host's evaluate.py that cannot end well."""
    metrics = options.eval_metrics
    for word in metrics:
        if word not in METRICS:
            raise UserError(f"-metrics has '{word}': {nearest(word, METRICS)}")
    _check_least(options, batch_size=1, num_workers=0)
    _check_seed(options)

    # Files take the place of real images.
    for key, arrays in (("dset1_moments", ("mu", "sigma")), ("dset1_feats", ("real_feats",))):
        if path := getattr(options, key):
            _check_arrays(Path(path), f"--{key}", arrays)

    # Folders with a folder for each class.
    reads_real = ("fid" in metrics and not options.dset1_moments) or ("prdc" in metrics and not options.dset1_feats)
    least = max(2 * ("fid" in metrics), (NEIGHBOURS + 2) * ("prdc" in metrics), 1)
    for key, is_read in (("dset1", reads_real), ("dset2", True)):
        folder = getattr(options, key)
        if folder is None and (is_read or not (options.dset1_moments or options.dset1_feats)):
            raise UserError(f"evaluate needs --{key} DIR, a folder with a folder of images for each class")
        if is_read:
            _check_folder(Path(folder), f"--{key}", least, metrics)


def _check_folder(folder: Path, flag: str, least: int, metrics: list[str]) -> None:
    if not folder.is_dir():
        raise UserError(f"{flag} {folder} is not a folder: give one with a folder of images for each class")
    class_names(str(folder), [])
    images = count(str(folder), least)
    if images < least:
        raise UserError(
            f"{flag} {folder} has {images} images, and -metrics {' '.join(metrics)} needs {least}: add images"
        )


def _check_arrays(path: Path, flag: str, names: tuple[str, ...]) -> None:
    regular_file(path, flag)
    try:
        with np.load(path) as file:
            missing = [name for name in names if name not in file]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{flag} {path} is no .npz file, or is damaged: give one of the host's") from error
    if missing:
        raise UserError(f"{flag} {path} has no {' and '.join(missing)}: give an .npz file of the host's")
