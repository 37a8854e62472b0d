"""Folders of images: classes and order of torchvision's ImageFolder, or a sentence about what is there instead."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from studiogan_guidance.errors import UserError, notice_once
from studiogan_guidance.host import image_folders
from studiogan_guidance.host.image_folders import ImageFolder, data_folder, is_skipped


@pytest.fixture(autouse=True)
def _notices_anew() -> None:
    notice_once.cache_clear()


def build(root: Path, *names: str) -> Path:
    """Make files and (names that end with a slash) folders; files with the ending of an image hold one."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in image_folders.EXTENSIONS:
            Image.new("RGB", (2, 2)).save(path, "png")
        else:
            path.touch()
    return root


def test_classes_are_sorted_and_hidden_names_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path, "train/b/1.png", "train/b/0.JPG", "train/a/x/2.png", "train/a/3.webp", "train/.DS_Store")
    build(tmp_path, "train/.ipynb_checkpoints/x.png", "train/__MACOSX/b/._1.png", "train/@eaDir/a/SYNO.jpg")
    build(tmp_path, "train/b/._1.png", "train/b/.ipynb_checkpoints/1.png", "train/b/Thumbs.db", "train/lost+found/")
    found = ImageFolder(tmp_path / "train")
    assert found.classes == ["a", "b"]
    assert found.class_to_idx == {"a": 0, "b": 1}
    relative = [(os.path.relpath(path, tmp_path / "train"), label) for path, label in found.samples]
    assert relative == [("a/3.webp", 0), ("a/x/2.png", 0), ("b/0.JPG", 1), ("b/1.png", 1)]
    assert found.targets == [0, 0, 1, 1]
    assert (len(found), found[2][1], found[2][0].size) == (4, 1, (2, 2))
    said = capsys.readouterr().err
    assert said.startswith(f"Note: skipped in {tmp_path / 'train'}: ")
    assert all(name in said for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"))
    assert ".DS_Store" not in said
    assert len(pickle.loads(pickle.dumps(found))) == 4  # loading processes may need a copy


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train/a/0.png", "train/b/0.png"), ""),
        (("train/0/0.png", "train/1/0.png", "train/9/0.png"), ""),
        (("train/00/0.png", "train/01/0.png", "train/10/0.png"), ""),
        (("train/.git/", "train/a/0.png"), "skipped in {0}/train: {0}/train/.git, which"),
        (tuple(f"train/{i}/0.png" for i in range(11)), "sorted as text, as the host does: class 2 is folder '10'"),
        (("train/7/0.png", "train/12/0.png"), "class 0 is folder '12'"),
        (("train/a/0.png", "train/a/1.gif"), "not read in {0}/train: {0}/train/a/1.gif; the host's loader takes .jpg"),
        (("train/images/cat/0.png", "train/images/dog/0.png"), "of one class, 'images', also those of the folders in"),
        (("train/00000/0.png", "train/dataset.json"), "labels in {0}/train/dataset.json are not read"),
    ],
)
def test_what_a_label_may_depend_on_is_said(
    names: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path, *names)
    ImageFolder(tmp_path / "train")
    ImageFolder(tmp_path / "train")
    said = capsys.readouterr().err
    assert said.count("\n") == bool(words)  # once
    assert words.format(tmp_path) in said


def test_splits_with_other_classes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path, "train/a/0.png", "train/b/0.png", "train/c/0.png", "valid/a/0.png", "valid/c/0.png", "test/a/0.png")
    build(tmp_path, "test/b/0.png", "test/c/0.png")
    assert ImageFolder(tmp_path / "test").classes == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    assert ImageFolder(tmp_path / "valid").class_to_idx["c"] == 1
    assert "differ in the class folders b: the same label may mean different classes" in capsys.readouterr().err


EXPECTED = "images belong in train/<class>/*"
TREES: list[tuple[tuple[str, ...], str]] = [
    (("val/a/0.png", "test/a/0.png"), "no folder train in {0}: found test, val; " + EXPECTED),
    (("training/a/0.png",), "found training; rename training to train"),
    (("Train/a/0.png", "Val/a/0.png"), "found Train, Val; rename Train to train"),
    (("data/train/a/0.png",), "found data/train; give {0}/data"),
    (("__MACOSX/train/a/0.png", "set/train/a/0.png"), "found set/train; give {0}/set"),
    (("a/0.png", "b/0.png"), "found a, b; if these are the classes, move them to {0}/train"),
    (("0.png", "1.png"), "found 0.png, 1.png; " + EXPECTED),
    ((), "no folder train in {0}: it is empty; " + EXPECTED),
    ((".cache/x.png",), "it is empty"),
    (("data/train-00000-of-00001.parquet", "README.md"), "it holds a Hugging Face data set; write each image to"),
    (("dataset_dict.json", "x/"), "it holds a Hugging Face data set"),
    (("0.png", "metadata.jsonl"), "it holds a Hugging Face data set"),
    (("data.mdb", "lock.mdb"), "it holds an LMDB database; write its images to files"),
    (("Digits_32_train.hdf5",), "it holds an HDF5 file"),
    (("a.tfrecords",), "it holds TFRecords"),
    (("images.zip",), "it holds an archive; unpack it"),
    (("x.npz",), "it holds a file of arrays"),
    (("batches.meta", "data_batch_1"), "it holds the batches of CIFAR10; for DATA.name CIFAR10, give its parent"),
    (("cifar-10-batches-py/data_batch_1",), "found cifar-10-batches-py; " + EXPECTED),
    (("train.zip", "valid.zip"), "it holds an archive; unpack it"),
    (("train",), "{0}/train is a file: it should be a folder with train/<class>/*"),
    (("train/",), "{0}/train holds no class folder (it is empty): " + EXPECTED),
    (("train/0.png", "train/1.png"), "{0}/train holds 2 images in no class folder: move them"),
    (("train/notes.txt",), "{0}/train holds no class folder (found notes.txt)"),
    (("train/.ipynb_checkpoints/0.png",), "{0}/train holds no class folder (it is empty)"),
    (("train/metadata.jsonl", "train/0.png"), "{0}/train holds a Hugging Face data set and no class folders; write"),
    (("train/data-00000-of-00001.arrow", "train/state.json"), "{0}/train holds a Hugging Face data set"),
    (("train/a/0.png", "train/b/"), "in {0}/train the class folder 'b' holds no image: fill it with .jpg"),
    (("train/a/0.png", "train/b/0.gif"), "'b' holds no image (found {0}/train/b/0.gif): fill it"),
    (("train/a/0.png", "train/b/.0.png", "train/c/x.txt"), "the class folder 'b', 'c' holds no image"),
    (("train/train/a/0.png", "train/train/b/0.png"), "one level too deep, in {0}/train/train: move them to {0}/train"),
]


@pytest.mark.parametrize(("names", "words"), TREES)
def test_other_trees_are_refused_with_what_is_there(names: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        ImageFolder(build(tmp_path, *names) / "train")
    assert words.format(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_val_is_no_valid(tmp_path: Path) -> None:
    build(tmp_path, "train/a/0.png", "val/a/0.png")
    with pytest.raises(UserError, match=f"no folder valid in {tmp_path}: found train, val; rename val to valid"):
        ImageFolder(tmp_path / "valid")


def test_the_split_itself_is_no_data_folder(tmp_path: Path) -> None:
    build(tmp_path, "train/a/0.png", "val/a/0.png")
    with pytest.raises(UserError, match="train looks like the split itself, give its parent$"):
        ImageFolder(tmp_path / "train" / "train")
    with pytest.raises(UserError, match="val looks like the split itself, give its parent and call it valid"):
        ImageFolder(tmp_path / "val" / "valid")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("set.zip", "is an archive: unpack it, and give the one with train/<class>"),
        ("set.tar.gz", "is an archive"),
        ("set.hdf5", "is an HDF5 file: write its images to files"),
        ("set.parquet", "is a Hugging Face data set"),
        ("set.npz", "is a file of arrays"),
        ("set.png", "is not a folder: give the one with"),
        ("nothing", "is not a folder: give the one with"),
    ],
)
def test_a_file_is_no_data_folder(name: str, words: str, tmp_path: Path) -> None:
    if name != "nothing":
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"^{tmp_path / name} {words}"):
        ImageFolder(tmp_path / name / "train")
    assert data_folder(tmp_path) == tmp_path


def test_links_are_followed_and_circles_are_refused(tmp_path: Path) -> None:
    build(tmp_path, "elsewhere/0.png", "train/a/0.png", "other/x/1.png")
    (tmp_path / "train" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "gone").symlink_to(tmp_path / "nowhere")  # is no folder, so no class
    assert ImageFolder(tmp_path / "train").targets == [0, 1]
    (tmp_path / "other" / "up").symlink_to(tmp_path / "train")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="is a link to a folder that holds it: remove it"):
        ImageFolder(tmp_path / "train")
    (tmp_path / "elsewhere" / "round").unlink()
    (tmp_path / "train" / "a" / "self").symlink_to(tmp_path / "train" / "a")
    with pytest.raises(UserError, match=f"{tmp_path}/train/a/self is a link to a folder that holds it"):
        ImageFolder(tmp_path / "train")


def test_a_folder_without_the_right_to_read_it(tmp_path: Path) -> None:
    build(tmp_path, "train/a/0.png", "train/b/0.png")
    (tmp_path / "train" / "a").chmod(0)
    if os.access(tmp_path / "train" / "a", os.R_OK):
        pytest.skip("root may read everything")
    with pytest.raises(UserError, match="cannot read the folder .*/train/a: Permission denied"):
        ImageFolder(tmp_path / "train")


def test_empty_classes_may_be_allowed(tmp_path: Path) -> None:
    build(tmp_path, "train/a/", "train/b/0.png", "train/c/")
    assert ImageFolder(tmp_path / "train", allow_empty=True).targets == [1]


NAMES = st.sampled_from(("a", "B", "10", "9", ".hid", "__MACOSX", "é", "train", " c"))
FILES = st.sampled_from(("0.png", "1.JPEG", "._0.png", "x.txt", "b.gif", "Z.webp", "10.png", "9.tiff"))
PATHS = st.builds(lambda folders, name: "/".join((*folders, name)), st.lists(NAMES, max_size=3), FILES)


def build_tree(root: Path, paths: set[str]) -> Path:
    for path in sorted(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def kept(path: str, root: Path) -> bool:
    return not any(map(is_skipped, Path(path).relative_to(root).parts))


def listed_or_refused(root: Path) -> ImageFolder | str:
    try:
        return ImageFolder(root)
    except UserError as error:
        return str(error)


@pytest.mark.studiogan  # torchvision comes with the host's packages
@settings(max_examples=60, deadline=None, derandomize=True)
@given(paths=st.sets(PATHS, min_size=1, max_size=12))
def test_random_trees_are_torchvisions_without_hidden_names(
    tmp_path_factory: pytest.TempPathFactory, paths: set[str]
) -> None:
    from torchvision.datasets import folder

    assert folder.IMG_EXTENSIONS == image_folders.EXTENSIONS
    root = build_tree(tmp_path_factory.mktemp("tree"), paths) / "train"
    root.mkdir(exist_ok=True)
    found = listed_or_refused(root)

    # The same by torchvision, whose classes are thinned out.
    names = [name for name in sorted(os.listdir(root)) if (root / name).is_dir() and not is_skipped(name)]
    labels = {name: label for label, name in enumerate(names)}
    every = folder.make_dataset(root, labels, folder.IMG_EXTENSIONS, allow_empty=True) if labels else []
    expected = [(path, label) for path, label in every if kept(path, root)]
    if isinstance(found, ImageFolder):
        assert (found.classes, found.samples) == (names, expected)
    else:
        assert str(root) in found
        empty = set(labels.values()) - {label for _, label in expected}
        assert empty or names in ([], ["train"])
