"""Importing the package is cheap, and every module is within reach by its dotted name."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

import studiogan_guidance

ROOMS = sorted(path.parent.name for path in Path(studiogan_guidance.__file__).parent.glob("*/__init__.py"))


def run(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, check=False, capture_output=True, text=True)


def test_the_paths_of_the_readme_work_after_one_import() -> None:
    paths = ("evaluation.fid", "evaluation.prdc", "evaluation.kid", "host.networks", "host.locate", "rng.generators")
    done = run("import studiogan_guidance as g; " + "; ".join(f"g.{path}" for path in paths))
    assert done.returncode == 0, done.stderr
    done = run("from studiogan_guidance import evaluation; evaluation.fid.frechet_distance")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ["evaluation", "host", "critics", "features", "plugin"])
def test_a_room_imports_nothing_until_it_is_used(room: str) -> None:
    done = run(f"import sys, studiogan_guidance.{room}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_a_name_that_is_missing_is_an_attribute_error(room: str) -> None:
    module = getattr(studiogan_guidance, room)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = module.no_such_name
    assert not hasattr(studiogan_guidance, "no_such_name")


def test_what_a_module_lacks_is_not_taken_for_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "__init__.py").write_text(
        "from studiogan_guidance import submodules\n__getattr__ = submodules(__name__)\n"
    )
    (tmp_path / "room" / "desk.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    import room  # type: ignore[import-not-found]

    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        _ = room.desk


def test_imports_point_down_the_layers(root: Path) -> None:
    pytest.importorskip("importlinter")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_module_has_a_layer(root: Path) -> None:
    """import-linter says nothing about a module that the contract does not name."""
    contracts = configparser.ConfigParser()
    contracts.read(root / "setup.cfg")
    layers = contracts["importlinter:contract:layers"]["layers"].replace("|", "\n").split()

    package = root / "studiogan_guidance"
    files = [path.relative_to(root).with_suffix("") for path in package.rglob("*.py")]
    modules = {".".join(file.parts).removesuffix(".__init__") for file in files}
    parents = {layer.rpartition(".")[0] for layer in layers}
    homeless = [name for name in modules - parents if not any(f"{name}.".startswith(f"{layer}.") for layer in layers)]
    assert homeless == []


def test_every_folder_of_modules_is_installed(root: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    installed = set(setup["options"]["packages"].split()) - {"studiogan_guidance.configs"}
    folders = (path.parent.relative_to(root) for path in (root / "studiogan_guidance").rglob("__init__.py"))
    assert installed == {".".join(folder.parts) for folder in folders}


@pytest.fixture(scope="module")
def released(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, source archive), built from a copy of the tree, in which also lies what no release may hold."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("release")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("studiogan_guidance", "configs"):
        shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [path for path in root.iterdir() if path.is_file() and not path.name.startswith(".")]:
        shutil.copy(path, tree)
    for name in ("tests/test_a.py", "benchmarks/a.py", "runs/results.jsonl", "studiogan_guidance/__pycache__/a.pyc"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).touch()

    # The wheel first: what it is made of must not depend on the archive's list of files.
    made = run("from setuptools import build_meta as b; b.build_wheel('..'); b.build_sdist('..')", tree)
    assert made.returncode == 0, made.stderr
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def test_the_wheel_holds_every_file_of_the_package_but_its_pages(root: Path, released: tuple[Path, Path]) -> None:
    files = [path for path in (root / "studiogan_guidance").rglob("*") if path.is_file()]
    files = [path for path in files if path.suffix not in (".md", ".pyc")]
    expected = {str(path.relative_to(root)) for path in files}
    expected |= {f"studiogan_guidance/{path.relative_to(root)}" for path in (root / "configs").rglob("*.yaml")}

    with zipfile.ZipFile(released[0]) as wheel:
        found = set(wheel.namelist())
    assert {name for name in found if ".dist-info/" not in name} == expected
    assert "studiogan_guidance/py.typed" in expected
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in found if "/licenses/" in name}


def test_the_description_of_the_wheel_needs_no_clone(released: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(released[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(wheel.read(name))
    text = metadata.get_payload()
    assert isinstance(text, str)
    assert metadata["Version"] == studiogan_guidance.__version__
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert text.startswith("# studiogan-guidance\n")
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets
    assert all(target.startswith("https://") for target in targets)


def test_the_source_archive_holds_what_builds_and_explains_it_and_no_tests(released: tuple[Path, Path]) -> None:
    with tarfile.open(released[1]) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "pyproject.toml"} <= found
    assert {"setup.cfg", "setup.py", "configs/builtin-gandance.yaml", "studiogan_guidance/py.typed"} <= found
    assert not [name for name in found if name.startswith(("tests", "benchmarks", "runs")) or name.endswith(".pyc")]


def test_one_version_everywhere(root: Path) -> None:
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert citation["version"] == studiogan_guidance.__version__
    newest = re.findall(r"^## \[?([^\]\s]+)", (root / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest in ("Unreleased", studiogan_guidance.__version__)
