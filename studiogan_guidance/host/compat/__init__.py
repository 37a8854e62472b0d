"""One named shim per incompatibility between the host and today's libraries, machines without a GPU included.

A shim never changes a number: it supplies what was removed, with the behaviour that the host expects. ``SHIMS`` are on
whenever the host is entered; ``RUN_SHIMS``, which reach into the host's own training and evaluation, are on while
``hooks.register`` is. Importing the five modules below fills both tables, in the order in which shims are switched on.
"""

from studiogan_guidance.host.compat.libraries import ALLOWED

# isort: split
from studiogan_guidance.host.compat import kept  # noqa: F401

# isort: split
from studiogan_guidance.host.compat import faults  # noqa: F401

# isort: split
from studiogan_guidance.host.compat.plugins import PLUGINS, compile_plugins

# isort: split
from studiogan_guidance.host.compat.cpu import CpuRank
from studiogan_guidance.host.compat.table import RUN_SHIMS, SHIMS, Shim, active

__all__ = [
    "ALLOWED",
    "PLUGINS",
    "RUN_SHIMS",
    "SHIMS",
    "CpuRank",
    "Shim",
    "active",
    "compile_plugins",
]
