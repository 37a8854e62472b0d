"""Files that are no configuration, or too large a one: a sentence, within a second and 200 MB."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from studiogan_guidance import config, plain_yaml
from studiogan_guidance.errors import UserError


def read(folder: Path, content: str | bytes) -> dict[str, Any]:
    path = folder / "a.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return config.read_yaml(path)


BOMB = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 9)}]" for i in range(9))
MERGES = "\n".join(f"a{i}: &a{i} {{k{i}: 1, <<: [{', '.join([f'*a{i - 1}'] * 9 if i else '')}]}}" for i in range(9))
LIMITS = [
    (BOMB + "\nclasses: *a8", "more than 50000 values, with aliases written out"),
    (MERGES + "\nsampler: *a8", "more than 50000 values, with aliases written out"),
    ("sampler: &a {name: ddls, base: *a}", r"line 1: the alias \*a stands inside of what it names"),
    ("a: " + "[" * 5000, "line 1: mappings and lists more than 30 deep"),
    ("a: " + "{a: " * 5000, "line 1: mappings and lists more than 30 deep"),
    ("\n".join(" " * i + "a:" for i in range(300)), "line 31: mappings and lists more than 30 deep"),
    ("- " * 3000, "line 1: mappings and lists more than 30 deep"),
    ("a: " + "x" * 60_000, "it has more than 50000 bytes"),
    ("a: " + "9" * 5000, "Exceeds the limit"),
    ("a: [" + ",".join("1" * 24_000) + "]", None),  # as large as it may be
]


@pytest.mark.parametrize(("text", "message"), LIMITS)
def test_what_is_too_large_is_refused_before_it_is_made(text: str, message: str | None, tmp_path: Path) -> None:
    if message is None:
        assert read(tmp_path, text) == {"a": [1] * 24_000}
        return
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_none_of_it_takes_memory(tmp_path: Path) -> None:
    for number, (text, _) in enumerate(LIMITS):
        (tmp_path / f"{number}.yaml").write_text(text)
    code = (
        "import contextlib, pathlib, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (200_000_000, 200_000_000))\n"
        "from studiogan_guidance.config import read_yaml\n"
        "from studiogan_guidance.errors import UserError\n"
        "for file in pathlib.Path(sys.argv[1]).glob('*.yaml'):\n"
        "    with contextlib.suppress(UserError):\n"
        "        read_yaml(file)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=120)  # no MemoryError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: 1\nnum: 3\nseed: 2", "line 3: the key 'seed' stands in line 1, too: keep one of them"),
        ("sampler: {name: a, scale: 1, scale: 2}", "line 1: the key 'scale' stands in line 1, too"),
        ("sampler: {name: ddls, 3: 4}", "line 1: the key 3 is no text: put it into quotes"),
        ("on: 3", "line 1: the key on is no text"),
        ("? [a, b]\n: 3", "line 1: the key a list or a mapping is no text"),
        (
            "a: !!python/object/apply:os.system ['true']",
            "line 1: the tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("a: !foo 3", "line 1: the tag !foo is not taken, plain values only"),
        ("a: !!binary aGVsbG8=", "line 1: the tag tag:yaml.org,2002:binary is not taken"),
        ("a: !!set {b}", "line 1: the tag tag:yaml.org,2002:set is not taken"),
        ("a: !!int x", "invalid literal"),
        ("a: !!bool x", "cannot read the configuration"),
        ("seed: 010", "line 1: 010 is octal in YAML: write it without the zero, or as text"),
        ("a: *b", "line 1: found undefined alias"),
        ("a:\n\t- b", "line 2: a tab: YAML indents with spaces"),
        ("a: 1\n---\nb: 2", "line 2: a second document"),
        ("a: [", "line 1: "),
        ("a: 1\n b: 2", "line 2: "),
        ("a: \x07", "special characters are not allowed"),
        ("", "must be a mapping of keys .lines KEY: VALUE., found nothing"),
        ("# only a comment\n", "found nothing"),
        ("- a\n- b", "found a list"),
        ("just words", "found text"),
        ("[run]\nseed = 1", "line 2: "),  # TOML
        ("seed = 1", "found text"),
        ("[INFO] 2022-08-08 20:17:08 > Run name : CIFAR10-BigGAN\n[INFO] 2022-08-08 > done", "line 1: "),  # a log
        ('{"seed": 1', "line 1: "),
        ("a: ü".encode("latin-1"), "line 1: byte 0xfc is no UTF-8: save it as UTF-8"),
        ("a: b".encode("utf-16"), "it is UTF-16: save it as UTF-8"),
        (b"PK\x03\x04\x00\x00", "it is no text"),
    ],
)
def test_what_is_no_configuration_is_called_so(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfa: 1\r\nb: [x, y]\r\n", {"a": 1, "b": ["x", "y"]}),
        ("---\na: 1\n", {"a": 1}),
        ('{"a": 1, "b": [true, null, "x"]}', {"a": 1, "b": [True, None, "x"]}),
        ("a: &x {k: 1, m: 2}\nb: {<<: *x, m: 3}", {"a": {"k": 1, "m": 2}, "b": {"k": 1, "m": 3}}),
        ("a: &x [1]\nb: [*x, *x]", {"a": [1], "b": [[1], [1]]}),
        (
            "a: 4:8\nb: 1:30:15.5\nc: 2024-11-27\nd: 2001-12-14 21:59:43",
            {"a": "4:8", "b": "1:30:15.5", "c": "2024-11-27", "d": "2001-12-14 21:59:43"},
        ),
        (
            "a: 1_000\nb: 0x10\nc: 0\nd: -0\ne: 1e-1\nf: 1.0e-1",
            {"a": 1000, "b": 16, "c": 0, "d": 0, "e": "1e-1", "f": 0.1},
        ),
        ("a: yes\nb: off\nc: 'no'\nd: ~", {"a": True, "b": False, "c": "no", "d": None}),
        ("a: !!str 3\nb: ! x", {"a": "3", "b": "x"}),
        ("ü: é", {"ü": "é"}),
    ],
)
def test_plain_values_are_what_they_look_like(content: str | bytes, expected: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, content) == expected


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in (
        (tmp_path / "pipe", "it is a pipe or a device"),
        (Path("/dev/zero"), "it is a pipe or a device"),
        (tmp_path, "it is a folder"),
        (tmp_path / "loop", "cannot read the configuration"),
        (tmp_path / "none", "cannot read the configuration .*No such file"),
        (tmp_path / ("a" * 5000), "cannot read the configuration"),
    ):
        with pytest.raises(UserError, match=message):
            config.read_yaml(path)


YAMLISH = st.text(st.sampled_from("ab:,[]{}&*!|>-?#'\"<%@\n \t01.e~"), max_size=60)


@hypothesis.settings(max_examples=60, derandomize=True, deadline=None)
@hypothesis.given(YAMLISH)
def test_any_text_is_read_as_plain_values_or_refused(text: str) -> None:
    assert not isinstance(_plain(text), BaseException)


def _plain(text: str) -> Any:
    """The values of a text, a sentence, or an error that is a mistake of ours."""
    path = Path(os.environ["STUDIOGAN_GUIDANCE_CACHE"]) / "any.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    try:
        values = plain_yaml.read(path)
    except UserError as error:
        return AssertionError() if "\n" in str(error) else str(error)
    return values if _is_plain(values) else AssertionError()


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, (str, int, float, type(None)))
