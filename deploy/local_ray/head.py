"""The Ray head of a background process: no driver, a store on disk, and its guard."""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.clock import MonotonicClock
from deploy.local_ray.door import RayDoor
from deploy.local_ray.guard import keep_store, pid_of
from deploy.local_ray.processes import first_ended
from deploy.ray_runtime import (
    OBJECT_STORE_BYTES,
    PATIENT,
    loopback,
    new_token,
    object_store_folder,
    ray_environment,
    ray_told,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """What the head offers; both are logical, not this machine's."""

    num_cpus: int
    num_gpus: int


@contextmanager
def ray_head(spec: HeadSpec, scratch: Path) -> Iterator[tuple[Any, RayDoor]]:
    """Ray's processes, as children of this one, and how to come in.

    A Node is what `ray start` and `ray.init` make. This process is no driver: a driver is ended
    by Ray when the store is away too long, and so could not be who brings it back.
    """
    token = new_token()
    environ = os.environ  # noqa: TID251 - as in `ray_told`
    store = scratch / "gcs"
    store.mkdir()
    changes = {**ray_environment(environ, token), **PATIENT, **_kept_in(store)}
    with ray_told(changes):
        node = _start(spec, scratch)
        try:
            yield node, RayDoor(address=node.gcs_address, token=token)
        finally:
            node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)


def _kept_in(store: Path) -> dict[str, str]:
    return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(store)}


def _start(spec: HeadSpec, scratch: Path) -> Any:  # noqa: ANN401 - Ray's Node
    parameter = importlib.import_module("ray._private.parameter")
    node = importlib.import_module("ray._private.node")
    params = parameter.RayParams(
        node_ip_address=loopback(),
        num_cpus=spec.num_cpus,
        num_gpus=spec.num_gpus,
        object_store_memory=OBJECT_STORE_BYTES,
        plasma_directory=str(object_store_folder(scratch)),
        temp_dir=str(scratch),
        # Nobody looks at them: no dashboard, no copies of logs, no machines to be had.
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
    )
    # The children die with this thread, as Linux has it: on the main thread only.
    return node.Node(params, head=True, shutdown_at_exit=False, spawn_reaper=True)


async def serve(spec: HeadSpec, scratch: Path, on_up: Callable[[RayDoor], None]) -> None:
    """Run a head until cancelled. Raises RayLost when it cannot be kept."""
    with ray_head(spec, scratch) as (node, door):
        on_up(door)
        logger.info("ray is up address=%s", door.address)
        if sys.platform == "linux":
            await keep_store(node, MonotonicClock())
        else:
            await first_ended(pid_of(node, "raylet"))
