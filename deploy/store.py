"""The cluster's own store as a process: Valkey with its data on this host, at one address for good.

Where nobody gives a registry, `baton up` starts one of these beside the controller.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from core.errors import ConfigError
from registry.backoff import Delays
from registry.embedded import EmbeddedValkey
from registry.home import ValkeyHome

logger = logging.getLogger(__name__)

STABLE_S = 60.0
"""Who served that long did not die of how it was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSpec:
    """Everything it is told."""

    folder: Path
    """On its host: data and log."""
    port: int
    password: str = field(repr=False)
    host: str = "127.0.0.1"
    """Listened on; empty: whoever starts it on a host says."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self) | {"folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> "StoreSpec":
        """What `to_json` wrote. Raises ConfigError, which never shows it."""
        try:
            table = json.loads(text)
            return cls(**{**table, "folder": Path(table["folder"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError((f"store: {type(error).__name__}",)) from None


async def run_store(spec: StoreSpec, *, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    """Serve until `stop` is set; a server that dies is started again, where it was."""
    home = ValkeyHome(folder=spec.folder, host=spec.host, port=spec.port, password=spec.password)
    async with EmbeddedValkey(home) as server, asyncio.TaskGroup() as group:
        keeping = group.create_task(_keep_up(server))
        ready(home.address)
        await stop.wait()
        keeping.cancel()


async def _keep_up(server: EmbeddedValkey) -> None:
    delays = Delays()
    while True:
        began_at_s = time.monotonic()
        await server.ended()
        if time.monotonic() - began_at_s > STABLE_S:
            delays = Delays()
        pause_s = delays.next_s()
        logger.error("valkey ended; starting it again in %.1f s", pause_s)
        await asyncio.sleep(pause_s)
        await server.start()
