"""Python in three lines: the images and numbers of the command line, from one loaded generator."""

from __future__ import annotations

import inspect
import io
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ok, run
from host_models import save
from PIL import Image, ImageShow

import studiogan_guidance
from studiogan_guidance import gan as module
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import tables
from studiogan_guidance.gan import GAN, Images, Table
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.samplers import GANdance
from studiogan_guidance.samplers.conditional_truncation import ConditionalTruncation


@pytest.fixture(scope="module")
def gan() -> GAN:
    return studiogan_guidance.load()


def command(folder: Path, *args: object) -> Any:
    """The arrays that the command ``sample`` writes."""
    ok("sample", "--out", folder, *args)
    return np.load(folder / "samples.npz")


def assert_same(images: Images, arrays: Any) -> None:
    assert np.array_equal(images.pixels, arrays["images"].transpose(0, 3, 1, 2))
    assert np.array_equal(images.labels, arrays["labels"])
    assert np.array_equal(images.seeds, arrays["seeds"])


def test_images_are_those_of_the_command_line(gan: GAN, tmp_path: Path) -> None:
    gan.sample("gandance", scale=2, num=3)  # what an earlier call left must not count
    guided = gan.sample("gandance", scale=1.4, classes=[3], num=8)
    arrays = command(tmp_path / "guided", "--sampler", "gandance", "-o", "scale=1.4", "--classes", 3, "--num", 8)
    assert_same(guided, arrays)
    assert guided.tensor.shape == (8, 3, 32, 32)
    assert guided.tensor.dtype == torch.float32

    plain = gan.sample("plain", seeds=[7, 40, 7], classes="2,4", batch_size=2)
    assert_same(
        plain,
        command(tmp_path / "plain", "--sampler", "plain", "--seeds", "7,40,7", "--classes", "2,4", "--batch-size", 2),
    )


def test_a_file_of_images_is_that_of_the_command_line(gan: GAN, tmp_path: Path) -> None:
    arrays = command(tmp_path, "--scales", "1,2", "--num", 3, "--seed", 5)
    images = gan.sample(scales=[1, 2], num=3, seed=5)
    images.save(tmp_path / "own" / "a.npz")
    with np.load(tmp_path / "own" / "a.npz") as own:
        assert sorted(own) == sorted(arrays)
        for name in arrays:
            assert np.array_equal(own[name], arrays[name])
    assert np.array_equal(np.asarray(images.grid()), np.asarray(Image.open(tmp_path / "grid.png")))
    assert images[3:].scales is not None
    assert images[3:].grid().size == (3 * 128, 128)  # one scale, which is no strip any more


def test_every_way_to_write_a_sampler_gives_the_same_images(gan: GAN) -> None:
    ways: list[Any] = [
        "conditional_truncation:psi=0.7,base=gandance,base.scale=1.3",
        {"name": "conditional_truncation", "psi": 0.7, "base": {"name": "gandance", "scale": 1.3}},
        ConditionalTruncation(psi=0.7, base=GANdance(scale=1.3)),
    ]
    images = [gan.sample(way, num=2) for way in ways]
    images.append(gan.sample("conditional_truncation", psi=0.7, base=GANdance(scale=1.3), num=2))
    images.append(gan.sample(ConditionalTruncation(base=GANdance(scale=1.3)), psi=0.7, num=2))
    for other in images[1:]:
        assert torch.equal(other.tensor, images[0].tensor)
        assert other.sampler == images[0].sampler
    assert "base=gandance(scale=1.3" in images[0].sampler


def test_numbers_are_those_of_the_command_line(gan: GAN, tmp_path: Path) -> None:
    args = ("--num", 60, "--metrics", "fid,prdc", "-o", "scale=1.2", "--reference", "valid", "--out", tmp_path / "cli")
    rows = ok("eval", *args)["rows"]
    table = gan.evaluate(
        "plain", "gandance:scale=1.2", num=60, metrics=["fid", "prdc"], reference="valid", out=tmp_path / "own"
    )
    for line, row in zip(table, rows, strict=True):
        assert line["sampler"] == row["sampler"]
        assert {key: line[key] for key in row["metrics"]} == row["metrics"]
    assert {**table.protocol} == rows[0]["protocol"]
    assert list(table[1]) == ["sampler", "options", *rows[1]["metrics"], "seconds"]
    assert table[1]["options"] == "scale=1.2"

    # Text, HTML, pandas, and the file that compare reads.
    assert repr(table) == tables.table(table.rows)
    assert table._repr_html_().count("<tr>") == 3
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table)
    assert frame.set_index("sampler").loc["plain", "fid"] == rows[0]["metrics"]["fid"]
    assert run("compare", tmp_path / "own", tmp_path / "cli", "--out", tmp_path / "both").exit_code == 0


def test_one_class_of_samplers_of_ones_own_is_measured(gan: GAN) -> None:
    class Dimmer(studiogan_guidance.samplers.Plain):
        def images(self, view: Any, inputs: Any) -> torch.Tensor:
            return super().images(view, inputs) / 2

    dim = gan.sample(Dimmer(), num=2)
    assert torch.equal(dim.tensor, gan.sample("plain", num=2).tensor / 2)
    (row,) = gan.evaluate(Dimmer(), num=20, metrics="fid")
    assert row["sampler"] == "Dimmer"


def test_a_grid_has_a_column_for_each_class(gan: GAN) -> None:
    images = gan.sample("plain", classes="0-4", num=10)
    assert images.grid().size == (5 * 128, 2 * 128)  # of 32 pixels, each four times as large
    assert images.grid(columns=10, scale=3).size == (10 * 96, 96)
    assert images[[0, 5]].labels.tolist() == [0, 0]
    assert [one.labels.item() for one in images[:3]] == [0, 1, 2]
    png = images._repr_png_()
    assert png is not None
    picture = np.asarray(Image.open(io.BytesIO(png)))
    assert np.array_equal(picture[128::4, ::4][:32, :32], images.pixels[5].transpose(1, 2, 0))


def test_pictures_are_shown_or_it_is_said(
    gan: GAN, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images = gan.sample("plain", num=2)
    shown: list[Any] = []
    monkeypatch.setattr(ImageShow, "show", lambda picture: shown.append(picture) or len(shown) == 1)
    images.show()
    assert shown[0].size == (256, 128)
    assert "Note" not in capsys.readouterr().err
    images.show()
    assert "images.save('grid.png')" in capsys.readouterr().err
    assert images.save(tmp_path / "a.PNG").is_file()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda gan: gan.sample("gandanse"), "unknown sampler 'gandanse': did you mean 'gandance'"),
        (lambda gan: gan.sample("gandance", scal=2), "did you mean 'scale'"),
        (lambda gan: gan.sample(3), "the sampler must be a name or a mapping"),
        (lambda gan: gan.sample("plain", classes=[10]), "class 10 is out of range: the 10 classes are 0 to 9"),
        (lambda gan: gan.sample("plain", seeds=[-1]), "no image has the seed -1"),
        (lambda gan: gan.sample("plain", seeds=[1], num=2), "seeds name every image"),
        (lambda gan: gan.sample("plain", num=0), "num must be a whole number from 1 up, found 0"),
        (lambda gan: gan.sample("plain", num=1).save("a.gif"), "must end in .png"),
        (lambda gan: gan.sample("plain", num=1).grid(columns=0), "columns must be a whole number from 1 up"),
        (lambda gan: gan.evaluate("plain", ckpt="x"), "give it to studiogan_guidance.load"),
        (lambda gan: gan.evaluate("plain", metrics="fit"), "metrics has 'fit': did you mean 'fid'"),
        (lambda gan: gan.evaluate("plain", nums=3), "evaluate takes no 'nums': did you mean 'num'"),
        (lambda gan: studiogan_guidance.load(devise="cpu"), "load takes no 'devise': did you mean 'device'"),
        (lambda gan: studiogan_guidance.load("none.yaml"), "no configuration none.yaml"),
    ],
)
def test_mistakes_are_one_line(gan: GAN, call: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        call(gan)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_argument_of_the_public_names_has_a_type() -> None:
    for thing in (GAN, Images, Table):
        for name, function in inspect.getmembers(thing, inspect.isfunction):
            if function.__module__.startswith(module.__package__) and not name.startswith("__"):
                hints = typing.get_type_hints(function, vars(sys.modules[function.__module__]) | {"Image": Image.Image})
                assert {*inspect.signature(function).parameters} - {"self"} <= {*hints}, name
                assert "return" in hints
    assert studiogan_guidance.load is module.load
    assert studiogan_guidance.Table is Table


@pytest.mark.studiogan
def test_a_checkpoint_of_the_host(checkout: Checkout, data: Path, tmp_path: Path) -> None:
    yaml, folder = save("resnet", checkout, tmp_path / "checkpoint")
    gan = studiogan_guidance.load(ckpt=folder, data=data)  # the YAML is in the folder
    assert gan.classes == ("0", "1", "2", "3")
    images = gan.sample("gandance", scale=1.5, classes=["2", 0], num=4)
    assert images.labels.tolist() == [2, 0, 2, 0]
    args = ("-c", yaml, "--ckpt", folder, "--classes", "2,0", "--num", 4, "--sampler", "gandance", "-o", "scale=1.5")
    assert_same(images, command(tmp_path / "out", *args))
    (row,) = gan.evaluate("plain", metrics=["fid"], num=12, backbone="builtin")
    assert np.isfinite(row["fid"])
    assert gan.sample("gandance", scale=1.5, classes=["2", 0], num=4).pixels.tolist() == images.pixels.tolist()
