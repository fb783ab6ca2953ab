"""KV from paged blocks of one process into paged blocks of another, by every carrier.

Gather, checksum, scatter and check are part of it; so are the stream's opening, credit and commit.
Baselines move as many contiguous bytes, round by round in the same run: a blocking TCP socket, a
copy within one process, a Gloo group of two. Whole transfers are timed from the opening to the
commit; of 1 MiB by shared memory also from the first gather to the last scatter.
"""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch._C._distributed_c10d import TCPStore

from bench.kv_transfer_end import (
    FENCE,
    LOOPBACK,
    SINK_ID,
    SOURCE_ID,
    TAG,
    TIMEOUT_S,
    End,
    Plain,
    leave,
)
from bench.kv_transfer_spec import (
    BARS,
    LARGE_TOKENS,
    LAYOUT,
    QUICK_ROUNDS,
    ROUNDS,
    SEED,
    SHM_SMALL_S,
    SMALL_TOKENS,
)
from bench.report import Bar, Figure, Report, figure
from core.blocks import BlockState
from core.ids import HandoffId
from core.work import Peer
from kv_transfer.carriers.pair_group import TwoRanks, connect_gloo
from kv_transfer.fetch import Fetcher
from kv_transfer.sink import Sink
from rpc.dial import ChannelPool

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = {"64 MiB": LARGE_TOKENS, "1 MiB": SMALL_TOKENS}
CARRIERS = ("grpc", "shm", "torchdist")
BASELINES = ("tcp", "memcpy", "gloo")

Progress = Callable[[str], None]


def measure(*, quick: bool, on_progress: Progress) -> Report:
    """All carriers and baselines, in turn, round after round."""
    return asyncio.run(_measure(QUICK_ROUNDS if quick else ROUNDS, on_progress))


@dataclass(slots=True)
class _Samples:
    """Of one way of moving one size."""

    times_s: list[float] = field(default_factory=list)
    sending_s: list[float] = field(default_factory=list)
    """Processor time of the sending process, likewise of the other."""
    receiving_s: list[float] = field(default_factory=list)
    gather_to_scatter_s: list[float] = field(default_factory=list)


Samples = dict[tuple[str, str], _Samples]


async def _measure(num_rounds: int, on_progress: Progress) -> Report:
    samples: Samples = defaultdict(_Samples)
    with ExitStack() as stack:
        source = stack.enter_context(_source())
        baselines = stack.enter_context(_baselines(source))
        sink = stack.enter_context(_sink(source))
        # The first makes connections, groups and pages, and is not counted.
        for number in range(num_rounds + 1):
            counted = samples if number else defaultdict(_Samples)
            for size, num_tokens in SIZES.items():
                on_progress(f"round {number} of {num_rounds}, {size}")
                num_bytes = num_tokens * LAYOUT.bytes_per_token
                for name in BASELINES:
                    await _timed(counted[name, size], source, baselines[name], num_bytes)
                for name in CARRIERS:
                    await sink.fetch(counted[name, size], name, num_tokens)
        await sink.close()
    return _report(samples)


async def _timed(
    samples: _Samples, source: "_Source", move: Callable[[int], Awaitable[float]], num_bytes: int
) -> None:
    before_s, own_s = source.ask("cpu")["cpu_s"], time.process_time()
    samples.times_s.append(await move(num_bytes))
    samples.receiving_s.append(time.process_time() - own_s)
    samples.sending_s.append(source.ask("cpu")["cpu_s"] - before_s)


# --- the sending process ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """The other process."""

    process: "subprocess.Popen[str]"
    address: str

    def say(self, do: str, **arguments: object) -> None:
        """Ask for something; `answer` waits for it."""
        stdin = cast("IO[str]", self.process.stdin)
        stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        stdin.flush()

    def answer(self) -> dict[str, Any]:
        """A process that ended answers with nothing."""
        line = cast("IO[str]", self.process.stdout).readline()
        if not line:
            raise RuntimeError(f"the source ended with status {self.process.wait(TIMEOUT_S)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """Both."""
        self.say(do, **arguments)
        return self.answer()


@contextmanager
def _source() -> "Iterator[_Source]":
    command = [sys.executable, "-m", "bench.kv_transfer_source"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _Source(process, _Source(process, "").answer()["address"])
        finally:
            cast("IO[str]", process.stdin).close()
            process.wait(TIMEOUT_S)


# --- baselines --------------------------------------------------------------------------------


@contextmanager
def _baselines(source: _Source) -> "Iterator[dict[str, Callable[[int], Awaitable[float]]]]":
    plain, other = (Plain(LARGE_TOKENS * LAYOUT.bytes_per_token) for _ in range(2))
    with socket.create_server((LOOPBACK, 0)) as listener, ExitStack() as stack:
        store = TCPStore(LOOPBACK, 0, 2, is_master=True, wait_for_workers=False)
        gloo: list[TwoRanks] = []
        lines: list[socket.socket] = []

        async def tcp(num_bytes: int) -> float:
            room = plain.next(num_bytes).data
            started_s = time.monotonic()
            source.say("tcp", num_bytes=num_bytes, port=listener.getsockname()[1])
            if not lines:
                lines.append(stack.enter_context(listener.accept()[0]))
            _receive(lines[0], room)
            spent_s = time.monotonic() - started_s
            source.answer()
            return spent_s

        async def memcpy(num_bytes: int) -> float:
            room, data = plain.next(num_bytes), other.next(num_bytes)
            started_s = time.monotonic()
            np.copyto(room, data)
            return time.monotonic() - started_s

        async def plain_gloo(num_bytes: int) -> float:
            room = torch.from_numpy(plain.next(num_bytes))
            started_s = time.monotonic()
            source.say("gloo", num_bytes=num_bytes, port=store.port)
            if not gloo:
                gloo.append(connect_gloo(store, 1, LOOPBACK, TIMEOUT_S))
            gloo[0].recv([room], 0, TAG).wait()
            spent_s = time.monotonic() - started_s
            source.answer()
            return spent_s

        yield {"tcp": tcp, "memcpy": memcpy, "gloo": plain_gloo}


def _receive(line: socket.socket, room: memoryview) -> None:
    received = 0
    while received < room.nbytes:
        received += line.recv_into(room[received:])


# --- the receiving process --------------------------------------------------------------------


class _Sink:
    """Fetches by each carrier, one after the other, into one paged cache."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._end = End(SINK_ID, SEED + 1)
        self._hosts = {carrier: self._end.host(carrier) for carrier in CARRIERS}
        self._channels = ChannelPool()
        self._fetchers = {
            name: Fetcher(host, self._channels.get) for name, host in self._hosts.items()
        }
        self._num_fetches = 0

    async def fetch(self, samples: _Samples, carrier: str, num_tokens: int) -> None:
        """One handoff, checked afterwards."""
        handoff_id = HandoffId(f"{carrier}/{self._num_fetches}")
        self._num_fetches += 1
        self._source.ask("prepare", handoff_id=handoff_id, num_tokens=num_tokens)
        sink = Sink(handoff_id=handoff_id, layout=LAYOUT, blocks=self._end.blocks, fence=FENCE)

        async def move(_: int) -> float:
            started_s = time.monotonic()
            await self._run(carrier, sink, num_tokens)
            return time.monotonic() - started_s

        await _timed(samples, self._source, move, 0)
        ids = sink.hand_over()
        sent = self._source.ask("finish", handoff_id=handoff_id, num_tokens=num_tokens)
        if sent["digest"] != self._end.store.digest(ids, num_tokens):
            raise RuntimeError(f"{handoff_id}: other KV arrived than was sent")
        samples.gather_to_scatter_s.append(self._end.store.last_scatter_s - sent["first_gather_s"])
        self._end.blocks.release(ids, BlockState.OWNED)

    async def _run(self, carrier: str, sink: Sink, num_tokens: int) -> None:
        peer = Peer(SOURCE_ID, self._source.address, leave(sink.handoff_id))
        result = await self._fetchers[carrier].run(
            sink, peer, num_tokens=num_tokens, reserve=self._reserve
        )
        if result.timing.carrier != carrier:
            raise RuntimeError(f"{carrier} fell back to {result.timing.carrier}")

    async def _reserve(self, sink: Sink) -> None:
        sink.reserve(self._end.blocks.allocate(sink.num_missing_blocks, BlockState.INCOMING))

    async def close(self) -> None:
        """While its event loop runs."""
        for host in self._hosts.values():
            host.carriers.close()
        await self._channels.close()

    def shut_down(self) -> None:
        """The rest."""
        self._end.copies.shutdown()


@contextmanager
def _sink(source: _Source) -> "Iterator[_Sink]":
    sink = _Sink(source)
    try:
        yield sink
    finally:
        sink.shut_down()


# --- what is said of it -----------------------------------------------------------------------


def _report(samples: Samples) -> Report:
    figures = [
        made
        for size, num_tokens in SIZES.items()
        for name in (*BASELINES, *CARRIERS)
        for made in _figures(f"{name}, {size}", samples[name, size], num_tokens)
    ]
    ratios = [_ratio(samples, name) for name in CARRIERS]
    small = figure(
        "shm, 1 MiB: first gather to last scatter",
        samples["shm", "1 MiB"].gather_to_scatter_s,
        "s",
    )
    bars = [
        Bar(
            name=f"{name}, 64 MiB, of {BARS[name][1]}",
            value=ratio.median,
            bound=BARS[name][0],
            unit="×",
            at_most=False,
        )
        for name, ratio in zip(CARRIERS, ratios, strict=True)
    ]
    bars.append(Bar(name=small.name, value=small.median, bound=SHM_SMALL_S, unit="s"))
    return Report(name="kv_transfer", figures=(*figures, *ratios, small), bars=tuple(bars))


def _figures(name: str, samples: _Samples, num_tokens: int) -> list[Figure]:
    gigabytes = num_tokens * LAYOUT.bytes_per_token / 1e9
    return [
        figure(name, (gigabytes / each for each in samples.times_s), "GB/s"),
        figure(f"{name}: time", samples.times_s, "s"),
        figure(f"{name}: CPU, sending", (s / gigabytes for s in samples.sending_s), "s/GB"),
        figure(f"{name}: CPU, receiving", (s / gigabytes for s in samples.receiving_s), "s/GB"),
    ]


def _ratio(samples: Samples, name: str) -> Figure:
    """Of each round: what disturbs the machine for longer disturbs both."""
    baseline = BARS[name][1]
    pairs = zip(samples[baseline, "64 MiB"].times_s, samples[name, "64 MiB"].times_s, strict=True)
    values = (theirs_s / ours_s for theirs_s, ours_s in pairs)
    return figure(f"{name} of {baseline}, round by round", values, "×")
