"""A prefill instance: computes in threads, keeps KV under leases, answers fetches."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.blocks import BlockState
from core.errors import BatonError
from core.ids import HandoffId
from core.kv_layout import KvRange
from core.request import Fence
from engine.block_allocator import Pin
from kv_transfer.source import FirstToken, Outcome, Source, SourceState
from tests.simulation.content import LAYOUT, Spec, cells
from tests.simulation.network import Network, Node

from tests.simulation.sending import Sending
from tests.simulation.source_book import SourceBook
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.router_model import Router

CHUNK_TOKENS = 4


@dataclass(slots=True, eq=False)
class Job:
    """One Prefill call."""

    spec: Spec
    fence: Fence
    num_forced: int
    source: Source
    only_first_token: bool
    is_told: bool = False
    """The router knows that it has ended."""

    @property
    def num_tokens(self) -> int:
        """Prompt and forced tokens: what the KV covers."""
        return self.spec.num_prompt_tokens + self.num_forced

    def __str__(self) -> str:
        return f"{self.spec}@{self.fence.epoch}.{self.fence.attempt}"


class PrefillNode(Node):
    """Walks Source machines."""

    router: "Router"

    def __init__(self, world: World, network: Network, name: str, num_blocks: int) -> None:
        super().__init__(world, name, num_blocks)
        self.network = network
        self.boot()

    def boot(self) -> None:
        super().boot()
        self.book = SourceBook(self)
        self.sending = Sending(self)
        self._jobs: dict[HandoffId, Job] = {}
        self._waiting: list[Job] = []

    def on_prefill(
        self, spec: Spec, fence: Fence, num_forced: int, only_first_token: bool
    ) -> None:
        """The router's call."""
        try:
            source, before = self.book.accept(spec.handoff_id, fence)
        except BatonError:
            self.network.send(None, self.router.on_prefill_refused, spec, self, fence)
            return
        if before is not None:
            self.ended(before, was_awaited=False)
        job = Job(spec, fence, num_forced, source, only_first_token)
        self._jobs[spec.handoff_id] = job
        self.world.checks.reads(source)
        self._waiting.append(job)
        self.at(spec.deadline_s, self._end, source)
        self.world.rogue.toward_source(self, source)

    def on_release(self, handoff_id: HandoffId, fence: Fence, committed: bool) -> bool | None:
        """A lease is no longer wanted, by the reader or by the router."""
        known = self.book.find(handoff_id)
        before = known and known.state
        try:
            source = self.book.release(handoff_id, fence, committed=committed)
        except BatonError:
            return False
        self.world.checks.ended(f"{self} source", handoff_id, fence, self.world.now_s)
        if before is not source.state:
            self.ended(source, was_awaited=False)
        else:
            self.book.bury(source, was_awaited=False)  # remember it for longer
        return None

    def on_renew(self, handoff_id: HandoffId, fence: Fence, stream_id: int) -> None:
        """A reader needs more time."""
        try:
            self.book.renew(handoff_id, fence)
        except BatonError:
            self.sending.refuse(stream_id)

    def settle(self) -> None:
        """Start what has waited for blocks, first come first served."""
        waiting = self._waiting
        while waiting:
            job = waiting[0]
            num_blocks = LAYOUT.num_blocks(job.num_tokens)
            if job.source.state is SourceState.QUEUED:
                if self.blocks.num_free < num_blocks:
                    return
                self._start(job, self.blocks.allocate(num_blocks, BlockState.OWNED))
            del waiting[0]

    def ended(self, source: Source, *, was_awaited: bool) -> None:
        """Tell whom it concerns, and remember it."""
        self.sending.close(source)
        self.book.bury(source, was_awaited=was_awaited)
        job = self._jobs.get(source.handoff_id)
        if job is not None and job.source is source and not job.is_told:
            job.is_told = True
            told = self.router.on_prefill_ended
            self.network.send(None, told, job.spec, self, job.fence, source.outcome)

    def watch(self, source: Source) -> None:
        """Come back when its wait or lease may have passed."""
        self.at(source.expires_at_s, self._expire, source)

    def _end(self, source: Source) -> bool | None:
        """The request's deadline has passed, or an error ends the attempt."""
        before = source.state
        source.end(Outcome.ABORTED)
        if before is SourceState.ENDED:
            return False
        self.ended(source, was_awaited=False)
        return None

    def _expire(self, source: Source) -> bool | None:
        before = source.state
        if source.expire(self.world.now_s):
            self.ended(source, was_awaited=before is SourceState.AWAITED)
            return None
        if before in (SourceState.AWAITED, SourceState.LEASED):
            self.watch(source)
        return False

    def _start(self, job: Job, block_ids: tuple[int, ...]) -> None:
        job.source.start(block_ids, job.num_tokens, CHUNK_TOKENS)
        self.sending.announce(job.source)
        self._step(job, range(min(CHUNK_TOKENS, job.num_tokens)), 0)

    def _step(self, job: Job, tokens: range, layer: int) -> None:
        """One layer of one chunk, in the step thread."""
        if self.world.random() < self.world.profile.error * 0.3:
            self.network.send(None, self.router.on_error, job.spec, self, job.fence)
        piece = KvRange(range(layer, layer + 1), tokens)
        size = LAYOUT.block_size
        ids = job.source.block_ids[tokens.start // size : LAYOUT.num_blocks(tokens.stop)]
        pin = self.blocks.pin(ids)
        self.blocks.touch(ids)
        self.later(self.world.ticks(1, 16), self._step_done, job, piece, ids, pin)

    def _step_done(self, job: Job, piece: KvRange, ids: tuple[int, ...], pin: Pin) -> None:
        self.blocks.memory.scatter(ids, piece, cells(job.spec.salt(job.fence), piece))
        self.blocks.untouch(ids)
        self.blocks.unpin(pin)
        layer, tokens = piece.layers.stop, piece.tokens
        job.source.progress(layer - 1, tokens.stop)
        if layer == LAYOUT.num_layers:
            layer, tokens = 0, range(tokens.stop, min(tokens.stop + CHUNK_TOKENS, job.num_tokens))
        if not tokens:
            self._finish(job)
        elif job.source.is_computing:
            self._step(job, tokens, layer)
        self.sending.pump(job.source)

    def _finish(self, job: Job) -> None:
        source, position, now_s = job.source, job.num_forced, self.world.now_s
        token = FirstToken(
            token_id=job.spec.token_at(position),
            position=position,
            finish_reason=None,
            sampled_at_s=now_s,
        )
        if not source.finish(token, now_s):
            return
        told = self.router.on_prefill_token
        self.network.send(None, told, job.spec, self, job.fence, position, token.token_id)
        if job.only_first_token:
            source.end(Outcome.COMMITTED)
            self.ended(source, was_awaited=False)
        else:
            self.at(now_s + source.lease_ttl_s, self._expire, source)
            if self.world.random() < 0.01:
                self.later(self.world.ticks(1, 8), self._end, source)

    def salt_of(self, source: Source) -> int:
        """Tells this attempt's KV from others'."""
        job = self._jobs[source.handoff_id]
        return job.spec.salt(source.fence)

    def num_remembered(self) -> int:
        """Sources and tombstones."""
        return len(self.book)


