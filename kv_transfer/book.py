"""All Sources of one instance: fences, tombstones, waiting readers, and the reaper."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from core.clock import Clock
from core.config import HandoffConfig
from core.errors import Saturated, StaleFence, UnknownRequest
from core.handoff import SourceState
from core.ids import HandoffId
from core.kv_layout import KvLayout
from core.request import Fence
from core.waiting import wait_at_most
from kv_transfer.source import FirstToken, Outcome, Reader, Source
from kv_transfer.stores import Blocks
from kv_transfer.tombstones import Tombstones

logger = logging.getLogger(__name__)

MAX_AWAITED = 1024
"""Fetches waiting for their Prefill call; each holds a stream, no block."""
REAP_EVERY_S = 0.05
"""Expiries this close together are reaped in one go; adds at most as much to a lease."""

OnEnded = Callable[[Source], None]


@dataclass(slots=True)
class _Entry:
    source: Source
    on_ended: OnEnded | None = None
    """None while awaited: nobody owns it yet."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Reading:
    """One Fetch stream's hold on its source."""

    source: Source
    reader: Reader
    changed: asyncio.Event
    """Set at every change of the source; a waiter clears it before it looks."""

    @property
    def is_current(self) -> bool:
        """No newer stream has taken over."""
        return self.source.reader is self.reader


class SourceBook:
    """Owns every Source; called on the event loop's thread.

    `on_ended(source)` is called exactly once per accepted source, at the moment it ends for
    whatever reason, `end` included; its blocks are released by then. It must not raise.
    """

    def __init__(
        self, *, layout: KvLayout, blocks: Blocks, clock: Clock, config: HandoffConfig
    ) -> None:
        self._layout = layout
        self._blocks = blocks
        self._clock = clock
        self._config = config
        self._entries: dict[HandoffId, _Entry] = {}
        self._tombstones = Tombstones(config.lease_ttl_s)
        self._num_fetches = 0
        self._rescheduled = asyncio.Event()

    @property
    def num_leases(self) -> int:
        """Computed prompts kept for decode instances."""
        return self._count(SourceState.LEASED)

    @property
    def num_fetches(self) -> int:
        """Fetch streams open."""
        return self._num_fetches

    @property
    def num_sources(self) -> int:
        """Handoffs known, in whatever state."""
        return len(self._entries)

    @property
    def num_tombstones(self) -> int:
        """Ended handoffs remembered."""
        return len(self._tombstones)

    def source(self, handoff_id: HandoffId) -> Source:
        """One of them. Raises UnknownRequest."""
        if (entry := self._entries.get(handoff_id)) is None:
            raise UnknownRequest(f"{handoff_id}: no lease here")
        return entry.source

    # --- the owner of the prefills

    def accept(self, handoff_id: HandoffId, fence: Fence, *, on_ended: OnEnded) -> Source:
        """The Prefill call of `fence` arrived; a Fetch that came first is joined to it.

        An earlier attempt ends as SUPERSEDED. Raises StaleFence for a later attempt's or an ended
        one's, WrongState when this very attempt is here already.
        """
        self._tombstones.check(handoff_id, fence, self._clock.now_s())
        entry = self._entries.get(handoff_id)
        if entry is not None and _is_behind(entry.source, fence):
            self._end(entry, Outcome.SUPERSEDED)
            entry = None
        if entry is None:
            entry = self._add(handoff_id)
        elif fence < entry.source.fence:
            raise StaleFence(f"{handoff_id}: {fence} is behind {entry.source.fence}")
        entry.source.accept(fence)
        entry.on_ended = on_ended
        entry.changed.set()
        return entry.source

    def started(
        self,
        source: Source,
        block_ids: Sequence[int],
        num_tokens: int,
        groups: Sequence[range] = (),
    ) -> bool:
        """All blocks of the prompt are OWNED; the first step comes next. The source owns them from
        here; see its `start` for the groups. False when the attempt has ended: they stay the
        caller's."""
        if (entry := self._entry(source)) is None:
            return False
        source.start(block_ids, num_tokens, groups)
        entry.changed.set()
        return True

    def progress(self, source: Source, layer: int, num_tokens: int) -> None:
        """KV of the first `num_tokens` tokens of `layer` is written."""
        if (entry := self._entry(source)) is not None:
            source.progress(layer, num_tokens)
            entry.changed.set()

    def finished(self, source: Source, token: FirstToken) -> bool:
        """The first token is sampled: the lease begins. False when the attempt has ended."""
        entry = self._entry(source)
        if entry is None or not source.finish(token, self._clock.now_s()):
            return False
        entry.changed.set()
        self._rescheduled.set()
        return True

    def end(self, source: Source, outcome: Outcome) -> None:
        """End it for the owner's reasons; idempotent."""
        if (entry := self._entry(source)) is not None:
            self._end(entry, outcome)

    def hand_over(self, source: Source) -> tuple[int, ...]:
        """The blocks of a lease, to a decode in this very instance. Raises UnknownRequest when it
        has ended, WrongState before it is computed."""
        if (entry := self._entry(source)) is None:
            raise UnknownRequest(f"{source.handoff_id}: the lease has ended")
        block_ids = source.hand_over()
        self._forget_if_ended(entry)
        return block_ids

    # --- the readers

    @contextmanager
    def reading(
        self, handoff_id: HandoffId, fence: Fence, *, max_segment_bytes: int
    ) -> Iterator[Reading]:
        """One Fetch stream, from its first message to its end. Raises StaleFence or Saturated."""
        entry = self._find_or_await(handoff_id, fence)
        size = min(max_segment_bytes, self._config.max_segment_bytes)
        reader = Reader(fence, max_segment_bytes=size)
        entry.source.fetch(reader, self._clock.now_s())
        # An older reader of the same source notices that it has been replaced.
        entry.changed.set()
        self._num_fetches += 1
        try:
            yield Reading(entry.source, reader, entry.changed)
        finally:
            self._num_fetches -= 1
            entry.source.fetch_lost(reader)
            self._forget_if_ended(entry)

    def renew(self, handoff_id: HandoffId, fence: Fence) -> None:
        """Extend a lease. Raises UnknownRequest, StaleFence."""
        self._tombstones.check(handoff_id, fence, self._clock.now_s())
        self.source(handoff_id).renew(fence, self._clock.now_s())

    def release(self, handoff_id: HandoffId, fence: Fence, *, committed: bool) -> None:
        """End this attempt and every earlier one; idempotent, and remembered if unknown.

        Raises StaleFence when a later attempt is here.
        """
        entry = self._entries.get(handoff_id)
        if entry is None:
            self._bury(handoff_id, fence)
            return
        entry.source.release(fence, committed=committed)
        self._bury(handoff_id, fence)
        self._forget_if_ended(entry)

    # --- time

    async def reap(self) -> None:
        """Loop: end what has expired, sleeping until the next expiry."""
        while True:
            self._rescheduled.clear()
            self.expire()
            await wait_at_most(self._rescheduled, self._sleep_s())

    def expire(self) -> None:
        """End every lease and wait whose time has passed, and forget old tombstones."""
        now_s = self._clock.now_s()
        for entry in list(self._entries.values()):
            if entry.source.expire(now_s):
                logger.info("handoff expired handoff_id=%s", entry.source.handoff_id)
                self._forget_if_ended(entry)
        self._tombstones.expire(now_s)

    def _sleep_s(self) -> float | None:
        """Until something expires; None when nothing will. Renewals only put it off."""
        timed = (SourceState.AWAITED, SourceState.LEASED)
        moments = [
            entry.source.expires_at_s
            for entry in self._entries.values()
            if entry.source.state in timed
        ]
        if (forget_at_s := self._tombstones.next_expiry_s) is not None:
            moments.append(forget_at_s)
        if not moments:
            return None
        return max(REAP_EVERY_S, min(moments) - self._clock.now_s())

    # --- the books

    def _find_or_await(self, handoff_id: HandoffId, fence: Fence) -> _Entry:
        self._tombstones.check(handoff_id, fence, self._clock.now_s())
        entry = self._entries.get(handoff_id)
        if entry is None:
            if self._count(SourceState.AWAITED) >= MAX_AWAITED:
                raise Saturated(f"{MAX_AWAITED} fetches wait for their prefills already")
            entry = self._add(handoff_id)
            self._rescheduled.set()
        return entry

    def _add(self, handoff_id: HandoffId) -> _Entry:
        source = Source(
            handoff_id=handoff_id,
            layout=self._layout,
            blocks=self._blocks,
            lease_ttl_s=self._config.lease_ttl_s,
            expires_at_s=self._clock.now_s() + self._config.unknown_handoff_wait_s,
        )
        entry = self._entries[handoff_id] = _Entry(source)
        return entry

    def _entry(self, source: Source) -> _Entry | None:
        """Of a source that has not ended."""
        entry = self._entries.get(source.handoff_id)
        return entry if entry is not None and entry.source is source else None

    def _count(self, state: SourceState) -> int:
        return sum(entry.source.state is state for entry in self._entries.values())

    def _end(self, entry: _Entry, outcome: Outcome) -> None:
        entry.source.end(outcome)
        self._forget_if_ended(entry)

    def _forget_if_ended(self, entry: _Entry) -> None:
        source = entry.source
        if source.state is not SourceState.ENDED or self._entry(source) is not entry:
            return
        del self._entries[source.handoff_id]
        entry.changed.set()
        if entry.on_ended is not None:
            self._bury(source.handoff_id, source.fence)
            entry.on_ended(source)

    def _bury(self, handoff_id: HandoffId, fence: Fence) -> None:
        self._tombstones.add(handoff_id, fence, self._clock.now_s())
        self._rescheduled.set()


def _is_behind(source: Source, fence: Fence) -> bool:
    """An attempt below `fence`; while awaited, a reader below it (its prefill is another's)."""
    if source.state is not SourceState.AWAITED:
        return source.fence < fence
    return source.reader is not None and source.reader.fence < fence
