"""What a decode instance does after the commit: tokens, replay until acknowledged, growth."""

from typing import TYPE_CHECKING

from core.blocks import BlockState
from core.handoff import SinkState
from core.kv_layout import KvRange
from tests.simulation.content import LAYOUT, cells
from tests.simulation.profile import SILENCE

if TYPE_CHECKING:
    from tests.simulation.decode_node import DecodeNode, Job

REPLAY = 120
"""Ticks until unacknowledged tokens are sent again."""


class Batch:
    """The running batch."""

    def __init__(self, node: "DecodeNode") -> None:
        self._node = node

    def __str__(self) -> str:
        return f"{self._node}.batch"

    def join(self, job: "Job") -> None:
        """The KV is here; the first token came with it."""
        assert job.spec is not None
        job.tokens = [job.spec.token_at(job.first_position)]
        job.next_acked = job.first_position
        self._send(job)
        self._node.later(self._node.world.ticks(1, 32), self._take_over, job)
        self._node.later(REPLAY, self._replay, job)

    def on_ack(self, job: "Job", next_position: int) -> bool | None:
        """The router has all positions below."""
        if next_position <= job.next_acked:
            return False
        job.next_acked = next_position
        return None

    def _take_over(self, job: "Job") -> bool | None:
        """The scheduler owns the blocks from here on."""
        if job.sink.state is not SinkState.COMMITTED:
            return False
        job.block_ids = job.sink.hand_over()
        assert job.spec is not None
        self._node.name_blocks(job.spec, job.block_ids, job.num_tokens)
        self._step(job)
        return None

    def _step(self, job: "Job") -> bool | None:
        assert job.spec is not None
        if job.sink.state is not SinkState.COMMITTED:
            return False
        next_position = job.first_position + len(job.tokens)
        if next_position >= job.spec.num_output_tokens:
            # Done: only what must be replayed is kept.
            held, job.block_ids = job.block_ids, ()
            self._node.blocks.release(held, BlockState.OWNED)
            return None
        if not self._grow(job, job.spec.num_prompt_tokens + next_position):
            return None
        self._write(job, job.spec.num_prompt_tokens + next_position)
        job.tokens.append(job.spec.token_at(next_position))
        self._send(job)
        self._node.later(self._node.world.ticks(4, 40), self._step, job)
        return None

    def _grow(self, job: "Job", num_tokens: int) -> bool:
        """Room for one more token; without it the attempt ends, and is placed anew."""
        num_missing = LAYOUT.num_blocks(num_tokens) - len(job.block_ids)
        node = self._node
        if num_missing > node.blocks.num_free:
            node.world.seen["preempted"] += 1
            node.network.send(None, node.router.on_decode_ended, job.spec, node, job.sink.fence)
            node.end(job)
            return False
        if num_missing > 0:
            job.block_ids += node.blocks.allocate(num_missing, BlockState.OWNED)
        if node.world.random() < node.world.profile.error:
            node.network.send(None, node.router.on_decode_error, job.spec, node, job.sink.fence)
        return True

    def _write(self, job: "Job", num_tokens: int) -> None:
        """A step has written the KV of the last of so many tokens, which may fill a block."""
        spec, node = job.spec, self._node
        assert spec is not None
        piece = KvRange(range(LAYOUT.num_layers), range(num_tokens - 1, num_tokens))
        last = job.block_ids[(num_tokens - 1) // LAYOUT.block_size :]
        node.allocator.memory.scatter(last, piece, cells(spec, job.salt, piece))
        if num_tokens % LAYOUT.block_size == 0:
            node.name_blocks(spec, job.block_ids, num_tokens)

    def _send(self, job: "Job") -> None:
        """All that is not acknowledged; the first message says that the KV is committed."""
        start = job.next_acked - job.first_position
        node, fence = self._node, job.sink.fence
        told = node.router.on_output
        node.network.send(
            None, told, job.spec, node, fence, job, job.next_acked, tuple(job.tokens[start:])
        )

    def _replay(self, job: "Job", num_left: int = SILENCE // REPLAY * 4) -> bool | None:
        if job.sink.state is not SinkState.COMMITTED:
            return False
        if not num_left:
            # The grace period of a router that does not read.
            self._node.end(job)
            return None
        self._send(job)
        self._node.later(REPLAY, self._replay, job, num_left - 1)
        return None
