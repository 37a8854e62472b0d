import pytest

from studiogan_guidance.common import UserError
from studiogan_guidance.registry import Registry


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
