from __future__ import annotations

import math
import os
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from studiogan_guidance import options, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.options import Spec, check_type, convert, parse_pairs


@pytest.mark.parametrize(
    "form",
    [
        "ddls:steps=5,base=gandance,base.scale=1.1",
        {"name": "ddls", "steps": "5", "base": "gandance", "base.scale": "1.1"},
        {"base": {"name": "gandance", "scale": "1.1"}, "steps": "5", "name": "ddls"},
        Spec("ddls", {"steps": "5", "base": {"name": "gandance", "scale": "1.1"}}),
    ],
)
def test_every_form_of_a_spec_is_the_same(form: Any) -> None:
    spec = Spec.parse(form)
    assert spec == Spec("ddls", {"steps": "5", "base": {"name": "gandance", "scale": "1.1"}})
    assert spec.to_dict() == {"name": "ddls", "steps": "5", "base": {"name": "gandance", "scale": "1.1"}}
    assert options.dotted(spec.options) == {"steps": "5", "base": "gandance", "base.scale": "1.1"}
    assert Spec.parse(spec.to_dict()) == spec
    assert isinstance(hash(spec), int)


@pytest.mark.parametrize("form", ["", "ddls:", "ddls:steps", ":steps=5", {"steps": 5}, {"name": 3}, 3, None, ["ddls"]])
def test_what_is_no_spec_is_refused(form: Any) -> None:
    with pytest.raises(UserError, match="a stage must be a name or a mapping with a name"):
        Spec.parse(form, "a stage")


def test_a_mapping_is_left_as_it_was() -> None:
    form = {"name": "ddls", "base": {"name": "gandance"}, "base.scale": 1}
    Spec.parse(form)
    assert form == {"name": "ddls", "base": {"name": "gandance"}, "base.scale": 1}


@pytest.mark.parametrize("value", [0.7, None, ["gandance"]])
def test_only_a_thing_with_a_name_has_options_behind_a_dot(value: Any) -> None:
    with pytest.raises(UserError, match="psi must be a name or a mapping with a name"):
        options.nested({"psi": value, "psi.x": 3})


def test_a_key_that_is_a_number_is_an_unknown_option() -> None:
    with pytest.raises(UserError, match="sampler 'gandance' has no option '3'"):
        samplers.create({"name": "gandance", 3: 1.5})


class Thing:
    pass


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("1.5", float, 1.5),
        (2, float, 2.0),
        ("4", int, 4),
        (4.0, int, 4),
        ("1e3", int, 1000),
        (2**60 + 1, int, 2**60 + 1),
        ("true", bool, True),
        (False, bool, False),
        (0.5, str, "0.5"),
        ("none", float | None, None),
        (None, str | None, None),
        ("3", int | None, 3),
        ("1:0.5,0", tuple[float, ...], (1.0, 0.5, 0.0)),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ("0-4", tuple[int, int], (0, 4)),
        ([1, 3], tuple[int, int] | None, (1, 3)),
        ("3, 5", tuple[int, ...], (3, 5)),
        ("a,b", tuple[str, ...], ("a", "b")),
        (" 1", float, 1.0),
        ("1e-1", float, 0.1),
        (".5", float, 0.5),
        ("-3.", float, -3.0),
        ("$HOME/a", str, os.path.expanduser("~/a")),
        ("~/a", str | None, os.path.expanduser("~/a")),
        ("gandance:scale=2", Thing, Spec("gandance", {"scale": "2"})),
    ],
)
def test_values_become_what_the_annotation_says(value: Any, kind: Any, expected: Any) -> None:
    converted = convert("x", value, kind)
    assert converted == expected
    assert type(converted) is type(expected)


def test_an_instance_stays_what_it_is() -> None:
    thing = Thing()
    assert convert("x", thing, Thing) is thing


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("much", float, "x must be a number, found 'much'"),
        (True, float, "x must be a number, found True"),
        ("2.5", int, "x must be a whole number, found '2.5'"),
        ("inf", int, "x must be a whole number"),
        ("yes", bool, "x must be true or false"),
        ([], bool, "x must be true or false"),
        ("1:x", tuple[float, ...], "x must be numbers such as 1:0.5:0"),
        ("2", tuple[int, int], "x must be two whole numbers such as 0-4"),
        (None, int, "x must be a whole number, found None"),
        (3, Thing, "x must be a name or a mapping with a name"),
        ("1_000", float, "x must be a number, found '1_000'"),
        ("1_000", int, "x must be a whole number, found '1_000'"),
        ("0x10", int, "x must be a whole number, found '0x10'"),
        ("\uff11", float, "x must be a number"),
        ("1e400", float, "x must be a number, found '1e400'"),
        ("nan", float, "x must be a finite number, found 'nan'"),
        (float("inf"), float, "x must be a finite number, found inf"),
        ("-Infinity", float | None, "x must be a finite number, found '-Infinity'"),
        (float("nan"), int, "x must be a whole number, found nan"),
        (10**400, float, "x must be a number, found 1000"),
        ("9" * 5000, int, "x must be a whole number, found '9999"),
        ("", float, "x must be a number, found ''"),
        ("", str, "x must be text, found ''"),
        ([], str, "x must be text, found []"),
        ({}, str, "x must be text, found {}"),
        ({"a": 1}, tuple[float, ...], "x must be numbers such as 1:0.5:0, found {'a': 1}"),
        (3, tuple[float, ...], "x must be numbers such as 1:0.5:0, found 3"),
        ("1,,2", tuple[int, ...], "x must be a list of whole numbers"),
        ("1:nan", tuple[float, ...], "x must be numbers"),
        ([1.5, 3], tuple[int, int], "x must be two whole numbers such as 0-4, found [1.5, 3]"),
        ("1-2-3", tuple[int, int], "x must be two whole numbers"),
    ],
)
def test_values_that_do_not_fit_are_refused(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        convert("x", value, kind)
    assert message in str(error.value)


def test_errors_quote_the_start_of_what_was_found() -> None:
    with pytest.raises(UserError) as error:
        convert("x", ["a" * 10**6] * 10**3, float)
    assert len(str(error.value)) < 600


def stack(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"name": "plain"}
    for _ in range(depth):
        inner = {"name": "ddls", "base": inner}
    return inner


def test_stacks_are_of_a_few_things() -> None:
    text = "ddls:" + ",".join(f"{'.'.join(['base'] * i)}=ddls" for i in range(1, 4))
    assert Spec.parse(text).options["base"] == {"name": "ddls", "base": "ddls", "base.base": "ddls"}
    assert Spec.parse(stack(3)).options["base"]["base"]["base"] == {"name": "plain"}
    endless: dict[str, Any] = {"name": "ddls"}
    endless["base"] = endless
    for form in (
        stack(5),
        stack(2000),
        endless,
        text + "," + ".".join(["base"] * 5) + "=ddls",
        "a:" + "b." * 2000 + "c=1",
    ):
        with pytest.raises(UserError, match="is about a stack of more than 4 things"):
            Spec.parse(form)


@pytest.mark.parametrize("form", ["ddls:steps=5,steps=6", "ddls:steps", "ddls:=5", ":steps=5", "ddls:"])
def test_an_option_stands_once_in_a_text(form: str) -> None:
    with pytest.raises(UserError, match="it must be a name or a mapping"):
        Spec.parse(form)


@pytest.mark.parametrize("items", [("a=1", "a=2"), ("a",), ("=1",), ("a=",), ("",)])
def test_pairs_have_a_key_and_a_value_each_once(items: tuple[str, ...]) -> None:
    assert parse_pairs(("a=1", "b=x=y"), "-o", "key=value") == {"a": "1", "b": "x=y"}
    with pytest.raises(UserError, match="-o takes key=value, each option once, found '"):
        parse_pairs(items, "-o", "key=value")


KINDS = (bool, int, float, str, int | None, float | None, tuple[int, int], tuple[float, ...], tuple[str, ...], Thing)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.text("01.-+e:,_ nai", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@hypothesis.settings(max_examples=60, derandomize=True, deadline=None)
@hypothesis.given(VALUES)
def test_any_value_is_of_its_kind_or_refused(value: Any) -> None:
    for kind in KINDS:
        converted = outcome(value, kind)
        if converted is not None and kind is not Thing:
            check_type("x", converted, kind if kind != tuple[int, int] else tuple[int, ...])
        if isinstance(converted, float):
            assert math.isfinite(converted)


def outcome(value: Any, kind: Any) -> Any:
    """``value`` as a ``kind``; None where it is refused in one line."""
    try:
        return convert("x", value, kind)
    except UserError as error:
        line = str(error)
    assert "\n" not in line
    return None
