"""The metrics of a row are those of the public functions on the same features."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ok

from studiogan_guidance import builtin, config, samplers
from studiogan_guidance.builtin.backbone import BuiltinBackbone
from studiogan_guidance.builtin.images import BuiltinImages
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, notice_once
from studiogan_guidance.evaluation import results
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.evaluation import Evaluation, evaluate
from studiogan_guidance.evaluation.fid import frechet_distance, frechet_infinity, moments
from studiogan_guidance.evaluation.generation import Pass, fitting
from studiogan_guidance.evaluation.kid import kid
from studiogan_guidance.evaluation.metrics import METRICS
from studiogan_guidance.evaluation.prdc import prdc
from studiogan_guidance.features.stats import FeatureStats, accumulate, to_uint8
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.latents.base import Inputs
from studiogan_guidance.options import Spec
from studiogan_guidance.registry import Entry
from studiogan_guidance.samplers import SAMPLERS, Plain, Sampled


@pytest.fixture(scope="module")
def sets() -> tuple[FeatureStats, FeatureStats]:
    backbone = BuiltinBackbone(torch.device("cpu"))
    stream = samplers.create("plain").stream(view_for(builtin.networks()), range(200), 50, LabelPlan())
    fake = accumulate(((batch.images, batch.labels) for batch in stream), backbone)
    return accumulate(BuiltinImages("test").batches(50), backbone), fake


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of real images from batches of 50, not from another test's."""
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / "cache"))


def metrics(folder: Path, *more: object) -> Any:
    (row,) = ok("eval", "--sampler", "plain", "--num", 200, "--batch-size", 50, "--out", folder, *more)["rows"]
    return row


def test_every_metric_is_the_public_function(tmp_path: Path, sets: tuple[FeatureStats, FeatureStats]) -> None:
    real, fake = sets
    assert real.features is not None
    assert fake.features is not None
    row = metrics(tmp_path, "--metrics", "fid,prdc,kid,fid_infinity,per_class")
    found = row["metrics"]
    assert found["fid"] == pytest.approx(frechet_distance(real.mean, real.cov, fake.mean, fake.cov), rel=1e-9)
    assert found["kid"] == pytest.approx(kid(real.features, fake.features), rel=1e-5)
    expected = frechet_infinity(fake.features, real.mean, real.cov)
    assert found["fid_infinity"] == pytest.approx(expected, rel=1e-5)
    assert {key: found[key] for key in ("precision", "recall", "density", "coverage")} == prdc(
        real.features, fake.features
    )
    threes = real.features[real.labels == 3], fake.features[fake.labels == 3]
    by_class = row["per_class"]["3"]
    assert (by_class["num_real"], by_class["num"]) == tuple(map(len, threes))
    assert by_class["fid"] == pytest.approx(frechet_distance(*moments(threes[0]), *moments(threes[1])), rel=1e-5)
    assert by_class["recall"] == prdc(*threes)["recall"]
    fids = [values["fid"] for values in row["per_class"].values()]
    assert len(fids) == 10
    assert found["class_fid"] == pytest.approx(np.mean(fids), rel=1e-9)


def test_features_of_a_large_data_set_are_those_of_a_fixed_part(
    tmp_path: Path, sets: tuple[FeatureStats, FeatureStats], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fake = sets
    whole = metrics(tmp_path, "--metrics", "fid,prdc")
    monkeypatch.setattr(BuiltinImages, "default_count", 400)  # as 50,000 of ImageNet
    part = metrics(tmp_path, "--metrics", "fid,prdc")
    assert part["metrics"]["fid"] == whole["metrics"]["fid"]  # moments are those of all
    assert part["protocol"] == {**whole["protocol"], "num_real_features": 400}
    chosen = np.random.default_rng(0).choice(1000, 400, replace=False)
    assert real.features is not None
    assert part["metrics"]["recall"] == prdc(real.features[chosen], fake.features)["recall"]  # type: ignore[arg-type]
    assert metrics(tmp_path, "--metrics", "fid")["protocol"] == whole["protocol"]


def test_batches_that_do_not_fit_are_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = metrics(tmp_path, "--metrics", "fid,prdc")
    view = type(view_for(builtin.networks()))
    decode, sizes = view.decode, []

    def short_of_memory(self: Any, code: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(code))
        if len(code) > 20:
            raise torch.OutOfMemoryError("no room for so many")
        return decode(self, code, *rest)

    monkeypatch.setattr(view, "decode", short_of_memory)
    halved = metrics(tmp_path, "--metrics", "fid,prdc")
    assert halved["metrics"] == pytest.approx(whole["metrics"], rel=1e-5)
    assert halved["cost"]["synthesis"] == 1
    assert sizes[:4] == [50, 25, 13, 13]
    assert max(sizes[3:]) == 13  # it is remembered


def test_as_many_images_as_half_of_the_free_memory_takes() -> None:
    assert fitting(80e9, 4e6) == 256
    assert fitting(8e9, 30e6) == 128  # 133 would fit
    assert fitting(8e9, 32e6) == 64
    assert fitting(1e9, 6e8) == 1


def test_a_row_says_how_many_images_went_at_once(tmp_path: Path) -> None:
    assert metrics(tmp_path, "--metrics", "fid")["environment"]["batch_size"] == 50
    assert opened(batch_size=None).batch_size == 64


def test_is_of_a_network_without_classes_is_refused(tmp_path: Path) -> None:
    from conftest import run

    path = tmp_path / "mean.pt"
    torch.jit.script(Mean()).save(str(path))
    common = ["--backbone", f"torchscript:{path}", "--num", 50, "--out", tmp_path]
    result = run("eval", *common)
    assert result.exit_code == 2
    assert "torchscript:mean.pt has no class logits: leave 'is' out of --metrics" in result.stderr
    result = run("eval", "--num", 50, "--metrics", "fid_infinity", "--out", tmp_path)
    assert result.exit_code == 2
    assert "FID-infinity of 64 features needs at least 192 images, found 50: raise --num" in result.stderr
    row = metrics(tmp_path, "--backbone", f"torchscript:{path}", "--metrics", "fid,prdc")
    assert row["protocol"]["backbone"] == "torchscript:mean.pt"
    assert "accuracy" not in row["metrics"]


class Mean(torch.nn.Module):
    """Rows of pixels as features."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((1, 3)) / 255


class Sure(torch.nn.Module):
    """The brightest of ten rows of pixels as the class, with a probability of 1 in float32."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = x.float().mean((1, 3))
        return rows, 1e4 * torch.nn.functional.one_hot(rows[:, 11:21].argmax(1), 10)


def test_probabilities_that_underflow_have_a_score_and_a_note(tmp_path: Path) -> None:
    from conftest import run

    path = tmp_path / "sure.pt"
    torch.jit.script(Sure()).save(str(path))
    notice_once.cache_clear()
    result = run(
        "eval", "--backbone", f"torchscript:{path}", "--num", 60, "--metrics", "is", "--out", tmp_path, "--json"
    )
    notes = [line for line in result.stderr.splitlines() if line.startswith("Note: ")]
    assert notes == [
        "Note: some class probabilities are 0 in float32; the Inception Score takes 0 log 0 as 0, where the host's own "
        "evaluation gives nan"
    ]
    plain, _ = json.loads(result.stdout)["rows"]

    # exp of the entropy of the classes, as each image is sure of its own.
    images = torch.cat([batch.images for batch in Plain().stream(
        view_for(builtin.networks()), range(60), 64, LabelPlan())])  # fmt: skip
    shares = Sure()(to_uint8(images))[1].argmax(1).bincount().double() / 60
    shares = shares[shares > 0]
    assert plain["metrics"]["is"] == pytest.approx(float((-(shares * shares.log()).sum()).exp()))
    assert metrics(tmp_path, "--metrics", "is")["metrics"]["is"] < 10


@pytest.mark.studiogan
def test_the_hosts_score_of_such_probabilities_is_nan(checkout: Checkout) -> None:
    with inside(checkout):
        score, _ = module("metrics.ins").calculate_kl_div(torch.eye(10), 1)
    assert np.isnan(score)


def pilot(view: LatentView) -> float:
    """The mean pixel of five fixed images."""
    inputs = view.draw(range(900, 905), 0, LabelPlan())
    return float(view.images(inputs).mean())


@dataclass(frozen=True)
class Choosy(Plain):
    """Accepts images of even seeds, says so, and looks at five images before all."""

    def sampled(self, view: LatentView, inputs: Inputs) -> Sampled:
        even = (inputs.seeds % 2 == 0).float()
        view.ledger.cost["proposed"] += 2 * len(even)
        view.ledger.cost["accepted"] += int(even.sum())
        notes = {"even": even, "pilot": torch.full((len(even),), view.once("pilot", lambda: pilot(view)))}
        return Sampled(self.images(view, inputs), notes)


@pytest.fixture
def choosy(monkeypatch: pytest.MonkeyPatch) -> Choosy:
    monkeypatch.setitem(SAMPLERS._entries, "choosy", Entry("choosy", Choosy, "", ""))
    return Choosy()


def opened(**given: Any) -> Evaluation:
    cfg = RunConfig(**{"metrics": ("fid",), "num": 45, "batch_size": 20, **given})
    return Evaluation(cfg, Group(), [Spec("plain")])


def test_a_row_tells_notes_acceptance_and_setup(choosy: Choosy) -> None:
    bench = opened(seed=8)
    row, again = (bench.measure("choosy", choosy) for _ in range(2))
    assert row is not None
    assert again is not None
    assert row["notes"]["even"] == pytest.approx(23 / 45)  # seeds 8 to 52; batches of 20, 20 and 5
    cost = {key: value for key, value in row["cost"].items() if key != "sampling_seconds"}
    assert cost == pytest.approx(
        {"mapping": 1, "synthesis": 1, "proposed": 2, "accepted": 23 / 45, "acceptance": 23 / 90}
    )
    assert row["setup"] == {"mapping": 5, "synthesis": 5}
    assert (again["setup"], again["notes"]) == ({}, row["notes"])  # it is known by now
    plain = bench.measure("plain", Plain())
    assert plain is not None
    assert (plain["setup"], plain["notes"], plain["metrics"]) == ({}, {}, row["metrics"])


def test_with_statistics_of_its_own_nothing_is_kept_and_other_passes_are_refused(choosy: Choosy) -> None:
    bench = opened(restat=1)
    assert bench.view.on_disk
    bench.view.once("of before", lambda: 1)
    plain = bench.measure("plain", Plain())
    assert plain is not None
    assert not bench.view.on_disk
    assert bench.view.once("of before", lambda: 2) == 2
    with pytest.raises(
        UserError, match=r"restat needs a sampler with one pass of the generator an image, unlike Choosy"
    ):
        bench.measure("choosy", choosy)  # its pilot would go into the statistics, too


def test_rows_have_the_registered_name_of_an_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS._aliases, "guidance", "gandance")
    plain, row = ok("eval", "--num", 40, "--metrics", "fid", "--sampler", "guidance", "--out", tmp_path)["rows"]
    assert (plain["sampler"], row["sampler"]) == ("plain", "gandance")
    flags = ["--num", 40, "--metrics", "fid", "--out", tmp_path, "--grid", "scale=1.2"]
    (same,) = ok("sweep", *flags, "--sampler", "guidance", "--no-compare-plain")["rows"]
    assert same == row  # found, not measured again


def test_a_sampler_that_is_plain_by_its_options_is_measured_once(tmp_path: Path) -> None:
    rows = ok("eval", "--num", 40, "--metrics", "fid", "-o", "scale=1", "--out", tmp_path)["rows"]
    assert [(row["sampler"], row["options"]["scale"]) for row in rows] == [("gandance", 1)]


def test_python_writes_the_rows_and_the_command_line_writes_them_once(tmp_path: Path) -> None:
    given = {"metrics": ("fid",), "num": 40, "out": str(tmp_path / "python"), "options": {"scale": 1.3}}
    rows = evaluate(config.load(None, given))
    assert results.read(tmp_path / "python" / "results.jsonl") == results.plain_data(rows)
    printed = ok("eval", "--num", 40, "--metrics", "fid", "-o", "scale=1.3", "--out", tmp_path / "command")["rows"]
    assert results.read(tmp_path / "command" / "results.jsonl") == printed
    assert [row["metrics"] for row in printed] == [row["metrics"] for row in rows]


def test_the_table_of_metrics_has_the_names_that_a_configuration_may_use() -> None:
    assert set(METRICS) == set(config.METRICS)


def test_a_pass_is_merged_in_the_order_of_the_ranks() -> None:
    stats = FeatureStats(2, np.zeros(1), np.eye(1), None, None, np.arange(2))
    first = Pass(stats, Counter(mapping=2, proposed=8, accepted=2), {"rate": [1.0, 2.0]}, 3.0)
    second = Pass(stats, Counter(mapping=2, proposed=2), {"rate": [3.0, 6.0], "late": [1.0, 1.0]}, 4.0)
    whole = Pass.merge([first, second], 2)
    assert whole.notes == {"rate": [1, 2, 3, 6], "late": [1, 1]}
    assert whole.cost_per_image() == {
        "accepted": 0.5, "mapping": 1, "proposed": 2.5, "acceptance": 0.2, "sampling_seconds": 4.0
    }  # fmt: skip
    assert whole.mean_notes() == {"late": 1, "rate": 3}
    assert Pass.merge([first], 2) == first


# Keys whose values are in the protocol of a row, or in its other parts that identify it: as they are, or by a hash.
PROTOCOL = ("classes", "fast", "judges", "k", "labels", "noise_mode", "num", "reference", "restat", "seed", "splits")
HOST_PROTOCOL = (
    "backbone",
    "classifier",
    "data",
    "inception",
    "pre_resizer",
    "reference_stats",
    "resizer",
    "studiogan",
)
OTHER_PARTS = ("ckpt", "held_out", "host", "host_config", "metrics", "options", "sampler", "which")
NO_NUMBER = (
    "batch_size",
    "channels_last",
    "compare",
    "compare_plain",
    "compile",
    "device",
    "out",
    "resize_on",
    "stages",
)


def test_every_key_of_a_configuration_identifies_a_row_or_changes_no_number() -> None:
    """A new key that changes numbers must be in the protocol, or a sweep takes rows of another value for its own."""
    keys = [*PROTOCOL, *HOST_PROTOCOL, *OTHER_PARTS, *NO_NUMBER]
    assert sorted(keys) == sorted(field.name for field in dataclasses.fields(RunConfig))

    usual = opened().protocol(0)
    for key, value in {
        "classes": (1, 2),
        "fast": True,
        "judges": ("random",),
        "k": 4,
        "labels": "data",
        "noise_mode": "const",
        "reference": "valid",
        "restat": 1,
        "splits": 2,
    }.items():
        assert opened(**{key: value}).protocol(0) != usual, key
