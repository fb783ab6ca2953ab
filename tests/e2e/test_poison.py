"""A request under which instance after instance dies: it ends, everybody else is answered."""

import asyncio
import os
import signal

import grpc.aio
import pytest

from core.errors import Quarantined
from deploy.cluster import Cluster
from router.client import AsyncClient
from tests.e2e.asking import Answer, ask, questions
from tests.e2e.books import LOOK_EVERY_S, books_of
from tests.e2e.oracle import Oracle, compare_all
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

NUM_OTHERS = 6
POISON = (9, *(3 + (i * 11) % 500 for i in range(1199)))
WAIT_S = 60.0


def test_quarantined_after_two_restarts(tiny_pools: RunningCluster, tiny_oracle: Oracle) -> None:
    answers, num_kills = tiny_pools.run(_ask_all(tiny_pools))
    assert num_kills == 2
    compare_all(tiny_oracle, answers)


async def _ask_all(running: RunningCluster) -> tuple[list[Answer], int]:
    """The poison's part is played by us: whoever prefills it is killed, every time."""
    asked = questions(
        NUM_OTHERS, vocab_size=512, prompt_tokens=range(5, 9), output_tokens=range(300, 400)
    )
    cluster, killed = running.cluster, set[int]()
    async with AsyncClient(cluster.router_addresses) as client:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(client, question)) for question in asked]
            await _until_all_decode(cluster)
            names = [name for name in cluster.actors if not name.startswith("router")]
            killers = [group.create_task(_kill_at_work(cluster, name, killed)) for name in names]
            with pytest.raises(Quarantined, match="2 instances died"):
                await client.complete(token_ids=POISON, max_tokens=3, timeout_s=WAIT_S)
            for killer in killers:
                killer.cancel()
        # Once it is known, it gets nowhere near an instance.
        with pytest.raises(Quarantined):
            await client.complete(token_ids=POISON, max_tokens=3, timeout_s=WAIT_S)
    return [task.result() for task in tasks], len(killed)


async def _until_all_decode(cluster: Cluster) -> None:
    num_decodes = 0
    async with asyncio.timeout(WAIT_S):
        while num_decodes < NUM_OTHERS:
            names = [name for name in cluster.actors if name.startswith("decode")]
            books = [(await books_of(cluster.addresses[name])).integrity for name in names]
            num_decodes = sum(book.num_decodes for book in books)


async def _kill_at_work(cluster: Cluster, name: str, killed: set[int]) -> None:
    """SIGKILL the instance while it prefills; again when it was started again."""
    while True:
        try:
            books = (await books_of(await cluster.address(name))).integrity
        except grpc.aio.AioRpcError:
            await asyncio.sleep(LOOK_EVERY_S)  # it is on its way down, or up
            continue
        if books.num_prefills and books.pid not in killed:
            # Its first step runs by then.
            await asyncio.sleep(LOOK_EVERY_S)
            killed.add(books.pid)
            os.kill(books.pid, signal.SIGKILL)
