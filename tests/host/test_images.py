"""The host's real images, and our pure metric functions against the host's on the same features."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from image_kinds import READ, REFUSED, encoded
from PIL import Image

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.fid import frechet_distance, moments
from studiogan_guidance.evaluation.inception_score import inception_score
from studiogan_guidance.evaluation.prdc import prdc
from studiogan_guidance.host.images import READER, RealImages
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout

pytestmark = pytest.mark.studiogan


def hosts(checkout: Checkout, name: str) -> Any:
    with inside(checkout):
        return module(f"metrics.{name}")


@pytest.mark.parametrize(("n", "m", "width"), [(600, 500, 64), (150, 200, 256)])  # the second is rank-deficient
def test_fid_is_the_hosts_to_1e_6(n: int, m: int, width: int, checkout: Checkout) -> None:
    rng = np.random.default_rng(n)
    mix = rng.normal(size=(width, width)) / np.sqrt(width)
    real, fake = rng.normal(size=(n, width)) @ mix, rng.normal(size=(m, width)) @ mix * 1.2 + 0.1
    stats = (*moments(real), *moments(fake))
    assert frechet_distance(*stats) == pytest.approx(
        hosts(checkout, "fid").frechet_inception_distance(*stats), rel=1e-6
    )


@pytest.mark.parametrize(("n", "m", "k"), [(300, 300, 5), (1500, 700, 3)])
def test_prdc_is_exactly_the_hosts(n: int, m: int, k: int, checkout: Checkout) -> None:
    rng = np.random.default_rng(n)
    real, fake = np.abs(rng.normal(size=(n, 40))), np.abs(rng.normal(size=(m, 40)) + 0.2)
    assert prdc(real, fake, k) == hosts(checkout, "prdc").compute_prdc(real, fake, k)


def test_prdc_is_exactly_the_hosts_on_features_of_digits(checkout: Checkout) -> None:
    from studiogan_guidance.builtin.backbone import BuiltinBackbone
    from studiogan_guidance.builtin.images import BuiltinImages
    from studiogan_guidance.features.stats import accumulate

    backbone = BuiltinBackbone("cpu")
    real, fake = (accumulate(BuiltinImages(split).batches(100), backbone).features for split in ("valid", "test"))
    assert real is not None
    assert fake is not None
    assert prdc(real, fake) == hosts(checkout, "prdc").compute_prdc(real.astype(np.float64), fake.astype(np.float64), 5)


def test_inception_score_is_the_hosts(checkout: Checkout) -> None:
    p = np.random.default_rng(0).dirichlet(np.full(20, 0.2), size=500).astype(np.float32)
    for splits in (1, 10):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the standard deviation of one split
            score, _ = hosts(checkout, "ins").calculate_kl_div(torch.from_numpy(p).double(), splits)
        assert inception_score(p, splits) == pytest.approx(float(score), rel=1e-9)


def opened(checkout: Checkout, data: Path) -> RealImages:
    cfg = RunConfig(data=str(data), reference="valid")
    return RealImages(cfg, checkout, "Digits", 32)


def test_a_fingerprint_holds_names_and_sizes_and_a_cache_key_times_too(
    checkout: Checkout, data: Path, tmp_path: Path
) -> None:
    first = opened(checkout, data)
    assert {**first.fingerprint, "reader": READER, "times": first.cache_key["times"]} == first.cache_key
    copy = Path(shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile))
    image = copy / "valid" / "0" / "0.png"
    os.utime(image, (1, 1))

    copied = opened(checkout, copy)
    assert copied.fingerprint == first.fingerprint
    assert copied.cache_key != first.cache_key

    image.write_bytes(image.read_bytes() + b"\0")
    assert opened(checkout, copy).fingerprint != first.fingerprint
    image.unlink()
    (copy / "train" / "0" / "0.png").unlink()  # of another split
    image.write_bytes((data / "valid" / "0" / "0.png").read_bytes())
    assert opened(checkout, copy).fingerprint == first.fingerprint


def placed(data: Path, folder: Path, content: bytes | None = None) -> tuple[Path, Path]:
    """A copy of the images, and the path of one of them, whose content is replaced."""
    copy = Path(shutil.copytree(data, folder))
    path = copy / "valid" / "2" / "1.png"
    if content is not None:
        path.write_bytes(content)
    return copy, path


def test_pixels_are_those_of_the_hosts_own_data_set(checkout: Checkout, data: Path, tmp_path: Path) -> None:
    copy, _ = placed(data, tmp_path / "copy")
    for number, make in enumerate(READ.values()):
        (copy / "valid" / str(number % 4) / f"kind{number}.png").write_bytes(make())
    cfg = RunConfig(data=str(copy), reference="valid", pre_resizer="lanczos")
    real = RealImages(cfg, checkout, "Digits", 32)

    with inside(checkout):
        host = module("data_util").Dataset_("Digits", str(copy), False, True, 32, "lanczos", False, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [host[i] for i in range(len(host))]
    images, labels = (torch.cat(parts) for parts in zip(*real.batches(5)))
    assert len(images) == len(READ) + 12
    assert torch.equal(images, torch.stack([image for image, _ in expected]))
    assert labels.tolist() == real.labels() == [label for _, label in expected]
    assert real.class_names == tuple(host.data.classes)


@pytest.mark.parametrize(("kind", "cpus"), [("16-bit grey", 3), ("RGBA", 1), ("RGBA", 3), ("half a PNG", 3)])
def test_an_image_that_would_be_guessed_is_refused_in_one_line(
    checkout: Checkout, data: Path, tmp_path: Path, kind: str, cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words = REFUSED[kind]
    copy, path = placed(data, tmp_path / "copy", make())
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cpus))
    monkeypatch.setattr(sys, "platform", "linux" if cpus > 1 else "darwin")
    with pytest.raises(UserError, match=f"^cannot read the image {path}.*{words}.*$") as error:
        list(opened(checkout, copy).batches(4))
    assert "\n" not in str(error.value)


def sized(width: int, height: int) -> bytes:
    return encoded(Image.new("RGB", (width, height)))


@pytest.mark.parametrize(("width", "height", "found"), [(33, 34, "33x34"), (20, 20, "20x20"), (64, 32, None)])
def test_an_image_of_another_size_is_named(
    checkout: Checkout, data: Path, tmp_path: Path, width: int, height: int, found: str | None
) -> None:
    copy, path = placed(data, tmp_path / "copy", sized(width, height))
    real = opened(checkout, copy)
    if found is None:  # the host cuts images to squares
        assert sum(len(labels) for _, labels in real.batches(5)) == 12
        return
    advice = r"the configuration wants 32x32: set --pre-resizer \(such as lanczos\)"
    with pytest.raises(UserError, match=rf"^the image {path} is {found}, {advice}$"):
        list(real.batches(12))


def test_images_that_the_host_does_not_resize_need_their_size(checkout: Checkout, data: Path, tmp_path: Path) -> None:
    copy, path = placed(data, tmp_path / "copy", sized(32, 40))
    real = RealImages(
        RunConfig(data=str(copy), reference="valid", pre_resizer="lanczos"), checkout, "Tiny_ImageNet", 32
    )
    with pytest.raises(UserError, match=f"{path} is 32x40, .* wants 32x32: the host does not resize images of Tiny_"):
        list(real.batches(12))


def test_hidden_folders_shift_no_labels_and_change_no_fingerprint(
    checkout: Checkout, data: Path, tmp_path: Path
) -> None:
    first = opened(checkout, data)
    copy, path = placed(data, tmp_path / "copy")
    hidden = copy / "valid" / ".ipynb_checkpoints"
    hidden.mkdir()
    shutil.copy(path, hidden / "x.png")
    (copy / "valid" / "1" / "._0.png").write_bytes(b"of macOS")
    found = opened(checkout, copy)
    assert found.labels() == first.labels()
    assert found.class_names == first.class_names == ("0", "1", "2", "3")
    assert found.fingerprint == first.fingerprint


def test_linked_classes_have_fingerprints_of_their_images(checkout: Checkout, data: Path, tmp_path: Path) -> None:
    for name, order in (("a", "0123"), ("b", "3210")):
        (tmp_path / name / "valid").mkdir(parents=True)
        for label, target in enumerate(order):
            (tmp_path / name / "valid" / str(label)).symlink_to(data / "valid" / target)
    first, second = opened(checkout, tmp_path / "a"), opened(checkout, tmp_path / "b")
    assert first.fingerprint == opened(checkout, data).fingerprint
    assert first.fingerprint != second.fingerprint


def test_a_test_folder_can_be_measured(checkout: Checkout, data: Path, tmp_path: Path) -> None:
    copy, _ = placed(data, tmp_path / "copy")
    with pytest.raises(UserError, match=f"no folder test in {copy}: found train, valid"):
        RealImages(RunConfig(data=str(copy), reference="test"), checkout, "Digits", 32)
    shutil.move(copy / "valid", copy / "test")
    real = RealImages(RunConfig(data=str(copy), reference="test"), checkout, "Digits", 32)
    valid = opened(checkout, data)
    assert real.fingerprint == {**valid.fingerprint, "reference": "test"}
    assert torch.equal(next(iter(real.batches(12)))[0], next(iter(valid.batches(12)))[0])


# ---------------------------------------------------------------------------- CIFAR


def batch_file(path: Path, labels: list[int], **more: Any) -> list[str]:
    """A file of CIFAR and its digest, as torchvision's classes list them."""
    rng = np.random.default_rng(len(labels))
    pixels = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    path.write_bytes(pickle.dumps({"data": pixels, "labels": labels, **more}))
    return [path.name, hashlib.md5(path.read_bytes()).hexdigest()]


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a CIFAR10 of eight images, and torchvision's class for it."""
    datasets = module("torchvision.datasets")
    home = tmp_path / "data"
    folder = home / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)

    class CIFAR10(datasets.CIFAR10):  # type: ignore[misc, name-defined]
        url = "http://localhost:9/cifar-10-python.tar.gz"  # nobody answers
        train_list: ClassVar = [batch_file(folder / "data_batch_1", [0, 1, 0, 1, 1])]
        test_list: ClassVar = [batch_file(folder / "test_batch", [1, 0, 1])]
        meta: ClassVar = {"filename": "batches.meta", "key": "label_names"}

    _, CIFAR10.meta["md5"] = batch_file(folder / "batches.meta", [], label_names=["plane", "car"])
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    CIFAR10.tgz_md5 = hashlib.md5((tmp_path / "cifar.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets, "CIFAR10", CIFAR10)
    return home


def of_cifar(checkout: Checkout, home: Path, split: str = "train") -> RealImages:
    return RealImages(RunConfig(data=str(home), reference=split), checkout, "CIFAR10", 32)


def test_cifar_has_names_and_labels(checkout: Checkout, cifar: Path) -> None:
    real = of_cifar(checkout, cifar)
    assert real.class_names == ("plane", "car")
    assert real.labels() == [0, 1, 0, 1, 1]
    pixels = np.random.default_rng(5).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    assert torch.allclose(next(iter(real.batches(5)))[0], torch.from_numpy(pixels) / 127.5 - 1, atol=1e-6)
    assert len(of_cifar(checkout, cifar, "test")) == 3
    with pytest.raises(UserError, match="CIFAR10 has no valid split in the host: use --reference train or test"):
        of_cifar(checkout, cifar, "valid")
    some = RealImages(RunConfig(data=str(cifar)), checkout, "CIFAR10", 32).of((1,))
    assert some.labels() == [1, 1, 1]


def test_an_archive_of_cifar_is_unpacked(checkout: Checkout, cifar: Path) -> None:
    shutil.rmtree(cifar / "cifar-10-batches-py")
    shutil.copy(cifar.parent / "cifar.tar.gz", cifar / "cifar-10-python.tar.gz")
    assert of_cifar(checkout, cifar).labels() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("change", "below", "words"),
    [
        (lambda home: None, "cifar-10-batches-py", "is the folder of CIFAR10 itself: give its parent, {0}"),
        (lambda home: (home / "cifar-10-batches-py").rename(home / "x"), "x", "is the folder of CIFAR10 itself"),
        (lambda home: (home / "cifar-10-batches-py").rename(home / "x"), ".", r"is not in {0} \(found x\): unpack"),
        (lambda home: (home / "d").mkdir(), "d", r"is not in {0}/d \(it is empty\): unpack cifar-10-python.tar.gz of"),
        (lambda home: None, "..", "found data/cifar-10-batches-py; give"),
        (lambda home: None, "nowhere", "nowhere is not a folder"),
        (lambda home: (home / "a.zip").touch(), "a.zip", "a.zip is an archive: unpack it"),
        (lambda home: (home / "cifar-10-batches-py" / "test_batch").unlink(), ".", "test_batch is missing: unpack"),
        (
            lambda home: (home / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"half"),
            ".",
            "data_batch_1 is damaged: unpack cifar-10-python.tar.gz again",
        ),
        (lambda home: (home / "cifar-10-batches-py" / "batches.meta").write_bytes(b""), ".", "batches.meta is damaged"),
    ],
)
def test_cifar_is_never_downloaded_but_asked_for(
    checkout: Checkout, cifar: Path, change: Any, below: str, words: str
) -> None:
    change(cifar)
    with pytest.raises(UserError, match=words.format(cifar)):
        of_cifar(checkout, cifar / below)


# ---------------------------------------------------------------------------- loading that fails


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError(), "failed: ValueError$"),
        (ValueError("one\n\ntwo"), "failed: ValueError: two$"),
        (MemoryError(), "failed: MemoryError$"),
    ],
)
def test_an_image_that_cannot_be_loaded_says_what_happened(
    checkout: Checkout,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    error: Exception,
    message: str,
) -> None:
    class Broken:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> None:
            raise error

    real = opened(checkout, data)
    monkeypatch.setattr(real, "_dataset", Broken())
    monkeypatch.setattr(sys, "platform", "linux" if workers else "darwin")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(1))
    with pytest.raises(UserError, match=f"loading the images in .* {message}"):
        next(iter(real.batches(2)))


def test_a_loading_process_that_dies_is_not_called_an_unreadable_image(
    checkout: Checkout, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadly:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> None:
            os._exit(1)

    real = opened(checkout, data)
    monkeypatch.setattr(real, "_dataset", Deadly())
    with pytest.raises(UserError, match=r"loading the images in .* failed: RuntimeError: DataLoader worker .* exited"):
        next(iter(real.batches(2)))
