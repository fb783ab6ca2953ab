"""A private Ray on this machine: loopback, own folder, own token, gone without a trace."""

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
from functools import cache
from pathlib import Path
from typing import Any

from registry.scratch import ScratchFolder

logger = logging.getLogger(__name__)

FOLDER_PREFIX = "baton-ray-"
SHARED_MEMORY = Path("/dev/shm")
OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Ray's smallest is 75 MiB; no request ever goes through it."""
LOOPBACK = "127.0.0.2"
"""Ray replaces 127.0.0.1 by the host's address, and then listens beyond this machine."""

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


@contextmanager
def private_ray(*, num_cpus: int, num_gpus: int = 0) -> Iterator[Any]:
    """The `ray` module, connected to a Ray of our own; CPUs are logical, not this machine's.

    Ray reads its settings from the environment of this process alone, at import and at init.
    """
    with ExitStack() as stack:
        folder = ScratchFolder(FOLDER_PREFIX, parent=_short_folder())
        stack.callback(folder.remove)
        environ = os.environ  # noqa: TID251 - Ray has no other way to be told
        stack.callback(_change, environ, _change(environ, ray_environment(environ)))
        ray = importlib.import_module("ray")
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
                _node_ip_address=_loopback(),
            )
        logger.info("ray started: %s", folder.path)
        yield ray
    logger.info("ray stopped: %s", folder.path)


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


@cache
def _token() -> str:
    """Ray reads its token once in the life of a process, whatever the environment says later."""
    return secrets.token_hex(32)


def ray_environment(outer: Mapping[str, str]) -> dict[str, str | None]:
    """What to change in `outer` so that Ray listens to us alone; None: unset.

    A shell may name a cluster that is not ours to join, another cluster's token, or a setting
    that only its Ray understands.
    """
    theirs = dict.fromkeys(name for name in outer if name.startswith("RAY_"))
    return {**theirs, **_SETTINGS, "RAY_AUTH_TOKEN": _token()}


def object_store_folder(otherwise: Path, shared_memory: Path = SHARED_MEMORY) -> Path:
    """Shared memory where it has room; containers often have 64 MB, about which Ray is loud."""
    if not shared_memory.is_dir():
        return otherwise
    has_room = shutil.disk_usage(shared_memory).free >= OBJECT_STORE_BYTES
    return shared_memory if has_room and os.access(shared_memory, os.W_OK) else otherwise


def _short_folder() -> Path:
    """Ray's socket names are long and a socket path ends at 107 characters."""
    return Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())


def _loopback() -> str:
    """An address that Ray leaves alone; macOS has no second loopback address, and needs none."""
    if sys.platform != "linux":
        return "127.0.0.1"
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
    return LOOPBACK


def _change(
    environ: MutableMapping[str, str], values: Mapping[str, str | None]
) -> dict[str, str | None]:
    """Set or unset (None) variables; returns what they were."""
    previous = {name: environ.get(name) for name in values}
    for name, value in values.items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
    return previous
