"""Which clusters this user serves, so that `baton generate` finds one without an address."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.errors import BatonError
from core.paths import user_cache_dir

logger = logging.getLogger(__name__)


@contextmanager
def announced(
    name: str, router_addresses: tuple[str, ...], http_addresses: tuple[str, ...]
) -> Iterator[Path]:
    """Note a running cluster until the block ends; where that cannot be, it runs all the same."""
    path = _folder() / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        note = {"routers": router_addresses, "http": http_addresses}
        path.write_text(json.dumps(note), encoding="utf-8")
    except OSError as error:
        logger.warning("other commands will need --address: cannot write %s: %s", path, error)
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


class NoCluster(BatonError):
    """Nothing to talk to."""

    status = "UNAVAILABLE"


def find_routers(address: str | None) -> tuple[str, ...]:
    """gRPC: the given address, or those of the cluster announced last. Raises NoCluster."""
    return (address,) if address else _announced_last("routers")


def find_http(address: str | None) -> tuple[str, ...]:
    """The same, of OpenAI's API."""
    return (address,) if address else _announced_last("http")


def _announced_last(door: str) -> tuple[str, ...]:
    notes = sorted(_folder().glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not notes:
        raise NoCluster("no running cluster: start one with `baton serve`, or give --address")
    document = json.loads(notes[-1].read_text(encoding="utf-8"))
    return tuple(str(address) for address in document[door])


def _folder() -> Path:
    return user_cache_dir() / "running"
