"""Second feature spaces and a classifier: values of slow twins, and none of the first space moves."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ok, run
from torch import Tensor

from studiogan_guidance import builtin, config
from studiogan_guidance.builtin.images import BuiltinImages
from studiogan_guidance.config import RunConfig
from studiogan_guidance.errors import UserError, notice_once
from studiogan_guidance.evaluation import reference
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.fid import frechet_distance, moments
from studiogan_guidance.evaluation.judges import Judges, labelled, name_of
from studiogan_guidance.evaluation.source import open_source
from studiogan_guidance.features.stats import FeatureStats, to_uint8
from studiogan_guidance.latents import LabelPlan, view_for
from studiogan_guidance.options import Spec
from studiogan_guidance.samplers import Plain
from studiogan_guidance.training.stage import validation_distance

NUM = 60


def measured(**given: Any) -> dict[str, Any]:
    """The row of plain sampling."""
    cfg = RunConfig(**{"metrics": ("fid",), "num": NUM, "batch_size": 25, **given})
    row = Evaluation(cfg, Group(), [Spec("plain")]).measure("plain", Plain())
    assert row is not None
    return row


def fakes() -> tuple[Tensor, Tensor]:
    """The images of these rows, uint8, and their labels."""
    batches = list(Plain().stream(view_for(builtin.networks()), range(NUM), 25, LabelPlan()))
    return to_uint8(torch.cat([batch.images for batch in batches])), torch.cat([batch.labels for batch in batches])


def test_judges_have_their_own_distances_and_leave_the_first_alone() -> None:
    alone = measured(metrics=("fid", "kid"))
    row = measured(metrics=("fid", "kid"), judges=("builtin", "random", "discriminator"))
    assert row["metrics"]["kid"] == alone["metrics"]["kid"] == row["metrics"]["kid@builtin"]
    assert row["metrics"]["kid@random"] != row["metrics"]["kid@discriminator"]
    assert row["metrics"]["fid"] == alone["metrics"]["fid"] == row["metrics"]["fid@builtin"]  # the same bits
    assert row["metrics"]["accuracy"] == alone["metrics"]["accuracy"]
    assert row["cost"]["synthesis"] == 1  # of one pass
    assert {**row["protocol"], **alone["protocol"]} == row["protocol"]
    assert row["protocol"]["judge@random"] == "random a5d1505aea52f7d6 clean"

    # The discriminator's, by hand.
    discriminator: Any = builtin.networks().companions.discriminator()  # type: ignore[union-attr]

    def features(images: Tensor) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            found: np.ndarray[Any, Any] = discriminator.features(images.float() / 127.5 - 1).numpy()
        return found

    real = torch.cat([to_uint8(images) for images, _ in BuiltinImages("test").batches(500)])
    expected = frechet_distance(*moments(features(real)), *moments(features(fakes()[0])))
    assert row["metrics"]["fid@discriminator"] == pytest.approx(expected, rel=1e-4)


def test_statistics_in_a_file_are_those_of_the_first_space_only(tmp_path: Path) -> None:
    reference.write(RunConfig(), tmp_path / "stats.npz", with_features=False)
    given = {"reference_stats": str(tmp_path / "stats.npz"), "judges": ("builtin",), "classes": (1, 2)}
    with pytest.raises(UserError, match="classes"):
        measured(**given)
    row = measured(**{**given, "classes": ()})
    assert row["metrics"]["fid@builtin"] == row["metrics"]["fid"]
    assert row["protocol"]["judged_on"].startswith("test split ")
    few = measured(judges=("builtin",), classes=(1, 2))
    assert few["metrics"]["fid@builtin"] == few["metrics"]["fid"]  # against real images of these classes


class Rows(torch.nn.Module):
    """Ten rows of pixels as logits, alone or after features."""

    def __init__(self, is_alone: bool, count: int = 10) -> None:
        super().__init__()
        self.is_alone = is_alone
        self.count = count

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        rows = x.float().mean((1, 3)) / 255
        logits = rows[:, 11 : 11 + self.count]
        return logits if self.is_alone else (rows, logits)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("classifiers")
    blank = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    for name, module in {"alone": Rows(True), "pair": Rows(False), "nine": Rows(True, 9)}.items():
        torch.jit.trace(module, blank).save(str(folder / f"{name}.pt"))
    return {path.stem: f"torchscript:{path}" for path in folder.iterdir()}


def test_accuracy_is_the_share_of_images_of_their_class(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = fakes()
    rows = images.float().mean((1, 3))[:, 11:21].tolist()
    expected = sum(row.index(max(row)) == label for row, label in zip(rows, labels.tolist())) / NUM
    row = measured(classifier=files["alone"])
    assert row["metrics"]["accuracy"] == pytest.approx(expected)
    assert row["protocol"]["classifier"].startswith("torchscript:alone.pt ")
    assert measured(classifier=files["pair"])["metrics"]["accuracy"] == pytest.approx(expected)
    assert measured(backbone=files["pair"])["metrics"]["accuracy"] == pytest.approx(expected)
    assert "accuracy" not in measured(backbone=files["alone"])["metrics"]  # features only
    notice_once.cache_clear()
    capsys.readouterr()
    assert "accuracy" not in measured(classifier=files["nine"])["metrics"]
    assert capsys.readouterr().err == "Note: no accuracy: the classifier tells 9 classes, and the generator takes 10\n"


def test_classes_are_those_of_a_conditional_generator_of_as_many() -> None:
    networks = dataclasses.replace(builtin.networks(), num_classes=1000)
    stats = FeatureStats(2, np.zeros(1), np.eye(1), None, np.ones((2, 1000)), np.arange(2))
    assert labelled(stats, networks)
    assert not labelled(stats, builtin.networks())
    assert not labelled(stats, dataclasses.replace(networks, g_cond_mtd="W/O"))
    assert not labelled(dataclasses.replace(stats, probabilities=None), networks)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"judges": ("randon",)}, r"^--judge is 'randon': did you mean 'random'\? known: builtin, d"),
        ({"judges": ("torchscript:none.pt",)}, "^cannot read --judge none.pt: "),
        ({"judges": ("random", "random")}, "^two judges have the name random: drop one"),
        ({"classifier": "builtin"}, "^--classifier is 'builtin': give torchscript:PATH"),
        ({"classifier": "torchscript:none.pt"}, "^cannot read --classifier none.pt: "),
    ],
)
def test_mistakes_name_the_flag(given: dict[str, Any], message: str) -> None:
    cfg = RunConfig(**given)
    with pytest.raises(UserError, match=message):
        Judges(cfg, open_source(cfg), view_for(builtin.networks()), None)


def test_a_generator_without_a_discriminator_has_no_such_judge() -> None:
    view = view_for(dataclasses.replace(builtin.networks(), companions=None))
    cfg = RunConfig(judges=("discriminator",))
    with pytest.raises(UserError, match="^--judge: this needs a discriminator, and there is none beside"):
        Judges(cfg, open_source(cfg), view, None)


def test_files_and_flags_name_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETS", "/nets")
    (tmp_path / "c.yaml").write_text("judges: torchscript:$NETS/a.pt\nclassifier: torchscript:$NETS/b.pt\n")
    cfg = config.load(str(tmp_path / "c.yaml"), {})
    assert (cfg.judges, cfg.classifier) == (("torchscript:/nets/a.pt",), "torchscript:/nets/b.pt")
    assert list(map(name_of, (*cfg.judges, "dinov2:x/vit.pth", "SwAV_torch"))) == ["a", "vit", "SwAV_torch"]
    assert config.load(None, {"judges": ("random", "dinov2:$NETS/v.pth")}).judges == ("random", "dinov2:/nets/v.pth")

    # Compared and swept over like the first space.
    flags = ["--num", 40, "--metrics", "fid", "--judge", "random", "--judge", "discriminator", "--out", tmp_path]
    plain, guided = ok("compare", *flags, "--repeats", 2, "--with", "gandance:scale=1.5")["rows"]
    assert {"fid", "fid@random", "fid@discriminator", "accuracy"} == set(plain["metrics"]) == set(guided["paired"])
    assert "dFID@random" in (tmp_path / "compare.txt").read_text()
    rows = ok("sweep", *flags, "--grid", "scale=1.5")["rows"]
    assert [row["metrics"]["fid@random"] for row in rows] == [
        row["metrics"]["fid@random"]["values"][0] for row in (plain, guided)
    ]
    assert run("eval", *flags, "--judge", "x").stderr.startswith("Error: --judge is 'x'")


def test_stages_choose_their_step_by_all_spaces() -> None:
    cfg = RunConfig(metrics=("fid",), num=NUM, batch_size=25, judges=("random", "discriminator"))
    evaluation = Evaluation(cfg, Group(), [Spec("plain")])
    row = evaluation.measure("plain", Plain())
    assert row is not None
    fids = [row["metrics"][key] for key in ("fid", "fid@random", "fid@discriminator")]
    expected = math.prod(fids) ** (1 / 3)
    assert validation_distance(evaluation, "plain", Plain()) == pytest.approx(expected, rel=1e-6)

    alone = Evaluation(dataclasses.replace(cfg, judges=()), Group(), [Spec("plain")])
    assert validation_distance(alone, "plain", Plain()) == fids[0]
