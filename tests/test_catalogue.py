"""Tables that pages show are those of the code, and names that two things share are told apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from studiogan_guidance import catalogue
from studiogan_guidance.config import RunConfig, read
from studiogan_guidance.samplers import SAMPLERS

PAGES = {
    "summary": "README.md",
    "samplers": "studiogan_guidance/samplers/README.md",
    "keys": "configs/README.md",
    "shims": "studiogan_guidance/host/README.md",
}


def cells(table: str) -> list[list[str]]:
    """The cells of a table's rows, without the headings."""
    return [line[2:-2].split(" | ") for line in catalogue.as_markdown(table).splitlines()[2:]]


@pytest.mark.parametrize("table", PAGES)
def test_the_page_shows_the_table_of_today(root: Path, table: str) -> None:
    text = (root / PAGES[table]).read_text()
    wanted = f"\n{catalogue.as_markdown(table)}\n"
    assert wanted in text, f"put the output of 'studiogan-guidance list --markdown {table}' into {PAGES[table]}"


def test_the_summary_is_every_sampler_without_its_paper() -> None:
    assert [name for name, *_ in cells("summary")] == [f"`{entry.name}`" for entry in SAMPLERS]
    assert [[name, text, needs, neutral] for name, text, _, needs, neutral in cells("samplers")] == cells("summary")


def test_the_keys_are_those_that_a_file_may_have(tmp_path: Path) -> None:
    """Each default, as the table shows it, is one of a file; what is found by itself has none."""
    fields = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    rows = {key.strip("`"): (default, text) for key, default, text in cells("keys")}
    assert list(rows) == [name for name in fields if name not in ("host", "options")]

    # A file of all defaults reads as the defaults.
    shown = {key: default.strip("`") for key, (default, _) in rows.items() if default != "-"}
    words = {key: f"[{text}]" if isinstance(fields[key], tuple) else text for key, text in shown.items()}
    file = tmp_path / "all.yaml"
    file.write_text("".join(f"{key}: {text}\n" for key, text in words.items()))
    values = read(file)
    assert {key: values[key] for key in shown if key != "sampler"} == {
        key: fields[key] for key in shown if key != "sampler"
    }
    assert values["sampler"] == {"name": fields["sampler"]}
    assert {fields[key] for key in rows.keys() - shown.keys()} == {None, ()}

    # Every key is told about in more than its name.
    assert all(len(text) > 15 and text.endswith(".") for _, text in rows.values())


@pytest.mark.parametrize(("name", "also"), [("frechet", "parts:"), ("latent_reweighting", "pool:")])
def test_the_documentation_of_a_shared_name_is_that_of_the_stage_too(name: str, also: str) -> None:
    text = catalogue.documentation(name)
    assert text.count(f"{name}: ") >= 2
    assert f"\n    {also} " in text


def test_the_yaml_files_in_the_pages_are_configurations(root: Path, tmp_path: Path) -> None:
    pages = [root / "README.md", *root.glob("*/README.md"), *(root / "studiogan_guidance").rglob("*.md")]
    blocks = [block.partition("```")[0] for page in pages for block in page.read_text().split("```yaml\n")[1:]]
    assert len(blocks) >= 3
    for index, block in enumerate(blocks):
        file = tmp_path / f"{index}.yaml"
        file.write_text(block)
        assert read(file).keys() >= yaml.safe_load(block).keys()
