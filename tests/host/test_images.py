"""The host's real images, and our pure metric functions against the host's on the same features."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.fid import frechet_distance, moments
from studiogan_guidance.evaluation.inception_score import inception_score
from studiogan_guidance.evaluation.prdc import prdc
from studiogan_guidance.host.images import RealImages
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
    assert {**first.fingerprint, "times": first.cache_key["times"]} == first.cache_key
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
