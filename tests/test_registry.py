from dataclasses import dataclass

import pytest

from studiogan_guidance.errors import UserError
from studiogan_guidance.registry import Registry, Spec


def test_a_name_can_be_used_once() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("one", "the first", "Euclid")(1)
    with pytest.raises(ValueError, match="a number named 'one' is registered already"):
        registry.register("one", "another", "nobody")(2)
    assert registry["one"].target == 1
    assert [entry.paper for entry in registry] == ["Euclid"]


def test_an_unknown_name_lists_the_nearest_and_all() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("three", "", "")(3)
    registry.register("seven", "", "")(7)
    with pytest.raises(UserError, match=r"unknown number 'sevn': did you mean 'seven'\? known: seven, three"):
        registry["sevn"]


def test_an_alias_stands_for_a_name_and_takes_it() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("one", "", "")(1)
    registry.alias("unity", "one")
    assert registry["unity"].name == "one"
    assert [entry.name for entry in registry] == ["one"]
    with pytest.raises(ValueError, match="a number named 'unity' is registered already"):
        registry.register("unity", "", "")(2)


def test_a_key_with_a_dot_is_an_option_of_what_the_option_names() -> None:
    @dataclass(frozen=True)
    class Thing:
        under: Spec = "nothing"

    registry: Registry[type[Thing]] = Registry("thing")
    registry.register("thing", "", "")(Thing)
    assert registry.create("thing", {"under": "rug", "under.depth": "3"}).under == {"name": "rug", "depth": "3"}
    assert registry.create("thing", {"under.depth": "3", "under": {"name": "rug", "depth": 1}}).under["depth"] == "3"
    with pytest.raises(UserError, match="thing.under must be a name or a mapping with a name"):
        registry.create("thing", {"under.depth": "3"})
