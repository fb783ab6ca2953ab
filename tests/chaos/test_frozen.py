"""An instance freezes in the middle of an answer and thaws later: nobody believes it any more."""

import asyncio
import os
import signal

import pytest

from deploy.cluster import Cluster
from router.client import AsyncClient
from router.events import Delta, Finished
from tests.e2e.books import books_of
from tests.e2e.oracle import Oracle
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

PROMPT = tuple(3 + (i * 5) % 500 for i in range(1200))
MAX_TOKENS = 600
WAIT_S = 10.0


@pytest.mark.parametrize("pool", ["prefill", "decode"])
def test_frozen_and_thawed(tiny_pools: RunningCluster, tiny_oracle: Oracle, pool: str) -> None:
    token_ids, num_attempts = tiny_pools.run(_ask_and_freeze(tiny_pools.cluster, pool))
    assert num_attempts > 1
    assert len(token_ids) == MAX_TOKENS
    assert tiny_oracle.compare(PROMPT, token_ids).problem is None


async def _ask_and_freeze(cluster: Cluster, pool: str) -> tuple[list[int], int]:
    """SIGSTOP whoever of the pool works on it; SIGCONT when the answer is complete."""
    token_ids, frozen = list[int](), list[int]()
    at_tokens = 0 if pool == "prefill" else 30
    async with AsyncClient(cluster.router_addresses) as client:
        try:
            async for event in client.generate(
                token_ids=PROMPT,
                max_tokens=MAX_TOKENS,
                temperature=0.0,
                ignore_eos=True,
                timeout_s=60.0,
            ):
                if isinstance(event, Delta):
                    assert event.position == len(token_ids)
                    token_ids.extend(event.token_ids)
                elif isinstance(event, Finished):
                    num_attempts = event.timing.num_attempts
                if not frozen and len(token_ids) >= at_tokens:
                    frozen.append(await _busy_pid(cluster, pool))
                    os.kill(frozen[0], signal.SIGSTOP)
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
    return token_ids, num_attempts


async def _busy_pid(cluster: Cluster, pool: str) -> int:
    """Of the instance of the pool that has work; the request was accepted, so there is one."""
    async with asyncio.timeout(WAIT_S):
        while True:
            for name in cluster.actors:
                if name.startswith(pool):
                    books = (await books_of(await cluster.address(name))).integrity
                    if books.num_prefills + books.num_decodes + books.num_incoming:
                        return books.pid
