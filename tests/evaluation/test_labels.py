"""What classes a run means, where its labels come from, and whether the class folders are those of the generator."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ok, run
from host_models import save

from studiogan_guidance.builtin.images import BuiltinImages
from studiogan_guidance.builtin.source import BuiltinSource
from studiogan_guidance.config import RunConfig, load
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation import evaluation, sample, tables
from studiogan_guidance.evaluation.distributed import Group
from studiogan_guidance.evaluation.evaluation import Evaluation
from studiogan_guidance.evaluation.labels import label_plan, resolved_classes
from studiogan_guidance.options import Spec, whole_numbers

SPLITS = {"train": ("cat", "dog", "hen"), "valid": ("cat", "hen"), "test": ("cat", "dog", "hen")}
ANIMALS = ("bird", "cat", "dog", "fox", "frog", "hare", "hen", "mole", "owl", "toad")
SORTED_AS_TEXT = ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7")
NUMBERED_FROM_ONE = ("01", "02", "03", "04", "05", "06", "07", "08", "09", "10")


def real(*names: str, split: str = "test") -> Any:
    """The digits, with other names of their classes: more or fewer of them than digits where it says so."""
    images = BuiltinImages(split)
    images.class_names = names
    return images


@pytest.mark.parametrize(
    ("classes", "names", "expected"),
    [
        (("3",), (), (3,)),
        ((3, 5), (), (3, 5)),
        (("0-9",), (), tuple(range(10))),
        (("0-2", "7", "7", "1"), (), (0, 1, 2, 7, 7, 1)),
        (("4-4",), (), (4,)),
        (("007",), (), (7,)),
        (("dog",), ANIMALS, (2,)),
        (("toad", "0-1", 5, "bird"), ANIMALS, (9, 0, 1, 5, 0)),
        (("10",), ("a", "b", "10", *"cdefghijk"), (10,)),  # always the index
        (("n01440764, tench",), ("n01440764, tench", "b"), (0,)),  # an item of a list in YAML may hold a comma
    ],
)
def test_words_mean_indices_ranges_or_names(
    classes: tuple[int | str, ...], names: tuple[str, ...], expected: tuple[int, ...]
) -> None:
    found = resolved_classes(RunConfig(classes=classes), len(names) or 10, names)
    assert found == expected
    assert all(type(label) is int for label in found)


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        (("3", "10"), (), "class 10 is out of range: the 10 classes are 0 to 9"),
        ((-1,), (), "class -1 is out of range"),
        (("-1",), (), "class -1 is out of range"),
        ((10**40,), (), "class '1000.*' is neither a whole number nor a range"),
        (("0-10",), (), "class 10 is out of range"),
        (("0-99999999999",), (), "class 99999999999 is out of range"),
        (("9-0",), (), "the range 9-0 ends below its start: give the lower number first"),
        (("3.0",), (), "class '3.0' is neither a whole number nor a range such as 0-9, .* add --data DIR"),
        (("dog",), (), "class 'dog' is neither .* add --data DIR, or give the number"),
        (("",), ANIMALS, "no class is called '': there are 'bird', 'cat', 'dog' and 7 more, see list --classes"),
        (("dgo",), ANIMALS, "no class is called 'dgo': did you mean 'dog'"),
        (("Dog",), ANIMALS, "no class is called 'Dog': did you mean 'dog'"),
        (("xyz",), ("a", "b"), "no class is called 'xyz': there are 'a', 'b', see list --classes"),
        (("1-2-3",), ANIMALS, "no class is called '1-2-3'"),
        (("٣",), ANIMALS, "no class is called '٣'"),
        (("x" * 10_000,), ANIMALS, "no class is called 'x{60}': there are"),
        (("11",), SORTED_AS_TEXT, "class 11 is out of range: .* 0 to 9; the folder '11' is class 3"),
    ],
)
def test_what_is_no_class_is_one_line(classes: tuple[int | str, ...], names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolved_classes(RunConfig(classes=classes), 10, names)


@pytest.mark.parametrize(
    ("classes", "names", "note"),
    [
        ("4", SORTED_AS_TEXT, "class 4 is the folder '2', while the folder '4' is class 6: a number always means the"),
        ("0-9", SORTED_AS_TEXT, "class 2 is the folder '10', while the folder '2' is class 4"),
        ("9,1", NUMBERED_FROM_ONE, "class 9 is the folder '10', while the folder '09' is class 8"),
        ("0,1", SORTED_AS_TEXT, None),
        ("0", NUMBERED_FROM_ONE, None),  # no folder is called 0
        ("0-9", tuple("0123456789"), None),
        ("0-9", ANIMALS, None),
    ],
)
def test_a_number_that_is_the_name_of_another_folder_is_told(
    classes: str, names: tuple[str, ...], note: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved_classes(RunConfig(classes=tuple(classes.split(","))), 10, names)
    told = capsys.readouterr().err
    assert told.startswith(f"Note: {note}") if note else told == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("classes: 0-9,12", ("0-9", "12")),
        ("classes: [0-9, 12, dog]", ("0-9", 12, "dog")),
        ("classes: dog", ("dog",)),
        ("classes: 7", (7,)),
        ("classes: ['n01, tench', 3]", ("n01, tench", 3)),
        ("classes: []", ()),
    ],
)
def test_yaml_takes_the_text_of_the_command_line_or_a_list(tmp_path: Path, text: str, expected: tuple[Any]) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert load(str(tmp_path / "a.yaml"), {}).classes == expected


def test_ranges_are_not_made_into_lists() -> None:
    assert whole_numbers("0-999999999999999999") == range(10**18)
    assert whole_numbers("9" * 5000) is None


def test_labels_as_in_the_data_tell_of_a_class_without_images(capsys: pytest.CaptureFixture[str]) -> None:
    images = real(*ANIMALS)
    threes = np.isin(images.labels(), (3, 5))
    images.labels = lambda: [label for label, left_out in zip(BuiltinImages("test").labels(), threes) if not left_out]
    plan = label_plan(RunConfig(labels="data"), 10, images)
    assert plan.weights[3] == plan.weights[5] == 0
    assert sum(plan.weights) == pytest.approx(1)
    assert capsys.readouterr().err == (
        "Note: there are no test images of class 3 ('fox') and of 1 more, so labels: data draws none of it\n"
    )


def test_labels_as_in_the_data_need_data() -> None:
    with pytest.raises(UserError, match="labels: data needs real images: add --data DIR"):
        label_plan(RunConfig(labels="data"), 10, None)


class Folders(BuiltinSource):
    """The digits, in folders of other names or numbers."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def real(self, split: str, image_size: int = 32, classes: Any = ()) -> Any:
        images = BuiltinImages(split, classes)
        images.class_names = self.names
        return images


@pytest.mark.parametrize("count", [1, 2, 12])
@pytest.mark.parametrize(
    ("settings", "use"),
    [
        ({"labels": "data"}, "labels: data"),
        ({"metrics": ("fid", "per_class")}, "per_class"),
        ({"classes": (3, 7)}, "--classes"),
        ({"classes": ("c1",)}, "--classes"),
        ({"classes": (0,), "metrics": ("per_class",)}, "--classes and per_class"),
        ({}, None),
    ],
)
def test_folders_that_are_not_the_generators_classes_are_refused_where_labels_count(
    count: int, settings: dict[str, Any], use: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = RunConfig(num=20, **{"metrics": ("fid",), **settings})
    source = Folders(*(f"c{i}" for i in range(count)))
    fact = f"the test images have {count} class{'es' if count > 1 else ''}, this generator has 10"
    if use is None:
        assert Evaluation(cfg, Group(0, 1), [Spec("plain")], source).real.default_count == 1000
        assert capsys.readouterr().err == (
            f"Note: {fact}: are these the images that it was trained on? Their labels are not used\n"
        )
        return
    with pytest.raises(UserError, match=f"^{fact}, so labels do not mean the same: give all .* or leave out {use}$"):
        Evaluation(cfg, Group(0, 1), [Spec("plain")], source)


def test_sample_compares_folders_only_where_it_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sample, "open_source", lambda cfg: Folders("cat", "dog"))
    common = {"out": str(tmp_path), "num": 2, "sampler": "plain"}
    for settings, use in ({"labels": "data"}, "labels: data"), ({"classes": ("cat",)}, "--classes"):
        with pytest.raises(UserError, match=f"have 2 classes, this generator has 10, .* leave out {use}"):
            sample.sample(RunConfig(**common, **settings))
    sample.sample(RunConfig(**common, classes=(3,)))
    assert "Note" not in capsys.readouterr().err


def test_chosen_classes_are_measured_against_their_own_images(tmp_path: Path) -> None:
    common = ("eval", "--sampler", "plain", "--metrics", "fid,per_class", "--out", tmp_path)
    (both,) = ok(*common, "--classes", "7,3", "--num", 200)["rows"]
    assert both["protocol"]["labels"] == [7, 3]
    assert both["protocol"]["classes"] == [3, 7]
    assert both["protocol"]["num_real"] == 200
    assert both["config"]["classes"] == [7, 3]
    assert sorted(both["per_class"]) == ["3", "7"]

    # One class alone: its FID is that within the class, which the row of both has for the same 100 images.
    (one,) = ok(*common, "--classes", "3", "--num", 100)["rows"]
    assert one["metrics"]["fid"] == pytest.approx(one["per_class"]["3"]["fid"], rel=1e-4)
    assert one["protocol"]["num_real"] == one["per_class"]["3"]["num_real"] == 100

    # Such rows are not comparable with others.
    (every,) = ok(*common[:-1], tmp_path / "every", "--num", 100)["rows"]
    assert "classes" not in every["protocol"]
    result = run("compare", tmp_path / "every", tmp_path, "--out", tmp_path / "read")
    assert result.exit_code == 2
    assert "cannot be compared" in result.stderr


def test_as_many_images_as_the_chosen_classes_have() -> None:
    group = Group(0, 1)
    assert Evaluation(RunConfig(classes=("0-3",), metrics=("fid",)), group, [Spec("plain")]).num == 400


@pytest.mark.parametrize("command", ["eval", "sweep", "tune", "compare"])
def test_every_command_resolves_classes(command: str, tmp_path: Path) -> None:
    more = {"sweep": ["--grid", "scale=1,1.2"], "tune": ["--budget", 9, "--repeats", 2], "compare": ["--with", "plain"]}
    args = ["--classes", "1-3,8", "--num", 40, "--metrics", "fid", "--out", tmp_path, *more.get(command, [])]
    ok(command, *args)
    rows = [evaluation.results.read(tmp_path / "results.jsonl")][0]
    assert rows
    for row in rows:
        assert row["protocol"]["labels"] == row["protocol"]["classes"] == row["config"]["classes"] == [1, 2, 3, 8]


def test_a_name_is_that_of_a_folder_of_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "open_source", lambda cfg: Folders(*ANIMALS))
    ok("sample", "--classes", "dog,0-1", "--num", 4, "--out", tmp_path / "names")
    ok("sample", "--classes", "2,0,1", "--num", 4, "--out", tmp_path / "numbers")
    with np.load(tmp_path / "names/samples.npz") as names, np.load(tmp_path / "numbers/samples.npz") as numbers:
        assert names["labels"].tolist() == [2, 0, 1, 2]
        assert np.array_equal(names["images"], numbers["images"])


def test_seeds_give_the_images_of_their_seeds(tmp_path: Path) -> None:
    ok("sample", "--seed", 3, "--num", 43, "--out", tmp_path / "range", "--batch-size", 8)
    listed = ok("sample", "--seeds", "3,17,40-45,3", "--out", tmp_path / "list", "--batch-size", 8)
    assert listed["images"] == 9
    with np.load(tmp_path / "range/samples.npz") as whole, np.load(tmp_path / "list/samples.npz") as chosen:
        assert chosen["seeds"].tolist() == [3, 17, 40, 41, 42, 43, 44, 45, 3]
        assert np.array_equal(chosen["images"][0], chosen["images"][-1])
        positions = chosen["seeds"] - 3
        assert np.array_equal(chosen["labels"], whole["labels"][positions])
        assert abs(chosen["images"].astype(int) - whole["images"][positions]).max() <= 1  # of 255


def test_classes_are_used_in_turn_by_the_position_of_a_seed(tmp_path: Path) -> None:
    ok("sample", "--seeds", "7,7,9", "--classes", "2,4", "--scales", "1,1.5", "--png", "--out", tmp_path)
    with np.load(tmp_path / "samples.npz") as file:
        assert file["labels"].tolist() == [2, 4, 2] * 2
        assert file["scales"].tolist() == [1, 1, 1, 1.5, 1.5, 1.5]
    names = {path.name for path in (tmp_path / "images").iterdir()}
    pairs = ("000007-002", "000007-004", "000009-002")
    assert names == {f"{pair}-{scale}.png" for pair in pairs for scale in ("1", "1.5")}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--seeds", "3", "--num", 2), "--seeds names every image, so --seed and --num have no meaning"),
        (("--seeds", "3", "--seed", 0), "--seeds names every image"),
        (("--seeds", "0-99999999999"), "--seeds takes whole numbers from 0 to 2147483647, such as 3,40-45"),
        (("--seeds", "2147483648"), "--seeds takes whole numbers from 0 to 2147483647"),
        (("--seeds", "0-2147483647"), "--seeds has 2147483648 images, which sample keeps in memory: give at most"),
        (("--seeds", "-1"), "--seeds takes whole numbers"),
        (("--seeds", "3,x"), "--seeds takes whole numbers"),
        (("--seeds", "3,,5"), "--seeds takes whole numbers"),
        (("--seeds", ""), "--seeds takes whole numbers"),
        (("--seeds", "1e3"), "--seeds takes whole numbers"),
        (("--seeds", "9" * 5000), "--seeds takes whole numbers"),
        (("--seeds", "5-3"), "the range 5-3 ends below its start"),
        (("--classes", ""), "--classes takes words separated by commas, found ''"),
    ],
)
def test_seeds_that_are_none_are_one_line(args: tuple[object, ...], message: str, tmp_path: Path) -> None:
    result = run("sample", *args, "--out", tmp_path / "runs")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr) < 400
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("seeds", [(-1,), (0, 2**31), (3, 2**40)])
def test_seeds_from_python_are_checked(seeds: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image has the seed -?\d+: give seeds from 0 to 2147483647"):
        sample.sample(RunConfig(out=str(tmp_path / "runs")), seeds=seeds)


def test_classes_of_the_built_in_are_listed_with_their_images() -> None:
    table = ok("list", "--classes")
    assert (table["generator"], table["agrees"], list(table["splits"])) == (10, True, ["train", "valid", "test"])
    assert table["splits"]["valid"][3] == {"index": 3, "name": "3", "images": 100}
    lines = run("list", "--classes").output.splitlines()
    assert lines[0].split() == ["index", "class", "train", "valid", "test"]
    assert lines[4].split() == ["3", "3", "300", "100", "100"]
    assert lines[-1] == "the generator takes 10 classes, as many as the data have"


def test_splits_of_other_classes_are_listed_below_each_other() -> None:
    rows = {name: [{"index": i, "name": n, "images": 4} for i, n in enumerate(names)] for name, names in SPLITS.items()}
    text = tables.classes({"splits": rows, "generator": 3, "agrees": False})
    assert text.splitlines() == [
        "index  class    train     test",
        "    0  cat          4        4",
        "    1  dog          4        4",
        "    2  hen          4        4",
        "",
        "index  class    valid",
        "    0  cat          4",
        "    1  hen          4",
        "",
        "the splits have different classes, so an index is not the same class in all of them",
        "the generator takes 3 classes, which the data do not have (train 3, valid 2, test 3): labels do not mean the "
        "same",
    ]


@pytest.mark.studiogan
def test_folders_are_listed_without_a_checkpoint(data: Path, tmp_path: Path) -> None:
    (tmp_path / "host.yaml").write_text(
        "DATA: {name: Tiny, img_size: 32, num_classes: 4}\nMODEL: {backbone: resnet, g_cond_mtd: cBN, z_dim: 16}"
    )
    table = ok("list", "--classes", "-c", tmp_path / "host.yaml", "--data", data)
    assert (table["generator"], table["agrees"]) == (4, True)
    assert [row["images"] for row in table["splits"]["train"]] == [4] * 4
    assert [row["images"] for row in table["splits"]["valid"]] == [3] * 4

    # A generator of ten classes, or of none.
    for model, generator, words in (
        ("cBN", 10, "takes 10 classes, which the data do not"),
        ("W/O", 0, "takes no clas"),
    ):
        (tmp_path / "host.yaml").write_text(
            f"DATA: {{name: Tiny, img_size: 32}}\nMODEL: {{backbone: resnet, g_cond_mtd: {model}, z_dim: 16}}"
        )
        args = ("list", "--classes", "-c", tmp_path / "host.yaml", "--data", data)
        assert (ok(*args)["generator"], ok(*args)["agrees"]) == (generator, False)
        assert words in run(*args).output


@pytest.mark.studiogan
@pytest.mark.parametrize("folders", [["0", "1"], ["0", "1", "2", "3", "4"]])
def test_class_folders_of_a_user_against_a_checkpoint(
    folders: list[str], data: Path, tmp_path: Path, checkout: Any
) -> None:
    yaml, ckpt = save("resnet", checkout, tmp_path)
    for split in ("train", "valid"):
        for name in folders:
            shutil.copytree(data / split / str(int(name) % 4), tmp_path / "data" / split / name)
    common = ["-c", yaml, "--ckpt", ckpt, "--data", tmp_path / "data", "--num", 8, "--out", tmp_path / "out"]
    metrics = ["--sampler", "plain", "--backbone", "builtin", "--metrics"]
    fact = f"the train images have {len(folders)} classes, this generator has 4"

    # Nothing goes by labels.
    result = run("eval", *common, *metrics, "fid")
    assert result.exit_code == 0, result.output
    assert f"Note: {fact}" in result.stderr

    # Labels count.
    for args in (
        ("eval", *metrics, "per_class"),
        ("eval", *metrics, "fid", "--labels", "data"),
        ("sample", "--classes", "0,x"),
    ):
        result = run(args[0], *common, *args[1:])
        assert result.exit_code == 2
        assert f"{fact}, so labels do not mean the same" in result.stderr
    result = run("eval", *common, "--sampler", "drs", "--backbone", "builtin", "--metrics", "fid")
    assert result.exit_code == 2
    assert f"the held-out images have {len(folders)} classes, this generator has 4" in result.stderr


@pytest.mark.studiogan
def test_names_of_folders_choose_classes(data: Path, tmp_path: Path, checkout: Any) -> None:
    yaml, ckpt = save("resnet", checkout, tmp_path)
    names = ("ant", "bee", "cow", "duck, wild")
    for split in ("train", "valid"):
        for label, name in enumerate(names):
            shutil.copytree(data / split / str(label), tmp_path / "data" / split / name)
    common = ["-c", yaml, "--ckpt", ckpt, "--data", tmp_path / "data", "--num", 8, "--out", tmp_path / "out"]
    ok("sample", *common, "--classes", "cow,0-1")
    assert np.load(tmp_path / "out/samples.npz")["labels"].tolist() == [2, 0, 1, 2, 0, 1, 2, 0]
    (row,) = ok(
        "eval", *common, "--classes", "cow,ant", "--sampler", "plain", "--backbone", "builtin", "--metrics", "fid"
    )["rows"]
    assert (row["protocol"]["labels"], row["protocol"]["classes"], row["protocol"]["num_real"]) == ([2, 0], [0, 2], 8)
    result = run("sample", *common[:4], "--classes", "cow", "--out", tmp_path / "no")
    assert result.exit_code == 2
    assert "class 'cow' is neither a whole number nor a range such as 0-9" in result.stderr
    assert "add --data DIR" in result.stderr
