from __future__ import annotations

from typing import Any

import pytest

from studiogan_guidance import options, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.options import Spec, convert


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
    ],
)
def test_values_that_do_not_fit_are_refused(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        convert("x", value, kind)
    assert message in str(error.value)
