"""Importing the package is cheap, and every module is within reach by its dotted name."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import studiogan_guidance

ROOMS = sorted(path.parent.name for path in Path(studiogan_guidance.__file__).parent.glob("*/__init__.py"))


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)


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
