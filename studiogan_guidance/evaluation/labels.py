"""Classes and labels of a run: what ``classes`` names, where labels come from, and whether the class folders fit."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, listed, notice
from studiogan_guidance.evaluation.source import open_source
from studiogan_guidance.features.images import Real, check_class_count
from studiogan_guidance.latents import LabelPlan, Networks
from studiogan_guidance.options import whole_numbers

SHOWN = 3  # names of classes in an error


class HasClassNames(Protocol):
    """Real images, or a file of their statistics, with the names of their classes by label."""

    @property
    def fingerprint(self) -> dict[str, Any]: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...


def check_labels(cfg: RunConfig, networks: Networks) -> None:
    """Raise UserError where a run asks for what only a generator of classes has."""
    if cfg.classes:
        networks.check_conditional("--classes", "leave it out")
    if cfg.labels == "data":
        networks.check_conditional("labels: data", "use labels: uniform, where all labels are 0")
    if "per_class" in cfg.metrics:
        networks.check_conditional("per_class", "leave it out of --metrics")


def check_folders(real: HasClassNames, networks: Networks, advice: str = "") -> None:
    """Compare the classes of real images with those of a generator, if it has any: see ``check_class_count``."""
    if networks.is_conditional:
        images = f"the {real.fingerprint.get('reference', 'real')} images"
        check_class_count(len(real.class_names), images, networks.num_classes, advice)


def label_advice(cfg: RunConfig, metrics: Sequence[str] = ()) -> str:
    """How a run, or its ``metrics``, do without the labels of real images; empty if they do already."""
    uses = {"--classes": bool(cfg.classes), "labels: data": cfg.labels == "data", "per_class": "per_class" in metrics}
    asked_for = [use for use, is_asked_for in uses.items() if is_asked_for]
    return f"leave out {' and '.join(asked_for)}" if asked_for else ""


def resolved_classes(cfg: RunConfig, num_classes: int, names: Sequence[str] = ()) -> tuple[int, ...]:
    """The classes of a run as whole numbers, in the order of ``cfg.classes``; repeated ones stay.

    A number or a range means indices, also where the class folders have numbers for names: where the folder of that
    name is another class, a notice says so. Any other word is the name of a class of the real images.

    Args:
        cfg: the run.
        num_classes: classes of the generator, or of the images where there is none.
        names: the name of each class of the real images, by label, if there are any.

    Raises:
        UserError: a class out of range, or a name that no class has.
    """
    numbered = _by_number(names)
    classes: list[int] = []
    for word in cfg.classes:
        numbers = whole_numbers(word)
        if numbers is None:
            classes.append(_index_of(str(word), names))
            continue

        # Check the ends before any list is made.
        for end in (numbers[0], numbers[-1]):
            if not 0 <= end < num_classes:
                folder = f"; the folder '{names[numbered[end]]}' is class {numbered[end]}" if end in numbered else ""
                raise UserError(
                    f"class {end} is out of range: the {num_classes} classes are 0 to {num_classes - 1}{folder}"
                )
        classes += numbers
        _tell_other_folder(numbers, names, numbered)
    return tuple(classes)


def _by_number(names: Sequence[str]) -> dict[int, int]:
    """The index of each class whose name is a whole number, by that number."""
    numbers = {index: whole_numbers(name) for index, name in enumerate(names) if name.isdecimal()}
    return {number[0]: index for index, number in numbers.items() if number}


def _tell_other_folder(numbers: Sequence[int], names: Sequence[str], numbered: dict[int, int]) -> None:
    """Say so where the folder that has one of ``numbers`` for its name is another class."""
    number = next((number for number in numbers if numbered.get(number, number) != number), None)
    if number is not None:
        notice(
            f"class {number} is the folder '{names[number]}', while the folder '{names[numbered[number]]}' is class "
            f"{numbered[number]}: a number always means the index (see list --classes)"
        )


def _index_of(name: str, names: Sequence[str]) -> int:
    """The index of the class ``name``."""
    if name in names:
        return names.index(name)
    shown = name[:60]
    if not names:
        raise UserError(
            f"class '{shown}' is neither a whole number nor a range such as 0-9, and names are those of class folders: "
            "add --data DIR, or give the number"
        )

    # The nearest names, or the first ones.
    near = difflib.get_close_matches(name[:200], names, n=SHOWN, cutoff=0.5)
    if near:
        raise UserError(f"no class is called '{shown}': did you mean {_quoted(near)}? All are in list --classes")
    raise UserError(f"no class is called '{shown}': there are {_quoted(names)}, see list --classes")


def _quoted(names: Sequence[str]) -> str:
    return listed([f"'{name}'" for name in names], SHOWN)


def label_plan(cfg: RunConfig, num_classes: int, real: Real | None = None) -> LabelPlan:
    """Where labels come from: chosen classes, all classes alike, or the frequencies of the real images.

    Args:
        cfg: the run, its classes as whole numbers: see ``resolved_classes``.
        num_classes: classes of the generator.
        real: real images of as many classes, for labels as in the data.

    Raises:
        UserError: labels as in the data without data.
    """
    if cfg.classes and cfg.labels == "data":
        notice("--classes are used in turn, so labels: data has no effect")
    if cfg.classes or cfg.labels == "uniform":
        return LabelPlan(tuple(map(int, cfg.classes)))

    # The frequencies of the real images.
    if real is None:
        raise UserError("labels: data needs real images: add --data DIR, or use labels: uniform")
    counts = Counter(real.labels())
    absent = [label for label in range(num_classes) if not counts[label]]
    if absent:
        more = f" and of {len(absent) - 1} more" if absent[1:] else ""
        notice(
            f"there are no {real.fingerprint['reference']} images of class {absent[0]} "
            f"('{real.class_names[absent[0]]}'){more}, so labels: data draws none of it"
        )
    return LabelPlan(weights=tuple(counts[label] / counts.total() for label in range(num_classes)))


def class_table(cfg: RunConfig) -> dict[str, Any]:
    """Index, name and number of images of each class, in each split of the real images that is there.

    No checkpoint is needed.

    Returns:
        ``splits``: the classes of each split, as ``index``, ``name`` and ``images``; ``generator``: how many classes it
        takes, 0 if it takes none; ``agrees``: whether each split has as many.

    Raises:
        UserError: no real images.
    """
    source = open_source(cfg)
    splits: dict[str, list[dict[str, Any]]] = {}
    for split in source.splits or (source.default_split,):
        real = source.real(split, source.image_size)
        counts = Counter(real.labels())
        splits[split] = [{"index": i, "name": name, "images": counts[i]} for i, name in enumerate(real.class_names)]

    num_classes = source.num_classes
    agrees = all(len(rows) == num_classes for rows in splits.values())
    return {"splits": splits, "generator": num_classes, "agrees": agrees}
