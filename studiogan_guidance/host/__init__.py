"""What any verb needs of PyTorch-StudioGAN (the host): find a checkout, enter it, load from it, leave it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studiogan_guidance import submodules


def register() -> None:
    """Teach the host, whose ``src`` folder must be importable, the keys ``sampler``, ``stages`` and ``restat``.

    Afterwards its evaluations use the sampler of the YAML, the stages follow its training loop, and it runs with
    today's libraries. A second call does nothing; see ``plugin.hooks``.
    """
    from studiogan_guidance.plugin import hooks

    hooks.register()


def unregister() -> None:
    """Put back everything that ``register`` changed in the host's modules."""
    from studiogan_guidance.plugin import hooks

    hooks.unregister()


if not TYPE_CHECKING:  # where types are checked, a name that is missing is an error
    __getattr__ = submodules(__name__)
