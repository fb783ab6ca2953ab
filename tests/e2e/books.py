"""The integrity check that runs on every instance after every test."""

import asyncio

import grpc.aio

from core.blocks import IDLE_STATES
from deploy.cluster import Cluster
from rpc.dial import dial
from rpc.pb import cluster_pb2, cluster_pb2_grpc

SETTLE_S = 30.0
"""Ends of streams, releases and lost leases (10 s) are still under way when a test ends; who was
frozen begins to count when it thaws."""
LOOK_EVERY_S = 0.05
IDLE_STATE_NAMES = {str(state) for state in IDLE_STATES}


async def books_of(address: str) -> cluster_pb2.InstanceStatus:
    """One instance's own status."""
    async with dial(address) as channel:
        return await _books(channel)


async def check_books(cluster: Cluster) -> None:
    """Wait until every instance is idle; then nothing may be held, waiting or wrong."""
    for name in cluster.actors:
        if not name.startswith("router"):
            async with dial(await cluster.address(name)) as channel:
                problem = await what_stays(channel)
            assert problem is None, f"{name}: {problem}"


async def what_stays(channel: grpc.aio.Channel) -> str | None:
    """None once the instance is idle and its books are right; else what was last wrong."""
    problem: str | None = "never asked"
    try:
        async with asyncio.timeout(SETTLE_S):
            # Another process: there is no event to wait for.
            while (problem := what_is_held(await _books(channel))) is not None:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError:
        return problem
    return None


async def _books(channel: grpc.aio.Channel) -> cluster_pb2.InstanceStatus:
    stub = cluster_pb2_grpc.ClusterStub(channel)
    reply = await stub.Status(cluster_pb2.StatusRequest(), timeout=10.0)
    return reply.instances[0]


def what_is_held(status: cluster_pb2.InstanceStatus) -> str | None:
    """What keeps these books from being those of an idle instance without a leak."""
    books = status.integrity
    busy = {name: n for name, n in books.blocks.items() if n and name not in IDLE_STATE_NAMES}
    counts = {
        field: getattr(books, field)
        for field in (
            "num_leases",
            "num_incoming",
            "num_prefills",
            "num_decodes",
            "num_fetches",
            "num_tasks",
        )
    }
    held = busy | {field: n for field, n in counts.items() if n}
    if books.problem or held:
        return f"{books.problem} {held}"
    total = sum(books.blocks.values())
    return (
        None if total == status.load.num_blocks else f"{total} of {status.load.num_blocks} blocks"
    )
