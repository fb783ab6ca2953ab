"""The store dies, or forgets everything: answers go on, new ones are taken, members come back."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from deploy.cluster import Cluster
from registry.connect import connect
from registry.embedded import EmbeddedValkey
from router.client import AsyncClient
from tests.e2e.asking import Answer, Question, ask, questions
from tests.e2e.books import check_books
from tests.e2e.conftest import cluster_spec
from tests.e2e.oracle import Oracle, compare_all
from tests.e2e.running import RunningCluster, running

pytestmark = pytest.mark.ray

NUM_BEFORE, NUM_AFTER = 6, 6
WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class WithStore:
    """A cluster, and the store that it was given."""

    running: RunningCluster
    store: EmbeddedValkey

    @property
    def cluster(self) -> Cluster:
        return self.running.cluster


@pytest.fixture(scope="module")
def with_store(tiny_dir: Path) -> Iterator[WithStore]:
    """One prefill, one decode, a store that the test may kill."""
    store = EmbeddedValkey()
    asyncio.run(store.start())
    with ExitStack() as stack:
        stack.callback(lambda: asyncio.run(store.stop()))
        spec = replace(cluster_spec(tiny_dir), registry_url=store.url)
        yield WithStore(stack.enter_context(running(spec)), store)


def test_the_store_is_killed(with_store: WithStore, tiny_oracle: Oracle) -> None:
    """Law 7: streams under way, and requests that come meanwhile, do not need it."""
    compare_all(tiny_oracle, with_store.running.run(_ask_and_kill(with_store)))
    asyncio.run(with_store.store.start())
    with_store.running.run(_until_listed(with_store.cluster))
    with_store.running.run(check_books(with_store.cluster))


def test_the_store_forgets_everything(with_store: WithStore, tiny_oracle: Oracle) -> None:
    """Everybody tells it again who is there."""
    compare_all(tiny_oracle, with_store.running.run(_ask_and_flush(with_store)))
    with_store.running.run(_until_listed(with_store.cluster))
    with_store.running.run(check_books(with_store.cluster))


async def _ask_and_kill(on: WithStore) -> list[Answer]:
    async with AsyncClient(on.cluster.router_addresses) as client, asyncio.TaskGroup() as group:
        asked = _questions()
        tasks = [group.create_task(ask(client, question)) for question in asked[:NUM_BEFORE]]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        on.store.kill()
        tasks += [group.create_task(ask(client, question)) for question in asked[NUM_BEFORE:]]
    return [task.result() for task in tasks]


async def _ask_and_flush(on: WithStore) -> list[Answer]:
    async with (
        Redis.from_url(on.store.url) as raw,
        AsyncClient(on.cluster.router_addresses) as client,
        asyncio.TaskGroup() as group,
    ):
        asked = _questions()
        tasks = [group.create_task(ask(client, question)) for question in asked[:NUM_BEFORE]]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await raw.flushall()
        tasks += [group.create_task(ask(client, question)) for question in asked[NUM_BEFORE:]]
    return [task.result() for task in tasks]


def _questions() -> list[Question]:
    return questions(
        NUM_BEFORE + NUM_AFTER,
        vocab_size=512,
        prompt_tokens=range(3, 60),
        output_tokens=range(20, 200),
    )


async def _until_listed(cluster: Cluster) -> None:
    """Every member is in the store again."""
    registry = connect(cluster.registry_url, "e2e")
    try:
        async with asyncio.timeout(WAIT_S):
            async for members in registry.watch():
                if {member.instance_id for member in members} >= set(cluster.actors):
                    return
    finally:
        await registry.close()
