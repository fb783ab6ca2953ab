"""A real cluster on a real Ray, driven from tests that are not coroutines themselves."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Generic, Self, TypeVar

from deploy.cluster import Cluster, ClusterSpec, start_cluster

T = TypeVar("T")
R = TypeVar("R")

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0


class OwnLoop(Generic[T]):
    """An event loop of its own thread, on which something lives while tests use it."""

    def __init__(self, alive: AbstractAsyncContextManager[T]) -> None:
        self.value: T
        self._alive = alive
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="own-loop")

    def __enter__(self) -> Self:
        """Once it is there."""
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S):
            raise TimeoutError("it did not start")
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it, and waits for that."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            raise TimeoutError("it did not stop")

    def run(self, work: Coroutine[Any, Any, R], timeout_s: float = 300.0) -> R:
        """Run a coroutine on its loop."""
        bounded = _within(work, timeout_s)
        return asyncio.run_coroutine_threadsafe(bounded, self._loop).result(timeout_s + 5.0)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:  # noqa: BLE001 - handed to the starting thread
            self._error = error
            self._started.set()
        finally:
            self._loop.close()

    async def _live(self) -> None:
        async with self._alive as self.value:
            self._started.set()
            await self._stop.wait()


class RunningCluster(OwnLoop[Cluster]):
    """A cluster that ends with the block in which it runs."""

    def __init__(self, spec: ClusterSpec) -> None:
        super().__init__(start_cluster(spec))
        self.spec = spec

    @property
    def cluster(self) -> Cluster:
        """Once it is there."""
        return self.value


async def _within(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    async with asyncio.timeout(timeout_s):
        return await work


@contextmanager
def running(spec: ClusterSpec) -> Iterator[RunningCluster]:
    """Start and, whatever happens, stop."""
    with RunningCluster(spec) as cluster:
        yield cluster
