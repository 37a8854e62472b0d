"""The ledger of a generator: passes through its networks, and time, per image and for what serves all images."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Ledger:
    """What sampling has cost so far. All views of one generator write into the same ledger.

    Attributes:
        cost: number of latents, codes or images that went through each network on behalf of single images:
            ``mapping``, ``synthesis``, ``discriminator``, ``joint``, ``weights``, ``backward``.
        setup: the same for what is computed once and serves all images.
        setup_seconds: wall-clock time that this took.
        device: where the networks run; before the time is read, a GPU finishes what it was asked to do.
    """

    cost: Counter[str] = field(default_factory=Counter)
    setup: Counter[str] = field(default_factory=Counter)
    setup_seconds: float = 0.0
    device: torch.device | None = None

    @contextmanager
    def setting_up(self) -> Iterator[None]:
        """Passes inside the with-block count in ``setup``, not in ``cost``. Blocks may be nested."""
        cost = self.cost.copy()
        seconds = self.setup_seconds
        started = self._now()
        yield

        self.setup.update(self.cost - cost)
        self.cost.clear()
        self.cost.update(cost)
        # The time of nested blocks is part of this one's.
        self.setup_seconds = seconds + self._now() - started

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Passes inside the with-block are not counted."""
        before = self.cost.copy()
        try:
            yield
        finally:
            self.cost.clear()
            self.cost.update(before)

    def _now(self) -> float:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
