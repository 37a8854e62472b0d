"""The blocks of a generator that read its code through conditional batch norms, each with a code of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NORM = "ConditionalBatchNorm2d"


class ConditionalBlocks:
    """The conditional blocks of a generator, coarse to fine: modules that hold conditional batch norms themselves.

    A norm is linear in its condition y = [InfoGAN's projection, code, noise] (gain 1 + Wy, bias Vy), of which only the
    code is replaced. BigGAN-deep gives y to its first layer, too: there, that layer is block 0.

    Args:
        generator: of the host.
        width: numbers of a code, D.
    """

    def __init__(self, generator: nn.Module, width: int) -> None:
        # Norms by the module that holds them.
        groups: dict[str, list[nn.Module]] = {}
        for name, module in generator.named_modules():
            if type(module).__name__ == NORM:
                groups.setdefault(name.rpartition(".")[0], []).append(module)
        self._readers = list(groups.values())

        # A first layer that reads as much as they do.
        first = getattr(generator, "linear0", None)
        widths = {getattr(norm, "in_features", None) for norms in self._readers for norm in norms}
        reads_noise = hasattr(generator, "shared")  # y of the others is the label alone
        if isinstance(first, nn.Linear) and reads_noise and widths == {first.in_features}:
            self._readers.insert(0, [first])

        projection: Any = getattr(generator, "info_proj_linear", None)
        start = 0 if projection is None else int(projection.out_features)
        self._code = slice(start, start + width)

    def __len__(self) -> int:
        return len(self._readers)

    @contextmanager
    def given(self, codes: Tensor) -> Iterator[None]:
        """Inside the with-block, block l reads ``codes[:, l]``, of [B, blocks, D], in place of the code in y."""
        handles = []
        try:
            for readers, code in zip(self._readers, codes.unbind(1)):
                hook = self._put(code)
                handles += [reader.register_forward_pre_hook(hook) for reader in readers]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _put(self, code: Tensor) -> Any:
        """A hook that puts ``code`` [B, D] into y [B, Y], the last argument of a module; norms of a block share it."""
        known: list[Tensor] = []

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            *others, y = args
            if not (known and known[0] is y):
                parts = [y[:, : self._code.start], code, y[:, self._code.stop :]]
                filled = [part for part in parts if part.shape[1]]
                known[:] = [y, filled[0] if len(filled) == 1 else torch.cat(filled, 1)]
            return (*others, known[1])

        return hook
