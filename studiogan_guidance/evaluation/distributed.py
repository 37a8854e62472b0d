"""The processes that torchrun started, as one group: the rank of this one, and what it exchanges with the others."""

from __future__ import annotations

import functools
import ipaddress
import itertools
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from studiogan_guidance.errors import UserError, one_line, torchrun_number

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

HERE = "here"  # with its rank, the key of a process that is ready, in the store that they share
FAILURES = "failures"  # the key of their number
GROUPS = itertools.count()  # the groups of this process, one after the other
MEETING = timedelta(minutes=10)  # until all processes are there
WAITING = timedelta(days=1)  # for the first process, which computes metrics


@dataclass(frozen=True)
class Group:
    """``rank`` of ``size`` processes; a process by itself is rank 0 of 1.

    Raises:
        UserError: another process has ended, from whatever is exchanged.
    """

    rank: int = 0
    size: int = 1

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the order of their ranks, on rank 0; an empty list elsewhere."""
        if self.size == 1:
            return [value]
        import torch.distributed

        values: list[T] | None = [value] * self.size if self.rank == 0 else None
        with _all_there():
            torch.distributed.gather_object(value, values)
        return values or []

    def agree(self, answer: T) -> T:
        """The answer of rank 0, in every process."""
        if self.size == 1:
            return answer
        import torch.distributed

        answers = [answer]
        with _all_there():
            torch.distributed.broadcast_object_list(answers)
        return answers[0]

    def position(self, own: int, batch_size: int) -> int:
        """The position among all images of this process's image ``own``, where processes take the batches in turn."""
        batch, row = divmod(own, batch_size)
        return (batch * self.size + self.rank) * batch_size + row

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place."""
        if self.size == 1:
            return
        import torch.distributed

        for tensor in tensors:
            total = tensor.detach().to(_wire())
            with _all_there():
                torch.distributed.all_reduce(total)
            tensor.copy_(total / self.size)

    def all_rows(self, rows: Tensor) -> Tensor:
        """The rows [B, ...] of all processes in the order of their ranks; gradients reach those of this process."""
        if self.size == 1:
            return rows
        import torch.distributed

        own = rows.detach().to(_wire()).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with _all_there():
            torch.distributed.all_gather(parts, own)
        return torch.cat([rows if rank == self.rank else part.to(rows) for rank, part in enumerate(parts)])


def _wire() -> str:
    """The kind of device whose tensors the processes exchange."""
    import torch.distributed

    return "cpu" if torch.distributed.get_backend() == "gloo" else "cuda"


@contextmanager
def _all_there() -> Iterator[None]:
    """Raise UserError where another process has ended, so that an exchange inside the with-block fails."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"another process of torchrun has ended, see its error ({one_line(error)})") from error


@contextmanager
def group() -> Iterator[Group]:
    """Join the processes of torchrun for the time of a with-block; objects travel through the CPU (gloo).

    A process that torchrun has not started is a group of its own. All leave together: a launcher of torchrun does
    not wait for those of other nodes.

    Raises:
        UserError: processes that do not find each other within ``MEETING``.
    """
    if _size() == 1:
        yield Group()
        return

    import torch.distributed

    _join()
    try:
        yield Group(torch.distributed.get_rank(), _size())
        with _all_there():
            torch.distributed.barrier()
    except Exception:
        is_first_to_fail()  # asked before the others see this process leave
        raise
    finally:
        torch.distributed.destroy_process_group()


def _size() -> int:
    return torchrun_number("WORLD_SIZE", 1, least=1)


def _join() -> None:
    """Make the group, first with a short patience, to see that all processes can reach each other."""
    # The second has the group of its import, if there is one, as a default: a group that would never end.
    import torch.distributed
    import torch.distributed.nn.functional
    from torch.distributed.distributed_c10d import PrefixStore

    _check_address()
    try:
        # Wait for all, those that failed on their way here among them.
        number = next(GROUPS)
        store, rank, size = _rendezvous()
        store.set(f"{HERE} {rank}", "")
        store.wait([f"{HERE} {rank}" for rank in range(size)], MEETING)
        if number == 0 and store.check([FAILURES]):
            raise UserError("another process of torchrun has failed, see its error")

        # Connect.
        for name, patience in (("meeting", MEETING), ("work", WAITING)):
            if torch.distributed.is_initialized():
                torch.distributed.barrier()
                torch.distributed.destroy_process_group()
            own = PrefixStore(f"{name} {number}", store)
            torch.distributed.init_process_group("gloo", store=own, rank=rank, world_size=size, timeout=patience)
    except UserError:
        raise
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the {_size()} processes of torchrun do not find each other ({one_line(error)}): look for errors of the "
            "others, and on several nodes set GLOO_SOCKET_IFNAME to the network interface between them"
        ) from error


def _check_address() -> None:
    """Raise UserError where other nodes would look for this one on themselves: its name means a loopback address."""
    is_one_node = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"  # torchrun's number of launchers
    if is_one_node or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    name = socket.gethostname()
    try:
        address = str(socket.getaddrinfo(name, None)[0][4][0])
    except OSError:
        address = "127.0.0.1"  # what gloo falls back on
    if ipaddress.ip_address(address).is_loopback:
        raise UserError(
            f"the name of this node, {name}, means {address}, where other nodes do not reach it: set "
            "GLOO_SOCKET_IFNAME to the network interface between the nodes, such as eth0 or ib0"
        )


@functools.cache
def _rendezvous() -> tuple[Any, int, int]:
    """The store that the processes share, the rank of this one, and their number."""
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=MEETING))
    return store, rank, size


@functools.cache
def is_first_to_fail() -> bool:
    """Whether this process is the first of the group that asks: the one that tells the user what is wrong."""
    try:
        if _size() == 1:
            return True
        store, rank, _ = _rendezvous()
        is_first = store.add(FAILURES, 1) == 1
        store.set(f"{HERE} {rank}", "")
        return bool(is_first)
    except (RuntimeError, ValueError):  # no process to ask, or no number of them
        return True
