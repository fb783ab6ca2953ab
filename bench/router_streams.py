"""Many answers at once: tokens per core of the router, gaps between them, fairness, memory."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import grpc.aio

from bench.processes import Service
from bench.raw_http import read_many_http
from bench.raw_stream import TIMEOUT_S, ask_raw
from bench.report import Bar, Figure, figure
from bench.router_spec import (
    FAIR_OUTPUT_TOKENS,
    MAX_IDLE_KIB,
    MAX_ITL_OVER_STEP_S,
    MAX_UNFAIRNESS,
    MIN_HTTP_SHARE,
    MIN_TOKENS_PER_CORE_S,
    NUM_FAIR_STREAMS,
    NUM_IDLE_STREAMS,
    NUM_STREAMS,
    STREAM_OUTPUT_TOKENS,
    STREAM_STEP_S,
)
from bench.stub_cluster import StubCluster, StubInstance, stub_cluster
from bench.stub_engine import StepCost
from core.clock import MonotonicClock
from core.config import Config, EngineConfig, RouterConfig, WorkerConfig
from core.member import Role
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import generation_pb2

NUM_CHANNELS = 8
PROMPT_TOKENS = 32
FEW_STEPS_S = 60.0
"""Of idle streams: their second token is far away."""
IDLE_AT_ONCE = 50
NUM_WARM_UP = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one stream brought: when, and how many tokens with it."""

    at_s: tuple[float, ...]
    num_tokens: tuple[int, ...]
    error: str = ""

    @property
    def gaps_s(self) -> list[float]:
        """Between tokens: those that come together have none."""
        gaps = [later - earlier for earlier, later in pairwise(self.at_s)]
        together = sum(self.num_tokens) - len(self.num_tokens)
        return gaps + [0.0] * max(0, together)

    @property
    def rate_per_s(self) -> float:
        """Tokens per second, from the first to the last."""
        return (sum(self.num_tokens) - 1) / max(1e-9, self.at_s[-1] - self.at_s[0])


async def measure_streams(*, quick: bool) -> tuple[list[Figure], list[Bar]]:
    """First for the router's cost, then for fairness."""
    async with _cluster(NUM_FAIR_STREAMS, STREAM_STEP_S) as cluster:
        router = cluster.routers[0]
        await _read_many(router.address, 8, 8)
        num_tokens = STREAM_OUTPUT_TOKENS // (2 if quick else 1)
        before_s = _cpu_s(router)
        streams = await _read_many(router.address, NUM_STREAMS, num_tokens)
        used_s = _cpu_s(router) - before_s
        fair = await _read_many(router.address, NUM_FAIR_STREAMS, FAIR_OUTPUT_TOKENS)
    return _of_streams(streams, used_s, fair)


def _of_streams(
    streams: Sequence[Told], used_s: float, fair: Sequence[Told]
) -> tuple[list[Figure], list[Bar]]:
    good = [told for told in streams if not told.error]
    # The first gap is the handoff's, not the engine's.
    gaps = figure("gap between tokens", (g for told in good for g in told.gaps_s[1:]), "s")
    rates = figure("rate of a stream of 256", (t.rate_per_s for t in fair if not t.error), "1/s")
    num_tokens = sum(sum(told.num_tokens) for told in good)
    num_messages = sum(len(told.num_tokens) for told in good)
    itl_bound_s = STREAM_STEP_S + MAX_ITL_OVER_STEP_S
    num_errors = sum(bool(told.error) for told in (*streams, *fair))
    figures = [
        gaps,
        rates,
        figure("router processor time", [used_s], "s"),
        figure("tokens per message", [num_tokens / num_messages], ""),
    ]
    return figures, [
        Bar(
            name="tokens per core and second",
            value=num_tokens / used_s,
            bound=MIN_TOKENS_PER_CORE_S,
            unit="1/s",
            at_most=False,
        ),
        Bar(name="itl p99 meanwhile", value=gaps.quantile(0.99), bound=itl_bound_s, unit="s"),
        Bar(
            name="256 streams: fastest / slowest",
            value=max(rates.values) / min(rates.values),
            bound=MAX_UNFAIRNESS,
            unit="",
        ),
        Bar(name="failed streams", value=num_errors, bound=0, unit=""),
    ]


async def measure_doors(*, quick: bool) -> tuple[list[Figure], list[Bar]]:
    """The same streams by gRPC and by OpenAI's API, in turn."""
    num_tokens = STREAM_OUTPUT_TOKENS // (4 if quick else 2)
    rates: dict[str, list[float]] = {"gRPC": [], "HTTP": []}
    num_errors = 0
    async with _cluster(NUM_STREAMS, STREAM_STEP_S) as cluster:
        router, http_address = cluster.routers[0], cluster.http_addresses[0]
        await _read_many(router.address, 8, 8)
        await read_many_http(http_address, list(map(_prompt, range(8))), 8)
        for _ in range(1 if quick else 3):
            before_s = _cpu_s(router)
            streams = await _read_many(router.address, NUM_STREAMS, num_tokens)
            between_s = _cpu_s(router)
            prompts = list(map(_prompt, range(NUM_STREAMS)))
            counts = await read_many_http(http_address, prompts, num_tokens)
            after_s = _cpu_s(router)
            num_all = num_tokens * NUM_STREAMS
            rates["gRPC"].append(num_all / (between_s - before_s))
            rates["HTTP"].append(num_all / (after_s - between_s))
            num_errors += sum(bool(told.error) for told in streams)
            num_errors += sum(count != num_tokens for count in counts)
    made = {door: figure(f"tokens per core, {door}", found, "1/s") for door, found in rates.items()}
    share = made["HTTP"].median / made["gRPC"].median
    return list(made.values()), [
        Bar(
            name="HTTP's tokens per core / gRPC's",
            value=share,
            bound=MIN_HTTP_SHARE,
            unit="",
            at_most=False,
        ),
        Bar(name="failed streams of both doors", value=num_errors, bound=0, unit=""),
    ]


async def measure_idle() -> tuple[list[Figure], list[Bar]]:
    """Streams that have their first token and wait long for the second."""
    async with _cluster(NUM_IDLE_STREAMS, FEW_STEPS_S, num_decodes=5) as cluster:
        router = cluster.routers[0]
        async with AsyncExitStack() as stack:
            channels = await _channels(stack, router.address)
            # Some first: what the first requests load and connect is not paid for by each.
            await _open_idle(channels, NUM_WARM_UP)
            before = _resident_bytes(router)
            await _open_idle(channels, NUM_IDLE_STREAMS)
            used = _resident_bytes(router) - before
    each = used / NUM_IDLE_STREAMS / 1024
    return [figure("resident memory of 1,000 idle streams", [used], "B")], [
        Bar(name="resident per idle stream", value=each, bound=MAX_IDLE_KIB, unit="KiB")
    ]


@asynccontextmanager
async def _cluster(
    num_streams: int, step_s: float, num_decodes: int = 1
) -> AsyncIterator[StubCluster]:
    """That lets so many answers run at once."""
    num_blocks = 2 * num_streams * (1 + (PROMPT_TOKENS + STREAM_OUTPUT_TOKENS) // 16)
    config = Config(
        engine=EngineConfig(num_blocks=num_blocks),
        worker=WorkerConfig(max_running=num_streams),
    )
    cost = StepCost(prefill_base_s=0.005, decode_base_s=step_s)
    roles = [Role.PREFILL, *(Role.DECODE for _ in range(num_decodes))]
    instances = [StubInstance(role=role, cost=cost) for role in roles]
    router = RouterConfig(max_running=num_streams + NUM_WARM_UP)
    async with stub_cluster(instances, config=config, routers=(router,)) as cluster:
        yield cluster


async def _channels(stack: AsyncExitStack, address: str) -> list[grpc.aio.Channel]:
    """256 streams opened at once on one connection starve each other."""
    return [
        await stack.enter_async_context(dial(address, plane=Plane.CLIENT))
        for _ in range(NUM_CHANNELS)
    ]


async def _read_many(address: str, num_streams: int, num_tokens: int) -> list[Told]:
    async with AsyncExitStack() as stack:
        channels = await _channels(stack, address)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_read(channels[i % NUM_CHANNELS], i, num_tokens))
                for i in range(num_streams)
            ]
    return [task.result() for task in tasks]


async def _read(channel: grpc.aio.Channel, number: int, num_tokens: int) -> Told:
    """Bytes are kept as they come and understood afterwards: reading must cost little."""
    clock, messages, times, error = MonotonicClock(), list[bytes](), list[float](), ""
    try:
        async for message in ask_raw(channel, _prompt(number), num_tokens):
            times.append(clock.now_s())
            messages.append(message)
    except grpc.aio.AioRpcError as failure:
        error = failure.code().name
    parsed = map(generation_pb2.GenerateResponse.FromString, messages)
    counts = [len(message.delta.token_ids) for message in parsed]
    told = [(at_s, n) for at_s, n in zip(times, counts, strict=True) if n]
    if not error and sum(counts) != num_tokens:
        error = f"{sum(counts)} tokens of {num_tokens}"
    return Told(
        at_s=tuple(at_s for at_s, _ in told), num_tokens=tuple(n for _, n in told), error=error
    )


async def _open_idle(channels: Sequence[grpc.aio.Channel], num_streams: int) -> None:
    """Return when each has its first token; they stay open until the channels close."""
    for start in range(0, num_streams, IDLE_AT_ONCE):
        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
            for i in range(start, min(num_streams, start + IDLE_AT_ONCE)):
                group.create_task(_until_first(channels[i % NUM_CHANNELS], i))


async def _until_first(channel: grpc.aio.Channel, number: int) -> None:
    call = ask_raw(channel, _prompt(number), STREAM_OUTPUT_TOKENS)
    while True:
        message = await call.read()
        if not isinstance(message, bytes):
            raise TypeError(f"idle stream {number} ended: {await call.details()}")
        if generation_pb2.GenerateResponse.FromString(message).delta.token_ids:
            return


def _prompt(number: int) -> list[int]:
    return [1 + (7 * number + i) % 500 for i in range(PROMPT_TOKENS)]


def _cpu_s(service: Service) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(service: Service) -> int:
    pages = Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
