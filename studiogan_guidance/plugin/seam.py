"""The one place where the host's evaluations get their images.

``generate_images`` is intercepted where ``is_train`` is false; training calls pass straight through. A sampler at its
neutral value (scale 1) leaves everything to the host's own code, bit for bit.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from studiogan_guidance import rng
from studiogan_guidance.host.imports import module
from studiogan_guidance.host.networks import describe
from studiogan_guidance.host.sections import STYLE
from studiogan_guidance.latents import LabelPlan, view_for
from studiogan_guidance.latents.base import Companions, Inputs, weights_digest
from studiogan_guidance.plugin.keys import guides, sampler_of, truncation_of
from studiogan_guidance.samplers import checked, restat


@dataclass
class RunState:
    """What one worker of the host knows about its run, and how far its present analysis has come.

    Attributes:
        seed: of the run; that of rank 0, since a resumed run has another one in each process.
        folder: of the checkpoints; that of rank 0, since a new run has a folder in the first process only.
        companions: opens the discriminator of the run and the like.
        image_size: side of the images.
        training: whether the host's training loop is running.
        direct: whether the analysis calls the generator by itself, as interpolation and SeFa do.
        first: position of an analysis's first image in the sequence of seeds.
        session: the analysis, from its first image on.
        position: position of its next image in that sequence.
        cost: number of images, and passes through each network for them, of each batch.
        notes: the sampler's notes of each batch.
    """

    seed: int | None = None
    folder: str | None = None
    companions: Companions | None = None
    image_size: int = 0
    training: bool = False
    direct: bool = False
    first: int = 0
    session: Session | None = None
    position: int = 0
    cost: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    notes: list[dict[str, Tensor]] = field(default_factory=list)

    def begin(self) -> None:
        """Forget the last analysis; the next image is the first of a new one."""
        self.session = None
        self.position = self.first
        self.cost = []
        self.notes = []

    def per_image(self) -> dict[str, float]:
        """Passes through each network per image of the analysis, and the share of proposals that were accepted."""
        total = sum(count for count, _ in self.cost) or 1
        names = sorted({name for _, cost in self.cost for name in cost})
        passes = {name: sum(cost.get(name, 0) for _, cost in self.cost) / total for name in names}
        if passes.get("proposed"):
            passes["acceptance"] = passes["accepted"] / passes["proposed"]
        return passes

    def means(self) -> dict[str, float]:
        """Mean of each note over the images of the analysis."""
        values: dict[str, list[Tensor]] = {}
        for notes in self.notes:
            for name, value in notes.items():
                values.setdefault(name, []).append(value)
        return {name: float(torch.cat(values[name]).mean()) for name in sorted(values)}


_current: ContextVar[RunState] = ContextVar("_current")


def current() -> RunState:
    """The state of the worker that is at work; a state without a worker where a script calls the host's functions."""
    try:
        return _current.get()
    except LookupError:
        state = RunState()
        _current.set(state)
        return state


@contextmanager
def active(state: RunState) -> Iterator[None]:
    """``state`` is the current one inside the with-block; its analysis ends with the outermost block in any case."""
    if _current.get(None) is state:
        yield
        return
    token = _current.set(state)
    try:
        yield
    finally:
        state.begin()
        _current.reset(token)


class Session:
    """One analysis of the host: its generator as a view, its sampler, and what batch norms use.

    Args:
        state: of the worker.
        generator: the host's, as its functions get it.
        run: the host's RUN section.
        model: its MODEL section.
        num_classes: of the data.
        device: where the generator is.

    Raises:
        UserError: options of the sampler that have no meaning for this generator.
    """

    def __init__(
        self, state: RunState, generator: Any, run: Any, model: Any, num_classes: int, device: torch.device | str
    ) -> None:
        # The generator as a view, under the host's own truncation.
        network = getattr(generator, "module", generator)  # out of DataParallel or DistributedDataParallel
        folder = str(state.folder or run.ckpt_dir)
        networks = describe(network, model, num_classes, state.image_size, torch.device(device), folder)
        is_cached = model.backbone in STYLE and not state.training
        networks = dataclasses.replace(
            networks,
            companions=state.companions,
            batch_statistics=run.batch_statistics,
            digest=weights_digest(network) if is_cached else "",
        )
        self.bare = view_for(networks)
        self.bare.on_disk = False  # pools do not know of --truncation_factor and statistics
        self.view = truncation_of(model, run.truncation_factor, run.truncation_cutoff).while_drawing(self.bare)

        # The sampler of the YAML.
        sampler = sampler_of(run, state.training)
        assert sampler is not None
        sampler = checked(sampler, self.view)

        # What the images of the analysis depend on.
        self.state = state
        self.generator = generator
        self.sampler = sampler
        self.restat = run.restat
        self.seed = run.seed if state.seed is None else state.seed
        self._statistics: restat.Statistics | None = None

    def statistics(self) -> restat.Statistics:
        """What batch norms use instead of the checkpoint's; accumulated once."""
        if self._statistics is None:
            self._statistics = restat.accumulate(self.view, self.sampler, self.restat) if self.restat else {}
        return self._statistics

    def images(self, count: int, plan: LabelPlan) -> tuple[Tensor, Tensor]:
        """The next ``count`` images [count, 3, H, W] and their labels; chosen labels go round from the first image."""
        # Sample.
        seeds = self._next_seeds(count)
        with restat.applied(self.statistics()):
            batches = list(self.sampler.stream(self.view, seeds, self._batch_size(count), plan))

            if self.bare.networks.batch_statistics:
                restat.check_whole(len(batches[0].images), count)

        # Keep costs and notes for the row of results.
        for batch in batches:
            self.state.cost.append((len(batch.images), batch.cost))
            self.state.notes.append(batch.notes)

        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        return images, labels

    def decode(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images of given noise [B, Z] and labels [B] or class weights [B, C], which are 0 without a condition."""
        seeds = self._next_seeds(len(z))
        if not self.bare.networks.is_conditional:
            labels = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        inputs = Inputs(torch.tensor(seeds), z, labels, None, rng.generators(seeds))
        with torch.no_grad(), self.bare.frozen(), restat.applied(self.statistics()):
            return self.sampler.images(self.bare, inputs)

    def _next_seeds(self, count: int) -> range:
        first = self.seed + self.state.position
        rng.check_images(first, count)
        self.state.position += count
        return range(first, first + count)

    def _batch_size(self, count: int) -> int:
        """Without -DDP the host splits a batch among all GPUs; here it goes through the first in as many parts."""
        if torch.distributed.is_initialized() or self.bare.networks.batch_statistics:
            return count
        return math.ceil(count / max(1, torch.cuda.device_count()))


# ---------------------------------------------------------------------------- the host's functions


def generate_images(original: Any) -> Any:
    """``generate_images`` whose evaluation calls are answered by the sampler: images, labels and five times None."""
    signature = inspect.signature(original)

    def generate_images(*args: Any, **kwargs: Any) -> Any:
        values = signature.bind(*args, **kwargs).arguments
        state = current()
        run = values["RUN"]
        if values["is_train"] or not guides(run, state.training):
            return original(*args, **kwargs)

        # One session for the images of an analysis.
        generator, device = values["generator"], values["device"]
        count, num_classes = values["batch_size"], values["num_classes"]
        if state.session is None or state.session.generator is not generator:
            state.session = Session(state, generator, run, values["MODEL"], num_classes, device)

        # The host chooses the labels of its canvases.
        plan = LabelPlan()
        if values["y_sampler"] != "totally_random":
            chosen = module("utils.sample").sample_y(values["y_sampler"], count, num_classes, device)
            plan = LabelPlan(tuple(chosen.tolist()))
            count = len(chosen)

        images, labels = state.session.images(count, plan)
        return images, labels, None, None, None, None, None

    return generate_images


def in_blocks(original: Any, count: str) -> Any:
    """A function of the host that makes ``count`` images, with consecutive blocks of seeds for the processes of -DDP.

    Where the host joins features by rank and cuts off the end, it sees exactly the images of one process.
    """
    signature = inspect.signature(original)

    def call(*args: Any, **kwargs: Any) -> Any:
        values = signature.bind(*args, **kwargs).arguments
        state = current()
        start = state.position

        # Start where the blocks of lower ranks end.
        if torch.distributed.is_initialized():
            batch_size = values["batch_size"]
            batches = math.ceil(values[count] / batch_size) // torch.distributed.get_world_size() + 1
            state.position += torch.distributed.get_rank() * batches * batch_size

        try:
            return original(*args, **kwargs)
        finally:
            state.position = start + values[count]

    return call


def prepare(original: Any) -> Any:
    """``prepare_generator``, with which every analysis of the host begins; it restarts the sequence of seeds."""

    def prepare_generator(self: Any) -> Any:
        state = current()
        state.begin()
        generator, mapping, synthesis = original(self)
        if not state.direct:
            return generator, mapping, synthesis

        # Hand out a guided generator.
        cfgs = self.cfgs
        session = Session(state, generator, cfgs.RUN, cfgs.MODEL, cfgs.DATA.num_classes, self.device)
        return Guided(generator, session), mapping, synthesis

    return prepare_generator


class Guided:
    """A generator as the host's interpolation and SeFa call it, with guided codes; all else is the generator's own.

    ``shared`` gives class weights instead of embeddings, so that interpolated classes reach the view as weights.
    """

    def __init__(self, generator: Any, session: Session) -> None:
        self._generator = getattr(generator, "module", generator)
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def shared(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self._session.view.num_classes).float()

    def __call__(self, z: Tensor, labels: Tensor | None, shared_label: Tensor | None = None, eval: bool = False) -> Any:
        classes = labels if shared_label is None else shared_label
        assert classes is not None
        return self._session.decode(z, classes)
