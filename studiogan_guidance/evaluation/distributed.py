"""The processes that torchrun started, as one group: the rank of this one, and what it exchanges with the others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """``rank`` of ``size`` processes; a process by itself is rank 0 of 1."""

    rank: int = 0
    size: int = 1

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the order of their ranks, on rank 0; an empty list elsewhere."""
        if self.size == 1:
            return [value]
        import torch.distributed

        values: list[T] | None = [value] * self.size if self.rank == 0 else None
        torch.distributed.gather_object(value, values)
        return values or []

    def agree(self, answer: T) -> T:
        """The answer of rank 0, in every process."""
        if self.size == 1:
            return answer
        import torch.distributed

        answers = [answer]
        torch.distributed.broadcast_object_list(answers)
        return answers[0]

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place."""
        if self.size == 1:
            return
        import torch.distributed

        device = "cpu" if torch.distributed.get_backend() == "gloo" else "cuda"
        for tensor in tensors:
            total = tensor.detach().to(device)
            torch.distributed.all_reduce(total)
            tensor.copy_(total / self.size)


@contextmanager
def group() -> Iterator[Group]:
    """Join the processes of torchrun for the time of a with-block; objects travel through the CPU (gloo).

    A process that torchrun has not started is a group of its own.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return

    import torch.distributed

    # The others wait while rank 0 computes metrics, which may take long.
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=1))
    try:
        yield Group(torch.distributed.get_rank(), size)
    finally:
        torch.distributed.destroy_process_group()
