"""One evaluation: open what a configuration points at, sample, compare with real images, and make a row of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from studiogan_guidance import samplers
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, notice, say
from studiogan_guidance.evaluation import distributed, labels, metrics, precision, reference, results, stats_file
from studiogan_guidance.evaluation.generation import Meter, Pass, batch_size, check_counts, norm_statistics
from studiogan_guidance.evaluation.judges import ACCURACY, Judges, labelled, of_classifier
from studiogan_guidance.evaluation.precision import Choice, Pipeline
from studiogan_guidance.evaluation.reference import Reference
from studiogan_guidance.evaluation.source import Source, current_device, open_backbone, open_source
from studiogan_guidance.evaluation.stats_file import StatsFile
from studiogan_guidance.features.images import Real, split_digest
from studiogan_guidance.features.stats import FeatureStats, accumulate, shown_to
from studiogan_guidance.latents import LatentView, view_for
from studiogan_guidance.options import Spec
from studiogan_guidance.progress import track
from studiogan_guidance.rng import check_images
from studiogan_guidance.samplers import SAMPLERS, Sampler, restat

T = TypeVar("T")


def evaluate(cfg: RunConfig) -> list[dict[str, Any]]:
    """Measure the configured sampler and plain sampling on the same seeds and labels.

    Each row is added to results.jsonl in the folder ``cfg.out``. Plain sampling is left out without
    ``cfg.compare_plain``, and where the options of the sampler make it plain. Under torchrun the processes take the
    batches in turn, so that values agree with those of one process to rounding.

    Returns:
        One row a sampler: sampler, options, metrics, protocol, cost (per image), set-up (in all), notes (means over the
        images), seconds, and where they came from; in processes above rank 0, nothing.

    Raises:
        UserError: what the configuration lacks, or a folder or file that cannot be written, before any work is done.
    """
    wanted = configured(cfg)
    path = results.writable(Path(cfg.out)) / results.FILE
    results.appendable(path)
    with distributed.group() as group:
        evaluation = Evaluation(cfg, group, wanted)
        rows = [evaluation.measure(name, sampler) for name, sampler in evaluation.chosen]
    measured = [row for row in rows if row]
    if measured:
        results.append(path, measured)
    return measured


def configured(cfg: RunConfig) -> list[Spec]:
    """Plain sampling, unless the run leaves it out or its sampler is plain itself, and the sampler of the run."""
    own = Spec(cfg.sampler, cfg.options)
    is_plain = SAMPLERS[cfg.sampler].name == "plain" or samplers.create(own).neutral
    return [Spec("plain"), own] if cfg.compare_plain and not is_plain else [own]


class Evaluation:
    """A generator and what it is measured with, opened once for any number of samplers.

    Args:
        cfg: the run.
        group: the processes that share it.
        wanted: samplers to create and check before anything slow is opened.
        source: what ``cfg`` points at, if it is open already.
        view: of its generator, if there is one already.

    Attributes:
        cfg: the run, its classes as whole numbers.
        chosen: the samplers that were wanted, with their registered names.
        real: the real images, of the run's classes only, or the file of statistics in place of them.
        labels: the classes of the run, or how labels are drawn.
        num_real: how many these are; None where the file does not tell.
        num: how many images are generated.
        batch_size: images of a batch, the same in all processes.
        fast: the precision of fast mode, if the run asks for it.
    """

    def __init__(
        self,
        cfg: RunConfig,
        group: distributed.Group,
        wanted: Sequence[Spec],
        source: Source | None = None,
        view: LatentView | None = None,
    ) -> None:
        self.cfg = cfg
        self.group = group
        created = [(SAMPLERS[spec.name].name, samplers.create(spec)) for spec in wanted]

        # Open the generator, after the file of statistics, which is faster to refuse.
        self.file = self._file()
        self.source = source or open_source(cfg)
        self.networks = self.source.networks(current_device(cfg.device))
        labels.check_labels(cfg, self.networks)
        self.view = view or view_for(self.networks)
        self.chosen = [self.named(name, sampler) for name, sampler in created]

        # Open the real images, unless a file of their statistics is enough, and the feature networks.
        is_measured = self.file is None or bool(cfg.judges)
        images = self._images() if is_measured or cfg.labels == "data" else None
        classes = self._classes(images)
        self.cfg = cfg = dataclasses.replace(cfg, classes=classes)
        self.plan = labels.label_plan(cfg, self.networks.num_classes, images)
        self.view.weigh_classes(self.plan)
        if classes and is_measured:
            images = self._images(classes)
        self.backbone = open_backbone(cfg, self.source, self.networks.device)
        self.judges = Judges(cfg, self.source, self.view, images)
        if self.file:
            self._check_file(self.file)
        real = self.file or images
        assert real is not None
        self.real = real
        self.labels = self._label_source(images)
        self.num_real = real.count if isinstance(real, StatsFile) else len(real)
        self.num = self._number()
        sizes = group.gather(batch_size(cfg, self.view, [self.backbone, *self.judges.networks.values()]))
        self.batch_size = group.agree(min(sizes, default=0))

        # Refuse what cannot work before the pass over the real images.
        check_counts(cfg, self.num, self.num_real, self.batch_size, group.size)
        check_images(cfg.seed, self.num)
        if metrics.need(cfg, "probabilities") and not cfg.compile:
            self._check_logits()
        self.fast = self._accelerate() if cfg.fast else None

    def _file(self) -> StatsFile | None:
        """The file of statistics that the run names, if any; the first process opens it."""
        path = self.cfg.reference_stats
        if path is None:
            return None
        files = self._in_all(lambda: stats_file.read(Path(path)) if self.group.rank == 0 else None)
        return self.group.agree(files[0] if files else None)

    def _images(self, classes: Sequence[int] = ()) -> Real:
        split = self.cfg.reference or (self.file and self.file.fingerprint.get("reference"))
        return self.source.real(split or self.source.default_split, self.networks.image_size, classes)

    def _classes(self, images: Real | None) -> tuple[int, ...]:
        """The classes of the run as whole numbers; UserError for images or a file of other classes than it needs."""
        cfg = self.cfg
        advice = labels.label_advice(cfg, cfg.metrics)
        for real in (images, self.file):
            if real is not None and real.class_names:
                labels.check_folders(real, self.networks, advice)

        names = images.class_names if images is not None else self.file.class_names if self.file else ()
        return labels.resolved_classes(cfg, self.networks.num_classes, names)

    def _label_source(self, images: Real | None) -> list[int | str] | str:
        """What a row says about labels; it names the images that they are as frequent as, where no other word does."""
        cfg = self.cfg
        if cfg.classes:
            return list(cfg.classes)
        if cfg.labels != "data" or images is None or images.fingerprint == self.real.fingerprint:
            return cfg.labels
        return f"data of the {split_digest(images)}"

    def _check_file(self, file: StatsFile) -> None:
        """Raise UserError where a file of statistics was made otherwise than the run measures, or lacks something."""
        cfg = self.cfg
        file.check_has("features", metrics.of_real(cfg, "features", "labels"))
        file.check_has("labels", metrics.of_real(cfg, "labels"))
        if file.protocol is None and cfg.classes:
            raise UserError(
                f"--reference-stats {file.path} does not tell of which classes it is, so --classes cannot be compared "
                "with it: write a file by 'studiogan-guidance stats --classes'"
            )
        if file.protocol is None:
            notice(
                f"--reference-stats {file.path} does not tell how its images were prepared: values are right only if "
                "feature network, resizer and image size were those of this run"
            )

        # Compare what the run knows of its real images.
        real: dict[str, Any] = {"image_size": self.networks.image_size, "classes": sorted(set(cfg.classes)) or None}
        if "pre_resizer" in file.fingerprint:
            real["pre_resizer"] = cfg.pre_resizer
        if cfg.reference:
            real["reference"] = cfg.reference
        file.check(reference.provenance(real, self.backbone, self.source.protocol))

    def _number(self) -> int:
        """How many images to generate."""
        number = self.cfg.num or self.real.default_count
        if number is None:
            raise UserError(
                f"--reference-stats {self.cfg.reference_stats} does not tell of how many images: give --num"
            )
        return number

    def _accelerate(self) -> Choice:
        """Replace the networks by fast ones, for all samplers to come; all processes choose alike."""
        exact = Pipeline(self.view, self.backbone)
        real = self.reference  # of the exact network, in all processes
        facts = {"source": self.source.protocol, "model": self.source.model_digest, "compile": self.cfg.compile}

        def choose() -> Choice | None:
            return precision.choose(exact, real, self.num, self.batch_size, facts) if real else None

        # The first process measures.
        choices = self._in_all(choose)
        choice = self.group.agree(choices[0] if choices else None)
        assert choice is not None
        if self.group.rank == 0:
            say(str(choice))

        accelerated = exact.fast(choice.precision, self.batch_size)
        self.view = accelerated.view
        self.backbone = accelerated.backbone
        return choice

    def _outputs(self) -> tuple[Tensor, Tensor | None]:
        """Features and class logits of a blank image; of a batch, where a compiled network would start anew for one."""
        count = self.batch_size if self.cfg.compile else 1
        size = self.networks.image_size
        with torch.no_grad():
            return self.backbone(self.backbone.prepare(torch.zeros(count, 3, size, size)))

    def _check_logits(self) -> None:
        if self._outputs()[1] is None:
            raise UserError(f"{self.backbone.protocol['backbone']} has no class logits: leave 'is' out of --metrics")

    def named(self, name: str, sampler: Sampler) -> tuple[str, Sampler]:
        """A sampler that has a meaning on this generator, with its name; ``scale=auto`` may stand for another one."""
        resolved = self.checked(sampler)
        return (name if resolved is sampler else SAMPLERS.name_of(resolved)), resolved

    def checked(self, sampler: Sampler) -> Sampler:
        """``sampler``, if it and its options have a meaning on this generator; UserError otherwise."""
        return samplers.checked(sampler, self.view)

    @cached_property
    def reference(self) -> Reference | None:
        """The statistics of the real images; None in processes above rank 0."""
        if isinstance(self.real, StatsFile):
            return self._of_file(self.real)
        return reference.load_or_make(
            self.real, self.backbone, self.source.protocol, self.group, self.batch_size, self._with_features
        )

    @cached_property
    def judged_references(self) -> dict[str, Reference]:
        """The statistics of the real images in the spaces of the judges; none in processes above rank 0."""
        return self.judges.references(self.group, self.batch_size)

    def _of_file(self, file: StatsFile) -> Reference | None:
        """What a file holds, read by the first process; a file that is refused is refused in all of them."""

        def read() -> Reference | None:
            if self.group.rank > 0:
                return None
            width = self._outputs()[0].shape[1]
            return reference.of_file(file, width, bool(metrics.of_real(self.cfg, "features", "labels")))

        references = self._in_all(read)
        return references[0] if references else None

    @property
    def _with_features(self) -> bool:
        return metrics.need(self.cfg, "features")

    def protocol(self, seed: int) -> dict[str, Any]:
        """Everything that changes the values of a row, but for the generator and the sampler."""
        cfg = self.cfg
        protocol = {"num": self.num, "num_real": "unknown" if self.num_real is None else self.num_real}
        part = self.real.default_count
        if self._with_features and part is not None and self.num_real is not None and part < self.num_real:
            protocol["num_real_features"] = part
        fast = {"fast": self.fast.protocol} if self.fast else {}

        return {
            **protocol,
            "seed": seed,
            "labels": self.labels,
            "noise_mode": cfg.noise_mode,
            "statistics": f"restat {cfg.restat}x{restat.BATCH_SIZE}" if cfg.restat else "checkpoint",
            "k": cfg.k,
            "splits": cfg.splits,
            **self.real.fingerprint,
            **self.backbone.protocol,
            **self.judges.protocol,
            **self.source.protocol,
            **fast,
        }

    def facts(self, name: str, sampler: Sampler, seed: int) -> dict[str, Any]:
        """The part of a row that is known before anything is measured."""
        networks = self.networks
        return {
            "sampler": name,
            "options": samplers.options(sampler),
            "protocol": self.protocol(seed),
            "generator": {
                "backbone": networks.backbone,
                "source": networks.source,
                "sha256": networks.digest,
                "model_sha256": self.source.model_digest,
                **sampler.files(self.view),
            },
            "config": self.cfg.to_dict(),
        }

    def measure(self, name: str, sampler: Sampler, seed: int | None = None) -> dict[str, Any] | None:
        """The row of one sampler, from ``seed`` on (by default the configuration's); None above rank 0.

        A sampler that is refused while it samples is refused, by the same UserError, in all processes.
        """
        seed = self.cfg.seed if seed is None else seed
        real = self.reference
        spaces = self.judged_references
        setup_before = self.view.ledger.setup.copy()
        started = time.perf_counter()

        # Sample, in all processes.
        generated = self.generate(name, sampler, seed)
        if generated is None or real is None:
            return None

        # Compare, in the first.
        judged = {name: (space, generated.judged[name]) for name, space in spaces.items()}
        classified = self._classified(generated)
        comparison = metrics.Comparison(real, generated.stats, self.cfg, classified, judged, str(self.networks.device))
        values = metrics.compute(comparison)
        by_class = values.pop(metrics.BY_CLASS, None)

        # Write down.
        processes = f", {self.group.size} processes" if self.group.size > 1 else ""
        row = results.row(
            **self.facts(name, sampler, seed),
            metrics=values,
            cost=generated.cost_per_image(),
            setup=dict(self.view.ledger.setup - setup_before),
            notes=generated.mean_notes(),
            seconds=time.perf_counter() - started,
            device=f"{self.networks.device}{processes}",
            batch_size=self.batch_size,
        )
        if self.fast:
            row["environment"]["fast"] = self.fast.facts()
        return row | ({metrics.BY_CLASS: by_class} if by_class else {})

    def _classified(self, generated: Pass) -> FeatureStats | None:
        """The statistics whose class probabilities are about the labels of the images: the classifier's, if any."""
        if ACCURACY in generated.judged:
            return of_classifier(generated.judged[ACCURACY], self.networks)
        is_labelled = self.backbone.classifies and labelled(generated.stats, self.networks)
        return generated.stats if is_labelled else None

    def generate(self, name: str, sampler: Sampler, seed: int) -> Pass | None:
        """The pass over the generated images, those of all processes together; None above rank 0.

        Raises:
            UserError: the sampler is refused while it samples, in one process or more; the same in all of them.
        """
        shares = self._in_all(partial(self._share, name, sampler, seed))
        return Pass.merge(shares, self.batch_size) if shares else None

    def _in_all(self, compute: Callable[[], T]) -> list[T]:
        """What each process computes, on rank 0; nothing elsewhere. One that is refused is refused in all."""
        value: T | UserError
        try:
            value = compute()
        except UserError as error:
            value = error

        # Raise the first refusal of any process in all of them.
        values = self.group.gather(value)
        refusals = [value for value in values if isinstance(value, UserError)]
        refusal = self.group.agree(refusals[0] if refusals else None)
        if refusal:
            raise refusal
        return [value for value in values if not isinstance(value, UserError)]

    def _share(self, name: str, sampler: Sampler, seed: int) -> Pass:
        """The pass over the images of this process."""
        cfg = self.cfg
        group = self.group

        # Its batches.
        seeds = range(seed, seed + self.num)
        turn = (group.rank, group.size)
        samples = sampler.stream(self.view, seeds, self.batch_size, self.plan, cfg.noise_mode, turn=turn)
        meter = Meter(samples, self.view)

        # Their features, in all spaces.
        what = f"images of {name}"

        def label(position: int) -> str:
            return f"seed {seed + group.position(position, self.batch_size)}"

        observers = self.judges.accumulators(what, label)
        with restat.applied(norm_statistics(cfg, self.view, sampler)):
            stats = accumulate(
                shown_to(list(observers.values()), track(meter, what, self.num, self.batch_size * group.size)),
                self.backbone,
                features=self._with_features,
                probabilities=metrics.need(cfg, "probabilities"),
                classes=self.networks.num_classes if self.backbone.classifies else 0,
                what=what,
                name=label,
            )
        judged = {metric: observer.stats() for metric, observer in observers.items()}
        return Pass(stats, meter.cost, meter.notes(), meter.seconds(), judged)
