"""Python in three lines: a generator that is loaded once, images of it, and tables of measurements.

Example:
    >>> import studiogan_guidance
    >>> gan = studiogan_guidance.load()
    >>> gan.sample("gandance", scale=1.4, classes=[3], num=8)
    8 images of 32x32 pixels, class 3, seeds 0 to 7: gandance scale=1.4
"""

from __future__ import annotations

import dataclasses
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from studiogan_guidance import samplers
from studiogan_guidance.config import LISTS, RunConfig
from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.evaluation import distributed, results, tables
from studiogan_guidance.evaluation import sample as sampling
from studiogan_guidance.evaluation.evaluation import Evaluation, configured
from studiogan_guidance.evaluation.images import Images
from studiogan_guidance.host.configuration import configuration
from studiogan_guidance.latents import LatentView, Networks
from studiogan_guidance.options import Spec, expanded, shown
from studiogan_guidance.samplers import SAMPLERS, Sampler

__all__ = ["GAN", "Images", "Table", "load"]

SamplerLike: TypeAlias = str | Mapping[str, Any] | Spec | Sampler
PathLike: TypeAlias = str | os.PathLike[str]
Classes: TypeAlias = int | str | Iterable[int | str]

SETTINGS = tuple(field.name for field in dataclasses.fields(RunConfig))
OF_LOADING = (  # settings that say what is loaded, and how
    "sampler",
    "options",
    "host_config",
    "ckpt",
    "which",
    "data",
    "held_out",
    "studiogan",
    "device",
    "pre_resizer",
    "restat",
    "host",
)
WITHOUT_MEANING = ("stages", "compare")  # settings of other commands
WORDS = ("classes", "metrics", "which")  # lists whose items one text may hold, separated by commas


def load(config: PathLike | None = None, ckpt: PathLike | None = None, **settings: Any) -> GAN:
    """Load a generator: that of a checkpoint of the host, or without arguments the built-in GAN of digits.

    Args:
        config: a YAML file, ours or the host's as it is, or the name of a configuration in the package or in the host,
            such as "CIFAR10/BigGAN-gandance.yaml".
        ckpt: folder with the host's ``model=G*-weights-step*.pth`` files, or one of them.
        settings: other keys of a configuration, such as ``data="images"``, ``device="cuda:1"`` or ``labels="data"``;
            they count more than the file's.

    Raises:
        UserError: what is wrong with the configuration or the checkpoint, in one line.

    Example:
        >>> load(device="cpu")
        the built-in GAN: 10 classes, 32x32 pixels, on cpu
    """
    given = _values({"ckpt": ckpt, **settings}, SETTINGS, "load")
    path = None if config is None else os.fspath(config)
    return GAN(configuration(path, given))


class GAN:
    """A generator that is loaded once: networks, tables and calibrations are kept between calls. See ``load``.

    A sampler is written in any of these ways; what it leaves out has the default of the sampler:

    - a name, with options as further arguments: ``"gandance", scale=1.4``
    - a text, as on the command line: ``"ddls:steps=5,base=gandance,base.scale=1.2"``
    - a mapping, as in YAML: ``{"name": "gandance", "scale": 1.4}``
    - an object: ``studiogan_guidance.samplers.GANdance(scale=1.4)``, or one of a class of your own
    - nothing at all: the sampler of the configuration with its options

    ``studiogan_guidance.samplers.SAMPLERS`` has all names, and the options of each are the fields of its class.

    Attributes:
        cfg: the configuration.

    Example:
        >>> gan = load()
        >>> gan.networks.num_classes, gan.networks.image_size
        (10, 32)
    """

    def __init__(self, cfg: RunConfig) -> None:
        self.cfg = cfg
        self._session = sampling.Session(cfg)

    @property
    def networks(self) -> Networks:
        """The generator, a ``torch.nn.Module``, with facts about it and what belongs to it."""
        return self._session.networks

    @property
    def view(self) -> LatentView:
        """The generator as samplers see it: ``encode`` (z, labels) to codes, ``decode`` codes to images."""
        return self._session.view

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The name of each class: of the folders of ``data``, else its number; none of an unconditional generator.

        Example:
            >>> load().classes
            ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
        """
        if not self.networks.is_conditional:
            return ()
        source = self._session.source
        count = self.networks.num_classes
        if source.splits:
            split = self.cfg.reference or source.default_split
            names = source.real(split, self.networks.image_size).class_names
            if len(names) == count:
                return names
        return tuple(map(str, range(count)))

    def sample(
        self,
        sampler: SamplerLike | None = None,
        *,
        num: int | None = None,
        classes: Classes | None = None,
        seed: int | None = None,
        seeds: Iterable[int] | None = None,
        batch_size: int | None = None,
        scales: Sequence[float] = (),
        **options: Any,
    ) -> Images:
        """Sample images, the same ones as the command ``sample`` with these settings, bit for bit.

        Args:
            sampler: see ``GAN``; by default that of the configuration.
            num: number of images; by default that of the configuration, or 64.
            classes: classes that are used in turn: numbers, ranges such as "0-4", names of class folders; one alone, in
                a list, or as a text with commas. By default labels are drawn at random.
            seed: of the first image; image i has ``seed + i``. By default that of the configuration, 0.
            seeds: the seed of each image, in place of ``num`` and ``seed``.
            batch_size: images a forward pass, 64 by default. Other sizes round differently.
            scales: guidance scales to sample the same seeds at, one block of images after the other.
            options: of the sampler, such as ``scale=1.4``. ``plain`` has none; ``gandance`` is plain at ``scale=1``.

        Raises:
            UserError: an unknown sampler or option, a value out of range, a class or seed that is not there.

        Example:
            >>> gan = load()
            >>> images = gan.sample("gandance", scale=1, classes="3,7", num=4)
            >>> images.labels.tolist(), images.tensor.shape
            ([3, 7, 3, 7], torch.Size([4, 3, 32, 32]))
            >>> bool((images.pixels == gan.sample("plain", classes="3,7", num=4).pixels).all())
            True
        """
        # The configuration of these images.
        if seeds is not None and (num is not None or seed is not None):
            raise UserError("seeds name every image, so num and seed have no meaning: leave them out, or seeds")
        given = {"num": num, "classes": classes, "seed": seed, "batch_size": batch_size}
        cfg = dataclasses.replace(self.cfg, **_values(given, tuple(given), "sample"))
        chosen_seeds = sampling.seeds_of(cfg, _listed(seeds or (), "seeds"))

        # The sampler, at each scale.
        chosen, plan = self._session.prepared(cfg, self._samplers(sampler, options, scales))
        text = _described(chosen[0], scales)

        # Sample.
        images = []
        labels = []
        for each in chosen:
            for batch in self._session.batches(cfg, each, plan, chosen_seeds):
                images.append(batch.images.cpu())
                labels.append(batch.labels.cpu().numpy())
        arrays = sampling.named_arrays(np.empty(0), np.concatenate(labels), chosen_seeds, scales)
        return Images(torch.cat(images), arrays["labels"], arrays["seeds"], text, arrays.get("scales"))

    def evaluate(
        self,
        *chosen: SamplerLike,
        metrics: str | Iterable[str] | None = None,
        num: int | None = None,
        classes: Classes | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        out: PathLike | None = None,
        **settings: Any,
    ) -> Table:
        """Measure samplers against real images, on the same seeds and labels: the numbers of the command ``eval``.

        Args:
            chosen: samplers, see ``GAN``; without any, plain sampling and the sampler of the configuration.
            metrics: of fid, is, prdc (precision, recall, density, coverage), kid, fid_infinity and per_class; one, or
                several in a list or as a text with commas. By default those of the configuration: fid, is and prdc.
            num: number of images; by default as many as there are real ones.
            classes: see ``sample``; real images are those of these classes, too.
            seed: of the first image.
            batch_size: images a forward pass.
            out: a folder; the rows are also added to results.jsonl in it, for ``compare`` and ``report``.
            settings: more keys of a configuration, such as ``reference="valid"``, ``backbone="random"`` or ``k=3``.

        Raises:
            UserError: what ``sample`` raises; too few images, unknown metrics, or settings that only ``load`` takes.

        Example:
            >>> table = load().evaluate("plain", "gandance:scale=1.2", metrics="fid", num=20)
            >>> [row["sampler"] for row in table], list(table[0])
            (['plain', 'gandance'], ['sampler', 'options', 'fid', 'accuracy', 'seconds'])
        """
        # The configuration of these rows.
        named = {"metrics": metrics, "num": num, "classes": classes, "seed": seed, "batch_size": batch_size}
        both = {**named, **settings}
        for key in OF_LOADING:
            if key in both:
                raise UserError(f"{key} belongs to what is loaded: give it to studiogan_guidance.load")
        known = [key for key in SETTINGS if key not in (*OF_LOADING, *WITHOUT_MEANING, "out")]
        cfg = dataclasses.replace(self.cfg, **_values(both, known, "evaluate"))

        # The samplers, refused before real images are opened.
        wanted = chosen or configured(cfg)
        ready = [samplers.checked(self._samplers(spec)[0], self.view) for spec in wanted]
        folder = None if out is None else results.writable(Path(expanded(os.fspath(out))))

        # Measure. Fast mode changes networks, so it gets some of its own.
        shared = () if cfg.fast else (self._session.source, self.view)
        with distributed.group() as group:
            evaluation = Evaluation(cfg, group, (), *shared)
            rows = [evaluation.measure(SAMPLERS.name_of(sampler), sampler) for sampler in ready]
        measured = [row for row in rows if row]
        if folder and measured:
            results.append(folder / results.FILE, measured)
        return Table(measured)

    def _samplers(
        self, sampler: SamplerLike | None, options: Mapping[str, Any] | None = None, scales: Sequence[float] = ()
    ) -> list[Sampler]:
        """The sampler with these options at each of the scales, or once as it is."""
        if isinstance(sampler, Sampler):
            if not options and not scales:
                return [sampler]
            sampler = Spec(SAMPLERS.name_of(sampler), samplers.options(sampler))
        spec = Spec(self.cfg.sampler, self.cfg.options) if sampler is None else Spec.parse(sampler, "the sampler")
        return sampling.at_scales(Spec(spec.name, {**spec.options, **(options or {})}), scales)

    def __repr__(self) -> str:
        networks = self.networks
        classes = f"{networks.num_classes} classes" if networks.is_conditional else "no classes"
        size = networks.image_size
        return f"{networks.source}: {classes}, {size}x{size} pixels, on {networks.device}"


class Table(list[dict[str, Any]]):
    """Measurements: a list of flat dicts, one a sampler, which ``pandas.DataFrame`` takes.

    Each has ``sampler``, ``options`` (a text), every metric, and ``seconds``. Printed, it is the text that the command
    ``eval`` prints; a notebook shows a table.

    Args:
        rows: as ``eval`` adds them to results.jsonl.

    Attributes:
        rows: these, with costs, notes, the whole protocol, and where they came from.

    Example:
        >>> table = load().evaluate("plain", metrics=["is"], num=20)
        >>> table.protocol["num"], table[0]["sampler"], table[0]["is"] > 1
        (20, 'plain', True)
    """

    def __init__(self, rows: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(tables.flat(rows))
        self.rows = list(rows)

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything that changes the values; compare tables of equal protocols only."""
        return dict(self.rows[0]["protocol"]) if self.rows else {}

    def __repr__(self) -> str:
        return tables.table(self.rows) if self.rows else "no rows"

    def _repr_html_(self) -> str:
        return tables.html_table(self.rows) if self.rows else "no rows"


def _values(settings: Mapping[str, Any], known: Sequence[str], where: str) -> dict[str, Any]:
    """The settings that are not None, with the types that RunConfig has; ``where`` they are given is for errors."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            raise UserError(f"{where} takes no {shown(key)}: {nearest(key, known)}")
        if value is None:
            continue
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        values[key] = _listed(value, key) if key in LISTS else value
    return values


def _listed(value: Any, name: str) -> tuple[Any, ...]:
    """One item, several, or a text of several words, as a tuple; whole numbers of NumPy as Python's own."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",")) if name in WORDS else (value,)
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        value = (value,)
    return tuple(operator.index(item) if hasattr(item, "__index__") else item for item in value)


def _described(sampler: Sampler, scales: Sequence[float]) -> str:
    """A sampler with the options that tell what it does, in one line."""
    name = SAMPLERS.name_of(sampler)
    (options,) = tables.telling_options([{"sampler": name, "options": results.plain_data(samplers.options(sampler))}])
    if scales:
        options = {**options, "scale": ",".join(f"{scale:g}" for scale in scales)}
    return f"{name} {tables.format_options(options)}".strip()
