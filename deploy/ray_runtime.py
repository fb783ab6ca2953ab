"""How a process of ours meets Ray: with one of its own, or as a driver of one that runs."""

import importlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from core.errors import BatonError
from registry.scratch import ScratchFolder

logger = logging.getLogger(__name__)

FOLDER_PREFIX = "baton-ray-"
SHARED_MEMORY = Path("/dev/shm")
OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Ray's smallest is 75 MiB; no request ever goes through it."""
LOOPBACK = "127.0.0.2"
"""Ray replaces 127.0.0.1 by the host's address, and then listens beyond this machine."""

GCS_PATIENCE_S = 60
"""How long the processes of a Ray whose store is guarded wait for its return. Ray's default: it is
back after about a second, but a starved machine is no reason to lose every instance."""

_SETTINGS = {
    # Explicit: otherwise a token left in a home folder switches authentication on or off.
    "RAY_AUTH_MODE": "token",
    # Ray runs its workers at nice 15, behind whatever else the machine does.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    # gRPC takes a proxy from the environment even for loopback.
    "RAY_grpc_enable_http_proxy": "0",
    # After a SIGKILL of ours Ray's agents first try to tell its store, which is gone, and by
    # default keep trying for 60 s. A starved machine may hold the store up for some seconds.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
}
PATIENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(GCS_PATIENCE_S)}


@contextmanager
def private_ray(*, num_cpus: int, num_gpus: int = 0) -> Iterator[Any]:
    """The `ray` module, connected to a Ray of our own; CPUs are logical, not this machine's.

    Ray reads its settings from the environment of this process alone, at import and at init.
    """
    with ExitStack() as stack:
        folder = ScratchFolder(FOLDER_PREFIX, parent=short_folder())
        stack.callback(folder.remove)
        changes = ray_environment(os.environ, new_token())  # noqa: TID251 - as in `ray_told`
        ray = stack.enter_context(ray_told(changes))
        stack.callback(ray.shutdown)
        with _signals_kept():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.WARNING,
                _temp_dir=str(folder.path),
                _plasma_directory=str(object_store_folder(folder.path)),
                _node_ip_address=loopback(),
            )
        logger.info("ray started: %s", folder.path)
        yield ray
    logger.info("ray stopped: %s", folder.path)


class RayNotJoined(BatonError):
    """No Ray at that address, or none that lets us in."""

    status = "UNAVAILABLE"

    def __init__(self, address: str, error: Exception) -> None:
        super().__init__(
            f"cannot join Ray at {address}: {error}; is it started there, is this machine one of "
            "its nodes, and are RAY_AUTH_MODE and ~/.ray/auth_token the same as there?"
        )


@contextmanager
def joined_ray(address: str, token: str | None, namespace: str) -> Iterator[Any]:
    """The `ray` module, connected as a driver to the Ray at `address` (host:port of its GCS).

    With None for a token the user's own RAY_ variables hold, as for every other Ray program of
    his: `ray start` and its clusters are set up through them.
    """
    environ = os.environ  # noqa: TID251 - as in `ray_told`
    changes = {} if token is None else {**ray_environment(environ, token), **PATIENT}
    with ExitStack() as stack:
        ray = stack.enter_context(ray_told(changes))
        stack.callback(ray.shutdown)
        with _signals_kept():
            try:
                ray.init(
                    address=address,
                    namespace=namespace,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise RayNotJoined(address, error) from error
        logger.info("ray joined: %s, namespace %s", address, namespace)
        yield ray
    logger.info("ray left: %s", address)


@contextmanager
def ray_told(changes: Mapping[str, str | None]) -> Iterator[Any]:
    """The `ray` module, for which the environment is changed; None: unset.

    Ray knows no other way to be told most of this. It also changes its variables itself.
    """
    environ = os.environ  # noqa: TID251 - see above
    before = {name: value for name, value in environ.items() if name.startswith("RAY_")}
    _change(environ, changes)
    try:
        yield _attentive_ray()
    finally:
        now = [name for name in environ if name.startswith("RAY_")]
        _change(environ, {**dict.fromkeys((*now, *changes)), **before})


def _attentive_ray() -> Any:  # noqa: ANN401 - as importlib has it
    """Ray reads settings and token once in the life of a process: have it read them again.

    In this order: a thread of an earlier connection that ends late may ask for a token.
    """
    ray = importlib.import_module("ray")
    inside = importlib.import_module("ray._raylet")
    inside.Config.initialize("")
    inside.AuthenticationTokenLoader.instance().reset_cache()
    return ray


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself: it would print stacks and leave without our cleanup."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        # Other threads may not set handlers; there Ray leaves them alone.
        if threading.current_thread() is threading.main_thread():
            for number, handler in zip(numbers, previous, strict=True):
                signal.signal(number, handler)


def new_token() -> str:
    """Who knows it may do anything in that Ray."""
    return secrets.token_hex(32)


def ray_environment(outer: Mapping[str, str], token: str) -> dict[str, str | None]:
    """What to change in `outer` so that Ray listens to us alone; None: unset.

    A shell may name a cluster that is not ours to join, another cluster's token, or a setting
    that only its Ray understands.
    """
    theirs = dict.fromkeys(name for name in outer if name.startswith("RAY_"))
    return {**theirs, **_SETTINGS, "RAY_AUTH_TOKEN": token}


def object_store_folder(otherwise: Path, shared_memory: Path = SHARED_MEMORY) -> Path:
    """Shared memory where it has room; containers often have 64 MB, about which Ray is loud."""
    if not shared_memory.is_dir():
        return otherwise
    has_room = shutil.disk_usage(shared_memory).free >= OBJECT_STORE_BYTES
    return shared_memory if has_room and os.access(shared_memory, os.W_OK) else otherwise


def short_folder() -> Path:
    """Ray's socket names are long and a socket path ends at 107 characters."""
    return Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())


def loopback() -> str:
    """An address that Ray leaves alone; macOS has no second loopback address, and needs none."""
    if sys.platform != "linux":
        return "127.0.0.1"
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
    return LOOPBACK


def _change(environ: MutableMapping[str, str], values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
