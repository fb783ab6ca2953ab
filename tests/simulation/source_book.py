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
    """One Source per handoff; an ended one stays as a tombstone for one lease time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._sources: dict[HandoffId, Source] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def __str__(self) -> str:
        return f"{self._node}.book"

    def find(self, handoff_id: HandoffId) -> Source | None:
        """As it stands, tombstones included."""
        return self._sources.get(handoff_id)

    def accept(self, handoff_id: HandoffId, fence: Fence) -> tuple[Source, Source | None]:
        """A Prefill call. Returns its source, and what it takes the place of.

        Raises StaleFence, or WrongState for a repeated or cancelled call.
        """
        source = before = self._sources.get(handoff_id)
        if source is None or (source.state is SourceState.ENDED and fence > newest_fence(source)):
            source, before = self._open(handoff_id), None
        elif source.state is not SourceState.AWAITED:
            if fence < source.fence:
                raise StaleFence(f"{handoff_id}: {fence} is behind {source.fence}")
            if fence > source.fence and source.state is not SourceState.ENDED:
                source.end(Outcome.SUPERSEDED)
                source = self._open(handoff_id)
        source.accept(fence)
        self._node.world.checks.raised_fence(f"{self._node} source", handoff_id, fence)
        return source, before if before is not source else None

    def fetch(self, handoff_id: HandoffId, reader: Reader) -> Source:
        """A Fetch opened. Raises StaleFence, or WrongState when this fence has ended."""
        source = self._sources.get(handoff_id)
        if source is None or (
            source.state is SourceState.ENDED and reader.fence > newest_fence(source)
        ):
            source = self._open(handoff_id)
        source.fetch(reader, self._node.world.now_s)
        return source

    def release(self, handoff_id: HandoffId, fence: Fence, *, committed: bool) -> Source:
        """End a lease; an unknown one is remembered. Raises StaleFence or WrongState."""
        source = self._sources.get(handoff_id)
        if source is None:
            source = self._open(handoff_id)
            source.fence = fence
            source.end(Outcome.ABORTED)
        source.release(fence, committed=committed)
        return source

    def renew(self, handoff_id: HandoffId, fence: Fence) -> None:
        """Extend a lease. Raises UnknownRequest, StaleFence or WrongState."""
        source = self._sources.get(handoff_id)
        if source is None:
            raise UnknownRequest(f"no lease for {handoff_id}")
        source.renew(fence, self._node.world.now_s)

    def bury(self, source: Source, *, was_awaited: bool) -> None:
        """It has ended: remember it for one lease time.

        A wait that ended was no cancel: the Prefill call may still come.
        """
        if was_awaited:
            self._forget(source)
        else:
            self._node.later(LEASE, self._forget, source)

    def _open(self, handoff_id: HandoffId) -> Source:
        node = self._node
        source = node.world.parts.source(
            handoff_id=handoff_id,
            layout=LAYOUT,
            blocks=node.blocks,
            lease_ttl_s=LEASE * TICK_S,
            expires_at_s=node.world.now_s + AWAIT * TICK_S,
            target_segment_bytes=node.world.ticks(8, 64),
        )
        self._sources[handoff_id] = source
        return source

    def _forget(self, source: Source) -> bool:
        if self._sources.get(source.handoff_id) is not source:
            return False
        del self._sources[source.handoff_id]
        return True
