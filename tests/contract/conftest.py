"""Every kind of store, for the suites that all of them must pass."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Protocol

import pytest
from redis.asyncio import Redis

from registry.api import Registry
from registry.connect import connect
from registry.embedded import EmbeddedValkey
from registry.keys import Keys
from registry.memory import MemoryRegistry, MemoryStore
from registry.watching import WatchPace

PACE = WatchPace(reread_s=0.05, rejoin_grace_s=1.5)


class Cluster(Protocol):
    """One store, any number of handles on it, and what may happen to it."""

    def handle(self) -> Registry: ...
    async def flush(self) -> None: ...
    async def lose(self) -> None: ...
    async def bring_back(self) -> None: ...
    async def damage_shared_key(self, text: str) -> None: ...


class MemoryCluster:
    def __init__(self) -> None:
        self._store = MemoryStore()

    def handle(self) -> Registry:
        return MemoryRegistry(self._store, pace=PACE)

    async def flush(self) -> None:
        self._store.flush()

    async def lose(self) -> None:
        self._store.set_reachable(False)

    async def bring_back(self) -> None:
        self._store.set_reachable(True)

    async def damage_shared_key(self, text: str) -> None:
        self._store.shared_key = text


class ValkeyCluster:
    def __init__(self, server: EmbeddedValkey) -> None:
        self._server = server

    def handle(self) -> Registry:
        return connect(self._server.url, "contract", pace=PACE)

    async def flush(self) -> None:
        async with Redis.from_url(self._server.url) as client:
            await client.flushall()

    async def lose(self) -> None:
        self._server.kill()

    async def bring_back(self) -> None:
        await self._server.start()

    async def damage_shared_key(self, text: str) -> None:
        async with Redis.from_url(self._server.url) as client:
            await client.set(Keys("contract").shared_key, text)


@pytest.fixture(params=["memory", "valkey"])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield MemoryCluster()
        else:
            yield ValkeyCluster(await stack.enter_async_context(EmbeddedValkey()))


@pytest.fixture
async def registry(cluster: Cluster) -> AsyncIterator[Registry]:
    handle = cluster.handle()
    yield handle
    await handle.close()


@pytest.fixture
async def other(cluster: Cluster) -> AsyncIterator[Registry]:
    handle = cluster.handle()
    yield handle
    await handle.close()
