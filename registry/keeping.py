"""The loop that keeps one process the cluster's leader, and the store told what it is to be."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from core.errors import ConfigError
from core.waiting import wait_at_most
from registry.api import Registry, RegistryUnavailable
from registry.backoff import Delays, Outage
from registry.leader import AnotherLeads, Leader

logger = logging.getLogger(__name__)

RESIGN_TIMEOUT_S = 1.0
"""Leaving must not hold up a shutdown; who fails to leads until the end of its TTL."""

Pause = Callable[[asyncio.Event, float], Awaitable[object]]
"""Returns when the event is set or after that many seconds; tests give their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    registry: Registry
    holder: str
    address: str
    ttl_s: float
    stop: asyncio.Event
    wait: Pause


async def keep_leading(  # noqa: PLR0913 - who one is, three things to tell or be told, three times
    registry: Registry,
    holder: str,
    address: str,
    *,
    on_term: Callable[[int], None],
    on_lost: Callable[[Leader], None],
    deployment: Callable[[], str | None],
    stop: asyncio.Event,
    ttl_s: float = 5.0,
    interval_s: float = 1.0,
    wait: Pause = wait_at_most,
) -> None:
    """Become leader, however long that takes, and stay it until `stop`, cancel or `on_lost`.

    While the store is away one goes on: nobody else can be elected there, and whoever is, once it
    is back, has a higher term, which instances obey. A store that comes back without the
    deployment is told the one that `deployment` gives. Resigns at the end.
    """
    if not 0 < 2 * interval_s <= ttl_s:
        raise ConfigError((f"interval_s {interval_s} must be at most half of ttl_s {ttl_s}",))
    me = _Candidate(
        registry=registry, holder=holder, address=address, ttl_s=ttl_s, stop=stop, wait=wait
    )
    term = await _elected(me)
    if term is None:
        return
    try:
        on_term(term)
        if (leader := await _deposed(me, term, deployment, interval_s)) is not None:
            logger.warning("leadership lost: term=%d to term=%d", term, leader.term)
            on_lost(leader)
    finally:
        await _resign(me, term)


async def _elected(me: _Candidate) -> int | None:
    """The term granted, as soon as nobody else leads; None once stopped."""
    outage, delays = Outage("election"), Delays()
    while not me.stop.is_set():
        try:
            term = await me.registry.lead(me.holder, me.address, term=None, ttl_s=me.ttl_s)
        except AnotherLeads as another:
            outage.ended()
            if delays.num_taken == 0:
                logger.info("waiting to lead: %s", another)
            await me.wait(me.stop, delays.next_s())
        except RegistryUnavailable as error:
            await me.wait(me.stop, outage.failed(error))
        else:
            outage.ended()
            logger.info("leading: term=%d holder=%s address=%s", term, me.holder, me.address)
            return term
    return None


async def _deposed(
    me: _Candidate, term: int, deployment: Callable[[], str | None], interval_s: float
) -> Leader | None:
    """Whose term ended ours, when one does; None once stopped."""
    outage = Outage("leader")
    while not me.stop.is_set():
        try:
            await me.registry.lead(me.holder, me.address, term=term, ttl_s=me.ttl_s)
            await _remind(me.registry, term, deployment())
        except AnotherLeads as another:
            return another.leader
        except RegistryUnavailable as error:
            await me.wait(me.stop, outage.failed(error))
            continue
        outage.ended()
        await me.wait(me.stop, interval_s)
    return None


async def _remind(registry: Registry, term: int, text: str | None) -> None:
    """Tell a store that was emptied what the cluster is to be."""
    if text and await registry.deployment() is None:
        await registry.put_deployment(text, term=term)
        logger.warning("deployment put again: the store had none, term=%d", term)


async def _resign(me: _Candidate, term: int) -> None:
    with contextlib.suppress(RegistryUnavailable, TimeoutError):
        async with asyncio.timeout(RESIGN_TIMEOUT_S):
            await me.registry.resign(me.holder, term)
