"""One tenant floods an instance: another that has work gets as much of it."""

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import count

import pytest

from core.config import Config
from core.member import Role
from tests.deploy.instances import (
    CONFIG,
    Running,
    Subscribed,
    decode_request,
    events,
    instance,
    prefill_request,
    subscribed,
    work,
)

PLACES = 2
TRICKLE, FLOOD = 4, 40
"""Requests in flight: more than places, so that both have work all the time."""
NUM_STEPS = 1200
MAX_RATIO = 1.3
NUM_TOKENS = 8

# What is short: places in the batch, or blocks for prompts and answers.
SHORTAGES = {
    "places": replace(CONFIG, worker=replace(CONFIG.worker, max_running=PLACES)),
    "memory": replace(CONFIG, engine=replace(CONFIG.engine, num_blocks=16)),
}


async def ask(on: Running, by: Subscribed, tenant: str, name: str) -> None:
    """One request, until it has ended."""
    # Prompts of their own: nothing is hit.
    prompt = tuple(hash((name, i)) % 199 + 1 for i in range(10))
    request = replace(
        work(prompt, handoff_id=f"{tenant}-{name}/0", max_tokens=NUM_TOKENS), tenant=tenant
    )
    call = on.prefill.Prefill(prefill_request(request))
    await on.decode.Decode(decode_request(request, on))
    await events(call)
    await by.until(lambda: by.heard(request.handoff_id).is_over)


async def ask_on(on: Running, by: Subscribed, tenant: str, names: "count[int]") -> None:
    """Keep one request in flight."""
    while len(on.runner.batches) < NUM_STEPS:
        await ask(on, by, tenant, str(next(names)))


@pytest.mark.parametrize("config", SHORTAGES.values(), ids=SHORTAGES)
async def test_a_flood_takes_no_more_than_its_share(config: Config) -> None:
    async with instance(Role.MIXED, config) as mixed, subscribed(mixed) as router:
        names = count()
        async with asyncio.TaskGroup() as group:
            for tenant, num in (("flood", FLOOD), ("trickle", TRICKLE)):
                for _ in range(num):
                    group.create_task(ask_on(mixed, router, tenant, names))
        # The first quarter is for the queues to fill, the last steps for them to empty.
        steps = mixed.runner.batches[NUM_STEPS // 4 : NUM_STEPS]
        served = Counter(key.split("-")[0] for keys in steps for key in keys)
        assert max(served.values()) / min(served.values()) <= MAX_RATIO, served
        await mixed.all_returned()
