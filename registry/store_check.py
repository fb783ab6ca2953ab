"""Whether a store is fit to hold a cluster; asked before anything is started."""

from collections.abc import Mapping

from core.errors import BatonError
from registry.api import Registry

KEEPS_KEYS = "noeviction"


class StoreUnfit(BatonError):
    """The store works, but would lose what it is given; lists every problem."""

    status = "FAILED_PRECONDITION"

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


async def check_store(registry: Registry) -> None:
    """Raises StoreUnfit, or RegistryUnavailable; what the store does not tell is no problem."""
    if problems := await registry.problems():
        raise StoreUnfit(problems)


def eviction_problems(memory: object) -> tuple[str, ...]:
    """Of what a store says of its memory, `INFO memory`, parsed."""
    if not isinstance(memory, Mapping):
        return ()
    policy, limit_bytes = memory.get("maxmemory_policy"), memory.get("maxmemory")
    if not isinstance(policy, str) or not isinstance(limit_bytes, int):
        return ()
    if policy == KEEPS_KEYS or limit_bytes <= 0:
        return ()
    return (
        f"keys may be evicted above {limit_bytes} bytes, by {policy[:64]}:"
        f" set maxmemory-policy {KEEPS_KEYS}",
    )
