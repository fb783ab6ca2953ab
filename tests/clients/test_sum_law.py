"""Latency is one sum: what every part took adds up to what the client sees.

A part is measured on one host's own clock; the remainders are the network's. Laws, per request:
  client's TTFT        = parts of TTFT + the router's remainder + the client's, none below 0
  client's second token = the same, and the parts of the first gap, to the second token
Remainders of a gap alone may be negative: a first token that was slow on its way shortens it.
"""

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from core.clock import MonotonicClock
from core.slo import first_gap_parts, ttft_parts
from router.client import AsyncClient
from router.events import Delta, Finished
from tests.clients.conftest import grpc_address
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

NUM_REQUESTS = 1000
NUM_AT_ONCE = 16
ROUNDING_S = 1e-6
"""Sums of floats of seconds."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer by the client's clock."""

    ttft_s: float
    second_token_s: float
    finished: Finished


async def _ask(client: AsyncClient, rng: random.Random) -> Seen:
    clock, times = MonotonicClock(), list[float]()
    prompt = [rng.randrange(3, 512) for _ in range(rng.randrange(4, 60))]
    began_s = clock.now_s()
    events = client.generate(
        token_ids=prompt, max_tokens=rng.randrange(2, 6), ignore_eos=True, temperature=0.0
    )
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Delta):
                times += [clock.now_s() - began_s] * len(event.token_ids)
            elif isinstance(event, Finished):
                return Seen(times[0], times[1], event)
    raise AssertionError("an answer ends with Finished")


async def _ask_all(address: str) -> list[Seen]:
    async with AsyncClient([address]) as client:

        async def one_after_the_other(seed: int) -> list[Seen]:
            rng = random.Random(seed)
            return [await _ask(client, rng) for _ in range(NUM_REQUESTS // NUM_AT_ONCE + 1)]

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one_after_the_other(i)) for i in range(NUM_AT_ONCE)]
        return [seen for task in tasks for seen in task.result()]


def test_parts_add_up(site: RunningCluster) -> None:
    answers = site.run(_ask_all(grpc_address(site)))
    assert len(answers) >= NUM_REQUESTS
    remainders: list[tuple[float, float, float, float]] = []
    for seen in answers:
        timing = seen.finished.timing
        ttft = ttft_parts(timing.ttft_s, timing.router_queue_s, timing.prefill)
        gap = first_gap_parts(timing.first_gap_s, timing.handoff)
        second_s = timing.ttft_s + timing.first_gap_s
        remainders.append(
            (
                ttft.network_s,
                ttft.network_s + gap.network_s,
                seen.ttft_s - timing.ttft_s,
                seen.second_token_s - second_s,
            )
        )
    for name, values in zip(
        ("router's TTFT", "router's second token", "client's TTFT", "client's second token"),
        zip(*remainders, strict=True),
        strict=True,
    ):
        ordered = sorted(values)
        half, most = ordered[len(ordered) // 2], ordered[-1]
        print(f"remainder of {name}: median {half * 1e3:.2f} ms, most {most * 1e3:.2f} ms")
        assert ordered[0] >= -ROUNDING_S, name
