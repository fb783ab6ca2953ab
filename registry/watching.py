"""The one watch loop: read, show what changed, wait for a nudge; keep quiet through outages."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from core.clock import Clock
from core.member import Member
from core.waiting import wait_at_most
from registry.api import RegistryUnavailable
from registry.backoff import Outage
from registry.view import REJOIN_GRACE_S, MembershipView, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPace:
    """How fast a watch sees what nobody tells it, and how long it trusts what it saw."""

    reread_s: float = 2.0
    """Between readings when nobody nudges: expiry is not announced by anyone."""
    rejoin_grace_s: float = REJOIN_GRACE_S


DEFAULT_PACE = WatchPace()


class Source(Protocol):
    """A store as one watch sees it."""

    async def snapshot(self) -> Snapshot:
        """Read the store. Raises RegistryUnavailable."""
        ...

    async def changed(self) -> None:
        """Return soon after a change, and after `WatchPace.reread_s` at the latest.

        May return for no reason. Raises RegistryUnavailable.
        """
        ...

    async def close(self) -> None:
        """Let go of what waiting needed."""
        ...


async def watch(
    source: Source, pace: WatchPace, clock: Clock, closed: asyncio.Event
) -> AsyncGenerator[tuple[Member, ...], None]:
    """Membership now and after each change, until `closed` is set."""
    view, outage = MembershipView(pace.rejoin_grace_s), Outage("watch")
    shown: tuple[Member, ...] | None = None
    try:
        while not closed.is_set():
            try:
                members = view.observe(await source.snapshot(), clock.now_s())
            except RegistryUnavailable as error:
                view.lost_sight()
                await wait_at_most(closed, outage.failed(error))
                continue
            outage.ended()
            if members != shown:
                shown = members
                yield members
            await _changed(source, closed)
    finally:
        await source.close()


async def _changed(source: Source, closed: asyncio.Event) -> None:
    try:
        await source.changed()
    except RegistryUnavailable:
        # The next reading tells whether the store is away; until then do not spin.
        await wait_at_most(closed, Outage.FIRST_DELAY_S)
