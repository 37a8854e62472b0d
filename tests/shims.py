"""What tests of the shims have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from studiogan_guidance.host.compat import RUN_SHIMS, Shim

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what breaks without a GPU")


def shim(name: str) -> Shim:
    return next(shim for shim in RUN_SHIMS if shim.name == name)


def breaks_without(name: str, call: Callable[[], Any], error: type[BaseException], match: str) -> Any:
    """The call fails as the table says; with the shim it gives what is returned; afterwards it fails again."""
    found = shim(name)
    assert found.needed()
    with pytest.raises(error, match=match):
        call()
    with found.apply():
        result = call()
    with pytest.raises(error, match=match):
        call()
    return result
