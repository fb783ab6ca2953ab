"""A prefill instance: computes in threads, keeps KV under leases in the real SourceBook."""

from dataclasses import dataclass

from core.blocks import BlockState
from core.config import HandoffConfig
from core.errors import BatonError
from core.handoff import SourceState
from core.ids import HandoffId
from core.kv_layout import KvRange
from core.request import Fence
from engine.block_allocator import Pin
from kv_transfer.book import SourceBook
from kv_transfer.source import FirstToken, Outcome, Source
from tests.simulation.content import LAYOUT, Spec, cells
from tests.simulation.network import Network, Node
from tests.simulation.profile import AWAIT, LEASE, TICK_S
from tests.simulation.sending import Sending
from tests.simulation.world import World

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

    def __init__(self, world: World, network: Network, name: str, num_blocks: int) -> None:
        super().__init__(world, name, num_blocks)
        self.network = network
        self.boot()

    def boot(self) -> None:
        super().boot()
        config = HandoffConfig(
            lease_ttl_s=LEASE * TICK_S,
            unknown_handoff_wait_s=AWAIT * TICK_S,
            target_segment_bytes=self.world.ticks(8, 64),
            max_segment_bytes=self.world.ticks(8, 80),
        )
        clock = self.world.clock
        self.book = SourceBook(layout=LAYOUT, blocks=self.blocks, clock=clock, config=config)
        self.sending = Sending(self)
        self._waiting: list[tuple[Job, Source]] = []
        self._is_reaping = False

    def on_prefill(self, spec: Spec, fence: Fence, num_forced: int, only_first_token: bool) -> None:
        """The router's call."""
        job, handoff_id = Job(spec, fence, num_forced, only_first_token), spec.handoff_id
        try:
            source = self.book.accept(handoff_id, fence, on_ended=lambda s: self._ended(job, s))
        except BatonError:
            self.network.send(None, self.router.on_prefill_refused, spec, self, fence)
            return
        self.world.checks.taken_up(f"{self} source", handoff_id, fence, self.world.now_s)
        self.world.checks.accepted_prefill(source)
        self._waiting.append((job, source))
        self.at(spec.deadline_s, self._end, source)
        self.world.rogue.toward_source(self, source)

    def on_release(self, handoff_id: HandoffId, fence: Fence, committed: bool) -> bool | None:
        """A lease is no longer wanted, by the reader or by the router."""
        try:
            self.book.release(handoff_id, fence, committed=committed)
        except BatonError:
            return False
        self.world.checks.ended(f"{self} source", handoff_id, fence, self.world.now_s)
        return None

    def on_renew(self, handoff_id: HandoffId, fence: Fence, stream_id: int) -> None:
        """A reader needs more time."""
        try:
            self.book.renew(handoff_id, fence)
        except BatonError:
            self.sending.refuse(stream_id)

    def settle(self) -> None:
        """Start what has waited for blocks, first come first served; wake streams and reaper."""
        waiting = self._waiting
        while waiting:
            job, source = waiting[0]
            num_blocks = LAYOUT.num_blocks(job.num_tokens)
            if source.state is SourceState.QUEUED:
                if self.blocks.num_free < num_blocks:
                    break
                self._start(job, source, self.blocks.allocate(num_blocks, BlockState.OWNED))
            del waiting[0]
        self.sending.wake()
        if not self._is_reaping and self.num_remembered():
            self._is_reaping = True
            self.later(self.world.ticks(20, 120), self._reap)

    def num_remembered(self) -> int:
        """Sources, tombstones and streams."""
        return self.book.num_sources + self.book.num_tombstones + self.book.num_fetches

    def _reap(self) -> bool | None:
        before = self.num_remembered()
        self.book.expire()
        self._is_reaping = False
        return None if self.num_remembered() < before else False

    def _ended(self, job: Job, source: Source) -> None:
        told, outcome = self.router.on_prefill_ended, source.outcome
        self.network.send(None, told, job.spec, self, job.fence, outcome)

    def _end(self, source: Source) -> bool | None:
        """The request's deadline has passed, or an error ends the attempt."""
        before = source.state
        self.book.end(source, Outcome.ABORTED)
        return None if before is not SourceState.ENDED else False

    def _start(self, job: Job, source: Source, block_ids: tuple[int, ...]) -> None:
        self.book.started(source, block_ids, job.num_tokens, CHUNK_TOKENS)
        self._step(job, source, range(min(CHUNK_TOKENS, job.num_tokens)), 0)

    def _step(self, job: Job, source: Source, tokens: range, layer: int) -> None:
        """One layer of one chunk, in the step thread."""
        if self.world.random() < self.world.profile.error * 0.3:
            self.network.send(None, self.router.on_prefill_error, job.spec, self, job.fence)
        piece = KvRange(range(layer, layer + 1), tokens)
        size = LAYOUT.block_size
        ids = source.block_ids[tokens.start // size : LAYOUT.num_blocks(tokens.stop)]
        pin = self.blocks.pin(ids)
        self.blocks.touch(ids)
        self.later(self.world.ticks(1, 16), self._step_done, job, source, piece, ids, pin)

    def _step_done(
        self, job: Job, source: Source, piece: KvRange, ids: tuple[int, ...], pin: Pin
    ) -> None:
        self.blocks.memory.scatter(ids, piece, cells(job.spec.salt(job.fence), piece))
        self.blocks.untouch(ids)
        self.blocks.unpin(pin)
        layer, tokens = piece.layers.stop, piece.tokens
        self.book.progress(source, layer - 1, tokens.stop)
        if layer == LAYOUT.num_layers:
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
