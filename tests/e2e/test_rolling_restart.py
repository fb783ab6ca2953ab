"""Every instance is drained and started again, one after the other, under load: nobody notices."""

import asyncio
import os
import signal
from itertools import cycle

import grpc.aio
import pytest

from deploy.cluster import Cluster, await_connected
from router.client import AsyncClient
from rpc.dial import dial
from rpc.pb import cluster_pb2, cluster_pb2_grpc
from tests.e2e.asking import Answer, ask, questions
from tests.e2e.books import LOOK_EVERY_S, books_of
from tests.e2e.oracle import Oracle, compare_all
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

NUM_AT_ONCE = 6
WAIT_S = 60.0
RESTART_S = 150.0
"""Ray starts an actor again in 10 to 30 s, by how busy the machine is."""


def test_no_request_fails(tiny_pools: RunningCluster, tiny_oracle: Oracle) -> None:
    answers = tiny_pools.run(_ask_and_restart(tiny_pools.cluster), 5 * RESTART_S)
    assert len(answers) >= 2 * NUM_AT_ONCE
    # Most were asked several times; two answers to one question would both be looked at.
    distinct = {(answer.question, answer.token_ids): answer for answer in answers}
    compare_all(tiny_oracle, list(distinct.values()))


async def _ask_and_restart(cluster: Cluster) -> list[Answer]:
    answers, is_over = list[Answer](), asyncio.Event()
    asked = cycle(
        questions(60, vocab_size=512, prompt_tokens=range(1, 99), output_tokens=range(99, 199))
    )

    async def ask_on(client: AsyncClient) -> None:
        while not is_over.is_set():
            answers.append(await ask(client, next(asked)))

    async with AsyncClient(cluster.router_addresses) as client, asyncio.TaskGroup() as group:
        for _ in range(NUM_AT_ONCE):
            group.create_task(ask_on(client))
        names = [name for name in cluster.actors if not name.startswith("router")]
        for name in names:
            await _restart(cluster, name)
            await await_connected(cluster.router_addresses[0], len(names), timeout_s=RESTART_S)
        is_over.set()
    return answers


async def _restart(cluster: Cluster, name: str) -> None:
    """As an operator does: drain, wait for the end, start again (which is Ray's part here)."""
    address, pid = await cluster.address(name), await cluster.pid(name)
    async with dial(address) as channel:
        stub = cluster_pb2_grpc.ClusterStub(channel)
        await stub.Drain(cluster_pb2.DrainRequest(), timeout=WAIT_S)
    async with asyncio.timeout(WAIT_S):
        # Another process: there is no event to wait for.
        while await _serves(address):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_EVERY_S)
    os.kill(pid, signal.SIGKILL)


async def _serves(address: str) -> bool:
    try:
        await books_of(address)
    except grpc.aio.AioRpcError:
        return False
    return True
