"""The search for a scale: against a generator whose best scale is known, and on the built-in GAN."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ToyGAN, ok, run, toy_networks
from torch import Tensor

from studiogan_guidance import samplers
from studiogan_guidance.builtin.source import BuiltinSource
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import evaluation, results
from studiogan_guidance.evaluation import tune as tuning
from studiogan_guidance.evaluation.choice import portable
from studiogan_guidance.evaluation.search import Line, lines_of
from studiogan_guidance.evaluation.starts import starts
from studiogan_guidance.evaluation.tune import Measured, tune
from studiogan_guidance.latents import LabelPlan, Networks, view_for
from studiogan_guidance.options import Spec
from studiogan_guidance.registry import Entry
from studiogan_guidance.samplers import SAMPLERS, Plain

SMALL = ["--num", 60, "--metrics", "fid", "--budget", 12, "--repeats", 2]


class Pixels:
    """Pixels as features."""

    def __init__(self) -> None:
        self.protocol = {"backbone": "pixels"}
        self.classifies, self.device = False, torch.device("cpu")

    def prepare(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def __call__(self, prepared: Tensor) -> tuple[Tensor, None]:
        return prepared, None


class ToyImages:
    """Draws from a toy of its own; ``valid`` and ``test`` are other seeds."""

    class_names = tuple(map(str, range(ToyGAN.classes)))

    def __init__(self, gan: ToyGAN, split: str, n: int = 4000) -> None:
        view = view_for(toy_networks(gan, f"data {gan.b.norm()} {gan.A.norm()}"))
        seeds = range(10**6 * (1 + len(split)), 10**6 * (1 + len(split)) + n)
        batch = next(samplers.create("plain").stream(view, seeds, n, LabelPlan()))
        self.images, self.targets = batch.images, batch.labels
        self.fingerprint = {"data": f"toy {gan.b.norm()} {gan.A.norm()} {gan.Q.norm()}", "reference": split}

        self.cache_key = self.fingerprint

    @property
    def default_count(self) -> int:
        return len(self)

    def __len__(self) -> int:
        return len(self.images)

    def labels(self) -> list[int]:
        return self.targets.tolist()

    def batches(self, size: int, first: int = 0, step: int = 1, only: Any = None) -> Any:
        return list(zip(self.images.split(size), self.targets.split(size)))[first::step]


class ToySource(BuiltinSource):
    """The networks of one toy, the images of another."""

    def __init__(self, generator: Networks, data: ToyGAN) -> None:
        super().__init__()
        self.generator, self.data = generator, data

    def networks(self, device: torch.device) -> Networks:
        return self.generator

    def real(self, split: str, image_size: int = 2, classes: Any = ()) -> Any:
        return ToyImages(self.data, split)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let runs be about a toy generator and toy data: ``toys(generator, data)``."""

    def be(generator: ToyGAN, data: ToyGAN, name: str) -> None:
        monkeypatch.setattr(tuning, "open_source", lambda cfg: ToySource(toy_networks(generator, name), data))
        monkeypatch.setattr(evaluation, "open_backbone", lambda cfg, source, device: Pixels())

    return be


def config(folder: Path, **more: Any) -> RunConfig:
    return RunConfig(out=str(folder), num=4000, batch_size=1000, metrics=("fid",), **more)


def test_finds_the_scale_that_undoes_contracted_classes(toys: Any, tmp_path: Path) -> None:
    """Data R b_c + noise, generator r b_c + the same noise: R / r = 1.6 is the best scale (METHODS 1.3)."""
    toys(ToyGAN(between=1.0, interaction=0), ToyGAN(between=1.6, interaction=0), "contracted")
    result = tune(config(tmp_path), {"scale": (0.5, 3.0)}, budget=20)
    assert result["chosen"]["options"]["scale"] == pytest.approx(1.6, abs=0.08)
    assert result["evaluations"] <= 20
    assert len(results.read(tmp_path / "results.jsonl")) == result["evaluations"]
    least = min(step["metrics"]["fid"] for step in result["searched"])
    assert result["chosen"]["fid"]["mean"] < 0.5 * result["plain"]["fid"]["mean"]
    at = {step["options"]["scale"]: step["metrics"]["fid"] for step in result["searched"]}
    assert at[result["found"]["options"]["scale"]] == least
    again = tune(config(tmp_path), {"scale": (0.5, 3.0)}, budget=20)  # after a kill, say: nothing is measured again
    assert len(results.read(tmp_path / "results.jsonl")) == result["evaluations"]
    assert again == result


def test_gives_way_to_plain_where_nothing_lasts(toys: Any, tmp_path: Path) -> None:
    toys(ToyGAN(), ToyGAN(), "right as it is")
    result = tune(config(tmp_path), {"scale": (0.97, 1.03)}, budget=14, repeats=4)
    fids = {name: result[name]["fid"]["mean"] for name in ("found", "chosen", "plain")}
    assert fids["chosen"] == min(fids.values())


def test_a_recall_bound_holds_the_scale_back(toys: Any, tmp_path: Path) -> None:
    toys(ToyGAN(between=1.0, interaction=0), ToyGAN(between=1.6, interaction=0), "contracted")
    cfg = RunConfig(out=str(tmp_path), num=500, metrics=("fid",))
    free = tune(cfg, {"scale": (0.5, 3.0)}, budget=16)
    recalls = sorted(step["metrics"].get("recall", 0) for step in free["searched"])
    assert recalls[-1] == 0  # not measured where nobody asks
    bounded = tune(cfg, {"scale": (0.5, 3.0)}, min_recall=0.3, budget=16)
    allowed = [step for step in bounded["searched"] if step["metrics"]["recall"] >= 0.3]
    at = {step["options"]["scale"]: step["metrics"] for step in bounded["searched"]}
    found = at[bounded["found"]["options"]["scale"]]
    assert found["fid"] == min(step["metrics"]["fid"] for step in allowed)
    recall = bounded["chosen"]["recall"]
    assert recall["mean"] >= 0.3 - recall["std"] / 3**0.5
    none = tune(cfg, {"scale": (0.5, 3.0)}, min_recall=1.0, budget=16)  # nobody can: as near as may be
    at = {step["options"]["scale"]: step["metrics"] for step in none["searched"]}
    assert at[none["found"]["options"]["scale"]]["recall"] == max(metrics["recall"] for metrics in at.values())


def test_what_does_not_last_on_fresh_seeds_gives_way(
    toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys(ToyGAN(between=1.0, interaction=0), ToyGAN(between=1.6, interaction=0), "contracted")
    monkeypatch.setattr(Measured, "mean", lambda self, options, seeds: (0.0, options["scale"]))  # worse than plain's 1
    result = tune(config(tmp_path), {"scale": (0.5, 3.0)}, budget=16)
    assert result["found"]["options"]["scale"] > 1
    assert result["chosen"] == result["plain"]


def test_the_search_stays_within_the_range(toys: Any, tmp_path: Path) -> None:
    toys(ToyGAN(between=1.0, interaction=0), ToyGAN(between=1.6, interaction=0), "contracted")
    for low, high in ((1.2, 1.3), (2.0, 2.00001)):
        result = tune(config(tmp_path), {"scale": (low, high)}, budget=14)
        scales = [step["options"]["scale"] for step in result["searched"]]
        assert scales[0] == 1
        assert all(low <= scale <= high for scale in scales if scale != 1)
    cfg = config(tmp_path, options={"psi": 0.9})  # the user's own option stays
    result = tune(cfg, {"scale": (1.2, 2.0)}, budget=12)
    assert {step["options"]["psi"] for step in result["searched"]} == {None, 0.9}


def test_scale_with_psi_and_scales_per_layer(toys: Any, tmp_path: Path) -> None:
    """Data with classes further apart and narrower than the generator's: both options have work to do."""
    toys(ToyGAN(interaction=0), ToyGAN(between=1.6, interaction=0, spread=0.5), "wide")
    result = tune(config(tmp_path / "psi"), {"scale": (0.5, 3.0), "psi": (0.2, 1.0)}, budget=40)
    chosen = result["chosen"]["options"]
    assert chosen["scale"] == pytest.approx(1.6, abs=0.1)
    assert chosen["psi"] == pytest.approx(0.5, abs=0.05)
    toys(ToyGAN(interaction=0), ToyGAN(between=1.6, interaction=0), "contracted")
    result = tune(config(tmp_path / "layers"), {"scale": (0.5, 3.0)}, budget=40, groups=3)
    chosen = result["chosen"]["options"]
    effective = 1 + (chosen["scale"] - 1) * chosen.get("profile", [1, 1, 1])[2]
    assert effective == pytest.approx(1.6, abs=0.15)  # the toy draws its image from the last row
    assert result["evaluations"] <= 40


def test_by_default_scale_and_spread_are_searched_from_the_closed_form(toys: Any, tmp_path: Path) -> None:
    """Data R b_c + S noise with R = 1.6 and S = 1.3; pixels are linear in both numbers."""
    toys(ToyGAN(interaction=0), ToyGAN(between=1.6, interaction=0, spread=1.3), "wider")
    cfg = RunConfig(out=str(tmp_path), num=800, metrics=("fid", "prdc"), options={"joint": "class_shift"})
    result = tune(cfg)
    assert result["one_pass"]["knobs"] == pytest.approx([1.6, 1.3], abs=0.08)
    first = result["searched"][1]["options"]
    assert [first["scale"], first["psi"]] == pytest.approx(result["one_pass"]["knobs"], abs=1e-3)
    chosen = result["chosen"]["options"]
    assert (chosen["scale"], chosen["psi"]) == pytest.approx((1.6, 1.3), abs=0.08)
    assert result["evaluations"] == 2 + len(results.read(tmp_path / "results.jsonl")) <= 24
    paired = result["paired"]["fid"]
    assert paired["mean"] == pytest.approx(result["difference"]["mean"])
    assert paired["se"] == pytest.approx(result["difference"]["std"] / 3**0.5)
    small = tune(dataclasses.replace(cfg, metrics=("fid",), out=str(tmp_path / "small")), budget=9, repeats=2)
    assert small["one_pass"] is None
    assert {point["options"]["psi"] for point in small["searched"]} == {None}  # too little for two numbers


def test_the_choice_is_a_configuration_that_eval_takes(tmp_path: Path) -> None:
    result = ok("tune", *SMALL, "-o", "joint=class_mean", "--over", "scale=0.7:1.3", "--out", tmp_path)
    best = result["chosen"]["options"]
    rows = ok("eval", "-c", result["config"], "--reference", "valid", "--num", 60, "--out", tmp_path / "e")["rows"]
    assert rows[1]["options"]["scale"] == best["scale"]
    assert rows[1]["options"]["joint"] == "class_mean"
    (step,) = [step for step in result["searched"] if step["options"]["scale"] == best["scale"]]
    assert rows[1]["metrics"]["fid"] == step["metrics"]["fid"]
    text = run("tune", *SMALL, "-o", "joint=class_mean", "--over", "scale=0.7:1.3", "--out", tmp_path).stdout
    assert f"scale={best['scale']}" in text
    assert "fresh seed ranges" in text


def test_a_host_config_of_the_host_is_not_taken_for_a_file_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "CIFAR10").mkdir()
    (tmp_path / "CIFAR10" / "BigGAN.yaml").touch()
    cfg = RunConfig(host_config="CIFAR10/BigGAN.yaml", ckpt="CIFAR10")
    found = portable(cfg, Spec("gandance", {"scale": 1.1}))
    assert found["host_config"] == "CIFAR10/BigGAN.yaml"
    assert found["ckpt"] == str(tmp_path / "CIFAR10")
    (tmp_path / "net.pt").touch()
    classified = portable(RunConfig(judges=("random",), classifier="torchscript:net.pt"), Spec("plain"))
    assert classified == {"sampler": {"name": "plain"}, "classifier": f"torchscript:{tmp_path}/net.pt"}


def test_mistakes_are_found_before_any_work(tmp_path: Path) -> None:
    for given, message in (
        (["--over", "scale=2:1"], "is no range"),
        (["--over", "scale=1"], "--over takes a range"),
        (["--over", "scal=1:2"], "did you mean 'scale'"),
        (["--sampler", "plain"], "'plain' has no scale to search"),
        (["--over", "scale=a:b"], "--over takes a range"),
        (["--objective", "fidd"], "did you mean 'fid'"),
        (["--budget", 3], "give at least 2 repeats and --budget"),
        (["--sampler", "truncation", "--over", "center=0:1"], "is no option to search"),
        (["--per-layer", 2, "--over", "psi=0.5:1"], "add --over scale"),
        (["--over", "psi=nan:1"], "--over takes a range"),
        (["--over", "subset=1:10"], "is no option to search"),
    ):
        result = run("tune", *given, "--out", tmp_path / "o")
        assert result.exit_code == 2, given
        assert message in result.stderr
        assert not list(tmp_path.rglob("results.jsonl"))
    with pytest.raises(UserError, match="no option to search: add --over"):
        tune(config(tmp_path), {})


def test_samplers_whose_defaults_are_not_plain_start_from_their_neutral_options(tmp_path: Path) -> None:
    command = ["tune", *SMALL, "--sampler", "conditional_truncation", "--over", "psi=0.5:1.5", "--out", tmp_path]
    result = ok(*command)
    assert result["searched"][0]["options"]["psi"] == 1
    assert {step["options"]["psi"] for step in result["searched"]} > {0.5, 1, 1.5}
    assert result["plain"]["options"] == {"psi": 1}
    (plain,) = ok("eval", "--sampler", "plain", *SMALL[:4], "--reference", "valid", "--out", tmp_path / "e")["rows"]
    assert result["searched"][0]["metrics"]["fid"] == plain["metrics"]["fid"]
    at = {step["options"]["psi"]: step["metrics"]["fid"] for step in result["searched"]}
    assert at[result["found"]["options"]["psi"]] == min(at.values())
    rows = ok("eval", "-c", result["config"], *SMALL[:4], "--reference", "valid", "--out", tmp_path / "e")["rows"]
    assert rows[-1]["options"]["psi"] == result["chosen"]["options"]["psi"]


def lines(**over: tuple[float, float]) -> list[Line]:
    return lines_of(over)


def test_plain_sampling_lacks_what_has_an_effect_and_keeps_the_rest(tmp_path: Path) -> None:
    options = {"psi": "0.9", "joint": "class_shift", "scale": "1.5"}  # as a command line gives them
    plain, start = starts(config(tmp_path, options=options), lines(scale=(0.5, 2)))
    assert plain == {"joint": "class_shift", "scale": 1}
    assert start == {"joint": "class_shift", "scale": 1, "psi": 0.9}
    learned = {"joint": "learned", "joint_ckpt": "a.safetensors"}  # the file is refused without the joint
    plain, start = starts(config(tmp_path, options=learned), lines(scale=(0.5, 2)))
    assert plain == start == {**learned, "scale": 1}
    options = {"base": "gandance", "base.scale": "1.5", "psi": "0.8"}
    cfg = config(tmp_path, sampler="conditional_truncation", options=options)
    plain, start = starts(cfg, lines(psi=(0.5, 1)))
    assert plain == {"psi": 1}
    assert (start["base"]["scale"], start["psi"]) == (1.5, 1)


@dataclass(frozen=True)
class Chain(Plain):
    """Its step has an effect where there are steps only."""

    steps: int = 3
    step: float = 0.1

    @property
    def neutral(self) -> bool:
        return self.steps == 0


@pytest.mark.parametrize("neutral", [{"steps": 0}, None])
def test_options_without_an_effect_at_plain_sampling_are_searched_from_those_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, neutral: dict[str, Any] | None
) -> None:
    entry = Entry("chain", Chain, "", "", neutral=neutral)
    monkeypatch.setattr(SAMPLERS, "_entries", {"chain": entry, "plain": SAMPLERS["plain"]})
    cfg = config(tmp_path, sampler="chain", options={"steps": "5"})
    if neutral is None:
        with pytest.raises(UserError, match="'chain' is plain sampling with no options"):
            starts(cfg, lines(step=(0.1, 0.2)))
        return
    assert starts(cfg, lines(step=(0.1, 0.2))) == ({"steps": 0}, {"steps": 5})
    with pytest.raises(UserError, match="have no effect on 'chain'"):
        starts(config(tmp_path, sampler="chain", options={"steps": 0}), lines(step=(0.1, 0.2)))


def test_the_search_follows_a_base_under_a_name_with_a_dot() -> None:
    (line,) = lines(**{"base.scale": (1.0, 2.0)})
    options = line.put({"steps": 5, "base": {"name": "gandance", "scale": 1.1}}, 1.5)
    assert options == {"steps": 5, "base": {"name": "gandance", "scale": 1.5}}
    assert line.get(options) == 1.5
