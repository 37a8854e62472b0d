"""Statistics of real images as files: equal to the folder's, and in the forms that other packages exchange."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ok, run
from host_models import save

from studiogan_guidance.builtin.backbone import BuiltinBackbone
from studiogan_guidance.builtin.images import BuiltinImages
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import results
from studiogan_guidance.evaluation.fid import moments
from studiogan_guidance.evaluation.stats_file import read
from studiogan_guidance.features.images import split_digest
from studiogan_guidance.features.stats import accumulate
from studiogan_guidance.host.locate import Checkout

EVERY = "fid,is,prdc,kid,fid_infinity,per_class"


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Statistics that other tests have cached are of other batches, and so differ in their last digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ours") / "digits.npz"
    ok("stats", "--out", path)
    return path


@pytest.fixture(scope="module")
def digits() -> Any:
    """Features of the digits that the built-in is measured against, [1000, 64]."""
    return accumulate(BuiltinImages("test").batches(64), BuiltinBackbone(torch.device("cpu"))).features


def plain(*args: object, num: int = 200) -> Any:
    (row,) = ok("eval", "--sampler", "plain", "--num", num, *args)["rows"]
    return row


def refusal(*args: object) -> str:
    result = run("eval", "--sampler", "plain", *args)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("Note: ")]
    return line.removeprefix("Error: ")


def test_a_row_is_that_of_the_images_to_the_last_digit(ours: Path, tmp_path: Path) -> None:
    folder = plain("--metrics", EVERY, "--out", tmp_path / "folder")
    file = plain("--metrics", EVERY, "--out", tmp_path / "file", "--reference-stats", ours)
    assert file["metrics"] == folder["metrics"]
    assert file["per_class"] == folder["per_class"]
    assert file["protocol"] == folder["protocol"]
    assert results.identity(file) == results.identity(folder)
    ok("compare", tmp_path / "folder", tmp_path / "file", "--out", tmp_path)


@pytest.mark.parametrize("verb", ["sweep", "tune", "compare"])
def test_every_verb_that_measures_takes_a_file(verb: str, ours: Path, tmp_path: Path) -> None:
    more: dict[str, list[object]] = {
        "sweep": ["--grid", "scale=1.2", "--no-compare-plain"],
        "tune": ["--budget", 9, "--repeats", 2],
        "compare": ["--with", "gandance:scale=1.2"],
    }
    common = [*more[verb], "--num", 60, "--metrics", "fid"]
    from_file = ok(verb, *common, "--out", tmp_path / "file", "--reference-stats", ours)
    images = ok(verb, *common, "--out", tmp_path / "folder", "--reference", "test")
    assert [row["metrics"] for row in results.read(tmp_path / "file" / results.FILE)] == [
        row["metrics"] for row in results.read(tmp_path / "folder" / results.FILE)
    ]
    if verb == "tune":
        assert from_file["reference"] == images["reference"] == "test"
        assert "reference_stats" not in Path(from_file["config"]).read_text()


def test_a_yaml_names_a_file(ours: Path, tmp_path: Path) -> None:
    yaml = tmp_path / "run.yaml"
    yaml.write_text(f"reference_stats: {ours}\nmetrics: [fid]\n")
    row = plain("-c", yaml, "--out", tmp_path)
    assert row["metrics"] == plain("--metrics", "fid", "--out", tmp_path)["metrics"]


def test_the_file_of_a_part_of_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BuiltinImages, "default_count", 400)  # as 50,000 of ImageNet
    written = ok("stats", "--out", tmp_path / "part.npz")
    assert (written["num_real"], written["num_features"], written["width"]) == (1000, 400, 64)
    folder = plain("--metrics", EVERY, "--out", tmp_path)
    file = plain("--metrics", EVERY, "--out", tmp_path, "--reference-stats", tmp_path / "part.npz")
    assert file["protocol"] == folder["protocol"]
    assert file["protocol"]["num_real_features"] == 400
    assert file["metrics"] == folder["metrics"]
    (default,) = ok("eval", "--sampler", "plain", "--metrics", "fid", "--out", tmp_path, "--reference-stats",
                    tmp_path / "part.npz")["rows"]  # fmt: skip
    assert default["protocol"]["num"] == 400


def test_a_file_of_ours_is_one_for_other_packages(ours: Path, digits: Any) -> None:
    with np.load(ours, allow_pickle=False) as file:
        mean, cov = moments(digits)
        np.testing.assert_allclose(file["mu"], mean, rtol=1e-12)
        np.testing.assert_allclose(file["sigma"], cov, rtol=1e-9, atol=1e-9)
        assert (file["mu"].dtype, file["sigma"].dtype, file["features"].dtype) == (np.float64, np.float64, np.float32)
        assert np.array_equal(file["features"], digits)
        assert file["labels"].tolist() == BuiltinImages("test").labels()
        assert file["count"] == 1000
        protocol = json.loads(str(file["protocol"]))
    assert protocol["real"] == BuiltinImages("test").fingerprint
    assert protocol["backbone"]["backbone_sha256"]
    assert protocol["written_by"].startswith("studiogan_guidance ")


def test_moments_only_do_for_fid_and_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "lean.npz"
    assert ok("stats", "--no-features", "--out", path)["num_features"] == 0
    assert set(np.load(path).files) == {"mu", "sigma", "count", "protocol"}
    some = ["--metrics", "fid,is,fid_infinity", "--out", tmp_path]
    assert plain(*some, "--reference-stats", path)["metrics"] == plain(*some)["metrics"]
    for metrics, names in (("prdc", "prdc"), ("fid,kid,per_class", "kid,per_class")):
        line = refusal("--metrics", metrics, "--out", tmp_path, "--reference-stats", path)
        assert f"{path} holds no features, which {names.replace(',', ' and ')} need: write a file with them" in line
        assert line.endswith(f"'studiogan-guidance stats', or leave {names} out of --metrics")


# The forms of other packages, from features [N, 64].
FORMS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "pytorch-fid and EDM": lambda x: dict(zip(("mu", "sigma"), (x.mean(0), np.cov(x, rowvar=False)))),
    "guided-diffusion": lambda x: {
        **FORMS["pytorch-fid and EDM"](x),
        "mu_s": np.zeros(9),
        "sigma_s": np.eye(9),
        "arr_0": np.zeros((5, 8, 8, 3), np.uint8),
    },
    "in float32": lambda x: {key: np.float32(value) for key, value in FORMS["pytorch-fid and EDM"](x).items()},
    "big-endian": lambda x: {key: value.astype(">f8") for key, value in FORMS["pytorch-fid and EDM"](x).items()},
    "in columns": lambda x: {key: np.asfortranarray(value) for key, value in FORMS["pytorch-fid and EDM"](x).items()},
    "with a pickle beside": lambda x: {**FORMS["pytorch-fid and EDM"](x), "args": np.asarray([{}, None], object)},
    "features of the host": lambda x: {
        "real_feats": np.float32(x), "real_probs": np.zeros((len(x), 3)), "real_labels": np.arange(len(x)) % 10
    },
    "features of score_sde": lambda x: {"pool_3": np.float32(x), "logits": np.zeros((len(x), 3), np.float32)},
}  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_files_of_other_packages(form: str, compressed: bool, digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "theirs.npz"
    (np.savez_compressed if compressed else np.savez)(path, **FORMS[form](digits.astype(np.float64)))
    file = plain("--metrics", "fid", "--reference-stats", path, "--out", tmp_path)
    folder = plain("--metrics", "fid", "--out", tmp_path)
    tolerance = 1e-5 if form == "in float32" else 1e-6
    assert file["metrics"]["fid"] == pytest.approx(folder["metrics"]["fid"], rel=tolerance)
    assert file["protocol"]["reference_stats"] == {"sha256": read(path).digest, "protocol": "unknown"}
    assert not {"data", "image_size", "reference"} & set(file["protocol"])
    assert file["protocol"]["num_real"] == (1000 if "features" in form else "unknown")


def test_of_a_file_without_a_protocol_little_is_known(digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "theirs.npz"
    np.savez(path, **FORMS["pytorch-fid and EDM"](digits))
    common = ["--metrics", "fid", "--out", tmp_path, "--reference-stats", path]
    result = run("eval", "--sampler", "plain", "--num", 50, *common)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Note: ")]
    assert f"{path} does not tell how its images were prepared: values are right only if feature network" in line
    assert refusal(*common).endswith("theirs.npz does not tell of how many images: give --num")
    assert "does not tell of which classes it is" in refusal(*common, "--num", 50, "--classes", "3,7")
    other = plain("--metrics", "fid", "--out", tmp_path / "o", num=50)
    result = run("compare", tmp_path, tmp_path / "o", "--out", tmp_path / "c")
    assert other["metrics"]
    assert result.exit_code == 2
    assert "rows of different num_real cannot be compared: found unknown (plain) and 1000 (plain)" in result.stderr


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code was run')",)


def archive(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("_npy", ".npy"), data)
    return content.getvalue()


def header(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": descr, "fortran_order": False, "shape": shape})
    return content.getvalue()


def saved(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


MU, SIGMA = np.zeros(64), np.eye(64)


def lopsided(value: float, row: int, column: int) -> Any:
    sigma = SIGMA.copy()
    sigma[row, column] = value
    return sigma


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"mu sigma\n", "is a text (mu sigma) ("),
    "nothing": (lambda: b"", "is an empty file"),
    "a page": (lambda: b"\n<!DOCTYPE html>", "is a web page"),
    "Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer ("),
    "an .npy": (lambda: header((64,)) + MU.tobytes(), "is an array of numpy ("),
    "a pickle of EDM": (lambda: pickle.dumps({"fid": {"mu": MU}, "x": Evil()}), "is a pickle, which would run code"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "half": (lambda: saved(mu=MU, sigma=SIGMA)[:9000], "is the beginning of a file that lacks its end"),
    "torch.save": (lambda: archive(**{"archive/data.pkl": b"x"}), "holds archive/data.pkl, and no mu with sigma"),
    "no array": (lambda: archive(), "holds nothing, and no mu with sigma"),
    "samples": (lambda: saved(images=MU, seeds=MU), "holds images, seeds, and no mu with sigma"),
    "mu alone": (lambda: saved(mu=MU), "holds mu, and no mu with sigma"),
    "mu with features": (lambda: saved(mu=MU, features=SIGMA), "holds features, mu, and no mu with sigma"),
    "objects": (lambda: saved(mu=np.asarray([Evil()] * 64, object), sigma=SIGMA), "has a pickle in mu"),
    "whole numbers": (lambda: saved(mu=np.zeros(64, int), sigma=SIGMA), "has mu as int64, not floating-point numbers"),
    "complex": (lambda: saved(mu=MU + 1j, sigma=SIGMA), "has mu as complex128, not floating-point"),
    "a long mu": (lambda: saved(mu=np.zeros(65), sigma=SIGMA), "holds mu [65], sigma [64, 64]: mu must be [D]"),
    "a square mu": (lambda: saved(mu=SIGMA, sigma=SIGMA), "holds mu [64, 64], sigma [64, 64]: mu must be [D]"),
    "no shape": (lambda: saved(mu=np.float64(0), sigma=np.float64(1)), "holds mu [], sigma []: mu must be [D]"),
    "no width": (lambda: saved(mu=MU[:0], sigma=SIGMA[:0, :0]), "holds mu [0], sigma [0, 0]: mu must be [D]"),
    "variances": (lambda: saved(mu=MU, sigma=np.ones(64)), "holds mu [64], sigma [64]: mu must be [D], sigma [D, D]"),
    "narrow features": (lambda: saved(mu=MU, sigma=SIGMA, features=np.ones((9, 63))), "features [9, 63]: mu must be"),
    "few labels": (
        lambda: saved(mu=MU, sigma=SIGMA, features=np.ones((9, 64)), labels=np.arange(8)), "labels [8]: mu must be"
    ),
    "labels with a fraction": (lambda: saved(mu=MU, sigma=SIGMA, labels=MU), "labels as float64, not whole numbers"),
    "one image": (lambda: saved(features=np.ones((1, 64))), "holds features [1, 64]: mu must be"),
    "nan": (lambda: saved(mu=MU * np.nan, sigma=SIGMA), "has nan or inf in mu"),
    "inf": (lambda: saved(mu=MU, sigma=lopsided(np.inf, 3, 3)), "has nan or inf in sigma"),
    "not symmetric": (lambda: saved(mu=MU, sigma=lopsided(1, 3, 4)), "is not symmetric, so it is no covariance"),
    "no variance": (lambda: saved(mu=MU, sigma=lopsided(-1, 3, 3)), "has a diagonal below 0, so it is no covariance"),
    "another width": (
        lambda: saved(mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32)),
        "is about 2048 features, and the run's --backbone gives 64: choose the one that the file was made with",
    ),
    "a wild header": (lambda: archive(mu_npy=header((1 << 50,)), sigma_npy=SIGMA.tobytes()), "is damaged: mu should"),
    "an endless header": (
        lambda: archive(mu_npy=b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(1 << 26)), "is a damaged .npz"
    ),
    "a negative shape": (lambda: archive(mu_npy=header((-1, -64)), sigma_npy=header((64, 64))), "is damaged: mu"),
    "code in a header": (
        lambda: archive(mu_npy=b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').abort()".ljust(64)), "is a damaged"
    ),
    "a bomb": (
        lambda: archive(mu_npy=header((64,)) + MU.tobytes(), sigma_npy=header((1 << 12, 1 << 12)) + bytes(1 << 27)),
        "holds sigma of 134217728 bytes in ",
    ),
    "a bomb of features": (lambda: archive(features_npy=header((1 << 18, 64)) + bytes(1 << 27)), "no statistics are"),
    "a bomb of a protocol": (
        lambda: archive(protocol_npy=header((), "<U8388608") + bytes(1 << 25), mu_npy=header((1,)) + bytes(8)),
        "has a protocol that is not ours",
    ),
    "another's protocol": (lambda: saved(mu=MU, sigma=SIGMA, protocol="legacy"), "has a protocol that is not ours"),
    "a deep protocol": (lambda: saved(mu=MU, sigma=SIGMA, protocol="[" * 99999), "has a protocol that is not ours"),
    "an empty protocol": (lambda: saved(mu=MU, sigma=SIGMA, protocol="{}"), "has a protocol that is not ours"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_holds_no_statistics_is_one_line(name: str, tmp_path: Path) -> None:
    make, words = BROKEN[name]
    path = tmp_path / "stats.npz"
    path.write_bytes(make())
    line = refusal("--metrics", "fid", "--num", 20, "--reference-stats", path, "--out", tmp_path / "o")
    assert line.startswith((f"--reference-stats {path} ", f"sigma in --reference-stats {path} "))
    assert words in line


def test_a_file_that_lies_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    for name in ("a bomb", "a bomb of features", "a bomb of a protocol", "an endless header", "a wild header"):
        path.write_bytes(BROKEN[name][0]())
        tracemalloc.start()
        with pytest.raises(UserError):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()


@pytest.mark.parametrize(("path", "words"), [("missing.npz", "No such file"), (".", "it is a folder, give a file")])
def test_no_file(path: str, words: str, tmp_path: Path) -> None:
    assert words in refusal("--reference-stats", tmp_path / path, "--out", tmp_path)
    result = run("stats", "--out", tmp_path)
    assert result.exit_code == 2
    assert f"--out {tmp_path} is a folder: give a file such as {tmp_path}/stats.npz" in result.stderr


@pytest.mark.parametrize(
    ("part", "key", "value", "words"),
    [
        ("backbone", "backbone_sha256", "0000", "was made with backbone_sha256 0000, and the run has ba91"),
        ("backbone", "resizer", "clean", "was made with resizer clean, and the run has none"),
        ("backbone", "extra", 3, "was made with extra 3, and the run has None"),
        ("real", "image_size", 64, "was made with image_size 64, and the run has 32"),
        ("real", "pre_resizer", "lanczos", "was made with pre_resizer lanczos, and the run has wo_resize"),
        ("real", "classes", [3, 7], "was made with classes [3, 7], and the run has None"),
        ("source", "host_commit", "abc", "was made with host_commit abc, and the run has None"),
        ("version", "", 2, "was made with version 2, and the run has 3"),
    ],
)
def test_a_file_that_was_made_otherwise_is_refused_by_name(
    part: str, key: str, value: Any, words: str, ours: Path, tmp_path: Path
) -> None:
    with np.load(ours) as file:
        arrays = dict(file)
    protocol = json.loads(str(arrays["protocol"]))
    protocol[part] = {**protocol[part], key: value} if key else value
    path = tmp_path / "other.npz"
    np.savez(path, **{**arrays, "protocol": json.dumps(protocol)})
    line = refusal("--metrics", "fid", "--num", 20, "--reference-stats", path, "--out", tmp_path)
    assert line.startswith(f"--reference-stats {path} {words}")
    assert line.endswith(": change that of the run, or write the file anew with 'studiogan-guidance stats'")


def test_a_file_of_another_split_or_other_classes_is_refused(ours: Path, tmp_path: Path) -> None:
    common = ["--metrics", "fid", "--num", 20, "--reference-stats", ours, "--out", tmp_path]
    assert "was made with reference test, and the run has valid" in refusal(*common, "--reference", "valid")
    assert "was made with classes None, and the run has [3, 7]" in refusal(*common, "--classes", "7,3")


def test_a_file_of_some_classes_is_for_runs_of_these(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    assert ok("stats", "--classes", "7,3", "--out", path)["num_real"] == len(BuiltinImages("test", [3, 7]))
    common = ["--metrics", "fid,prdc", "--out", tmp_path]
    file = plain(*common, "--classes", "3,7", "--reference-stats", path)
    folder = plain(*common, "--classes", "3,7")
    assert file["metrics"] == folder["metrics"]
    assert file["protocol"] == folder["protocol"]
    line = refusal(*common, "--num", 20, "--reference-stats", path)
    assert "was made with classes [3, 7], and the run has None" in line


def test_labels_as_in_the_data_are_those_of_the_images(ours: Path, tmp_path: Path) -> None:
    common = ["--labels", "data", "--metrics", "fid", "--out", tmp_path]
    assert plain(*common, "--reference-stats", ours)["metrics"] == plain(*common)["metrics"]


def test_a_row_names_the_images_that_labels_are_as_frequent_as(ours: Path, digits: Any, tmp_path: Path) -> None:
    """A file of statistics says nothing of them, unless it was made of the same images."""
    mean, cov = moments(digits)
    np.savez(tmp_path / "others.npz", mu=mean, sigma=cov)
    common = ["--labels", "data", "--metrics", "fid", "--out", tmp_path]
    assert plain(*common, "--reference-stats", ours)["protocol"]["labels"] == "data"
    rows = [
        plain(*common, "--reference-stats", tmp_path / "others.npz", "--reference", split)
        for split in ("test", "train")
    ]
    for row, split in zip(rows, ("test", "train")):
        assert row["protocol"]["labels"] == f"data of the {split_digest(BuiltinImages(split))}"
    assert results.identity(rows[0]) != results.identity(rows[1])


@pytest.mark.studiogan
def test_a_file_of_a_host_data_set(checkout: Checkout, data: Path, hub: None, tmp_path: Path) -> None:
    """Neither stats needs a checkpoint, nor eval the images; the host's own file of moments has the same FID."""
    yaml, folder = save("resnet", checkout, tmp_path / "ckpt")
    path = tmp_path / "stats.npz"
    written = ok("stats", "-c", yaml, "--data", data, "--reference", "valid", "--out", path)
    assert (written["num_real"], written["num_features"], written["width"]) == (12, 12, 2048)
    common = ["-c", yaml, "--ckpt", folder, "--metrics", "fid,prdc", "--out", tmp_path]
    images = plain(*common, "--data", data, "--reference", "valid", num=8)
    file = plain(*common, "--reference-stats", path, num=8)
    assert file["metrics"] == images["metrics"]
    assert file["protocol"] == images["protocol"]
    line = refusal(*common, "--reference-stats", path, "--num", 8, "--pre-resizer", "lanczos")
    assert "was made with pre_resizer wo_resize, and the run has lanczos" in line

    # The host's moments, which it saves under these names.
    with np.load(path) as ours_:
        features = ours_["features"].astype(np.float64)
    np.savez(tmp_path / "host_moments.npz", mu=np.mean(features, axis=0), sigma=np.cov(features, rowvar=False))
    moments_only = ["-c", yaml, "--ckpt", folder, "--metrics", "fid", "--out", tmp_path]
    row = plain(*moments_only, "--reference-stats", tmp_path / "host_moments.npz", num=8)
    assert row["metrics"]["fid"] == pytest.approx(images["metrics"]["fid"], rel=1e-6)
