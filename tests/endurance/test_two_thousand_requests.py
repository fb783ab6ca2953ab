"""Two thousand requests with cancels and too little memory: nothing leaks, nothing grows."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import psutil
import pytest

from bench.processes import Processes, running
from core.config import Config, EngineConfig, RouterConfig, WorkerConfig
from core.member import Role
from deploy.tiny_model import write_tiny_llama
from router.events import Delta
from rpc.pb import cluster_pb2, cluster_pb2_grpc
from tests.e2e.books import what_is_held

NUM_REQUESTS, NUM_WARM_UP = 2000, 1000
"""Before the warm-up has ended pools, caches and code are still being filled."""
NUM_AT_ONCE = 24
IDLE_EVERY = 500
CANCELLED = 0.25
MAX_GROWTH = 0.02
"""Of each instance, and of all processes together: a router of 85 MB remembers a minute's ids."""
ALL = 0
"""In place of a process id: their sum."""
TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.05

# 48 blocks for up to 24 answers of up to 18 blocks: answers make room for each other all the time.
CONFIG = Config(
    engine=EngineConfig(num_blocks=48, num_swap_blocks=24),
    worker=WorkerConfig(prefill_step_tokens=64, mixed_step_tokens=32),
    router=RouterConfig(max_attempts=50),
)


@dataclass(slots=True)
class Seen:
    """What happened on the way."""

    num_asked: int = 0
    num_cancelled: int = 0
    num_tokens: int = 0
    max_swapped: int = 0
    rss_bytes: list[dict[int, int]] = field(default_factory=list)
    """By process, at each idle moment."""


@pytest.mark.timeout(600)
async def test_memory_stays_and_every_book_adds_up(tmp_path: Path) -> None:
    model_dir = write_tiny_llama(tmp_path / "tiny")
    rng = random.Random(20_263)
    seen = Seen()
    async with (
        running(model_dir, (Role.PREFILL, Role.DECODE), CONFIG) as cluster,
        _watching(cluster, seen),
    ):
        while seen.num_asked < NUM_WARM_UP + NUM_REQUESTS:
            await _ask_many(cluster, rng, seen, IDLE_EVERY)
            await _idle(cluster)
            seen.rss_bytes.append({pid: _rss_bytes(pid) for pid in cluster.pids})
    print(seen)
    assert seen.num_cancelled > NUM_REQUESTS * CANCELLED / 2
    assert seen.max_swapped, "nothing was ever swapped: too much memory for this test"
    *instances, _ = cluster.pids
    growth = _growth(seen.rss_bytes[NUM_WARM_UP // IDLE_EVERY - 1 :])
    print({pid: f"{share:.2%}" for pid, share in growth.items()})
    assert max(growth[pid] for pid in instances) < MAX_GROWTH, growth
    assert growth[ALL] < MAX_GROWTH, growth


def _growth(moments: Sequence[dict[int, int]]) -> dict[int, float]:
    """By process and in all, from the first idle moment to the lower of the last two: what an
    allocator keeps for later comes and goes."""
    all_moments = [moment | {ALL: sum(moment.values())} for moment in moments]
    last = [min(pair) for pair in zip(*(m.values() for m in all_moments[-2:]), strict=True)]
    first = all_moments[0]
    return {pid: after / first[pid] - 1 for pid, after in zip(first, last, strict=True)}


async def _ask_many(cluster: Processes, rng: random.Random, seen: Seen, num: int) -> None:
    places = asyncio.Semaphore(NUM_AT_ONCE)
    async with asyncio.TaskGroup() as group:
        for _ in range(num):
            await places.acquire()
            task = group.create_task(_ask(cluster, random.Random(rng.random()), seen))
            task.add_done_callback(lambda _: places.release())


async def _ask(cluster: Processes, rng: random.Random, seen: Seen) -> None:
    seen.num_asked += 1
    prompt = [rng.randrange(3, 500) for _ in range(rng.randint(1, 200))]
    num_tokens = rng.randint(1, 80)
    leave_after = rng.randint(0, num_tokens) if rng.random() < CANCELLED else None
    num_read = 0
    stream = cluster.client.generate(
        token_ids=prompt, max_tokens=num_tokens, ignore_eos=True, timeout_s=TIMEOUT_S
    )
    async with aclosing(stream) as events:
        async for event in events:
            num_read += len(event.token_ids) if isinstance(event, Delta) else 0
            if leave_after is not None and num_read >= leave_after:
                seen.num_cancelled += 1
                return
    assert num_read == num_tokens
    seen.num_tokens += num_read


@asynccontextmanager
async def _watching(cluster: Processes, seen: Seen) -> AsyncIterator[None]:
    """Look at the books now and then while the block runs."""
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_watch(cluster.channels, seen))
        yield
        watching.cancel()


async def _watch(channels: Sequence[grpc.aio.Channel], seen: Seen) -> None:
    while True:
        for channel in channels:
            status = await _status(channel)
            assert not status.integrity.problem
            seen.max_swapped = max(seen.max_swapped, status.load.num_swapped)
        await asyncio.sleep(LOOK_EVERY_S)


async def _idle(cluster: Processes) -> None:
    """Every instance is idle, and holds nothing."""
    for channel in cluster.channels:
        async with asyncio.timeout(TIMEOUT_S):
            # Another process: there is no event to wait for.
            while what_is_held(await _status(channel)) is not None:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_EVERY_S)


async def _status(channel: grpc.aio.Channel) -> cluster_pb2.InstanceStatus:
    stub = cluster_pb2_grpc.ClusterStub(channel)
    reply = await stub.Status(cluster_pb2.StatusRequest(), timeout=TIMEOUT_S)
    return reply.instances[0]


def _rss_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)
