"""Networks at a GPU's speed: in a lower precision, and as CUDA graphs of a fixed batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from studiogan_guidance.errors import one_line, say

T = TypeVar("T")
Capture = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]
State = Callable[[], Hashable | None]
WARM_UPS = 3  # passes before a capture, in which libraries choose their kernels
HALVES = ("float16", "bfloat16")
PRECISIONS = (*HALVES, "tf32", "float32")  # the fastest first, of two that are as fast the more precise one


def precisions(device: torch.device) -> tuple[str, ...]:
    """The precisions that may be faster on a device, of ``PRECISIONS``: on a CPU bfloat16, and float32 as it is."""
    return PRECISIONS if device.type == "cuda" else ("bfloat16", "float32")


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Networks run in one of ``PRECISIONS`` inside the with-block; "float32" changes nothing.

    ======== ===========================================================================================
    float16  products and convolutions in float16, 10 bits behind the point and numbers up to 65,504, by autocast
    bfloat16 the same with 7 bits, and numbers as large as in float32
    tf32     products and convolutions of float32 numbers with 10 bits behind the point
    float32  whatever the process does otherwise (as torch's default, convolutions of a GPU are in TF32)
    ======== ===========================================================================================
    """
    if name in HALVES:
        with torch.autocast(device.type, getattr(torch, name)):
            yield
    elif name == "tf32":
        with _TF32:
            yield
    else:
        yield


class _Tf32:
    """TF32 for the whole process while at least one thread is inside of it; then everything is as it was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = (False, False)

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._before


_TF32 = _Tf32()


def lowered(function: Callable[..., Any], name: str, device: torch.device) -> Callable[..., Any]:
    """``function`` of tensors under a precision; whatever it returns is float32."""

    def run(*arguments: Any) -> Any:
        with precision(name, device):
            return _mapped(function(*arguments), Tensor.float)

    return run


class Graphed:
    """A function of tensors through a CUDA graph of a fixed batch: all of its kernels are started by one call.

    Arguments are tensors [B, ...], lists of them, or None; so is what it returns. A smaller batch is filled up with
    copies of its last row, which are left out of the output. Each structure and shape of arguments has a graph of its
    own. The function runs as it is

    - where gradients are enabled, and under the transforms of functorch;
    - for batches larger than the graph's, or at most half as large;
    - where ``state`` is None;
    - from the moment that a capture fails, which is told on stderr.

    Args:
        function: it must do the same for arguments of the same structure and shape.
        size: B of the graph.
        capture: runs a function of nothing and returns its output, and a function that computes it anew in the same
            memory; None: there are no graphs.
        state: what else the function reads: a graph holds for one value, and is captured anew for another.
        what: the name of the function, for the message.
    """

    def __init__(
        self, function: Callable[..., Any], size: int, capture: Capture | None, state: State = tuple, what: str = ""
    ) -> None:
        self.function = function
        self.size = size
        self.state = state
        self.what = what
        self._capture = capture
        self._graphs: dict[Hashable, _Graph] = {}

    def __call__(self, *arguments: Any) -> Any:
        graph = self._graph(arguments)
        if graph is None:
            return self.function(*arguments)

        # Fill the memory that the graph reads.
        count = _count(arguments)
        for buffer, given in zip(_tensors(graph.inputs), _tensors(arguments)):
            buffer[:count].copy_(given)
            buffer[count:].copy_(given[-1:].expand_as(buffer[count:]))

        # What the graph writes is overwritten by its next run.
        graph.replay()
        return _mapped(graph.outputs, lambda output: output[:count].clone())

    def _graph(self, arguments: tuple[Any, ...]) -> _Graph | None:
        """The graph for arguments like these; None where the function is to run as it is."""
        if self._capture is None or not self._fits(arguments):
            return None
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return None
        state = self.state()
        if state is None:
            return None

        key = _structure(arguments)
        known = self._graphs.get(key)
        if known and known.state == state:
            return known
        self._graphs.pop(key, None)  # before the next one takes memory
        return self._captured(key, state, arguments)

    def _fits(self, arguments: tuple[Any, ...]) -> bool:
        counts = {len(tensor) for tensor in _tensors(arguments)}
        return len(counts) == 1 and self.size < 2 * min(counts) and max(counts) <= self.size

    def _captured(self, key: Hashable, state: Hashable, arguments: tuple[Any, ...]) -> _Graph | None:
        """A new graph for arguments like these; None if it cannot be captured."""
        assert self._capture is not None
        try:
            inputs = _mapped(arguments, self._filled_up)
            outputs, replay = self._capture(lambda: self.function(*inputs))
        except Exception as error:  # whatever a library raises: the function may still run as it is
            say(f"no CUDA graph of the {self.what} ({one_line(error, 120)}): continuing without")
            self._capture = None
            self._graphs.clear()
            return None

        self._graphs[key] = _Graph(inputs, outputs, replay, state)
        return self._graphs[key]

    def _filled_up(self, tensor: Tensor) -> Tensor:
        """A copy of a batch with ``size`` rows, in the same layout."""
        copies = tensor[-1:].expand(self.size - len(tensor), *tensor.shape[1:])
        return torch.cat([tensor, copies]) if len(copies) else tensor.clone()


@dataclass(frozen=True)
class _Graph:
    """A captured graph, the memory that it reads and writes, and the state that it holds for."""

    inputs: Any
    outputs: Any
    replay: Callable[[], None]
    state: Hashable


def capture_on(device: torch.device) -> Capture | None:
    """How graphs are captured on a device; None on a CPU, which has none."""
    return partial(_captured, device) if device.type == "cuda" else None


def _captured(device: torch.device, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
    """What ``run`` returns, as a CUDA graph, and the function that runs the graph."""
    with torch.cuda.device(device):
        # Warm up on another stream, as a capture must not choose kernels.
        current = torch.cuda.current_stream()
        side = torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run()
        current.wait_stream(side)

        # Capture; a capture that fails leaves its own stream behind.
        graph = torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool, side, capture_error_mode="thread_local"):
                outputs = run()
        except BaseException:
            _abandon(graph, pool)
            raise
        finally:
            torch.cuda.set_stream(current)
    return outputs, graph.replay


class FilledIn(TorchFunctionMode):
    """Inside the with-block, a number that is assigned to a place of a tensor is filled in on the tensor's device.

    Torch would copy it from the CPU's memory and wait, which no capture allows; StyleGAN3 assigns two. Same values.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function == Tensor.__setitem__:
            tensor, place, value = arguments
            if isinstance(value, (int, float)) and _is_view(place):
                tensor[place].fill_(value)
                return None
        return function(*arguments, **(options or {}))


def _is_view(place: Any) -> bool:
    """Whether an index gives a view of a tensor: numbers and slices, no tensors or lists."""
    parts = place if isinstance(place, tuple) else (place,)
    return all(part is None or type(part) in (int, slice, type(...)) for part in parts)


def _abandon(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Tell the allocator that a capture has failed; else it would free nothing for whoever runs out of memory later."""
    bindings: Any = torch._C
    device = torch.cuda.current_device()
    _ABANDONED.append(graph)  # torch keeps a pointer to it
    graph.reset()
    with suppress(RuntimeError):  # the capture has ended, and nothing but the function in it has failed
        bindings._cuda_endAllocateToPool(device, pool)
        bindings._cuda_releasePool(device, pool)


_ABANDONED: list[torch.cuda.CUDAGraph] = []


def memory_of(network: nn.Module) -> State:
    """Where the parameters and buffers of a network lie, which a graph reads; changes in place need no new graph.

    None where a graph must not stand in for the network: in training mode, which changes buffers, and with hooks on the
    outputs of its modules, which a graph does not call.
    """
    modules = list(network.modules())

    def state() -> Hashable | None:
        if any(module.training or module._forward_hooks for module in modules):
            return None
        values = [value for module in modules for value in (*module._parameters.values(), *module._buffers.values())]
        return tuple(value.data_ptr() for value in values if value is not None)

    return state


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A structure of tensors with ``function`` applied to each of them."""
    if isinstance(value, Tensor):
        return function(value)
    return None if value is None else type(value)(_mapped(item, function) for item in value)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a structure."""
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [tensor for item in value for tensor in _tensors(item)]


def _structure(value: Any) -> Hashable:
    """The structure with the shape of a row and the type of each tensor."""
    if isinstance(value, Tensor):
        return value.shape[1:], value.dtype, value.device
    return None if value is None else tuple(map(_structure, value))


def _count(value: Any) -> int:
    """The rows of a structure's tensors."""
    return len(_tensors(value)[0])
