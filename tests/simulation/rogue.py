"""Frames that a correct peer would not send now: of another version, or by a bug."""

from typing import TYPE_CHECKING

from core.kv_layout import KvRange
from kv_transfer.source import Source
from tests.simulation.profile import Profile

if TYPE_CHECKING:
    from tests.simulation.decode_node import DecodeNode
    from tests.simulation.prefill_node import PrefillNode
    from tests.simulation.streams import Stream
    from tests.simulation.world import World

WRONG = 4711


class Rogue:
    """Adds them to live streams, with the stream's own fence, so that only states can tell."""

    def __init__(self, world: "World", profile: Profile) -> None:
        self._world = world
        self._rate = profile.rogue

    def toward_source(self, node: "PrefillNode", source: Source) -> None:
        """A word out of turn from a decode instance."""
        if not self._rate or self._world.random() >= self._rate:
            return
        fence = max(source.fence, source.reader.fence) if source.reader else source.fence
        handoff_id, world = source.handoff_id, self._world
        stream_id = next((s.stream_id for s in node.sending.of(source)), 0)
        words = (
            (node.on_renew, handoff_id, fence, 0),
            (node.on_release, handoff_id, fence, True),
            (node.on_release, handoff_id, fence, False),
            (node.sending.on_credit, stream_id, 0),
            (node.sending.on_refetch, stream_id, int(world.random() * 3)),
            (node.sending.on_lost, stream_id),
        )
        word, *args = world.rng.choice(words)
        node.later(world.ticks(0, 30), word, *args)

    def toward_sink(self, node: "DecodeNode", stream: "Stream") -> None:
        """A frame out of turn from a prefill instance."""
        if not self._rate or self._world.random() >= self._rate:
            return
        world, fetching, stream_id = self._world, node.fetching, stream.stream_id
        first_cell = KvRange(range(1), range(1))
        frames = (
            (fetching.on_segment, stream_id, 0, first_cell, [WRONG], False),
            (fetching.on_segment, stream_id, 0, first_cell, [WRONG], True),
            (fetching.on_end, stream_id, WRONG, 0, WRONG),
            (fetching.on_lost, stream_id),
        )
        frame, *args = world.rng.choice(frames)
        node.later(world.ticks(0, 30), frame, *args)

    def toward_router(self, node: "DecodeNode", stream: "Stream") -> None:
        """A broken stream reported though the machine was not impressed."""
        if self._rate and self._world.random() < self._rate:
            told, spec = node.router.on_kv_lost, stream.job.spec
            node.network.send(None, told, spec, node, stream.fence)
