import dataclasses
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st

from studiogan_guidance import config
from studiogan_guidance.errors import UserError


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        "sampler: truncation",
        "sampler: {name: truncation}",
        "RUN: {sampler: truncation}\nDATA: {}",
        "RUN: {sampler: {name: truncation}}",
    ],
)
def test_a_sampler_is_a_name_or_a_mapping(tmp_path: Path, text: str) -> None:
    cfg = config.load(write(tmp_path / "a.yaml", text), {})
    assert (cfg.sampler, dict(cfg.options)) == ("truncation", {})
    assert "RUN" not in cfg.host


def test_stages_and_restat_are_read_and_the_hosts_run_section_is_left_alone(tmp_path: Path) -> None:
    text = "stages: [a, {name: b, steps: 3}]\nRUN: {restat: 4, seed: 3}"
    cfg = config.load(write(tmp_path / "a.yaml", text), {})
    assert (cfg.stages, cfg.restat) == (({"name": "a"}, {"name": "b", "steps": 3}), 4)
    assert dict(cfg.host) == {"RUN": {"seed": 3}}


def test_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "sampler: {name: gandance, scale: 1.5, joint: class_shift}\nseed: 3\nk: 7")
    cfg = config.load(file, {"seed": 9, "num": None, "options": {"scale": "2"}})
    assert (cfg.seed, cfg.k, cfg.batch_size) == (9, 7, None)
    assert dict(cfg.options) == {"scale": "2", "joint": "class_shift"}


def test_another_sampler_on_the_command_line_drops_the_options_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "sampler: {name: gandance, scale: 1.5}")
    assert dict(config.load(file, {"sampler": "truncation", "options": {"psi": "0.5"}}).options) == {"psi": "0.5"}


BUILTIN = {"scale": 0.9, "joint": "class_shift"}


@pytest.mark.parametrize(
    ("file", "overrides", "options"),
    [
        (None, {}, {}),
        (None, {"seed": 3, "sampler": None, "options": {}}, {}),
        ("builtin-gandance.yaml", {}, BUILTIN),
        (None, {"sampler": "gandance"}, {}),
        (None, {"options": {"joint": "class_mean"}}, {"joint": "class_mean"}),
        (None, {"sampler": "gandance", "options": {"scale": "2"}}, {"scale": "2"}),
        ("builtin-gandance.yaml", {"sampler": "gandance"}, BUILTIN),
        ("builtin-gandance.yaml", {"options": {"scale": "2"}}, {**BUILTIN, "scale": "2"}),
    ],
)
def test_a_sampler_that_is_named_has_its_own_defaults_unless_a_file_sets_others(
    file: str | None, overrides: dict[str, object], options: dict[str, object]
) -> None:
    cfg = config.load(file, overrides)
    assert (cfg.sampler, dict(cfg.options)) == ("gandance", options)


def test_a_sampler_in_text_form_is_read(tmp_path: Path) -> None:
    text = (
        "sampler: gandance:scale=1.5,joint=class_shift\ncompare: ['ddls:steps=3,base=gandance,base.scale=1.1', plain]"
    )
    cfg = config.load(write(tmp_path / "a.yaml", text), {})
    assert dict(cfg.options) == {"scale": "1.5", "joint": "class_shift"}
    ddls = {"name": "ddls", "steps": "3", "base": {"name": "gandance", "scale": "1.1"}}
    assert cfg.compare == (ddls, {"name": "plain"})


def test_the_last_image_has_a_seed_of_its_own() -> None:
    assert config.RunConfig(seed=2**31 - 10, num=10).seed == 2**31 - 10
    with pytest.raises(UserError, match="choose a seed of at most 2147483637"):
        config.RunConfig(seed=2**31 - 10, num=11)
    with pytest.raises(UserError, match="those of images end at 2147483647"):
        config.RunConfig(seed=2**31)


def test_sections_in_capitals_are_the_hosts(tmp_path: Path) -> None:
    cfg = config.load(write(tmp_path / "a.yaml", "DATA: {name: X}\nMODEL: {backbone: resnet}\nsampler: plain"), {})
    assert cfg.uses_host
    assert dict(cfg.host) == {"DATA": {"name": "X"}, "MODEL": {"backbone": "resnet"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smpler: plain", "unknown key 'smpler': did you mean 'sampler'"),
        ("options: {scale: 1}", "unknown key 'options'"),
        ("resizer: cleen", "did you mean 'clean'"),
        ("metrics: [fit]", "did you mean 'fid'"),
        ("which: newest", "which has 'newest'"),
        ("sampler: plain\nRUN: {sampler: plain}", "has sampler twice"),
        ("stages: [3]", "a stage in .* must be a name or a mapping"),
        ("compare: [3]", "a sampler to compare in .* must be a name or a mapping"),
        ("metrics: [3]", "metrics must be a list of words, found (3,)"),
        ("reference: true", "reference must be text, found True"),
        ("seed: 2147483648", "choose a seed of at most 2147483647"),
        ("restat: -1", "restat must be a whole number from 0 up"),
        ("num: 0", "num must be a whole number from 1 up"),
        ("seed: true", "seed must be a whole number, found True"),
        ("num: many", "num must be a whole number"),
        ("out: 3", "out must be text"),
        ("classes: [true]", "classes must be a list of whole numbers, ranges and names such as [0-9, 12, dog], found"),
        ("classes: [3.5]", "classes must be a list of whole numbers, ranges and names"),
        ("compare_plain: 'no'", "compare_plain must be true or false"),
        ("sampler: 3", "must be a name or a mapping"),
        ("- a\n- b", "must be a mapping"),
        ("host_config: 3", "host_config must be text, found 3"),
        ("sampler: {name: ddls, 3: 4}", "the key 3 is no text"),
        ("out: []", "out must be text, found []"),
        ("out: ''", "out is empty: give it a value, or leave it out"),
        ("metrics: []", "metrics is empty: name some of fid"),
        ("num: .nan", "num must be a whole number, found nan"),
        ("num: []", "num must be a whole number, found []"),
        ("num: 1000000000000", "num must be at most 2147483648, found 1000000000000"),
        ("batch_size: 1000000000", "batch_size must be at most 65536, found 1000000000"),
        ("k: 1000000", "k must be at most 10000, found 1000000"),
        ("splits: 1000000", "splits must be at most 10000"),
        ("restat: 1000000", "restat must be at most 10000"),
        ("stages: {steps: 3}", "a stage in"),
        ("data: {name: CIFAR10}", "unknown key 'data': as a section of the host it is DATA, in capitals"),
        ("model: {backbone: resnet}", "unknown key 'model': as a section of the host it is MODEL, in capitals"),
        ("{data_processing: {dataset_name: cifar10}, train: {}}", "of the PyTorch-StudioGAN of 2020 (keys data_proc"),
        ("a: [", "cannot read the configuration"),
        ("host_config: a.yaml\nDATA: {}\nMODEL: {x: 1}", "keep one of them"),
    ],
)
def test_mistakes_name_themselves_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[").replace("(", r"\(").replace(")", r"\)")) as error:
        config.load(write(tmp_path / "a.yaml", text), {})
    assert "\n" not in str(error.value)


def test_null_means_not_given(tmp_path: Path) -> None:
    cfg = config.load(write(tmp_path / "a.yaml", "seed: null\nclasses: null\nout: null\nsplits: 3"), {})
    assert (cfg.seed, cfg.classes, cfg.out, cfg.splits) == (0, (), "runs", 3)


def test_a_missing_file_lists_the_packaged_ones() -> None:
    with pytest.raises(UserError, match=r"did you mean 'CIFAR10/BigGAN-gandance.yaml'"):
        config.load("CIFAR10/BigGan-gandance.yaml", {})


def test_every_packaged_file_is_valid_and_named_after_its_sampler_or_stage() -> None:
    from studiogan_guidance import samplers

    assert len(config.packaged()) >= 5
    for name in config.packaged():
        cfg = config.load(name, {})
        words = ["compare" if cfg.compare else cfg.sampler, *(stage["name"] for stage in cfg.stages)]
        assert any(name.endswith(f"-{word}.yaml") for word in words)
        samplers.create(cfg.sampler, cfg.options)
        for spec in cfg.compare:
            samplers.create(spec)


def outcome(file: str) -> config.RunConfig | str:
    """The configuration of a file, or the one line that refuses it."""
    try:
        return config.load(file, {})
    except UserError as error:
        line = str(error)
    assert "\n" not in line
    return line


ODD: list[Any] = [
    [], [1], ["x"], [None], [[1]], {}, {"a": 1}, {"name": "plain", "a": [{}]}, "", "x", "~", "a" * 3000, -1, 0, 1.5,
    float("nan"), float("inf"), 10**30, True, False, None,
]  # fmt: skip
FIELDS = [field.name for field in dataclasses.fields(config.RunConfig)]


@pytest.mark.parametrize("key", FIELDS)
@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
def test_any_value_of_any_key_is_of_its_kind_or_refused_by_name(key: str, value: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", yaml.safe_dump({key: value}))
    default = getattr(config.RunConfig(), key)
    cfg = outcome(file)
    if isinstance(cfg, str):
        assert key.rstrip("s") in cfg or (key in ("ckpt", "data", "held_out") and "need the host" in cfg)
        assert len(cfg) < 1000
        return
    kept = getattr(cfg, key)
    if value in (None, []):  # nothing
        assert kept == default
    elif key == "sampler":
        assert kept == (value["name"] if isinstance(value, dict) else value)
    elif key not in config.LISTS:
        assert kept == (os.path.expanduser(value) if key in config.PATHS and value == "~" else value)
        assert type(kept) is type(value)


@pytest.mark.parametrize("key", ["ckpt", "data", "held_out", "studiogan", "out", "host_config"])
def test_the_home_folder_is_written_out(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/a", "$HOME/a", "${HOME}/a"):
        text = f"{key}: {path}\n" + ("" if key == "host_config" else "DATA: {name: X}")
        assert getattr(config.load(write(tmp_path / "a.yaml", text), {}), key) == str(tmp_path / "a")
        own = write(tmp_path / "b.yaml", "MODEL: {z_dim: 8}" if key != "host_config" else "seed: 0")
        assert getattr(config.load(own, {key: path}), key) == str(tmp_path / "a")


def test_the_home_folder_is_written_out_in_a_feature_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert config.load(None, {"backbone": "torchscript:~/x.pt"}).backbone == "torchscript:/home/me/x.pt"
    assert config.load(write(tmp_path / "a.yaml", "backbone: dinov2:$HOME/x"), {}).backbone == "dinov2:/home/me/x"
    assert config.load(None, {"backbone": "host:InceptionV3_tf"}).backbone == "host:InceptionV3_tf"


@pytest.mark.parametrize(
    "text", ["DATA: {name: X}\nckpt: a", "DATA: {name: X}\ndata: a", "sampler: {name: gandance, joint_ckpt: a}"]
)
def test_a_path_that_is_only_beside_the_file_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there" / "a").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    file = write(tmp_path / "there" / "a.yaml", text)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=f"is a, which is not in .*here: .* beside that file is {tmp_path}/there/a"):
        config.load(file, {})
    monkeypatch.chdir(tmp_path / "there")
    config.load(file, {})  # paths are from the current folder


@pytest.mark.parametrize("text", ["num: 0", "num: .nan", "out: []", "out: 3", "labels: x", "seed: -1", "k: 1000000"])
def test_a_mistake_in_a_file_counts_where_the_command_line_says_otherwise(text: str, tmp_path: Path) -> None:
    key = text.partition(":")[0]
    file = write(tmp_path / "a.yaml", text)
    with pytest.raises(UserError, match=f"{key} (must be|is)"):
        config.load(file, {key: getattr(config.RunConfig(num=3), key)})


def test_duplicates_on_the_command_line_of_what_a_file_sets_are_fine(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "sampler: {name: gandance, scale: 1.5}\nseed: 3")
    assert config.load(file, {"seed": 4, "options": {"scale": "2"}}).seed == 4


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab:=,.~$ ", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "a", "a.b"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@hypothesis.settings(max_examples=60, derandomize=True, deadline=None)
@hypothesis.given(st.dictionaries(st.sampled_from(FIELDS), NESTED, max_size=3))
def test_any_values_are_a_configuration_or_a_sentence(content: dict[str, Any]) -> None:
    file = Path(os.environ["STUDIOGAN_GUIDANCE_CACHE"]) / "any.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content))
    cfg = outcome(str(file))
    if not isinstance(cfg, str):
        assert cfg == config.RunConfig(**{key: getattr(cfg, key) for key in FIELDS})
