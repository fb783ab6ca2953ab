"""Frames that a correct peer would not send now: of another version, or by a bug."""

from typing import TYPE_CHECKING, Any

from core.kv_layout import KvRange
from core.request import Fence
from kv_transfer.source import Source
from tests.simulation.content import digest
from tests.simulation.profile import Profile
from tests.simulation.sending import End
from tests.simulation.slots import Inline

if TYPE_CHECKING:
    from tests.simulation.decode_node import DecodeNode
    from tests.simulation.network import Node
    from tests.simulation.streams import Stream
    from tests.simulation.world import World

WRONG = 4711


class Rogue:
    """Adds them to live streams, with the stream's own fence, so that only states can tell."""

    def __init__(self, world: "World", profile: Profile) -> None:
        self._world = world
        self._rate = profile.rogue

    def toward_source(self, node: "Node", source: Source) -> None:
        """A word out of turn from a decode instance."""
        if not self._rate or self._world.random() >= self._rate:
            return
        fence = max(source.fence, source.reader.fence) if source.reader else source.fence
        handoff_id, world = source.handoff_id, self._world
        stream_id = next((s.stream_id for s in node.sending.of(source)), 0)
        words: list[tuple[Any, ...]] = [
            (node.sending.on_renew, handoff_id, fence, 0),
            (node.sending.on_release, handoff_id, fence, True),
            (node.sending.on_release, handoff_id, fence, False),
            (node.sending.on_credit, stream_id, 0, 0),
            (node.sending.on_refetch, stream_id, int(world.random() * 3)),
            (node.sending.on_lost, stream_id),
        ]
        word, *args = world.rng.choice(words)
        if world.leaves and world.random() < 0.2:
            word, args = node.sending.on_open, self._opening(node, source, fence)
        node.later(world.ticks(0, 30), word, *args)

    def _opening(self, node: "Node", source: Source, fence: Fence) -> list[Any]:
        """Somebody asks for this handoff with leave to read something else, or somewhere else."""
        router, leave = node.router, self._world.rng.choice(self._world.leaves)
        spec = next(r.spec for r in router.requests if r.spec.handoff_id == source.handoff_id)
        peer = self._world.rng.choice(router.placing.decodes)
        return [router.next_stream_id(), spec, fence, peer, leave]

    def toward_sink(self, node: "DecodeNode", stream: "Stream") -> None:
        """A frame out of turn from a prefill instance."""
        if not self._rate or self._world.random() >= self._rate:
            return
        world, fetching, stream_id = self._world, node.fetching, stream.stream_id
        wrong, first_cell = Inline([WRONG]), KvRange(range(1), range(1))
        frames = (
            (fetching.on_segment, stream_id, 0, first_cell, wrong, digest([WRONG], first_cell)),
            (fetching.on_segment, stream_id, 0, first_cell, wrong, 0),
            (fetching.on_end, stream_id, End(WRONG, 0, WRONG, 0)),
            (fetching.on_lost, stream_id),
        )
        frame, *args = world.rng.choice(frames)
        node.later(world.ticks(0, 30), frame, *args)

    def toward_router(self, node: "DecodeNode", stream: "Stream") -> None:
        """A broken stream reported though the machine was not impressed."""
        if self._rate and self._world.random() < self._rate:
            told, spec = node.router.on_kv_lost, stream.job.spec
            node.network.send(None, told, spec, node, stream.fence)
