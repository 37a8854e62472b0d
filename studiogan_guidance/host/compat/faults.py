"""Fixes for faults of the host itself, with libraries of any version."""

from __future__ import annotations

import functools
import logging
import os
import pickle
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studiogan_guidance.batches import is_out_of_memory
from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.evaluation.fid import frechet_distance
from studiogan_guidance.host import image_folders
from studiogan_guidance.host.compat.table import SHIMS, shim
from studiogan_guidance.host.image_files import check_size
from studiogan_guidance.host.image_folders import ImageFolder
from studiogan_guidance.host.modules import module, swapped


@shim(
    "filters",
    symptom="the legacy resizer switches off all warnings of the process; old calls print deprecation warnings",
    since="upstream",
    until="the host leaves the warning filters alone",
    table=SHIMS,
)
def filters() -> Iterator[None]:
    logger = logging.getLogger("torch.utils.cpp_extension")  # "No CUDA runtime is found" on machines without a GPU
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@shim(
    "workers_0",
    symptom="ValueError: persistent_workers option needs num_workers > 0 (--num_workers 0)",
    since="upstream",
    until="the host ties the two together",
)
def workers_0() -> Iterator[None]:
    loader = module("loader")
    original = loader.DataLoader

    def data_loader(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("num_workers"):
            kwargs["persistent_workers"] = False
        return original(*args, **kwargs)

    with swapped(loader, "DataLoader", data_loader):
        yield


@shim(
    "current_when_no_best",
    symptom="IndexError: list index out of range after a training without FID, which saves no best checkpoint",
    since="upstream",
    until="load_best_model looks for current, too",
)
def current_when_no_best() -> Iterator[None]:
    ckpt = module("utils.ckpt")
    original = ckpt.load_best_model
    glob = ckpt.glob

    def load_best_model(ckpt_dir: str, *args: Any, **kwargs: Any) -> Any:
        if glob.glob(os.path.join(ckpt_dir, "model=G-best-weights-step*.pth")):
            return original(ckpt_dir, *args, **kwargs)
        current = types.SimpleNamespace(glob=lambda pattern: glob.glob(pattern.replace("-best-", "-current-")))
        with swapped(ckpt, "glob", current):
            return original(ckpt_dir, *args, **kwargs)

    with swapped(ckpt, "load_best_model", load_best_model):
        yield


@shim(
    "resnet50_key",
    symptom="KeyError: 'ResNet50_torch' (--eval_backbone ResNet50_torch)",
    since="upstream",
    until="the host's table of versions has the key",
    when=lambda: "ResNet50_torch" not in module("metrics.preparation").model_versions,
)
def resnet50_key() -> Iterator[None]:
    versions = module("metrics.preparation").model_versions
    versions["ResNet50_torch"] = versions["ResNet_torch"]
    try:
        yield
    finally:
        del versions["ResNet50_torch"]


@shim(
    "whole_cutoff",
    symptom="TypeError: slice indices must be integers (--truncation_cutoff is parsed as a float)",
    since="upstream",
    until="the host parses an int",
)
def whole_cutoff() -> Iterator[None]:
    host = module("config").Configurations
    original = host.update_cfgs

    def update_cfgs(self: Any, cfgs: Mapping[str, Any], super: str = "RUN") -> Any:
        cutoff = cfgs.get("truncation_cutoff")
        if isinstance(cutoff, float):
            if not cutoff.is_integer():
                raise UserError(f"--truncation_cutoff is {cutoff}: give a whole number of layers")
            cfgs = {**cfgs, "truncation_cutoff": int(cutoff)}
        return original(self, cfgs, super)

    with swapped(host, "update_cfgs", update_cfgs):
        yield


@shim(
    "classifier_mode",
    symptom="UnboundLocalError: 'mode' (--GAN_train, --GAN_test without -resume_ct)",
    since="upstream",
    until="the host sets mode in both branches",
)
def classifier_mode() -> Iterator[None]:
    worker = module("worker").WORKER
    ckpt = module("utils.ckpt")
    original = worker.compute_GAN_train_or_test_classifier_accuracy_score
    check = ckpt.check_is_pre_trained_model

    def not_trained(**kwargs: Any) -> tuple[bool, Any]:
        _, file_to_save = check(**kwargs)
        return False, file_to_save

    def compute(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.RUN.resume_classifier_train:
            return original(self, *args, **kwargs)
        with (
            swapped(self.RUN, "resume_classifier_train", True),
            swapped(ckpt, "check_is_pre_trained_model", not_trained),
        ):
            return original(self, *args, **kwargs)

    with swapped(worker, "compute_GAN_train_or_test_classifier_accuracy_score", compute):
        yield


@shim(
    "tables_from_anywhere",
    symptom="FileNotFoundError: ./src/utils/..., on ImageNet accuracies when not started from the checkout",
    since="upstream",
    until="the host opens its tables beside its code",
)
def tables_from_anywhere() -> Iterator[None]:
    misc = module("utils.misc")
    original = misc.load_ImageNet_label_dict
    root = Path(misc.__file__).parents[2]

    def load(*args: Any, **kwargs: Any) -> Any:
        folder = os.getcwd()
        os.chdir(root)
        try:
            return original(*args, **kwargs)
        finally:
            os.chdir(folder)

    with swapped(misc, "load_ImageNet_label_dict", load):
        yield


@shim(
    "empty_classes",
    symptom="FileNotFoundError: Found no valid file for the classes, in evaluate.py on a folder that -sf wrote",
    since="upstream",
    until="-sf makes folders only for classes with images",
)
def empty_classes() -> Iterator[None]:
    datasets = module("torchvision.datasets")
    allowing = functools.partial(ImageFolder, allow_empty=True, one_size=True)
    with swapped(datasets, "ImageFolder", allowing):
        yield


@shim(
    "image_files",
    symptom="tracebacks that do not name the file; transparent and 16-bit pixels read by a guess; .ipynb_checkpoints "
    "is a class; RuntimeError: stack expects each tensor to be equal size",
    since="upstream",
    until="the host checks what it reads",
)
def image_files() -> Iterator[None]:
    data_util = module("data_util")
    dataset = data_util.Dataset_
    original_init = dataset.__init__
    original_item = dataset.__getitem__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        size = kwargs.get("resize_size")
        self.expected_size = (size, size) if size else None
        original_init(self, *args, **kwargs)

    def __getitem__(self: Any, index: int) -> Any:
        pixels, label = original_item(self, index)
        samples = getattr(getattr(self, "data", None), "samples", None)
        if samples:
            self.expected_size = self.expected_size or tuple(pixels.shape[-2:])  # that of the first, where none is set
            check_size(pixels, self.expected_size, samples[index][0], "add --pre_resizer (such as lanczos)")
        return pixels, label

    def cifar(kind: Any) -> Any:
        def read_or_download(root: str, train: bool, download: bool) -> Any:
            return image_folders.cifar(kind, root, train, functools.partial(kind, root, train, download=download))

        return read_or_download

    with (
        swapped(data_util, "ImageFolder", ImageFolder),
        swapped(data_util, "CIFAR10", cifar(data_util.CIFAR10)),
        swapped(data_util, "CIFAR100", cifar(data_util.CIFAR100)),
        swapped(dataset, "__init__", __init__),
        swapped(dataset, "__getitem__", __getitem__),
    ):
        yield


@shim(
    "frechet_root",
    symptom="ValueError: Imaginary component (FID of few images), which ends a training",
    since="upstream",
    until="the host takes the root of a symmetric matrix",
)
def frechet_root() -> Iterator[None]:
    fid = module("metrics.fid")
    original = fid.frechet_inception_distance

    def distance(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any, eps: float = 1e-6) -> Any:
        # Refuse what has no distance.
        moments = (mu1, sigma1, mu2, sigma2)
        if not all(np.isfinite(value).all() for value in moments):
            raise UserError(
                "FID: moments of features are not finite: the feature network returned NaN or infinity for some "
                "images, or there is only one image"
            )
        if np.shape(mu1) != np.shape(mu2):
            raise UserError(f"FID: moments of {np.size(mu1)} and of {np.size(mu2)} features: use one feature network")

        # The host's root of a product may be complex; ours is of a symmetric matrix.
        try:
            return original(*moments, eps)
        except (ValueError, np.linalg.LinAlgError):
            return np.float64(frechet_distance(*moments))

    with swapped(fid, "frechet_inception_distance", distance):
        yield


@shim(
    "named_networks",
    symptom="URLError or RuntimeError where the feature network cannot be downloaded or read",
    since="upstream",
    until="the host says what it downloads",
)
def named_networks() -> Iterator[None]:
    network = module("metrics.preparation").LoadEvalModel
    original = network.__init__

    def load(self: Any, eval_backbone: str, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, eval_backbone, *args, **kwargs)
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            if is_out_of_memory(error):
                raise
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise UserError(
                f"cannot load the weights of {eval_backbone} ({one_line(error, 120)}): "
                f"download them on a machine with a network and copy them into {folder}"
            ) from error

    with swapped(network, "__init__", load):
        yield
