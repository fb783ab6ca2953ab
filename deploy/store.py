"""The cluster's own store as a process: Valkey with its data on this host, at one address for good.

Where nobody gives a registry, `baton up` starts one of these beside the controller.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from core.errors import ConfigError
from registry.embedded import EmbeddedValkey
from registry.home import ValkeyHome


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
    """Serve until `stop` is set."""
    home = ValkeyHome(folder=spec.folder, host=spec.host, port=spec.port, password=spec.password)
    async with EmbeddedValkey(home):
        ready(f"{spec.host}:{spec.port}")
        await stop.wait()
