"""The loop that keeps a process known to the others."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from core.errors import ConfigError
from core.member import Member
from core.waiting import wait_at_most
from registry.api import Registry, RegistryUnavailable
from registry.backoff import Outage

WITHDRAW_TIMEOUT_S = 1.0
"""Leaving must not hold up a shutdown; who fails to is forgotten after its TTL."""

Pause = Callable[[asyncio.Event, float], Awaitable[object]]
"""Returns when the event is set or after that many seconds, or earlier when there is news to tell;
tests give their own."""


async def keep_announced(
    registry: Registry,
    member_source: Callable[[], Member],
    *,
    stop: asyncio.Event,
    ttl_s: float = 5.0,
    interval_s: float = 1.0,
    wait: Pause = wait_at_most,
) -> None:
    """Announce what `member_source` says every `interval_s` until `stop` or cancel; then withdraw.

    Outages of the store are waited out; `member_source` is asked anew each time, so a change of
    role shows within one interval, and at once where `wait` returns for it.
    """
    if not 0 < 2 * interval_s <= ttl_s:
        raise ConfigError((f"interval_s {interval_s} must be at most half of ttl_s {ttl_s}",))
    outage = Outage("heartbeat", random.Random())
    announced: Member | None = None
    try:
        while not stop.is_set():
            # Before the call: one that failed may still have reached the store.
            announced = member_source()
            try:
                await registry.announce(announced, ttl_s=ttl_s)
            except RegistryUnavailable as error:
                await wait(stop, outage.failed(error))
                continue
            outage.ended()
            await wait(stop, interval_s)
    finally:
        if announced is not None:
            await _withdraw(registry, announced)


async def _withdraw(registry: Registry, member: Member) -> None:
    with contextlib.suppress(RegistryUnavailable, TimeoutError):
        async with asyncio.timeout(WITHDRAW_TIMEOUT_S):
            await registry.withdraw(member)
