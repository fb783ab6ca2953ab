"""A private Ray on this machine: loopback, own folder, own token, gone without a trace."""

import importlib
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Ray's smallest is 75 MiB; no request ever goes through it."""
LOOPBACK = "127.0.0.2"
"""Ray replaces 127.0.0.1 by the host's address, and then listens beyond this machine."""

_ENVIRONMENT = {
    # Explicit: otherwise a token left in a home folder switches authentication on or off.
    "RAY_AUTH_MODE": "token",
    # Ray runs its workers at nice 15, behind whatever else the machine does.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    # A cluster named here by somebody's shell is not ours to join.
    "RAY_ADDRESS": "",
}


@contextmanager
def private_ray(*, num_cpus: int, num_gpus: int = 0) -> Iterator[Any]:
    """The `ray` module, connected to a Ray of our own; CPUs are logical, not this machine's.

    Ray reads its settings from the environment of this process alone, at import and at init.
    """
    folder = Path(tempfile.mkdtemp(prefix="baton-", dir=_short_folder()))
    previous = _set_environment({**_ENVIRONMENT, "RAY_AUTH_TOKEN": _token()})
    ray = importlib.import_module("ray")
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=str(folder),
            _node_ip_address=_loopback(),
        )
        logger.info("ray started: %s", folder)
        yield ray
    finally:
        ray.shutdown()
        _set_environment(previous)
        shutil.rmtree(folder, ignore_errors=True)
        logger.info("ray stopped: %s", folder)


@cache
def _token() -> str:
    """Ray reads its token once in the life of a process, whatever the environment says later."""
    return secrets.token_hex(32)


def _short_folder() -> str | None:
    """Ray's socket names are long and a socket path ends at 107 characters."""
    return "/tmp" if Path("/tmp").is_dir() else None


def _loopback() -> str:
    """An address that Ray leaves alone; macOS has no second loopback address, and needs none."""
    if sys.platform != "linux":
        return "127.0.0.1"
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
    return LOOPBACK


def _set_environment(values: dict[str, str | None] | dict[str, str]) -> dict[str, str | None]:
    """Set (None: unset) variables of this process; returns what they were."""
    environ = os.environ  # noqa: TID251 - Ray has no other way to be told
    previous = {name: environ.get(name) for name in values}
    for name, value in values.items():
        if value:
            environ[name] = value
        else:
            environ.pop(name, None)
    return previous
