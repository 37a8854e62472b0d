"""Fast mode takes the fastest precision that leaves FID as it is, once for a whole run, and says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Recorder, ToyGAN, ok, toy_networks
from torch import Tensor

from studiogan_guidance import builtin, fast, samplers
from studiogan_guidance.builtin.backbone import BuiltinBackbone
from studiogan_guidance.builtin.images import BuiltinImages
from studiogan_guidance.evaluation import precision, results
from studiogan_guidance.evaluation.fid import frechet_distance
from studiogan_guidance.evaluation.precision import Choice, Pipeline, choose
from studiogan_guidance.evaluation.reference import Reference
from studiogan_guidance.features.stats import Backbone, FeatureStats, accumulate
from studiogan_guidance.latents import LabelPlan, view_for

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No choice of another test is known."""
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / "cache"))


class Product:
    """Features = (image + offset) I: with a large offset, bfloat16 rounds away what makes images differ."""

    classifies = False
    device = CPU

    def __init__(self, offset: float, name: str = "product") -> None:
        self.offset = offset
        self.protocol: dict[str, Any] = {"backbone": name}
        self.calls = 0

    def prepare(self, images: Tensor) -> Tensor:
        return images.flatten(1) + self.offset

    def __call__(self, prepared: Tensor) -> tuple[Tensor, None]:
        self.calls += 1
        return prepared @ torch.eye(prepared.shape[1]), None


class Float32Only(Product):
    """A kernel that does not know bfloat16."""

    def __call__(self, prepared: Tensor) -> tuple[Tensor, None]:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError('"upfirdn2d" not implemented for\n"BFloat16"')
        return super().__call__(prepared)


def opened(backbone: Backbone, digest: str = "toy") -> tuple[Pipeline, Reference]:
    """The toy, and as real images those of other seeds."""
    view = view_for(toy_networks(ToyGAN(), digest))
    stream = samplers.create("plain").stream(view, range(500), 100, LabelPlan())
    stats = accumulate(((batch.images, batch.labels) for batch in stream), backbone, probabilities=False)
    return Pipeline(view, backbone), Reference({"data": "toy", "backbone": backbone.protocol}, stats)


def test_a_network_that_bfloat16_is_too_coarse_for_stays_in_float32() -> None:
    exact, real = opened(Product(1000))
    choice = choose(exact, real, 300, 64, {})
    assert choice.precision == choice.protocol == "float32"
    assert choice.difference == 0
    assert choice.differences["bfloat16"] > 1  # features are rounded to multiples of 4
    bfloat16 = f"{choice.differences['bfloat16']:.3g}"
    expected = f"fast: float32 changes FID by 0 on 300 images; bfloat16 by {bfloat16}, limit 0.05"
    assert str(choice) == expected


def test_where_it_is_fine_enough_it_is_taken_and_its_difference_is_that_of_the_public_functions() -> None:
    exact, real = opened(Product(0))
    cost_before = exact.view.ledger.cost.copy()
    choice = choose(exact, real, 300, 64, {})
    assert exact.view.ledger.cost == cost_before  # it is the cost of no sampler
    assert choice.precision == "bfloat16"
    assert 0 < choice.difference < 0.05

    # The same by hand.
    seeds = range(precision.SEED, precision.SEED + 300)
    images = exact.view.images(exact.view.draw(seeds, 0, LabelPlan())).flatten(1)
    distances = []
    for features in (images, images.bfloat16().float()):
        wide = features.double()
        distances.append(frechet_distance(real.stats.mean, real.stats.cov, wide.mean(0).numpy(), wide.T.cov().numpy()))
    assert choice.difference == pytest.approx(abs(distances[1] - distances[0]), rel=1e-3)


def test_kernels_without_a_precision_are_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    choice = choose(*opened(Float32Only(0)), 300, 64, {})
    assert str(choice) == "fast: float32 changes FID by 0 on 300 images; bfloat16 cannot run, limit 0.05"
    assert capsys.readouterr().err == 'fast: bfloat16 cannot run ("upfirdn2d" not implemented for "BFloat16")\n'


def test_a_choice_is_kept_for_whatever_it_depends_on() -> None:
    backbone = Product(0)
    exact, real = opened(backbone)

    def is_measured(**changed: Any) -> bool:
        """Whether the network has run; ``num``, ``facts`` and the two sides may be changed."""
        before = backbone.calls
        exact_side = changed.get("exact", exact)
        choice = choose(exact_side, changed.get("real", real), changed.get("num", 300), 64, changed.get("facts", {}))
        assert choice.precision == "bfloat16"
        return backbone.calls > before

    assert is_measured()
    assert not is_measured()
    assert not is_measured(real=Reference({**real.key, "features": 7}, real.stats))  # moments are the same
    assert is_measured(num=299)
    assert is_measured(facts={"compile": True})
    assert is_measured(real=Reference({**real.key, "data": "other"}, real.stats))
    assert is_measured(exact=opened(backbone, "other weights")[0])
    assert is_measured(exact=opened(backbone, "")[0])
    assert is_measured(exact=opened(backbone, "")[0])  # nobody knows whose choice it would be
    assert not is_measured()


def test_no_more_images_than_the_measurement_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "IMAGES", 200)
    assert choose(*opened(Product(0)), 50_000, 64, {}).num == 200


def only_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other precision is tried: most CPUs are slow in bfloat16."""
    monkeypatch.setattr(fast, "precisions", lambda device: ("float32",))


def row_of(folder: Path, *more: object) -> Any:
    (row,) = ok("eval", "--sampler", "plain", "--num", 200, "--batch-size", 64, "--out", folder, *more)["rows"]
    return row


def of_digits(name: str) -> tuple[FeatureStats, FeatureStats]:
    """Real digits through the exact network; those of the built-in GAN, seeds 0 to 199, through both in a precision."""
    backbone = BuiltinBackbone(CPU, channels_last=True)
    real = accumulate(BuiltinImages("test").batches(64), backbone)
    pipeline = Pipeline(view_for(builtin.networks()), backbone).fast(name, 64)
    stream = samplers.create("plain").stream(pipeline.view, range(200), 64, LabelPlan())
    return real, accumulate(((batch.images, batch.labels) for batch in stream), pipeline.backbone)


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_eval_measures_the_fast_networks_against_the_exact_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(precision, "LIMIT", 1e9 if name == "bfloat16" else 0.0)
    row = row_of(tmp_path, "--fast")
    assert row["protocol"]["fast"] == name
    real, fake = of_digits(name)
    expected = frechet_distance(real.mean, real.cov, fake.mean, fake.cov)
    assert row["metrics"]["fid"] == pytest.approx(expected, rel=1e-6)
    assert row["environment"]["fast"]["num"] == 200
    assert row["cost"]["synthesis"] == row["cost"]["mapping"] == 1
    assert row["setup"] == {}

    # It is another row than the exact one, which has the same statistics of real images.
    files = sorted((tmp_path / "cache" / "reference").glob("*.npz"))
    exact = row_of(tmp_path, "--no-fast")
    assert "fast" not in exact["protocol"]
    assert results.identity(exact) != results.identity(row)
    assert sorted((tmp_path / "cache" / "reference").glob("*.npz")) == files
    if name == "bfloat16":
        assert row["metrics"]["fid"] != pytest.approx(exact["metrics"]["fid"], rel=1e-6)
    else:
        assert row["metrics"] == pytest.approx(exact["metrics"], rel=1e-4)


def test_a_sweep_starts_the_fast_networks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(fast, "capture_on", lambda device: recorder)
    only_float32(monkeypatch)
    common = ["sweep", "--num", 120, "--batch-size", 40, "--metrics", "fid", "--grid", "scale=1.1,1.2,1.3"]
    rows = ok(*common, "--fast", "--out", tmp_path / "graphs")["rows"]
    assert len(rows) == 4
    measured = 2  # generator and feature network, to choose
    assert recorder.captures == measured + 2
    for row in rows:
        assert row["cost"]["synthesis"] == 1

    # Another run knows the choice, and has the same values without graphs.
    monkeypatch.setattr(fast, "capture_on", lambda device: None)
    monkeypatch.setattr(precision, "_differences", lambda *_: pytest.fail("measured again"))
    for row, eager in zip(rows, ok(*common, "--fast", "--out", tmp_path / "eager")["rows"]):
        assert eager["metrics"] == pytest.approx(row["metrics"], rel=1e-6)
        assert eager["protocol"] == row["protocol"]


@pytest.mark.parametrize(
    "more",
    [
        ["--restat", 1],
        ["--sampler", "ddls", "-o", "steps=1", "-o", "calibration_images=100"],
        ["--sampler", "collaborative", "-o", "steps=1", "-o", "calibration_images=100"],
        ["--sampler", "isir", "-o", "particles=3", "-o", "steps=2", "-o", "calibration_images=100"],
    ],
)
def test_graphs_change_no_value_of_a_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[Any]) -> None:
    only_float32(monkeypatch)
    common = ["eval", "--num", 48, "--batch-size", 16, "--metrics", "fid", "--fast", "--no-compare-plain", *more]
    (eager,) = ok(*common, "--out", tmp_path / "eager")["rows"]
    recorder = Recorder()
    monkeypatch.setattr(fast, "capture_on", lambda device: recorder)
    monkeypatch.setenv("STUDIOGAN_GUIDANCE_CACHE", str(tmp_path / "other cache"))  # where nothing is set up
    (row,) = ok(*common, "--out", tmp_path / "graphs")["rows"]
    assert recorder.replays > 0
    assert row["metrics"] == pytest.approx(eager["metrics"], rel=1e-5)
    for part in ("cost", "setup"):
        assert {**row[part], "sampling_seconds": 0} == {**eager[part], "sampling_seconds": 0}


class Halves(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.float().mean((1,))
        return torch.stack([y[:, :16].mean((1, 2)), y[:, 16:].mean((1, 2))], 1)


def test_a_torchscript_network_runs_as_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "LIMIT", 1e9)
    torch.jit.script(Halves()).save(str(tmp_path / "halves.pt"))
    row = row_of(tmp_path, "--fast", "--backbone", f"torchscript:{tmp_path / 'halves.pt'}", "--metrics", "fid")
    assert row["protocol"]["fast"] == "bfloat16, generator only"


def test_the_line_names_what_was_refused() -> None:
    choice = Choice("tf32", {"bfloat16": 0.31, "tf32": 0.002}, 10_000, "tf32")
    assert str(choice) == "fast: tf32 changes FID by 0.002 on 10000 images; bfloat16 by 0.31, limit 0.05"
    assert str(replace(choice, differences={"tf32": 0.002})) == "fast: tf32 changes FID by 0.002 on 10000 images"


@pytest.mark.gpu
def test_on_a_gpu_fast_values_are_those_of_exact_networks(tmp_path: Path) -> None:
    common = ["--num", 10_000, "--batch-size", 250, "--metrics", "fid", "--device", "cuda"]
    quick = row_of(tmp_path, *common, "--fast")
    exact = row_of(tmp_path, *common)
    assert quick["protocol"]["fast"] in fast.PRECISIONS
    if quick["protocol"]["fast"] != "float32":
        assert quick["environment"]["fast"]["fid_difference"] < precision.LIMIT
    difference = quick["metrics"]["fid"] - exact["metrics"]["fid"]
    assert abs(difference) < 2 * precision.LIMIT  # on other seeds than it was chosen with
