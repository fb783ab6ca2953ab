"""PrefillWorker over gRPC."""

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc.aio

from core.capability import Capabilities, Purpose
from core.clock import Clock
from core.errors import DeadlinePassed
from core.model_spec import ModelSpec
from core.work import WorkRequest
from kv_transfer.source import Outcome
from prefill_worker.job import Ended, Event, PrefillJob, Sampled, Started
from prefill_worker.phase import PrefillPhase
from prefill_worker.prefix_fetch import CachedAt, PrefixFetch
from rpc.convert import finish_reason_to_pb, logprobs_to_pb, peer_from_pb, work_from_pb
from rpc.convert_report import prefill_timing_to_pb
from rpc.pb import workers_pb2, workers_pb2_grpc
from rpc.status import status_boundary
from worker_host.door import Door

Context = grpc.aio.ServicerContext[workers_pb2.PrefillRequest, workers_pb2.PrefillEvent]

_OUTCOME_TO_PB: Mapping[Outcome, "workers_pb2.LeaseOutcome.ValueType"] = {
    Outcome.COMMITTED: workers_pb2.LEASE_OUTCOME_COMMITTED,
    Outcome.ABORTED: workers_pb2.LEASE_OUTCOME_ABORTED,
    Outcome.EXPIRED: workers_pb2.LEASE_OUTCOME_EXPIRED,
    Outcome.SUPERSEDED: workers_pb2.LEASE_OUTCOME_SUPERSEDED,
}


class PrefillService(workers_pb2_grpc.PrefillWorkerServicer):
    """Carries bytes between routers and the phase."""

    def __init__(
        self,
        phase: PrefillPhase,
        prefixes: PrefixFetch,
        door: Door,
        spec: ModelSpec,
        clock: Clock,
        capabilities: Capabilities,
    ) -> None:
        self._phase = phase
        self._prefixes = prefixes
        self._door = door
        self._spec = spec
        self._clock = clock
        self._capabilities = capabilities

    # A coroutine that writes, not a generator: a cancelled call must run `finally` at once, not
    # when a generator that waits in a `yield` is collected.
    async def Prefill(  # type: ignore[override]
        self, request: workers_pb2.PrefillRequest, context: Context
    ) -> None:
        """See workers.proto."""
        async with status_boundary(context):
            arrived_at_s = self._clock.now_s()
            work = work_from_pb(request.work, self._spec)
            await self._door.check_grammar(work)
            job = self._phase.open(
                work,
                only_first_token=request.only_first_token,
                arrived_at_s=arrived_at_s,
                fetched=await self._fetched(work, request),
            )
            try:
                await self._stream(job, context)
            finally:
                self._phase.close(job)

    async def _fetched(self, work: WorkRequest, request: workers_pb2.PrefillRequest) -> range:
        """Tokens whose KV came from where they are cached; none as a rule."""
        if not request.HasField("cached_at"):
            return range(0)
        # What is refused is not fetched for.
        self._door.check(work, num_kv_tokens=work.num_input_tokens)
        peer = peer_from_pb("cached_at", request.cached_at)
        self._capabilities.check_peer(
            peer, purpose=Purpose.PREFIX, handoff_id=work.handoff_id, fence=work.fence
        )
        return await self._prefixes.fetch(work, CachedAt(peer, request.num_cached_tokens))

    async def _stream(self, job: PrefillJob, context: Context) -> None:
        event: Event | None = None
        while not isinstance(event, Ended):
            event = await self._next(job)
            await context.write(event_to_pb(event))

    async def _next(self, job: PrefillJob) -> Event:
        timeout_s = job.work.timeout_s
        left_s = job.arrived_at_s + timeout_s - self._clock.now_s()
        try:
            async with asyncio.timeout(left_s):
                return await job.events.get()
        except TimeoutError:
            raise DeadlinePassed(f"not ended after {timeout_s} s") from None


def event_to_pb(event: Event) -> workers_pb2.PrefillEvent:
    """One event of a prefill."""
    fields: dict[str, Any] = {}
    match event:
        case Started(queue_s=queue_s):
            fields["started"] = workers_pb2.PrefillStarted(queue_s=queue_s)
        case Sampled():
            fields["token"] = workers_pb2.PrefillToken(
                position=event.position,
                token_id=event.token_id,
                finish_reason=finish_reason_to_pb(event.finish_reason),
                timing=prefill_timing_to_pb(event.timing),
                logprobs=None if event.logprobs is None else logprobs_to_pb(event.logprobs),
            )
        case Ended(outcome=outcome):
            fields["ended"] = workers_pb2.LeaseEnded(outcome=_OUTCOME_TO_PB[outcome])
    return workers_pb2.PrefillEvent(**fields)
