"""What any verb needs of PyTorch-StudioGAN (the host): find a checkout, enter it, load from it, leave it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studiogan_guidance import submodules


def register() -> None:
    """Teach the host, whose ``src`` folder must be importable, the keys ``sampler``, ``stages`` and ``restat``.

    From then on its evaluations use the sampler of the YAML, its training loop is followed by the stages, and every
    incompatibility with today's libraries is mended. A second call does nothing; see ``hooks``.
    """
    from studiogan_guidance.plugin import hooks

    hooks.register()


def unregister() -> None:
    """Put back everything that ``register`` changed in the host's modules."""
    from studiogan_guidance.plugin import hooks

    hooks.unregister()


if not TYPE_CHECKING:  # where types are checked, a name that is missing is an error
    __getattr__ = submodules(__name__)
