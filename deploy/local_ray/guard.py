"""Ray's store (GCS) is started again when it dies, as bare Ray does not."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from core.clock import Clock
from core.errors import BatonError
from deploy.local_ray.processes import first_ended

logger = logging.getLogger(__name__)

WINDOW_S = 60.0
MAX_RESTARTS = 10
"""In a window. A store that dies more often than that will not get better by itself."""
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0
"""Ten times in one minute, pauses included, so that the limit is met; and the actors' patience
(`GCS_PATIENCE_S`) is longer than all pauses together."""


class RayLost(BatonError):
    """A part of the local Ray ended, and cannot be had back."""

    status = "UNAVAILABLE"


@dataclass(slots=True, kw_only=True)
class Restarts:
    """When the store died lately, and so how long to wait before it is started again."""

    _died_at_s: list[float] = field(default_factory=list)

    def pause_s(self, now_s: float) -> float:
        """It died now. Raises RayLost when it has died too often."""
        self._died_at_s = [s for s in self._died_at_s if now_s - s < WINDOW_S]
        num_before = len(self._died_at_s)
        if num_before == MAX_RESTARTS:
            raise RayLost(f"Ray's store died {num_before + 1} × in {WINDOW_S} s")
        self._died_at_s.append(now_s)
        return 0.0 if num_before == 0 else min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (num_before - 1))


async def keep_store(node: Any, clock: Clock) -> None:  # noqa: ANN401 - Ray's Node
    """Watch the store for ever. Raises RayLost when it, or the host's own part, is lost."""
    restarts = Restarts()
    while True:
        store, raylet = pid_of(node, "gcs_server"), pid_of(node, "raylet")
        if await first_ended(store, raylet) == raylet:
            raise RayLost(f"Ray's part of this host (raylet, pid {raylet}) ended")
        pause_s = restarts.pause_s(clock.now_s())
        logger.warning("gcs died pid=%d pause_s=%.1f", store, pause_s)
        await asyncio.sleep(pause_s)
        # Ray's own way, as its tests of a lost store go: same command line, same environment,
        # same port, and a child that dies with this process. It takes milliseconds.
        node.kill_gcs_server(check_alive=False)
        node.start_gcs_server()
        logger.warning("gcs started again pid=%d", pid_of(node, "gcs_server"))


def pid_of(node: Any, kind: str) -> int:  # noqa: ANN401 - Ray's Node
    """Of one of the processes that a Node started."""
    pid: int = node.all_processes[kind][0].process.pid
    return pid
