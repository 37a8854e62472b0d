from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from pathlib import Path

import pytest

from studiogan_guidance.errors import UserError
from studiogan_guidance.host import compat
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout


@pytest.mark.studiogan
def test_bare_names_exist_inside_only_and_strangers_come_back(checkout: Checkout) -> None:
    mine = types.ModuleType("utils")
    sys.modules["utils"] = mine
    try:
        path, names = list(sys.path), set(sys.modules)
        with inside(checkout):
            first = module("utils.sample")
            assert first.__file__.startswith(str(checkout.path))
            with inside(checkout):
                assert module("utils.sample") is first
            assert module("models.model").misc is module("utils.misc")
        assert sys.modules["utils"] is mine
        assert sys.path == path
        new = {name.partition(".")[0] for name in set(sys.modules) - names}
        assert not new & {"config", "utils", "models", "metrics", "data_util", "sync_batchnorm", "pkg_resources"}
        with inside(checkout):
            assert module("utils.sample") is first  # not imported twice
    finally:
        del sys.modules["utils"]


@pytest.mark.studiogan
def test_an_error_inside_still_leaves_the_host(checkout: Checkout) -> None:
    path = list(sys.path)
    with pytest.raises(KeyError), inside(checkout):
        module("utils.misc")
        raise KeyError
    assert sys.path == path
    assert "utils" not in sys.modules


@pytest.mark.studiogan
@pytest.mark.skipif(importlib.util.find_spec("pkg_resources") is not None, reason="setuptools still has pkg_resources")
def test_without_its_shim_the_host_does_not_import(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    from studiogan_guidance.host import imports
    from studiogan_guidance.host.compat import table

    monkeypatch.setattr(table, "SHIMS", [shim for shim in compat.SHIMS if shim.name != "pkg_resources"])
    monkeypatch.setattr(imports, "_LOADED", {})
    with inside(checkout), pytest.raises(Exception, match="pkg_resources"):
        module("utils.style_ops.conv2d_gradfix")


@pytest.mark.studiogan
def test_the_sqrtm_shim_returns_what_old_scipy_did() -> None:
    import numpy as np
    import scipy.linalg

    original = scipy.linalg.sqrtm
    shim = next(shim for shim in compat.SHIMS if shim.name == "sqrtm_disp")
    with shim.apply():
        root, error = scipy.linalg.sqrtm(np.diag([4.0, 9.0]), disp=False)
        assert np.isnan(error)
        np.testing.assert_allclose(root, np.diag([2.0, 3.0]))
        np.testing.assert_allclose(scipy.linalg.sqrtm(np.eye(2)), np.eye(2))
    assert scipy.linalg.sqrtm is original


def test_without_the_extra_shims_stay_off_and_the_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "needy.py").write_text("import no_such_package")
    with (
        inside(Checkout(tmp_path, None)),
        pytest.raises(
            UserError, match=r"the host needs the package 'no_such_package'.*see 'studiogan-guidance doctor'"
        ),
    ):
        module("needy")


def test_filters_of_warnings_are_back_afterwards() -> None:
    assert "filters" in {shim.name for shim in compat.SHIMS}
    before = list(warnings.filters)
    with compat.active():
        warnings.filterwarnings("ignore")
    assert list(warnings.filters) == before
