"""The one watch loop: read, show what changed, wait for a nudge; keep quiet through outages."""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from core.clock import Clock
from core.member import Member
from registry.api import RegistryUnavailable
from registry.backoff import Outage, pause
from registry.view import MembershipView, Snapshot

REREAD_S = 2.0
"""Between readings when nobody nudges: expiry is not announced by anyone."""


class Source(Protocol):
    """A store as one watch sees it."""

    async def snapshot(self) -> Snapshot:
        """Read the store. Raises RegistryUnavailable."""
        ...

    async def changed(self) -> None:
        """Return soon after a change, and after the re-read time at the latest.

        May return for no reason. Raises RegistryUnavailable.
        """
        ...

    async def close(self) -> None:
        """Let go of what waiting needed."""
        ...


async def watch(
    source: Source, clock: Clock, closed: asyncio.Event
) -> AsyncIterator[tuple[Member, ...]]:
    """Membership now and after each change, until `closed` is set."""
    view, outage = MembershipView(), Outage("watch")
    shown: tuple[Member, ...] | None = None
    try:
        while not closed.is_set():
            try:
                members = view.observe(await source.snapshot(), clock.now_s())
            except RegistryUnavailable as error:
                await pause(closed, outage.failed(error))
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
        await pause(closed, Outage.FIRST_DELAY_S)
