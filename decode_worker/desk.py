"""Every request on the decode side: accepted, moved, stopped and ended in one place."""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

from core.errors import (
    BatonError,
    DeadlinePassed,
    FieldViolation,
    InvalidRequest,
    KvCorrupt,
    Saturated,
    SlowReader,
    StaleFence,
    UnknownRequest,
)
from core.ids import HandoffId
from core.request import Fence, finish_reason
from core.work import Peer, WorkRequest
from decode_worker.incoming import Incoming
from decode_worker.job import Answer, DecodeJob
from decode_worker.outbox import Facts, Failure, Outbox
from decode_worker.parts import DecodeParts
from decode_worker.phase import DecodePhase
from decode_worker.reservations import Reservations
from decode_worker.routers import Routers
from kv_transfer.errors import KvLost
from kv_transfer.fetch import FetchResult
from kv_transfer.sink import Sink
from kv_transfer.tombstones import Tombstones
from policy.fairness import OUTPUT_TOKEN_COST, Claim, FairQueue, ServedTokens
from worker_host.phase import StepOutcome

logger = logging.getLogger(__name__)


class Preempted(Saturated):
    """Ended here so that earlier answers find blocks; it may go on elsewhere."""


class DecodeDesk:
    """Owns the jobs; everything that ends one comes through `_end`."""

    def __init__(self, parts: DecodeParts) -> None:
        self._parts = parts
        self._jobs: dict[HandoffId, DecodeJob] = {}
        self._answers: dict[Answer, DecodeJob] = {}
        self._tombstones = Tombstones(parts.handoff.lease_ttl_s)
        self._served = ServedTokens()
        self.phase = DecodePhase(parts, self._served, self)
        self._reservations = Reservations(
            parts.blocks,
            FairQueue(ageing_s=parts.worker.ageing_s, served=self._served),
            self.phase,
            sinks=self._sinks,
            clock=parts.clock,
            work=parts.work,
        )
        self._incoming = Incoming(
            fetches=parts.fetches,
            reserve=self._reserve,
            ledger=self,
            clock=parts.clock,
            config=parts.handoff,
        )
        self.routers = Routers(
            config=parts.worker,
            clock=parts.clock,
            load=parts.load,
            cache=parts.blocks.cache,
            abandon=self._abandon,
        )

    async def run(self) -> None:
        """Receive handoffs, and move answers out and in, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.phase.swap.run(), name="swap")
                await self._incoming.run()
        finally:
            self.routers.close()
            for job in self._jobs.values():
                _stop_timer(job)

    @property
    def num_requests(self) -> int:
        """Handoffs and answers that have not ended."""
        return len(self._jobs)

    @property
    def num_waiting(self) -> int:
        """Handoffs that have not committed."""
        return len(self._jobs) - len(self._answers)

    @property
    def num_reserving(self) -> int:
        """Of them, those that wait for room."""
        return len(self._reservations)

    @property
    def has_reserved(self) -> bool:
        """Some of them have room, if only what they share with the prefix cache, and a prefill."""
        return any(sink.block_ids and not sink.keeps_room for sink in self._sinks())

    # --- what routers ask -------------------------------------------------------------------

    def accept(self, work: WorkRequest, peer: Peer) -> None:
        """Take a handoff over; the same one again does nothing, a later attempt replaces it."""
        outbox = self.routers.outbox_of(work.router_id)
        if self._is_here(work, outbox):
            return
        # The last token's KV is never needed.
        num_kv_tokens = len(work.prompt_token_ids) + work.stop.max_tokens - 1
        self._parts.door.check(work, num_kv_tokens=num_kv_tokens)
        if (num_waiting := self.num_waiting) >= self._parts.worker.max_queued:
            raise Saturated(f"{num_waiting} handoffs wait on this decode instance, limit as many")
        if (earlier := self._jobs.get(work.handoff_id)) is not None:
            self._end(earlier, forget=True)
        self._open(work, peer, outbox)

    def retarget(
        self, handoff_id: HandoffId, fence: Fence, peer: Peer, forced: tuple[int, ...]
    ) -> None:
        """Move an uncommitted handoff to another prefill; the same one again does nothing."""
        job = self._jobs.get(handoff_id)
        if job is None:
            self._tombstones.check(handoff_id, fence, self._parts.clock.now_s())
            raise UnknownRequest(f"{handoff_id} is not known here")
        if fence == job.fence:
            return
        if len(forced) >= (limit := job.work.stop.max_tokens):
            reason = f"{len(forced)} tokens are delivered, max_tokens is {limit}"
            raise InvalidRequest((FieldViolation("output_token_ids", reason),))
        _check_shared(job, forced)
        job.sink.retarget(fence)
        job.work = replace(job.work, fence=fence, output_token_ids=forced)
        job.peer = peer
        job.outbox.retarget(job.letters, fence, len(forced))
        job.retargeted.set()
        if job.attempt is not None and not job.attempt.expired():
            job.attempt.reschedule(asyncio.get_running_loop().time())
        logger.info("retargeted handoff_id=%s fence=%s to=%s", handoff_id, fence, peer.instance_id)

    def stop(self, handoff_id: HandoffId, fence: Fence) -> None:
        """End this attempt and every earlier one, known or not; idempotent."""
        self._bury(handoff_id, fence)
        job = self._jobs.get(handoff_id)
        if job is not None and job.fence <= fence:
            self._end(job, forget=True)
        elif job is None:
            self.routers.forget(handoff_id, fence)

    # --- what handoffs become ---------------------------------------------------------------

    def committed(self, job: DecodeJob, result: FetchResult) -> None:
        """The KV is here, verified: decode, unless the first token ended the answer."""
        if self._jobs.get(job.handoff_id) is not job:
            return
        token_id, work = result.token.token_id, job.work
        if token_id >= self._parts.model.vocab_size:
            self.failed(job, KvCorrupt(f"first token {token_id} is not in the vocabulary"))
            return
        answer = self._answer(job, result)
        job.answer = answer
        self._answers[answer] = job
        self.phase.join(answer)
        logger.info(
            "handoff committed handoff_id=%s tokens=%d", work.handoff_id, answer.num_kv_tokens
        )
        self._tell(job, answer, Facts(committed=True))

    def kv_lost(self, job: DecodeJob, lost: KvLost) -> None:
        """This prefill cannot deliver; the reservation waits for another."""
        job.outbox.put(job.letters, (), replace(job.letters.facts, kv_lost=lost.why))

    def failed(self, job: DecodeJob, error: BatonError) -> None:
        """It cannot go on here; its router is told."""
        if self._jobs.get(job.handoff_id) is not job:
            return
        logger.info("request failed handoff_id=%s %s: %s", job.handoff_id, error.status, error)
        facts = replace(job.letters.facts, failure=Failure.of(error))
        job.outbox.put(job.letters, (), facts)
        self._end(job, forget=False)

    # --- what steps say ---------------------------------------------------------------------

    def sampled(self, answer: Answer, token_id: int, outcome: StepOutcome) -> None:
        """A running answer has one more token."""
        del token_id  # it is the answer's last
        job = self._answers[answer]
        self._served.charge(job.claim.tenant, OUTPUT_TOKEN_COST)
        facts = job.letters.facts
        if answer.timing is not None:
            timing = replace(
                answer.timing,
                decode_queue_s=max(0.0, outcome.began_at_s - answer.committed_at_s),
                first_step_s=outcome.ended_at_s - outcome.began_at_s,
            )
            facts, answer.timing = replace(facts, timing=timing), None
        self._tell(job, answer, facts)

    def preempted(self, answer: Answer) -> None:
        """An answer left the batch to make room, and host memory has none for it."""
        num_blocks, num_swap_blocks = self._parts.blocks.num_blocks, self._parts.num_swap_blocks
        reason = f"preempted: none of {num_blocks} KV blocks is free for the next token"
        self.lost(answer, Preempted(f"{reason}, nor enough of {num_swap_blocks} in host memory"))

    def lost(self, answer: Answer, error: BatonError) -> None:
        """An answer cannot go on."""
        self.failed(self._answers[answer], error)

    def scheduled(self) -> None:
        """Who runs has the blocks for it: what is left is for those who come."""
        self._reservations.grant()

    def step_absorbed(self) -> None:
        """All tokens of a step were told: end what nobody reads."""
        for handoff_id in self.routers.overfull():
            if (job := self._jobs.get(handoff_id)) is not None:
                limit = self._parts.worker.max_unacked_tokens
                self.failed(job, SlowReader(f"over {limit} tokens unread by {job.router_id}"))

    # --- inside -----------------------------------------------------------------------------

    def _sinks(self) -> Iterator[Sink]:
        """Of handoffs that have not committed."""
        return (job.sink for job in self._jobs.values() if job.answer is None)

    async def _reserve(self, sink: Sink, job: DecodeJob) -> None:
        """Room for its prompt, of which nothing needs to be sent that is cached here."""
        chain = self._parts.blocks.names(job.work.tenant, job.work.input_token_ids)
        await self._reservations.reserve(sink, job.claim, chain)

    def _is_here(self, work: WorkRequest, outbox: Outbox) -> bool:
        job, letters = self._jobs.get(work.handoff_id), outbox.find(work.handoff_id)
        fence = job.fence if job is not None else letters.fence if letters is not None else None
        if fence == work.fence:
            return True
        if fence is not None and work.fence < fence:
            raise StaleFence(f"{work.handoff_id}: {work.fence} is behind {fence}")
        self._tombstones.check(work.handoff_id, work.fence, self._parts.clock.now_s())
        return False

    def _open(self, work: WorkRequest, peer: Peer, outbox: Outbox) -> None:
        parts = self._parts
        job = DecodeJob(
            work=work,
            claim=Claim(
                tenant=work.tenant, priority=work.priority, arrived_at_s=parts.clock.now_s()
            ),
            peer=peer,
            sink=Sink(
                handoff_id=work.handoff_id,
                layout=parts.layout,
                blocks=parts.blocks,
                fence=work.fence,
                max_refetches=parts.handoff.max_refetches,
            ),
            outbox=outbox,
            letters=outbox.open(work.handoff_id, work.fence, len(work.output_token_ids)),
        )
        self._jobs[work.handoff_id] = job
        self._served.join(job.claim.tenant)
        loop = asyncio.get_running_loop()
        job.deadline = loop.call_later(work.timeout_s, self._deadline_passed, job)
        self._incoming.begin(job)
        self._parts.work.set()

    def _answer(self, job: DecodeJob, result: FetchResult) -> Answer:
        work = job.work
        return Answer(
            work=work,
            claim=job.claim,
            block_ids=list(job.sink.hand_over()),
            block_size=self._parts.blocks.block_size,
            num_kv_tokens=work.num_input_tokens,
            output_token_ids=[*work.output_token_ids, result.token.token_id],
            logprobs=result.token.logprobs,
            committed_at_s=self._parts.clock.now_s(),
            timing=result.timing,
            is_exact=result.is_exact,
        )

    def _tell(self, job: DecodeJob, answer: Answer, facts: Facts) -> None:
        """The last token of `answer`, which may be its end."""
        token_ids = answer.output_token_ids
        reason = finish_reason(job.work.stop, len(token_ids), token_ids[-1])
        if reason is not None:
            facts = replace(facts, finish_reason=reason)
        job.outbox.put(job.letters, token_ids[-1:], facts, (answer.logprobs,))
        if reason is not None:
            logger.info("finished handoff_id=%s reason=%s", job.handoff_id, reason)
            self._end(job, forget=False)

    def _deadline_passed(self, job: DecodeJob) -> None:
        self.failed(job, DeadlinePassed(f"not ended after {job.work.timeout_s} s"))

    def _abandon(self, handoff_ids: Iterable[HandoffId]) -> None:
        for handoff_id in handoff_ids:
            if (job := self._jobs.get(handoff_id)) is not None:
                self._end(job, forget=True)

    def _end(self, job: DecodeJob, *, forget: bool) -> None:
        """Free whatever it holds, wherever it is. Its letters stay until read, or are forgotten."""
        del self._jobs[job.handoff_id]
        self._served.leave(job.claim.tenant)
        _stop_timer(job)
        self._bury(job.handoff_id, job.fence)
        if job.answer is not None:
            del self._answers[job.answer]
            self.phase.leave(job.answer)
        else:
            job.sink.stop()
            if job.task is not None and job.task is not asyncio.current_task():
                job.task.cancel()
        if forget:
            job.outbox.close(job.handoff_id)
        self._parts.work.set()

    def _bury(self, handoff_id: HandoffId, fence: Fence) -> None:
        now_s = self._parts.clock.now_s()
        self._tombstones.expire(now_s)
        self._tombstones.add(handoff_id, fence, now_s)


def _check_shared(job: DecodeJob, forced: tuple[int, ...]) -> None:
    """What it shares with the prefix cache is the beginning of the new attempt's input too.

    Forced tokens are only ever added to: a router that says otherwise gets no wrong answer.
    """
    num_shared = job.sink.num_cached_blocks * job.sink.layout.block_size
    before = job.work.input_token_ids[:num_shared]
    if (job.work.prompt_token_ids + forced)[:num_shared] != before:
        reason = "they do not go on from those of the attempt before"
        raise InvalidRequest((FieldViolation("output_token_ids", reason),))


def _stop_timer(job: DecodeJob) -> None:
    if job.deadline is not None:
        job.deadline.cancel()
