"""Folders of images, one folder a class, as torchvision lists them, and what a folder is that is none."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from studiogan_guidance.errors import UserError, listed, notice_once, one_line
from studiogan_guidance.host.image_files import open_image
from studiogan_guidance.host.modules import module

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # that torchvision lists
PICTURES = (".avif", ".exr", ".gif", ".heic", ".jfif", ".jp2", ".jxl", ".npy", ".svg", ".tga")  # and some it does not
LEFT_BEHIND = frozenset(  # by systems; no user calls a class so
    {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
OTHER_NAMES = {
    "train": ("train", "training", "trn"),
    "valid": ("valid", "val", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst"),
}
KINDS = (  # what may lie in place of folders: suffixes or names, what it is, and what to do
    (("batches.meta", "data_batch_1"), "the batches of CIFAR10", "for DATA.name CIFAR10, give its parent"),
    ((".lmdb", ".mdb"), "an LMDB database", "write its images to files"),
    ((".h5", ".hdf5"), "an HDF5 file", "write its images to files"),
    ((".tfrecord", ".tfrecords"), "TFRecords", "write their images to files"),
    (
        (".parquet", ".arrow", "dataset_info.json", "dataset_dict.json", "metadata.jsonl", "metadata.csv"),
        "a Hugging Face data set",
        "write each image to the folder of its label",
    ),
    ((".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar"), "an archive", "unpack it"),
    ((".npz", ".npy", ".pkl", ".pickle", ".pt", ".pth", ".mat"), "a file of arrays", "write its images to files"),
)


class ImageFolder:
    """The images in class folders: classes, labels and order are those of torchvision's ``ImageFolder``.

    Names that begin with a dot and those that systems leave behind are skipped, with a notice. Images are read by
    ``open_image``.

    Args:
        root: the folder.
        allow_empty: classes without images are fine.
        one_size: all images must be as large as the first that is read.

    Attributes:
        root: the folder.
        classes: names of the class folders, sorted as text; a label is a position among them.
        class_to_idx: label of each name.
        samples: path and label of every image.
        targets: label of every image.

    Raises:
        UserError: no such folder, no class folder, a class without images, a folder that may not be read, a link to a
            folder that holds it.
    """

    def __init__(self, root: str | Path, allow_empty: bool = False, one_size: bool = False) -> None:
        self.root = os.path.expanduser(root)
        self._one_size = one_size
        self._size: tuple[int, int] | None = None
        skipped: list[str] = []
        self.classes = class_names(self.root, skipped)
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}

        # List the images.
        self.samples: list[tuple[str, int]] = []
        self._others: list[str] = []
        for label, name in enumerate(self.classes):
            self._list(os.path.join(self.root, name), label, skipped)
        self.targets = [label for _, label in self.samples]

        # Judge what was found.
        if not allow_empty:
            self._check_classes()
        self._say_what_is_unexpected(skipped)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        image = open_image(path)
        if self._one_size:
            self._size = self._size or image.size
            if image.size != self._size:
                sizes = f"{image.width}x{image.height}, another is {self._size[0]}x{self._size[1]}"
                raise UserError(f"the image {path} is {sizes}: give images of one size")
        return image, label

    def _list(self, folder: str, label: int, skipped: list[str]) -> None:
        """Add the images of one class."""
        for below, names in sorted(walk(folder, skipped)):  # by path, as torchvision sorts them
            for name in names:
                if name.lower().endswith(EXTENSIONS):
                    self.samples.append((os.path.join(below, name), label))
                elif name.lower().endswith(PICTURES):
                    self._others.append(os.path.join(below, name))

    def _check_classes(self) -> None:
        empty = sorted(set(range(len(self.classes))) - set(self.targets))
        if empty:
            names = listed([f"'{self.classes[label]}'" for label in empty])
            others = f" (found {listed(self._others)})" if self._others else ""
            raise UserError(
                f"in {self.root} the class folder {names} holds no image{others}: fill it with "
                f"{', '.join(EXTENSIONS)}, or remove it"
            )

        # A single folder with the name of the split has the classes in it.
        if self.classes == [os.path.basename(self.root)] and self._is_nested():
            raise UserError(
                f"the class folders are one level too deep, in {os.path.join(self.root, self.classes[0])}: move them "
                f"to {self.root}"
            )

    def _is_nested(self) -> bool:
        """Whether a single class has all of its images in folders of its own."""
        home = os.path.join(self.root, self.classes[0])
        return len(self.classes) == 1 and all(os.path.dirname(path) != home for path, _ in self.samples)

    def _say_what_is_unexpected(self, skipped: list[str]) -> None:
        """Notices of what a label may depend on."""
        if skipped:
            notice_once(f"skipped in {self.root}: {listed(skipped)}, which by their names are no classes or images")
        if self._others:
            notice_once(
                f"not read in {self.root}: {listed(self._others)}; the host's loader takes {', '.join(EXTENSIONS)}"
            )
        if self.samples and self._is_nested():
            notice_once(
                f"all images in {self.root} are of one class, '{self.classes[0]}', also those of the folders in it"
            )
        if os.path.isfile(os.path.join(self.root, "dataset.json")):
            notice_once(f"labels in {self.root}/dataset.json are not read: the classes are the folders")

        # Names whose order as numbers is another one.
        if all(name.isdecimal() for name in self.classes):
            by_number = sorted(self.classes, key=int)
            label = next((i for i, name in enumerate(self.classes) if name != by_number[i]), None)
            if label is not None:
                notice_once(
                    f"folders in {self.root} are sorted as text, as the host does: class {label} is folder "
                    f"'{self.classes[label]}'"
                )

        # Classes of the split beside it.
        train = os.path.join(os.path.dirname(self.root), "train")
        if os.path.basename(self.root) in ("valid", "test") and os.path.isdir(train):
            other = _class_names(train, [])
            if other != self.classes:
                differing = listed(sorted(set(other) ^ set(self.classes)))
                notice_once(
                    f"{train} and {self.root} differ in the class folders {differing}: the same label may mean "
                    "different classes"
                )


def class_names(folder: str, skipped: list[str]) -> list[str]:
    """The sorted names of the class folders of a split; the paths of others that are passed over go to ``skipped``.

    Raises:
        UserError: no such folder, or none in it.
    """
    if not os.path.isdir(folder):
        raise UserError(_without_folder(Path(folder)))
    names = _class_names(folder, skipped)
    if not names:
        raise UserError(_without_classes(Path(folder)))
    return names


def count(folder: str, most: int) -> int:
    """How many images are below a folder, counted up to ``most``."""
    images = (name for _, names in walk(folder, []) for name in names if _is_image(name))
    return sum(1 for _ in itertools.islice(images, most))


def walk(folder: str, skipped: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Every folder below ``folder``, itself included, with the sorted names of its files; links are followed.

    Args:
        folder: where to begin; folders of one level are visited in the order of their names.
        skipped: the paths of folders and images that are passed over are added to it.

    Raises:
        UserError: a folder that may not be read, or a link to a folder that holds it.
    """
    above: dict[str, tuple[str, ...]] = {
        folder: (os.path.realpath(folder),)
    }  # the real paths of a folder and of those that hold it
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        # Pass over what is no content.
        skipped.extend(os.path.join(place, name) for name in folders if is_skipped(name))
        skipped.extend(os.path.join(place, name) for name in files if is_skipped(name) and _is_image(name))
        folders[:] = sorted(name for name in folders if not is_skipped(name))

        # Follow links, in no circle.
        reals = above.pop(place)
        for name in folders:
            path = os.path.join(place, name)
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(reals[-1], name)
            if real in reals:
                raise UserError(f"{path} is a link to a folder that holds it: remove it")
            above[path] = (*reals, real)
        yield place, sorted(name for name in files if not is_skipped(name))


def is_skipped(name: str) -> bool:
    """Whether a file or folder of this name is nobody's image or class: hidden, or left behind by a system."""
    return name.startswith(".") or name in LEFT_BEHIND


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _unreadable(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror or error}") from error


def _class_names(folder: str, skipped: list[str]) -> list[str]:
    """The sorted names of the class folders."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror or error}") from error
    skipped.extend(os.path.join(folder, name) for name in names if is_skipped(name))
    return [name for name in names if not is_skipped(name)]


# ---------------------------------------------------------------------------- what is there instead


def data_folder(root: Path) -> Path:
    """``root``, if it is a folder; UserError otherwise, with what it is."""
    if root.is_dir():
        return root
    kind = _kind(root.name) if root.exists() else None
    what = f"is {kind[0]}: {kind[1]}, and" if kind else "is not a folder:"
    raise UserError(f"{root} {what} give the one with train/<class>/* and valid/<class>/*")


def _without_folder(folder: Path) -> str:
    """The sentence about a split (train, valid, test) that is not there."""
    root = folder.parent
    split = folder.name
    data_folder(root)
    names = _visible(root)
    if split in names:
        kind = _kind(split)
        return f"{folder} is {kind[0] if kind else 'a file'}: it should be a folder with {split}/<class>/*"
    return f"no folder {split} in {root}: {_instead(root, split, names)}"


def _instead(root: Path, split: str, names: list[str]) -> str:
    """What the data folder ``root`` holds in place of a split, and what to do."""
    expected = f"images belong in {split}/<class>/*"
    content = _content(names)
    folders = [name for name in names if (root / name).is_dir()]

    # The split under another name or in another place.
    others = [name for name in folders if name.lower() in OTHER_NAMES.get(split, (split,))]
    if others:
        return f"{content}; rename {others[0]} to {split}"
    deeper = [name for name in folders if (root / name / split).is_dir()]
    if deeper:
        return f"found {deeper[0]}/{split}; give {root / deeper[0]}"
    if root.name.lower() in OTHER_NAMES.get(split, (split,)) and folders:
        return f"{root.name} looks like the split itself, give its parent" + (
            "" if root.name == split else f" and call it {split}"
        )

    # Other kinds of data.
    kind = _kind_in(root, names)
    if kind:
        return f"it holds {kind[0]}; {kind[1]}: {expected}"
    with_images = [name for name in folders if any(map(_is_image, _visible(root / name)))]
    if with_images and not set(folders) & set(OTHER_NAMES):
        return f"{content}; if these are the classes, move them to {root / split}"
    return f"{content}; {expected}"


def _without_classes(folder: Path) -> str:
    """The sentence about a folder without class folders."""
    names = _visible(folder)
    images = [name for name in names if _is_image(name)]

    # Data of another kind, images without classes, or neither.
    kind = _kind_in(folder, names)
    if kind:
        return f"{folder} holds {kind[0]} and no class folders; {kind[1]}: images belong in {folder.name}/<class>/*"
    if images:
        return (
            f"{folder} holds {len(images)} images in no class folder: move them to one of their class, or to a single "
            f"one such as {folder / 'all'} where there are no classes"
        )
    content = _content(names)
    return f"{folder} holds no class folder ({content}): images belong in {folder.name}/<class>/*"


def _kind_in(folder: Path, names: list[str]) -> tuple[str, str] | None:
    """What a folder holds that is no folder of images, or its folder ``data`` does, and what to do."""
    inside = _visible(folder / "data") if "data" in names else []
    return next(filter(None, map(_kind, (*names, *inside))), None)


def _kind(name: str) -> tuple[str, str] | None:
    """What a file of this name is, and what to do with it."""
    for ends, what, advice in KINDS:
        if name.lower().endswith(ends):
            return what, advice
    return None


def _content(names: list[str]) -> str:
    """What a folder with these names in it holds, for a sentence."""
    return f"found {listed(names)}" if names else "it is empty"


def _visible(folder: Path) -> list[str]:
    """The sorted names in a folder that are not skipped; none where it cannot be read."""
    try:
        return sorted(name for name in os.listdir(folder) if not is_skipped(name))
    except OSError:
        return []


# ---------------------------------------------------------------------------- CIFAR


def cifar(kind: Any, root: str | Path, train: bool, load: Callable[..., Any] | None = None) -> Any:
    """The data set CIFAR10 or CIFAR100 of a class of torchvision, from files that are there.

    Args:
        kind: torchvision's class.
        root: the folder that holds ``cifar-10-batches-py`` (``cifar-100-python``), or its archive.
        train: the train split, else the test split.
        load: called where neither is there, such as to download it; by default nothing is downloaded.

    Raises:
        UserError: no such folder, nothing of CIFAR in it, or files that are damaged.
    """
    check_integrity = module("torchvision.datasets.utils").check_integrity

    folder = Path(root).expanduser()
    files = [name for name, _ in kind.train_list]
    name = kind.__name__

    # Name what is there in its place.
    if folder.name == kind.base_folder or all((folder / file).exists() for file in files):
        raise UserError(f"{folder} is the folder of {name} itself: give its parent, {folder.parent}")
    batches = folder / kind.base_folder
    archive = folder / kind.filename
    if not batches.is_dir():
        if archive.is_file() and check_integrity(archive, kind.tgz_md5):
            return kind(root=str(folder), train=train, download=True)  # unpacks it
        if load is None:
            raise UserError(_without_cifar(kind, folder))
        try:
            return load()
        except (OSError, RuntimeError) as error:  # there is no network
            raise UserError(f"{_without_cifar(kind, folder)} ({one_line(error)})") from error

    # Refuse damaged files by name.
    try:
        return kind(root=str(folder), train=train, download=False)
    except (OSError, RuntimeError) as error:
        for file, digest in (*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])):
            path = batches / file
            if not check_integrity(path, digest):
                state = "damaged" if path.is_file() else "missing"
                raise UserError(f"{path} is {state}: unpack {kind.filename} again") from error
        raise UserError(f"cannot read {name} in {batches}: {one_line(error)}") from error


def _without_cifar(kind: Any, folder: Path) -> str:
    """The sentence about a folder without the files of CIFAR."""
    data_folder(folder)
    names = _visible(folder)
    deeper = [name for name in names if (folder / name / kind.base_folder).is_dir()]
    if deeper:
        return f"no {kind.base_folder} in {folder}: found {deeper[0]}/{kind.base_folder}; give {folder / deeper[0]}"
    archive = "damaged; " if kind.filename in names else ""
    content = _content(names)
    return (
        f"{kind.__name__} is read from {kind.base_folder}, which is not in {folder} ({content}): {archive}unpack "
        f"{kind.filename} of {kind.url} there"
    )
