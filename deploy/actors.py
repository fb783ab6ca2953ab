"""Ray actors: a process that runs one service on its own event loop; never on the request path."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from core.errors import BatonError
from core.logs import begin_logging

logger = logging.getLogger(__name__)

READY_TIMEOUT_S = 240.0
"""Reading 540 MB from a cold disk on a busy 2-core machine took under 60 s."""
EXIT_AFTER_CRASH = 70
"""EX_SOFTWARE of sysexits: Ray sees the process die and starts it again."""

CRASH_PAUSE_S = 1.0
"""Time to tell why a start failed, and between one failed start and the next."""

Main = Callable[[asyncio.Event, Callable[[str], None]], Awaitable[None]]
"""(stop, ready) → the service, until stop is set; calls ready(address) once it serves."""


class StartFailed(BatonError):
    """A service ended before it served."""

    status = "FAILED_PRECONDITION"


class ServiceThread:
    """Runs a service's coroutine on an event loop in a thread of its own."""

    def __init__(self, main: Main, name: str) -> None:
        self._main = main
        self._ready = threading.Event()
        self._address = ""
        self._failure = ""
        # Ray makes uvloop the default where it is installed; all this is tried on asyncio's own.
        self._loop = asyncio.DefaultEventLoopPolicy().new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def address(self) -> str:
        """host:port, once the service is ready; bounded. Raises StartFailed."""
        if not self._ready.wait(READY_TIMEOUT_S):
            raise TimeoutError(f"{self._thread.name} was not ready in {READY_TIMEOUT_S} s")
        if self._failure:
            raise StartFailed(f"{self._thread.name} cannot start: {self._failure}")
        return self._address

    def stop(self, timeout_s: float) -> bool:
        """Drain and end; whether it ended in time."""
        with suppress(RuntimeError):  # it has ended, and its loop is closed
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main(self._stop, self._on_ready))
        except BaseException as error:
            self._tell(error)
            # A process that has lost its service must not stay: Ray restarts it.
            logger.exception("%s crashed", self._thread.name)
            logging.shutdown()
            os._exit(EXIT_AFTER_CRASH)
        self._loop.close()

    def _tell(self, error: BaseException) -> None:
        """Before a crash: whoever waits for the address hears why there will be none."""
        if self._ready.is_set():
            return
        kind = "" if isinstance(error, BatonError) else f"{type(error).__name__}: "
        self._failure = f"{kind}{error}"
        self._ready.set()
        time.sleep(CRASH_PAUSE_S)

    def _on_ready(self, address: str) -> None:
        self._address = address
        self._ready.set()


class ServiceActor:
    """The Ray actor around one service; rebuilt by Ray with the same arguments after a crash."""

    def __init__(
        self, name: str, kind: str, spec_json: str, log_level: str, log_format: str
    ) -> None:
        begin_logging(log_level, log_format)
        self._service = ServiceThread(_main_of(kind, spec_json), name)

    def address(self) -> str:
        """host:port of its gRPC server; waits until it serves."""
        return self._service.address()

    def pid(self) -> int:
        """Operating system's process id."""
        return os.getpid()

    def stop(self, timeout_s: float) -> bool:
        """Drain and end the service; whether it ended in time."""
        return self._service.stop(timeout_s)


def _main_of(kind: str, spec_json: str) -> Main:
    """Import only what this process needs: a router has no torch."""
    from rpc.process import keep_what_is_loaded

    def settled(ready: Callable[[str], None]) -> Callable[[str], None]:
        def tell(address: str) -> None:
            keep_what_is_loaded()
            ready(address)

        return tell

    if kind == "router":
        from router.server import RouterSpec, run_router

        router = RouterSpec.from_json(spec_json)
        return lambda stop, ready: run_router(router, stop=stop, ready=settled(ready))
    from deploy.instance import InstanceSpec, run_in_own_process

    instance = InstanceSpec.from_json(spec_json)
    return lambda stop, ready: run_in_own_process(instance, stop=stop, ready=settled(ready))
