"""The sink's end of Fetch streams: every frame of every attempt reaches the machine."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from core.handoff import SinkState
from core.kv_layout import KvRange
from kv_transfer.sink import Sink, Write
from tests.simulation.checks import RuleBroken
from tests.simulation.content import digest
from tests.simulation.leaves import Leave
from tests.simulation.profile import LEASE, PROGRESS, RETARGET_WAIT, TICK_S
from tests.simulation.slots import InSlot, Payload
from tests.simulation.streams import Stream, snapshot

if TYPE_CHECKING:
    from tests.simulation.decode_node import DecodeNode, Job
    from tests.simulation.prefill_node import PrefillNode
    from tests.simulation.sending import End

WAITING_FOR_PEER = (SinkState.WAITING, SinkState.RESERVING, SinkState.RECEIVING)


class Fetching:
    """All streams of one decode instance."""

    def __init__(self, node: "DecodeNode") -> None:
        self._node = node
        self._streams: dict[int, Stream] = {}

    def __str__(self) -> str:
        return f"{self._node}.fetching"

    def open(self, job: "Job", source: "PrefillNode", leave: Leave) -> None:
        """Ask a prefill instance for the KV."""
        node, sink = self._node, job.sink
        stream_id = node.router.next_stream_id()
        job.source, job.stream_id, job.progress_at_s = source, stream_id, node.world.now_s
        stream = self._streams[stream_id] = Stream(stream_id, sink.fence, job, source)
        args = (stream_id, job.spec, sink.fence, node, leave)
        node.network.send(source, source.sending.on_open, *args)
        node.later(PROGRESS, self._check_progress, stream)
        node.later(LEASE // 3, self._renew, stream)
        node.world.rogue.toward_sink(node, stream)

    def close(self, job: "Job") -> None:
        """Nothing more is wanted on the job's stream, nor room for it."""
        if job.waiting is not None:
            job.waiting.close()
            job.waiting = None
        stream = self._streams.get(job.stream_id)
        if stream is not None:
            to = stream.peer.sending
            self._node.network.send(stream.peer, to.on_lost, stream.stream_id)

    def on_announce(self, stream_id: int, num_tokens: int) -> bool | None:
        """The prefill has started."""
        return self._frame(stream_id, self._announce, num_tokens)

    def on_segment(
        self, stream_id: int, index: int, piece: KvRange, payload: Payload, checksum: int
    ) -> bool | None:
        """A piece of KV arrived."""
        values = payload.read()
        if len(values) != len(piece.layers) * len(piece.tokens):
            return self._frame(stream_id, self._damaged, index)
        if digest(values, piece) != checksum:
            return self._frame(stream_id, self._damaged, index)
        return self._frame(stream_id, self._segment, piece, payload, checksum)

    def on_end(self, stream_id: int, end: "End") -> bool | None:
        """The source has sent everything."""
        return self._frame(stream_id, self._end, end)

    def on_lost(self, stream_id: int) -> bool | None:
        """The stream ended without a commit."""
        return self._frame(stream_id, self._lose)

    def open_streams(self) -> list[Stream]:
        """Those that can break."""
        return [s for s in self._streams.values() if s.fence == s.job.sink.fence]

    def _frame(
        self, stream_id: int, handle: Callable[..., bool | None], *args: object
    ) -> bool | None:
        """Pass a frame on; one of an old fence must leave no mark."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        if stream.fence == stream.job.sink.fence:
            return handle(stream, *args)
        before = snapshot(stream.job)
        happened = handle(stream, *args)
        if snapshot(stream.job) != before:
            raise RuleBroken(f"{handle.__name__} of {stream.fence} changed {stream.job}")
        return happened

    def _announce(self, stream: Stream, num_tokens: int) -> bool | None:
        # Announce carries no fence into the machine: a stream belongs to one attempt.
        if stream.fence != stream.job.sink.fence:
            return False
        node, job = self._node, stream.job
        job.progress_at_s = node.world.now_s
        if num_tokens != job.num_tokens:
            return self._lose(stream)  # of another attempt than the router meant
        if not job.sink.announce(num_tokens):
            return False
        node.later(node.world.ticks(0, 24), node.admit, job)
        node.world.rogue.toward_sink(node, stream)
        return True

    def _segment(
        self, stream: Stream, piece: KvRange, payload: Payload, checksum: int
    ) -> bool | None:
        node, job = self._node, stream.job
        write = job.sink.begin_write(stream.fence, piece)
        if write is None:
            return False
        job.progress_at_s = node.world.now_s
        job.writing.append(stream.fence)
        self.begin_copy(stream, write, payload, checksum)
        return None

    def begin_copy(self, stream: Stream, write: Write, payload: Payload, checksum: int) -> None:
        """A thread reads the payload and writes the blocks."""
        node = self._node
        node.allocator.touch(write.block_ids)
        args = (stream, write, payload, checksum)
        node.later(node.world.copy_ticks(), self._write_done, *args)

    def say_emptied(self, stream: Stream, payload: Payload) -> None:
        """The source may fill that memory again."""
        if isinstance(payload, InSlot):
            to = stream.peer.sending
            args = (stream.stream_id, payload.slot, payload.generation)
            self._node.network.send(stream.peer, to.on_emptied, *args)

    def _write_done(self, stream: Stream, write: Write, payload: Payload, checksum: int) -> None:
        node, job = self._node, stream.job
        values = payload.read()
        node.allocator.memory.scatter(write.block_ids, write.range, values)
        job.writing.remove(stream.fence)
        node.allocator.untouch(write.block_ids)
        is_intact = payload.is_intact()
        node.world.checks.counts(is_intact, digest(values, write.range), checksum)
        job.sink.end_write(write, checksum if is_intact else None)
        self.say_emptied(stream, payload)
        if is_intact:
            self._commit_if_whole(stream)
        else:
            node.world.seen["overwritten payloads"] += 1
            if stream.peer.sending.has_open(stream.stream_id):
                raise RuleBroken(f"a payload of {stream} was overwritten while it was read")
            self._lose(stream)

    def _damaged(self, stream: Stream, index: int) -> None:
        node, sink = self._node, stream.job.sink
        if sink.corrupt(stream.fence):
            to = stream.peer.sending
            node.network.send(stream.peer, to.on_refetch, stream.stream_id, index)
        elif sink.num_refetches > sink.max_refetches:
            self._lose(stream)

    def _end(self, stream: Stream, end: "End") -> None:
        job = stream.job
        job.sink.end(stream.fence, end.total)
        if stream.fence == job.sink.fence and job.sink.state is SinkState.RECEIVING:
            job.end, job.first_position, job.salt = end, end.position, end.salt
            self._commit_if_whole(stream)

    def _commit_if_whole(self, stream: Stream) -> None:
        node, job = self._node, stream.job
        if not job.sink.is_whole:
            return
        if not job.sink.commit():
            node.world.checks.lied(node.world.profile.rogue)
            job.sink.lost_at_s = node.world.now_s
            self._lost(stream)
            return
        assert job.spec is not None
        assert job.end is not None
        node.world.checks.committed(node, job.spec, job.sink, job.end)
        node.world.seen["tokens shared at decode"] += job.sink.num_cached_tokens
        to = stream.peer
        node.network.send(to, to.on_release, job.sink.handoff_id, job.sink.fence, True)
        node.batch.join(job)

    def _lose(self, stream: Stream) -> bool | None:
        if not stream.job.sink.lose(stream.fence, self._node.world.now_s):
            self._node.world.rogue.toward_router(self._node, stream)
            return False
        self._lost(stream)
        return None

    def _lost(self, stream: Stream) -> None:
        node, job = self._node, stream.job
        self.close(job)
        job.lost_at_s = node.world.now_s
        # A reaper comes at any time; only from a certain moment on has it anything to do.
        node.later(node.world.ticks(1, RETARGET_WAIT), self._expire, job)
        node.later(RETARGET_WAIT, self._expire, job)
        node.network.send(None, node.router.on_kv_lost, job.spec, node, stream.fence)

    def _expire(self, job: "Job") -> bool:
        now_s, wait_s = self._node.world.now_s, RETARGET_WAIT * TICK_S
        if not job.sink.expire(now_s, wait_s):
            return False
        if now_s < job.lost_at_s + wait_s:
            raise RuleBroken(f"{job} did not wait for a Retarget")
        self._node.buried(job)
        return True

    def _check_progress(self, stream: Stream) -> bool | None:
        """Nothing has come for long, and it is not for want of room here."""
        job, now_s = stream.job, self._node.world.now_s
        sink: Sink = job.sink
        if stream.fence != sink.fence or sink.state not in WAITING_FOR_PEER:
            return False
        # With too much to do, a prefill may be long in its queue.
        may_wait = sink.state is SinkState.WAITING and self._node.world.profile.is_overload
        has_room = sink.state is not SinkState.RESERVING and not sink.num_missing_blocks
        has_room = has_room and not may_wait
        if has_room and now_s >= job.progress_at_s + PROGRESS * TICK_S:
            return self._lose(stream)
        self._node.later(PROGRESS // 2, self._check_progress, stream)
        return False

    def _renew(self, stream: Stream) -> bool | None:
        sink, to = stream.job.sink, stream.peer
        if stream.fence != sink.fence or sink.state not in WAITING_FOR_PEER:
            return False
        if sink.state is not SinkState.WAITING:
            args = (sink.handoff_id, stream.fence, stream.stream_id)
            self._node.network.send(to, to.sending.on_renew, *args)
        self._node.later(LEASE // 3, self._renew, stream)
        return None
