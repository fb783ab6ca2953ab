"""A real cluster on a real Ray, driven from tests that are not coroutines themselves."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from deploy.cluster import Cluster, ClusterSpec, start_cluster

T = TypeVar("T")

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0


class RunningCluster:
    """A cluster on an event loop of its own thread; coroutines of tests run there too."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self.cluster: Cluster
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="cluster")

    def start(self) -> None:
        """Return once every instance and router serves."""
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S):
            raise TimeoutError("the cluster did not start")
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Drain, and end everything."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            raise TimeoutError("the cluster did not stop")

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 300.0) -> T:
        """Run a coroutine on the cluster's loop."""
        bounded = _within(work, timeout_s)
        return asyncio.run_coroutine_threadsafe(bounded, self._loop).result(timeout_s + 5.0)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the starting thread
            self._error = error
            self._started.set()
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        async with start_cluster(self.spec) as self.cluster:
            self._started.set()
            await self._stop.wait()


async def _within(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    async with asyncio.timeout(timeout_s):
        return await work


@contextmanager
def running(spec: ClusterSpec) -> Iterator[RunningCluster]:
    """Start and, whatever happens, stop."""
    cluster = RunningCluster(spec)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()
