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
def announced(name: str, router_addresses: tuple[str, ...]) -> Iterator[Path]:
    """Note a running cluster until the block ends; where that cannot be, it runs all the same."""
    path = _folder() / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"routers": router_addresses}), encoding="utf-8")
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
    """The given address, or those of the cluster announced last. Raises NoCluster."""
    found = (address,) if address else _announced_last()
    if not found:
        raise NoCluster("no running cluster: start one with `baton serve`, or give --address")
    return found


def _announced_last() -> tuple[str, ...]:
    notes = sorted(_folder().glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not notes:
        return ()
    document = json.loads(notes[-1].read_text(encoding="utf-8"))
    return tuple(str(address) for address in document["routers"])


def _folder() -> Path:
    return user_cache_dir() / "running"
