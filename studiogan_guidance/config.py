"""The configuration of a run: one frozen record, its schema, and its files.

Defaults < file < command line. A file is either ours (``host_config`` points at the host's YAML), or a YAML of the
host as it is: sections in capitals go to the host untouched, every other key is a field of ``RunConfig``. Paths are
from the current folder, except that of ``host_config``; ``~`` and variables such as ``$HOME`` are written out in them.
"""

from __future__ import annotations

import dataclasses
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.options import Spec, check_type, expanded, shown

METRICS = ("fid", "is", "prdc", "kid", "fid_infinity", "per_class")
WHICH = ("best", "current", "ema", "raw")
CHOICES = {
    "labels": ("uniform", "data"),
    "noise_mode": ("random", "const"),
    "reference": ("train", "valid", "test"),
    "resizer": ("legacy", "clean", "friendly"),
    "resize_on": ("auto", "cpu", "device"),
    "pre_resizer": ("wo_resize", "nearest", "bilinear", "bicubic", "lanczos"),
}
WORD_LISTS = {"metrics": METRICS, "which": WHICH}
HUB = "hf://"  # how an address on the Hugging Face hub begins
RUN_KEYS = ("sampler", "stages", "restat")  # our keys that may stand in the host's RUN section
NUMBERS = {  # the least and the most
    "num": (1, 2**31),  # each image has a seed of its own below it
    "seed": (0, math.inf),  # see rng.check_images
    "batch_size": (1, 2**16),  # the tensors of more images hold more numbers than a kernel can count
    "k": (1, 10_000),  # of neighbours, all of which are searched
    "splits": (1, 10_000),
    "restat": (0, 10_000),  # batches of 64 images
}
PATHS = ("ckpt", "data", "held_out", "studiogan", "reference_stats", "inception", "out", "host_config")
INPUTS = ("ckpt", "data", "held_out", "studiogan", "reference_stats", "inception")  # paths that must be there
NETWORKS = ("backbone", "judges", "classifier")  # a kind of network, and for some a colon and a path
SECTIONS = ("DATA", "MODEL", "LOSS", "OPTIMIZATION", "PRE", "AUG", "RUN", "STYLEGAN")  # of the host's YAML
LISTS = (
    "metrics",
    "which",
    "classes",
    "judges",
    "stages",
    "compare",
)  # in YAML, one item may stand without its brackets


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run. These are the keys of a YAML file; most are flags of the command line, too.

    Attributes:
        sampler: name of the sampler, or ``{name: ..., option: value, ...}`` in YAML.
        options: the sampler's options (in YAML they stand in the mapping of ``sampler``, next to ``name``).
        host_config: the host's YAML: in a file, a path from the file's folder or inside the host's ``src/configs``;
            in Python, an absolute path or one inside ``src/configs``.
        ckpt: folder with the host's ``model=G*-weights-step*.pth`` files, or one of them; or such a folder on the hub,
            ``hf://OWNER/REPO[@REVISION]/FOLDER``.
        which: the checkpoint among them: best or current, ema or raw; by default best before current, ema before raw.
        data: folder of real images as the host expects it (``train/<class>/*``, ``valid/<class>/*``, or CIFAR's own).
        held_out: folder of real images whose valid split (CIFAR: test) calibrates the discriminator, for samplers that
            need it; by default ``data``. Give another folder where ``reference`` is that split.
        studiogan: the host's checkout; by default it is looked for (see ``doctor``).
        out: folder for results.
        device: auto, cpu, cuda or cuda:N.
        seed: seed K of the first image; image i has seed K + i. All seeds must be below 2**31.
        num: number of images; by default as many as there are real ones (50,000 for ImageNet's train split).
        batch_size: images per forward pass; by default 64, and for metrics on a GPU up to 256, as its memory allows.
        classes: classes that are used in turn: indices, ranges of them (0-9), or names of class folders; a number
            always means the index. Metrics compare with the real images of these classes only. By default labels are
            drawn at random, and real images are those of all classes.
        labels: how labels are drawn: uniform, or data (as often as in the real images).
        noise_mode: StyleGAN2's layer noise: random (from each image's seed) or const.
        metrics: any of fid, is, prdc, kid, fid_infinity, per_class (FID, precision and recall within each class).
        reference: the real split: train, valid or test; by default the host's train, the built-in's test.
        reference_stats: a file of statistics to measure against in place of real images: of 'stats', or any .npz with
            mu and sigma of the same feature network, resizer and image size.
        backbone: the feature network: host:InceptionV3_tf (and its other names), torchscript:PATH, dinov2:PATH,
            efficientnet (Lite0, with ImageNet weights from pip), builtin, or random (weights that nobody trained); by
            default the host's Inception for its checkpoints, and builtin for the built-in.
        inception: the file with the weights of the host's Inception, where torch's hub cannot download it: known by its
            hash. Other weights are taken if the file's name ends in its own hash, and rows have that name.
        judges: more feature networks, in whose features FID is measured on the same images, as ``fid@NAME`` (and KID as
            ``kid@NAME``, with kid among the metrics): as ``backbone``, and discriminator (the checkpoint's own); NAME
            is the stem of a file, or the network's name.
        classifier: torchscript:PATH, a network whose class logits, one for each class of the generator, give the share
            of images that are of their class, ``accuracy``; by default those of the feature network, if they fit.
        resizer: the host's resizer before the feature network: legacy, clean or friendly.
        resize_on: where images are resized: auto (on the feature network's device), cpu or device; pixels are the same
            bits, the host's.
        channels_last: run the feature network in the channels-last memory format.
        compile: run the feature network through torch.compile.
        fast: generator and feature network in float16, bfloat16 or TF32, whichever is the fastest that changes FID by
            less than 0.05 (measured once on these networks), with channels last, and on a GPU as CUDA graphs. Real
            images are measured by the exact network. A feature network in TorchScript runs as it was saved.
        pre_resizer: how real images get the configured size: wo_resize, nearest, bilinear, bicubic or lanczos.
        k: precision, recall, density and coverage use balls that reach to the k-th nearest neighbour.
        splits: parts of the Inception Score (host 1, literature 10).
        restat: batches of 64 images of the sampler over which batch-norm statistics are recomputed; 0 keeps those of
            the checkpoint.
        stages: extra training after the host's own, names or ``{name: ..., option: value}`` (host runs only).
        compare: samplers that ``compare`` measures, names or ``{name: ..., option: value}``.
        compare_plain: also measure plain sampling on the same seeds and labels.
        host: sections in capitals of the host's YAML (DATA, MODEL, ...), where the file has them.
    """

    sampler: str = "gandance"
    options: Mapping[str, Any] = field(default_factory=dict)
    host_config: str | None = None
    ckpt: str | None = None
    which: tuple[str, ...] = ()
    data: str | None = None
    held_out: str | None = None
    studiogan: str | None = None
    out: str = "runs"
    device: str = "auto"
    seed: int = 0
    num: int | None = None
    batch_size: int | None = None
    classes: tuple[int | str, ...] = ()
    labels: str = "uniform"
    noise_mode: str = "random"
    metrics: tuple[str, ...] = ("fid", "is", "prdc")
    reference: str | None = None
    reference_stats: str | None = None
    backbone: str | None = None
    inception: str | None = None
    judges: tuple[str, ...] = ()
    classifier: str | None = None
    resizer: str = "legacy"
    resize_on: str = "auto"
    channels_last: bool = False
    compile: bool = False
    fast: bool = False
    pre_resizer: str = "wo_resize"
    k: int = 5
    splits: int = 1
    restat: int = 0
    stages: tuple[Any, ...] = ()
    compare: tuple[Any, ...] = ()
    compare_plain: bool = True
    host: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_types()
        self._check_words()
        self._check_numbers()

    def _check_types(self) -> None:
        for key, kind in typing.get_type_hints(RunConfig).items():
            check_type(key, getattr(self, key), kind)
            if getattr(self, key) == "":
                raise UserError(f"{key} is empty: give it a value, or leave it out")
        if not self.metrics:
            raise UserError(f"metrics is empty: name some of {', '.join(METRICS)}")

    def _check_words(self) -> None:
        for key, words in CHOICES.items():
            word = getattr(self, key)
            if word is not None and word not in words:
                raise UserError(f"{key} is {shown(word)}: {nearest(word, words)}")
        for key, words in WORD_LISTS.items():
            for word in getattr(self, key):
                if word not in words:
                    raise UserError(f"{key} has {shown(word)}: {nearest(word, words)}")

    def _check_numbers(self) -> None:
        for key, (least, most) in NUMBERS.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise UserError(f"{key} must be a whole number from {least} up, found {value!r}")
            if value is not None and value > most:
                raise UserError(f"{key} must be at most {most}, found {shown(value)}")
        from studiogan_guidance.rng import check_images

        check_images(self.seed, self.num or 1)

    @property
    def uses_host(self) -> bool:
        """Whether the run is about a checkpoint of the host (else: the built-in GAN)."""
        return bool(self.host or self.host_config)

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain data, for a result."""
        return dataclasses.asdict(self)


def load(path: str | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Read a configuration file, if any, and put the command line's ``overrides`` (None: not given) on top.

    Options of the file's sampler are kept where the command line names the same sampler or none. Without a file,
    options of the command line are added to the defaults of the sampler.
    """
    settings = {key: value for key, value in overrides.items() if value not in (None, (), {})}
    settings = {key: _path(key, value) for key, value in settings.items()}
    values = read(Path(path)) if path is not None else {}

    # The sampler of the file, and its options if the command line names no other.
    options = dict(values.pop("sampler", {"name": RunConfig.sampler}))
    sampler = options.pop("name")
    if settings.get("sampler", sampler) != sampler:
        options = {}
    values["sampler"] = sampler
    settings["options"] = {**options, **settings.get("options", {})}

    # Both together; a mistake in the file is one even where the command line says otherwise.
    RunConfig(**values)
    cfg = RunConfig(**{**values, **settings})
    if not cfg.uses_host and (cfg.ckpt or cfg.data or cfg.held_out):
        raise UserError(
            f"--ckpt, --data and --held-out need the host's configuration, but {path or 'no -c'} names none: add -c "
            "FILE with host_config or the host's own sections (such as CIFAR10/BigGAN-gandance.yaml)"
        )
    for key in INPUTS:
        if path and key not in settings:
            _check_beside(key, getattr(cfg, key), Path(path))
    if path and "joint_ckpt" not in overrides.get("options", {}):
        _check_beside("joint_ckpt", cfg.options.get("joint_ckpt"), Path(path))
    return cfg


def _path(key: str, value: Any) -> Any:
    """``value``, written out if ``key`` is a path, or of feature networks that have one."""
    if key == "judges" and isinstance(value, (list, tuple)):
        return tuple(_path("backbone", spec) for spec in value)
    if not isinstance(value, str):
        return value
    if key in NETWORKS:
        kind, colon, path = value.partition(":")
        return f"{kind}{colon}{expanded(path)}"
    return expanded(value) if key in PATHS else value


def resolved(spec: str) -> str:
    """A feature network such as ``torchscript:PATH``, whose path, if it is one, depends on no current folder."""
    kind, _, path = spec.partition(":")
    return f"{kind}:{Path(path).resolve()}" if path and os.path.exists(path) else spec


def _check_beside(key: str, value: Any, file: Path) -> None:
    """Raise UserError for a path of a file that is not in the current folder, but beside that file."""
    if not isinstance(value, str) or os.path.exists(value) or not os.path.exists(beside := file.parent / value):
        return
    raise UserError(
        f"{key} in {file} is {value}, which is not in {Path.cwd()}: paths are from the current folder; what is beside "
        f"that file is {beside.resolve()}"
    )


def packaged() -> dict[str, Path]:
    """The configurations that the package ships, by name, such as CIFAR10/BigGAN-gandance.yaml."""
    here = Path(__file__).parent
    root = next(path for path in (here / "configs", here.parent / "configs") if path.is_dir())  # installed, or a clone
    return {str(file.relative_to(root)): file for file in sorted(root.rglob("*.yaml"))}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping of plain values; UserError otherwise, see ``plain_yaml.read``."""
    from studiogan_guidance import plain_yaml

    content = plain_yaml.read(path)
    if "data_processing" in content or "train" in content:
        raise UserError(
            f"{path} is a configuration of the PyTorch-StudioGAN of 2020 (keys {', '.join(content)}): those of 2022 "
            "and later are YAML with sections DATA, MODEL, LOSS and OPTIMIZATION, take one of its src/configs"
        )
    return content


def read(path: Path) -> dict[str, Any]:
    """The keys of a file, or of a packaged one, with ``sampler``, ``stages`` and ``compare`` as mappings.

    Sections in capitals, the host's, are under ``host``. ``sampler``, ``stages`` and ``restat`` may also stand in the
    host's RUN section.
    """
    path = _existing(path)
    content = _out_of_run(read_yaml(path), path)

    # Sections in capitals are the host's, all other keys are ours.
    names = [field.name for field in dataclasses.fields(RunConfig) if field.name not in ("host", "options")]
    values: dict[str, Any] = {"host": {}}
    for key, value in content.items():
        if str(key).isupper():
            values["host"][key] = value
        elif key not in names or (key == "data" and isinstance(value, dict)):
            raise UserError(f"{path} has an unknown key {shown(key)}: {_nearest_key(key, names)}")
        elif value is not None:
            items = tuple(value) if isinstance(value, list) and key in LISTS else value
            values[key] = _path(key, items)
    if isinstance(values.get("classes"), str):
        values["classes"] = tuple(word.strip() for word in values["classes"].split(","))
    for key in LISTS:
        if key in values and not isinstance(values[key], tuple):
            values[key] = (values[key],)

    # The host's YAML is a file, or this one.
    if values["host"] and values.get("host_config"):
        raise UserError(f"{path} has both host_config and the host's own sections: keep one of them")
    if host_config := values.get("host_config"):
        beside = path.parent / str(host_config)
        if os.path.isfile(beside):
            values["host_config"] = str(beside.resolve())  # an absolute path, whose meaning no current folder changes

    # Names of samplers and stages become mappings.
    if "sampler" in values:
        values["sampler"] = _mapping(values["sampler"], f"sampler in {path}")
    for key, what in (("stages", "a stage"), ("compare", "a sampler to compare")):
        values[key] = tuple(_mapping(spec, f"{what} in {path}") for spec in values.get(key, ()))
    return values


def _nearest_key(key: str, names: list[str]) -> str:
    """The tail of the error about an unknown key; the host's sections may have been written in small letters."""
    if key.upper() in SECTIONS:
        return f"as a section of the host it is {key.upper()}, in capitals"
    return nearest(key, names)


def _existing(path: Path) -> Path:
    """``path``, or the packaged file of that name; UserError if there is neither."""
    if os.path.exists(path):
        return path
    if str(path) not in packaged():
        raise UserError(f"no configuration {path} here or in the package: {nearest(str(path), packaged())}")
    return packaged()[str(path)]


def _out_of_run(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """``content`` with our keys taken out of the host's RUN section; a section that is empty then is dropped."""
    run = content.get("RUN") or {}
    if not isinstance(run, dict):
        return content
    ours = {key: value for key, value in run.items() if key in RUN_KEYS}
    for key in ours:
        if key in content:
            raise UserError(f"{path} has {key} twice, at the top and in RUN: keep one of them")
    rest = {key: value for key, value in run.items() if key not in RUN_KEYS}
    outside = {key: value for key, value in content.items() if key != "RUN"}
    return {**outside, **ours, **({"RUN": rest} if rest else {})}


def _mapping(spec: Any, what: str) -> dict[str, Any]:
    """``name`` or ``{name: ..., option: value}`` as the latter; UserError for anything else."""
    parsed = Spec.parse(spec, what)
    return dict(spec) if isinstance(spec, Mapping) else parsed.to_dict()
