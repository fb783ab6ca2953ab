"""A prefill instance: computes in threads, keeps KV under leases in the real SourceBook."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.blocks import BlockState
from core.errors import BatonError, Saturated
from core.handoff import SourceState
from core.ids import HandoffId
from core.kv_layout import KvRange, layer_groups
from core.request import Fence
from engine.block_allocator import Pin
from kv_transfer.source import FirstToken, Outcome, Source
from tests.simulation.asking import PrefixFetching
from tests.simulation.content import LAYOUT, Spec, cells
from tests.simulation.network import Node

if TYPE_CHECKING:
    from tests.simulation.decode_node import DecodeNode
    from tests.simulation.leaves import Leave

CHUNK_TOKENS = 4


@dataclass(slots=True, eq=False)
class Job:
    """One Prefill call."""

    spec: Spec
    fence: Fence
    num_forced: int
    only_first_token: bool

    @property
    def num_tokens(self) -> int:
        """Prompt and forced tokens: what the KV covers."""
        return self.spec.num_prompt_tokens + self.num_forced

    def __str__(self) -> str:
        return f"{self.spec}@{self.fence.epoch}.{self.fence.attempt}"


class PrefillNode(Node):
    """Walks Source machines."""

    def boot(self) -> None:
        super().boot()
        self.fetching = PrefixFetching(self)
        self._waiting: list[tuple[Job, Source]] = []

    def on_prefill(
        self,
        spec: Spec,
        fence: Fence,
        num_forced: int,
        only_first_token: bool,
        cached_at: "tuple[DecodeNode, Leave] | None" = None,
    ) -> None:
        """The router's call; `cached_at` has more of it than we, and the leave to read it."""
        job = Job(spec, fence, num_forced, only_first_token)
        if cached_at is None or not self.fetching.begin(job, *cached_at):
            self.accept(job)

    def accept(self, job: Job) -> None:
        """Into the queue, with what is cached by now."""
        spec, fence = job.spec, job.fence
        is_full = len(self._waiting) >= self.world.profile.max_queued
        try:
            if is_full:
                raise Saturated("too many prompts wait")
            source = self.book.accept(
                spec.handoff_id, fence, on_ended=lambda s: self._ended(job, s)
            )
        except BatonError:
            self.world.seen["refused by prefill"] += is_full
            self.network.send(None, self.router.on_prefill_refused, spec, self, fence)
            return
        self.world.checks.taken_up(f"{self} source", spec.handoff_id, fence, self.world.now_s)
        self.world.checks.accepted_prefill(source)
        self._waiting.append((job, source))
        self.at(spec.deadline_s, self._end, source)
        self.world.rogue.toward_source(self, source)

    def on_release(self, handoff_id: HandoffId, fence: Fence, committed: bool) -> bool | None:
        """The router wants it no longer, not even its prefix."""
        happened = self.sending.on_release(handoff_id, fence, committed)
        self.fetching.cancel(handoff_id, fence)
        return happened

    def settle(self) -> None:
        """Start what has waited for blocks, first come first served."""
        waiting = self._waiting
        while waiting:
            job, source = waiting[0]
            if source.state is SourceState.QUEUED and not self._start(job, source):
                self.world.seen["prompts that wait for blocks"] += 1
                break
            del waiting[0]
        super().settle()

    def num_remembered(self) -> int:
        """Prefixes on their way, too."""
        return self.fetching.num_asked + super().num_remembered()

    def _ended(self, job: Job, source: Source) -> None:
        told, outcome = self.router.on_prefill_ended, source.outcome
        self.network.send(None, told, job.spec, self, job.fence, outcome)

    def _end(self, source: Source) -> bool | None:
        """The request's deadline has passed, or an error ends the attempt."""
        before = source.state
        self.book.end(source, Outcome.ABORTED)
        return None if before is not SourceState.ENDED else False

    def _start(self, job: Job, source: Source) -> bool:
        """Share what is cached, but for the last token, and allocate the rest; or nothing."""
        num_tokens, blocks = job.num_tokens, self.blocks
        hits = blocks.hits(job.spec.names(num_tokens - 1))
        num_fresh = LAYOUT.num_blocks(num_tokens) - hits.num_blocks
        if num_fresh > hits.num_free_after:
            return False
        shared = blocks.share(job.spec.names(num_tokens - 1))
        self.world.checks.holds(self, job.spec, shared)
        num_hit_tokens = len(shared) * LAYOUT.block_size
        self.world.seen["tokens shared at prefill"] += num_hit_tokens
        self.sending.num_hit_tokens[job.spec.handoff_id, job.fence] = num_hit_tokens
        block_ids = shared + blocks.allocate(num_fresh, BlockState.OWNED)
        chunk_bytes = min(num_tokens, CHUNK_TOKENS) * LAYOUT.bytes_per_token
        num_groups = 1 if self.group_bytes > chunk_bytes // 2 else LAYOUT.num_layers
        groups = layer_groups(LAYOUT.num_layers, num_groups)
        self.book.started(source, block_ids, num_tokens, groups)
        for layer in range(LAYOUT.num_layers if shared else 0):
            self.book.progress(source, layer, num_hit_tokens)
        stop = min(num_hit_tokens + CHUNK_TOKENS, num_tokens)
        self._step(job, source, range(num_hit_tokens, stop), 0)
        return True

    def _step(self, job: Job, source: Source, tokens: range, layer: int) -> None:
        """One layer of one chunk, in the step thread."""
        if self.world.random() < self.world.profile.error * 0.3:
            self.network.send(None, self.router.on_prefill_error, job.spec, self, job.fence)
        piece = KvRange(range(layer, layer + 1), tokens)
        size = LAYOUT.block_size
        ids = source.block_ids[tokens.start // size : LAYOUT.num_blocks(tokens.stop)]
        pin = self.blocks.pin(ids)
        self.allocator.touch(ids)
        self.later(self.world.ticks(1, 16), self._step_done, job, source, piece, ids, pin)

    def _step_done(
        self, job: Job, source: Source, piece: KvRange, ids: tuple[int, ...], pin: Pin
    ) -> None:
        written = cells(job.spec, job.spec.salt(job.fence), piece)
        self.allocator.memory.scatter(ids, piece, written)
        self.allocator.untouch(ids)
        self.blocks.unpin(pin)
        layer, tokens = piece.layers.stop, piece.tokens
        self.book.progress(source, layer - 1, tokens.stop)
        if layer == LAYOUT.num_layers:
            if source.is_computing:
                self.name_blocks(job.spec, source.block_ids, tokens.stop)
            layer, tokens = 0, range(tokens.stop, min(tokens.stop + CHUNK_TOKENS, job.num_tokens))
        if not tokens:
            self._finish(job, source)
        elif source.is_computing:
            self._step(job, source, tokens, layer)

    def _finish(self, job: Job, source: Source) -> None:
        position, now_s = job.num_forced, self.world.now_s
        token = FirstToken(
            token_id=job.spec.token_at(position),
            position=position,
            finish_reason=None,
            sampled_at_s=now_s,
        )
        if not self.book.finished(source, token):
            return
        told = self.router.on_prefill_token
        self.network.send(None, told, job.spec, self, job.fence, position, token.token_id)
        if job.only_first_token:
            self.book.end(source, Outcome.COMMITTED)
        elif self.world.random() < self.world.profile.error:
            self.later(self.world.ticks(1, 8), self._end, source)
