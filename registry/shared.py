"""What all processes of a cluster have in common through the store: its key and its time."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from core.clock import Clock
from core.prefix import KEY_BYTES
from core.waiting import wait_at_most
from registry.api import Registry, RegistryUnavailable, SharedKeyDamaged
from registry.backoff import Outage

logger = logging.getLogger(__name__)

JOIN_WAIT_S = 60.0
"""For a store that is away when a process starts: it would be a member of nothing meanwhile."""
REREAD_S = 2.0
"""As membership: a store that lost its memory is told the key again before a newcomer, who would
propose one of its own, has loaded a model."""

Pause = Callable[[asyncio.Event, float], Awaitable[object]]
"""Returns when the event is set or after that many seconds; tests give their own."""


@dataclass(slots=True)
class Shared:
    """One process's copy; `keep_shared` writes it."""

    clock: Clock = field(repr=False)
    """The host's own; hosts may differ by any time."""
    key: bytes = field(repr=False)
    offset_s: float
    """From `clock` to the store's."""

    def now_s(self) -> float:
        """The store's time, without asking it; seconds."""
        return self.clock.now_s() + self.offset_s


async def join_shared(
    registry: Registry,
    clock: Clock,
    *,
    stop: asyncio.Event,
    proposal: bytes | None = None,
    wait: Pause = wait_at_most,
) -> Shared:
    """The cluster's key and time. Waits for a store that is away, JOIN_WAIT_S at most.

    A key of our own would be of no use to anybody: raises RegistryUnavailable when there is none
    in time, or once `stop` is set, and SharedKeyDamaged at once.
    """
    shared = Shared(clock, proposal or secrets.token_bytes(KEY_BYTES), 0.0)
    outage, began_at_s = Outage("joining"), clock.now_s()
    while True:
        try:
            await _read(shared, registry)
        except SharedKeyDamaged:
            raise
        except RegistryUnavailable as error:
            delay_s = outage.failed(error)
            if stop.is_set() or clock.now_s() + delay_s > began_at_s + JOIN_WAIT_S:
                raise
            await wait(stop, delay_s)
        else:
            outage.ended()
            return shared


async def keep_shared(
    shared: Shared,
    registry: Registry,
    on_key: Callable[[bytes], None],
    *,
    stop: asyncio.Event,
    wait: Pause = wait_at_most,
) -> None:
    """Read both again every REREAD_S until `stop` or cancel; `on_key` hears of another key.

    A store that was emptied is told our key. Outages are waited out with what is known.
    """
    outage = Outage("shared key")
    while not stop.is_set():
        before = shared.key
        try:
            await _read(shared, registry)
        except RegistryUnavailable as error:
            await wait(stop, outage.failed(error))
            continue
        outage.ended()
        if shared.key != before:
            logger.warning("the cluster has another key: its store was emptied and is in use again")
            on_key(shared.key)
        await wait(stop, REREAD_S)


async def _read(shared: Shared, registry: Registry) -> None:
    shared.key = await registry.shared_key(shared.key)
    asked_at_s = shared.clock.now_s()
    now_s = await registry.now_s()
    # In the middle: what the call took is halved, whichever way it went.
    shared.offset_s = now_s - (asked_at_s + shared.clock.now_s()) / 2
