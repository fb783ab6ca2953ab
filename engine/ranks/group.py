"""The ranks of one instance as a `torch.distributed` group: sums, hidden states, logits.

Process groups are made directly and not by `init_process_group`, which keeps one per process in a
global; tensors are all that they carry.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch.distributed import ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from core.parallel import RankPlace, split
from engine.ranks.errors import GroupBroken
from engine.ranks.shared_sum import SharedSum

LOOPBACK = "127.0.0.1"
"""All ranks are on one host: neither the store nor Gloo listens anywhere else."""


class _Work(Protocol):
    """A collective under way."""

    def wait(self) -> bool: ...


class _Backend(Protocol):
    """What torch's stubs leave out of its process groups."""

    def allreduce(self, tensors: list[torch.Tensor]) -> _Work: ...
    def send(self, tensors: list[torch.Tensor], rank: int, tag: int) -> _Work: ...
    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int) -> _Work: ...


def open_store(num_ranks: int, timeout_s: float) -> TCPStore:
    """The leader's: where ranks find each other, on a free port of its own choice."""
    # The socket is ours because the store's own would listen on every address of the host. It
    # takes over the descriptor.
    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        LOOPBACK,
        port,
        num_ranks,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def join_store(port: int, num_ranks: int, timeout_s: float) -> TCPStore:
    """Another rank's view of it. Raises GroupBroken."""
    with _broken("the leader's store"):
        return TCPStore(
            LOOPBACK,
            port,
            num_ranks,
            is_master=False,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )


class RankGroup:
    """One rank's way to the others of its instance; on a CPU, by Gloo.

    Every method raises GroupBroken when another rank dies or does not come within `timeout_s`; the
    group is of no more use then.
    """

    def __init__(
        self, place: RankPlace, store: Store, timeout_s: float, sums: SharedSum | None = None
    ) -> None:
        """Blocks until every rank is there, or raises GroupBroken. Either all ranks of a stage have
        `sums` or none."""
        self._place = place
        self._sums = sums
        tp, stage = place.layout.tp, f"stage{place.stage}"
        with _broken("ranks cannot find each other"):
            self._all = _gloo(store, "all", place.rank, place.layout.num_workers, timeout_s)
            # Of its own: a sum over a stage is none of the other stages' business.
            self._stage = _gloo(store, stage, place.tp_rank, tp, timeout_s)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum in place over the ranks of the stage; every one gets the same bits."""
        if self._sums is not None and tensor.dtype == torch.float32:
            self._sums.all_reduce(tensor)
            return
        with _broken("sum over a stage"):
            self._stage.allreduce([tensor]).wait()

    def send_hidden(self, hidden: torch.Tensor, micro_batch: int) -> Callable[[], None]:
        """To the next stage's rank with our heads; returns at once.

        The tensor must not change before the returned function has, which waits until it is gone.
        """
        return self._send(hidden, self._place.rank + self._place.layout.tp, micro_batch)

    def receive_hidden(self, into: torch.Tensor, micro_batch: int) -> None:
        """What the previous stage sent for this micro-batch."""
        self._receive(into, self._place.rank - self._place.layout.tp, micro_batch)

    def send_logits(self, logits: torch.Tensor) -> None:
        """A last stage's rank, to the leader: its columns of the vocabulary."""
        self._send(logits, 0, 0)()

    def gather_logits(self, own: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """The leader's counterpart: all columns, in order.

        `own` are its own columns, where it is in the last stage; `like` is an uninitialised
        [row, vocabulary] that is returned filled.
        """
        layout, num_columns = self._place.layout, like.shape[1]
        first = layout.num_workers - layout.tp
        for tp_rank in range(layout.tp):
            columns = split(num_columns, layout.tp, tp_rank)
            part = own
            if part is None or tp_rank != self._place.tp_rank:
                part = like.new_empty((len(like), len(columns)))
                self._receive(part, first + tp_rank, 0)
            like[:, columns.start : columns.stop] = part
        return like

    def _send(self, tensor: torch.Tensor, rank: int, tag: int) -> Callable[[], None]:
        with _broken(f"sending to rank {rank}"):
            work = self._all.send([tensor], rank, tag)

        def wait() -> None:
            with _broken(f"sending to rank {rank}"):
                work.wait()

        return wait

    def _receive(self, into: torch.Tensor, rank: int, tag: int) -> None:
        with _broken(f"receiving from rank {rank}"):
            self._all.recv([into], rank, tag).wait()


def _gloo(store: Store, name: str, rank: int, size: int, timeout_s: float) -> _Backend:
    gloo: Any = ProcessGroupGloo
    options = gloo._Options()
    options._timeout = timedelta(seconds=timeout_s)
    options._devices = [gloo.create_device(hostname=LOOPBACK)]
    group: _Backend = gloo(PrefixStore(name, store), rank, size, options)
    return group


@contextmanager
def _broken(what: str) -> Iterator[None]:
    try:
        yield
    # torch raises DistError (a RuntimeError) from stores, and plain ones from Gloo.
    except RuntimeError as error:
        raise GroupBroken(f"{what}: {str(error).splitlines()[0]}") from error
