import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from studiogan_guidance import options
from studiogan_guidance.errors import UserError
from studiogan_guidance.options import Spec
from studiogan_guidance.registry import Entry, Registry
from studiogan_guidance.samplers import SAMPLERS
from studiogan_guidance.training import STAGES


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


NOTHING = Spec("nothing")


def test_a_key_with_a_dot_is_an_option_of_what_the_option_names() -> None:
    @dataclass(frozen=True)
    class Thing:
        under: Spec = NOTHING

    registry: Registry[type[Thing]] = Registry("thing")
    registry.register("thing", "", "")(Thing)
    assert registry.create("thing", {"under": "rug", "under.depth": "3"}).under == Spec("rug", {"depth": "3"})
    assert registry.create("thing", {"under.depth": "3", "under": {"name": "rug", "depth": 1}}).under.options == {
        "depth": "3"
    }
    with pytest.raises(UserError, match="thing.under must be a name or a mapping with a name"):
        registry.create("thing", {"under.depth": "3"})


def test_entries_come_in_the_order_of_families_then_of_registration() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("stranger", "", "")(0)
    registry.register("chosen", "", "", family="pool")(1)
    registry.register("second", "", "", family="code", needs=("w",), neutral={"scale": 1})(2)
    registry.register("first", "", "", family="code")(3)
    assert [entry.name for entry in registry] == ["second", "first", "chosen", "stranger"]
    entry = registry["second"]
    assert (entry.family, entry.needs, entry.neutral) == ("code", ("w",), {"scale": 1})
    assert (registry["first"].needs, registry["first"].neutral) == ((), None)
    with pytest.raises(ValueError, match="the family of 'x' is 'codes': did you mean 'code'"):
        registry.register("x", "", "", family="codes")
    with pytest.raises(ValueError, match="the needs of 'x' have 'gradients': did you mean 'gradient'"):
        registry.register("x", "", "", needs=("gradients",))


def test_entries_are_arranged_by_a_list_that_must_be_whole() -> None:
    registry: Registry[int] = Registry("number")
    for value, name in enumerate(("two", "three", "one")):
        registry.register(name, "", "")(value)
    registry.arrange("one", "two", "three")
    assert [entry.name for entry in registry] == ["one", "two", "three"]
    with pytest.raises(KeyError, match="four"):
        registry.arrange("one", "two", "three", "four")
    registry = Registry("number")
    registry.register("one", "", "")(1)
    registry.register("two", "", "")(2)
    with pytest.raises(KeyError, match="no place for two"):
        registry.arrange("one")


def test_a_thing_is_created_from_any_form_of_its_spec() -> None:
    @dataclass(frozen=True)
    class Thing:
        size: int = 1
        weights: tuple[float, ...] | None = None

    registry: Registry[type[Thing]] = Registry("thing")
    registry.register("thing", "", "")(Thing)
    assert registry.create("thing") == Thing()
    assert registry.create("thing:size=2,weights=1:2") == Thing(2, (1.0, 2.0))
    assert registry.create({"name": "thing", "size": 2.0}, {"weights": [1, 2]}) == Thing(2, (1.0, 2.0))
    assert registry.create(options.Spec("thing", {"size": "2"}), {"size": 3}) == Thing(3)


class Point:
    """An entry point whose module fails, or not."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.value, self.error = name, f"{name}_module", error
        self.dist = type("Distribution", (), {"name": f"{name}-package", "version": "1.0"})

    def load(self) -> None:
        if self.error:
            raise self.error


def test_a_package_that_fails_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[int] = Registry("number", "some.group")
    registry.register("one", "", "")(1)
    good = Point("two")
    monkeypatch.setattr(good, "load", lambda: registry.register("two", "", "")(2))
    points = [Point("three", ImportError("No module named 'abacus'\nsecond line")), good]
    monkeypatch.setattr("studiogan_guidance.registry.entry_points", lambda group: points)
    assert [entry.name for entry in registry] == ["one", "two"]
    reason = "cannot import number 'three' of three-package 1.0 .entry point three_module: ImportError: No module named"
    for _ in range(2):  # not only the first time
        with pytest.raises(UserError, match=f"^{reason}") as error:
            registry["three"]
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match=f"unknown number 'thrice': .*; {reason}"):
            registry["thrice"]
    assert len(registry.broken()) == 1


@pytest.mark.parametrize("entry", list(SAMPLERS), ids=lambda entry: entry.name)
def test_whole_numbers_of_every_sampler_have_an_end(entry: Entry[Any]) -> None:
    hints = typing.get_type_hints(entry.target)
    for field in dataclasses.fields(entry.target):
        if hints[field.name] in (int, int | None) and field.init:
            for value in (10**9, 1e12, "1e12", "9" * 30):
                with pytest.raises(UserError, match=rf"^{entry.name}\.{field.name} must be (at most|a whole number)"):
                    SAMPLERS.create(entry.name, {field.name: value})


TEXTS = st.text(max_size=6) | st.text("0123456789.-+eE:,_ nainfb", max_size=6) | st.sampled_from(
    ["none", "true", "1e400", "1_000", "plain", "ddls", "gandance:scale=2", "~", "$HOME", "0-4", "1:0.5"]
)  # fmt: skip


@pytest.mark.parametrize("entry", [*SAMPLERS, *STAGES], ids=lambda entry: entry.name)
@hypothesis.settings(max_examples=40, derandomize=True, deadline=None)
@hypothesis.given(data=st.data())
def test_any_texts_of_options_make_an_instance_or_a_sentence(entry: Entry[Any], data: st.DataObject) -> None:
    names = [field.name for field in dataclasses.fields(entry.target) if field.init]
    keys = st.sampled_from([*names, "base.base", "base.scale", "a", "scale.b"])
    options = data.draw(st.dictionaries(keys, TEXTS, max_size=4))
    registry = SAMPLERS if entry in list(SAMPLERS) else STAGES
    try:
        made = registry.create(entry.name, options)
    except UserError as error:
        line = str(error)
    else:
        line = ""
        assert isinstance(made, entry.target)
    assert "\n" not in line
    assert len(line) < 1500


def test_numbers_of_other_packages_have_no_end_of_ours() -> None:
    @dataclass(frozen=True)
    class Foreign:
        seed: int = 0

    registry: Registry[type[Foreign]] = Registry("sampler")
    registry.register("foreign", "", "")(Foreign)
    assert registry.create("foreign", {"seed": 2**40}) == Foreign(2**40)
