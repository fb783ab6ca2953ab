"""The sources of one simulated instance: fences, waits and tombstones, as small as can be."""

from core.errors import StaleFence, UnknownRequest
from core.ids import HandoffId
from core.request import Fence
from kv_transfer.source import Outcome, Reader, Source, SourceState
from tests.simulation.content import LAYOUT
from tests.simulation.network import Node
from tests.simulation.profile import AWAIT, LEASE, TICK_S


def newest_fence(source: Source) -> Fence:
    """The highest that this source has seen."""
    return max(source.fence, source.reader.fence) if source.reader else source.fence


class SourceBook:
    """One live Source per handoff; an ended one stays as a tombstone for one lease time.

    Tombstones are kept apart: a Fetch of a later attempt that nobody answers must not make the
    instance forget what it was told before.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._live: dict[HandoffId, Source] = {}
        self._tombstones: dict[HandoffId, tuple[Source, float]] = {}
        """With the moment from which on it is forgotten."""

    def __len__(self) -> int:
        return len(self._live) + len(self._tombstones)

    def __str__(self) -> str:
        return f"{self._node}.book"

    def find(self, handoff_id: HandoffId) -> Source | None:
        """The live one, else the tombstone."""
        return self._live.get(handoff_id) or self._tombstones.get(handoff_id, (None, 0.0))[0]

    def accept(self, handoff_id: HandoffId, fence: Fence) -> tuple[Source, Source | None]:
        """A Prefill call. Returns its source, and the live one that it takes the place of.

        Raises StaleFence, or WrongState for a repeated or cancelled call.
        """
        source, replaced = self._live.get(handoff_id), None
        tombstone = self._tombstone_above(handoff_id, fence)
        if tombstone is not None:
            source = tombstone
        elif source is None:
            source = self._open(handoff_id)
        elif source.state is not SourceState.AWAITED and fence != source.fence:
            if fence < source.fence:
                raise StaleFence(f"{handoff_id}: {fence} is behind {source.fence}")
            source.end(Outcome.SUPERSEDED)
            source, replaced = self._open(handoff_id), source
        source.accept(fence)
        world = self._node.world
        world.checks.taken_up(f"{self._node} source", handoff_id, fence, world.now_s)
        return source, replaced

    def fetch(self, handoff_id: HandoffId, reader: Reader) -> Source:
        """A Fetch opened. Raises StaleFence, or WrongState when this fence has ended."""
        source = self._live.get(handoff_id)
        if source is None:
            source = self._tombstone_above(handoff_id, reader.fence) or self._open(handoff_id)
        source.fetch(reader, self._node.world.now_s)
        return source

    def release(self, handoff_id: HandoffId, fence: Fence, *, committed: bool) -> Source:
        """End a lease; an unknown one is remembered. Raises StaleFence or WrongState."""
        source = self.find(handoff_id)
        if source is None:
            source = self._open(handoff_id)
            source.fence = fence
            source.end(Outcome.ABORTED)
        source.release(fence, committed=committed)
        return source

    def renew(self, handoff_id: HandoffId, fence: Fence) -> None:
        """Extend a lease. Raises UnknownRequest, StaleFence or WrongState."""
        source = self.find(handoff_id)
        if source is None:
            raise UnknownRequest(f"no lease for {handoff_id}")
        source.renew(fence, self._node.world.now_s)

    def bury(self, source: Source, *, was_awaited: bool) -> None:
        """It has ended: remember it for one lease time.

        A wait that ended was no cancel: the Prefill call may still come.
        """
        handoff_id = source.handoff_id
        if self._live.get(handoff_id) is source:
            del self._live[handoff_id]
        above = self._tombstone_above(handoff_id, newest_fence(source))
        if was_awaited or (above is not None and above is not source):
            return
        self._tombstones[handoff_id] = (source, self._node.world.now_s + LEASE * TICK_S)
        self._node.later(LEASE, self._forget, source)

    def _tombstone_above(self, handoff_id: HandoffId, fence: Fence) -> Source | None:
        """What forbids to take up `fence`, if anything does."""
        tombstone, _ = self._tombstones.get(handoff_id, (None, 0.0))
        return tombstone if tombstone is not None and fence <= newest_fence(tombstone) else None

    def _open(self, handoff_id: HandoffId) -> Source:
        node = self._node
        source = self._live[handoff_id] = node.world.parts.source(
            handoff_id=handoff_id,
            layout=LAYOUT,
            blocks=node.blocks,
            lease_ttl_s=LEASE * TICK_S,
            expires_at_s=node.world.now_s + AWAIT * TICK_S,
            target_segment_bytes=node.world.ticks(8, 64),
        )
        return source

    def _forget(self, source: Source) -> bool:
        known, until_s = self._tombstones.get(source.handoff_id, (None, 0.0))
        if known is not source or self._node.world.now_s < until_s:
            return False
        del self._tombstones[source.handoff_id]
        return True
