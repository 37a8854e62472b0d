"""The sampler on the page CONTRIBUTING.md, as the package of somebody else: it is found, and keeps the contract."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import contract
import pytest
import torch
from conftest import TOLERANCES, ToyGAN, ok
from contract import draw, keeps_the_contract

from studiogan_guidance import builtin, samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import LabelPlan, LatentView, view_for
from studiogan_guidance.samplers import SAMPLERS

PAGE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's module and the entry point of its pyproject.toml where Python finds packages, as pip leaves them."""
    group, name, value = re.findall(r'\[project\.entry-points\."(.*)"\]\n(\w+) = "(\w+)"', block("toml"))[0]
    (tmp_path / f"{value}.py").write_text(block("python"))
    info = tmp_path / "studiogan_blend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: studiogan-blend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(tmp_path)

    # Other packages are looked for anew.
    own = {entry.name: entry for entry in SAMPLERS if entry.target.__module__.startswith("studiogan_guidance.")}
    monkeypatch.setattr(SAMPLERS, "_entries", own)
    monkeypatch.setattr(SAMPLERS, "_group", "studiogan_guidance.samplers")
    monkeypatch.setitem(contract.REAL, "blend", {"other": 3})
    monkeypatch.delitem(sys.modules, value, raising=False)
    yield
    sys.modules.pop(value, None)


def test_it_is_30_lines_and_listed_like_all_others() -> None:
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 30
    (row,) = [row for row in ok("list")["samplers"] if row["name"] == "blend"]
    assert row["options"] == {"other": 0, "share": 0.5}
    assert row["needs"] == ["classes"]


def test_it_keeps_the_contract_and_is_plain_at_its_neutral_option() -> None:
    view = view_for(builtin.networks())
    assert keeps_the_contract(view, "blend", TOLERANCES["cpu"].chain) is None
    plain = draw(view, "plain", {}, range(4), 4)
    assert torch.equal(draw(view, "blend", {"share": 0, "other": 3}, range(4), 4), plain)
    assert samplers.create("blend", {"share": 0}).neutral


def test_images_are_of_the_mixed_codes(toy: ToyGAN, toy_view: LatentView) -> None:
    """The toy's image of a code is the code: mean + a(z) + b + i(z, c), each of them mixed."""
    images = draw(toy_view, "blend", {"other": 2, "share": 0.25}, range(6), 6)
    inputs = toy_view.draw(range(6), 0, LabelPlan())
    (noise, of, both), (_, other, with_other) = (
        toy.parts(inputs.z, labels) for labels in (inputs.labels, torch.full_like(inputs.labels, 2))
    )
    expected = toy.mean + noise + 0.75 * (of + both) + 0.25 * (other + with_other)
    torch.testing.assert_close(images.flatten(1), expected)
    with pytest.raises(UserError, match="blend.other is 5: give a class from 0 to 4"):
        draw(toy_view, "blend", {"other": 5}, range(2), 2)
