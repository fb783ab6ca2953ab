"""Ray actors: a process that runs one service on its own event loop; never on the request path."""

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from core.errors import BatonError
from core.logs import begin_logging
from deploy.log_files import log_path, write_to

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
        self.ready_at_s = 0.0
        """Monotonic, once it serves."""
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

    def join(self, timeout_s: float) -> bool:
        """Whether it has ended, at the latest after so long."""
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
        self.ready_at_s = time.monotonic()
        self._ready.set()


class ServiceActor:
    """The Ray actor around one service; rebuilt by Ray with the same arguments after a crash."""

    def __init__(  # noqa: PLR0913 - what an actor is told goes through its constructor
        self,
        name: str,
        kind: str,
        spec_json: str,
        log_level: str,
        log_format: str,
        about_json: str = "",
        log_name: str = "",
    ) -> None:
        """`about_json` is for whoever finds the actor later; with a `log_name`, what the process
        writes goes to that file of this host instead of Ray's.
        """
        self._began_at_s = time.monotonic()
        if log_name:
            write_to(log_path(log_name))
        begin_logging(log_level, log_format)
        self._about_json = about_json
        self._host = host_address()
        self._service = ServiceThread(_main_of(kind, _at_home(spec_json, self._host)), name)

    def address(self) -> str:
        """host:port of its gRPC server; waits until it serves."""
        return self._service.address()

    def born(self) -> tuple[str, str, float]:
        """Address, host, and how long it took from here to serving; waits until it serves."""
        address = self._service.address()
        return address, self._host, self._service.ready_at_s - self._began_at_s

    def about(self) -> tuple[str, str]:
        """What it was told about itself, and its host."""
        return self._about_json, self._host

    def ended(self, timeout_s: float) -> bool:
        """Whether the service has ended, asked again after so long."""
        return self._service.join(timeout_s)

    def pid(self) -> int:
        """Operating system's process id."""
        return os.getpid()

    def stop(self, timeout_s: float) -> bool:
        """Drain and end the service; whether it ended in time."""
        return self._service.stop(timeout_s)


def host_address() -> str:
    """Of this Ray node, as others reach it."""
    import ray.util

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _at_home(spec_json: str, host: str) -> str:
    """The spec with what only this host knows: its address, and where its copy of the model lies.

    An empty host means this one's address; a model that is no folder here is fetched, once a host.
    """
    spec = json.loads(spec_json)
    if spec.get("host") == "":
        spec["host"] = host
    # An empty path has become a dot on its way.
    name = "" if spec.get("model_dir") == "." else spec.get("model_dir")
    if name is not None and not (name and Path(name).is_dir()):
        # Here and not above: converting a model brings torch along, and a router has none.
        from deploy.model_source import resolve_model

        spec["model_dir"] = str(resolve_model(name))
    return json.dumps(spec)


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
    if kind == "store":
        from deploy.store import StoreSpec, run_store

        store = StoreSpec.from_json(spec_json)
        return lambda stop, ready: run_store(store, stop=stop, ready=ready)
    if kind == "controller":
        from deploy.controller.process import ControllerSpec, run_controller

        controller = ControllerSpec.from_json(spec_json)
        return lambda stop, ready: run_controller(controller, stop=stop, ready=ready)
    from deploy.instance import InstanceSpec, run_in_own_process

    instance = InstanceSpec.from_json(spec_json)
    return lambda stop, ready: run_in_own_process(instance, stop=stop, ready=settled(ready))
