"""Batches: halves of them where memory runs out, and numbers that are read later."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

from studiogan_guidance.errors import UserError, one_line, say

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
S = TypeVar("S", bound="Sliceable")


# What errors of torch and of the libraries under it say where memory runs out; some name another cause.
OUT_OF_MEMORY = (
    "out of memory",
    "alloc_failed",  # cuBLAS, cuDNN, cuFFT, cuSOLVER
    "cublascreate",
    "cudnn_status_not_supported",
    "unable to find an engine to execute",
    "defaultcpuallocator:",
    "bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU; torch has several types for it.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("other"))
        (True, False)
    """
    torch = sys.modules.get("torch")
    if torch is None:  # then no error is one of torch's
        return isinstance(error, MemoryError)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, torch.jit.Error)) and any(words in text for words in OUT_OF_MEMORY)


class Sliceable(Protocol):
    """What can be cut into batches: a tensor, a range, a list."""

    def __len__(self) -> int: ...
    def __getitem__(self: S, part: slice, /) -> S: ...


class Halving:
    """Calls a function on whole batches and, once memory runs out, on halves; the size that fits is remembered.

    Example:
        >>> halving = Halving()
        >>> list(halving(sum, range(4)))
        [6]
    """

    def __init__(self) -> None:
        self.size = sys.maxsize

    def __call__(self, function: Callable[[S], T], batch: S) -> Iterator[T]:
        """Yield what ``function`` returns for ``batch``, or for its parts in turn.

        Raises:
            UserError: a single item does not fit.
        """
        import torch

        start = 0
        while start < len(batch):
            part = batch[start : start + self.size]
            fits = True
            try:
                result = function(part)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise UserError(
                        f"out of memory with one image at a time ({one_line(error, 120)}): end what else "
                        "uses the GPU, or use --device cpu"
                    ) from error
                fits = False

            # Retry with half, outside of the except clause, where the traceback would keep the tensors alive.
            if not fits:
                self.size = (len(part) + 1) // 2
                torch.cuda.empty_cache()
                say(f"out of memory with {len(part)} images at a time: continuing with {self.size}")
                continue

            yield result
            start += len(part)


class Later:
    """A number on its way from a GPU to the CPU: whoever made it need not wait for it, whoever reads it does.

    Args:
        scalar: a tensor of one number, on any device.
    """

    def __init__(self, scalar: Tensor) -> None:
        import torch

        self._copy = scalar.detach().to("cpu", non_blocking=True)
        self._arrival = None
        if scalar.is_cuda:
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(scalar.device))

    def value(self) -> float:
        """The number."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return float(self._copy)
