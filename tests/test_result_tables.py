"""The tables of results on the pages are those of benchmarks/results, each with its command, machine and time."""

import importlib
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
REPORT: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "report.py"))
TABLES = [
    (path, *match.group(2, 3))
    for path in REPORT["pages"](ROOT)
    for match in REPORT["MARKED"].finditer(path.read_text())
]

pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks" / "results").exists(), reason="the results are not here")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(REPORT["main"], [str(argument) for argument in arguments])


def test_the_pages_are_up_to_date() -> None:
    result = run("--check")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("text", [pytest.param(text, id=f"{path.parent.name}-{name}") for path, name, text in TABLES])
def test_each_table_names_its_command_machine_and_time(text: str) -> None:
    if text.startswith("(not measured yet"):
        pytest.skip(text.strip())
    assert re.fullmatch(r".*\(`(python|bash) benchmarks/[^`]+`.*; .+; time: .+\)", text.strip().splitlines()[-1])


def test_each_reference_row_has_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    reference = importlib.import_module("reference")
    files = {reference.file_of(Path(), name).stem for name in reference.ROWS}
    assert files <= {file for file, _ in REPORT["BY_FILE"].values()}


def test_a_changed_number_is_found_and_written_anew(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("Before\n<!-- table: gpu -->\nold\n<!-- end of table -->\nafter\n")
    assert run("--root", tmp_path, "--check").exit_code == 1
    assert "old" in page.read_text()  # only compared

    assert run("--root", tmp_path).exit_code == 0
    text = page.read_text()
    assert re.fullmatch(r"Before\n<!--.*-->\nafter\n", text, re.DOTALL)
    assert "old" not in text
    assert run("--root", tmp_path, "--check").exit_code == 0

    page.write_text(text.replace("1.0", "1.1", 1))
    assert "gpu" in run("--root", tmp_path, "--check").output


def test_an_unknown_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- table: gibberish -->\n<!-- end of table -->\n")
    result = run("--root", tmp_path)
    assert result.exit_code == 1
    assert "there is no table gibberish: reference-built-in, " in result.output


def metrics(fid: float, accuracy: float) -> dict[str, Any]:
    return {"fid": {"mean": fid, "std": 0.0}, "accuracy": {"mean": accuracy, "std": 0.0}}


def test_differences_are_those_of_the_file_in_per_cent(tmp_path: Path) -> None:
    plain = {"method": "plain", "differs": {}, "paired": {}, "metrics": metrics(50.0, 0.5), "cost": {"synthesis": 1.0}}
    paired = {"fid": {"mean": -5.0, "se": 0.5}}
    guided = {
        **plain,
        "method": "scale",
        "differs": {"scale": 1.23456},
        "paired": paired,
        "metrics": metrics(45.0, 0.625),
    }
    protocol = {"num": 1000, "num_real": 2000, "seed": [1, 2, 3]}
    facts = {"command": "python benchmarks/x.py", "machine": "none", "seconds": 240, "protocol": protocol}
    (tmp_path / "reference-resnet.json").write_text(json.dumps({**facts, "rows": [plain, guided]}))

    text = REPORT["Results"](tmp_path).table("reference-resnet")
    assert "| scale | `scale=1.23` | -10.0 ± 1.0 % | 0.625 | 1 G |" in text
    assert "| plain | | 50 | 0.500 | 1 G |" in text
    assert "1,000 images against 2,000, 3 ranges of seeds. (`python benchmarks/x.py`; none; time: 4 minutes)" in text
