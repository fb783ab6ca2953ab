"""Scripted instances behind real gRPC: what a router meets, without engine or KV."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from core.ids import Fingerprint, InstanceId
from core.member import Member, Role
from rpc.pb import cluster_pb2, cluster_pb2_grpc, types_pb2, workers_pb2, workers_pb2_grpc
from tests.router.fake_books import Job, Lease, Outbox, fence_of
from tests.router.fake_model import MAX_CONTEXT, MODEL, finish_at, logprobs_at, token_at
from tests.router.script import BOUND_S, Script

UNKNOWN_WAIT_S = 0.5
"""A Fetch waits so long for a Prefill that it is ahead of: the KV may have been taken already."""

Context = grpc.aio.ServicerContext[Any, Any]


class FakeInstance(
    workers_pb2_grpc.PrefillWorkerServicer,
    workers_pb2_grpc.DecodeWorkerServicer,
    cluster_pb2_grpc.ClusterServicer,
):
    """Both phases of one scripted instance."""

    def __init__(self, name: str, role: Role, peers: "dict[str, FakeInstance]") -> None:
        self.name = name
        self.role = role
        self.script = Script()
        self.peers = peers
        self.incarnation = f"{name}-1"
        self.load = types_pb2.LoadReport(num_blocks=256, num_free_blocks=256)
        self.address = ""
        self.leases: dict[str, Lease] = {}
        self.jobs: dict[str, Job] = {}
        self.outboxes: defaultdict[str, Outbox] = defaultdict(Outbox)
        self.prefills: list[workers_pb2.PrefillRequest] = []
        self.decodes: list[workers_pb2.DecodeRequest] = []
        self.retargets: list[workers_pb2.RetargetRequest] = []
        self.stops: list[workers_pb2.StopRequest] = []
        self.subscriptions: list[workers_pb2.SubscribeRequest] = []
        self.acks: list[workers_pb2.Ack] = []
        self.num_prefills_open = 0
        self.num_status_calls = 0
        self.is_dead = False
        self.death: asyncio.Future[None] | None = None
        """Of its own doing."""
        self.happened = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life -------------------------------------------------------------------------------

    async def start(self, port: int = 0) -> None:
        server = grpc.aio.server()
        workers_pb2_grpc.add_PrefillWorkerServicer_to_server(self, server)
        workers_pb2_grpc.add_DecodeWorkerServicer_to_server(self, server)
        cluster_pb2_grpc.add_ClusterServicer_to_server(self, server)
        self.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
        await server.start()
        self._server, self.is_dead = server, False

    async def kill(self) -> None:
        """As SIGKILL looks from outside: connections break, nobody listens."""
        self.is_dead = True
        self._forget()
        if self._server is not None:
            await self._server.stop(None)

    async def _survive(self, work: workers_pb2.WorkRequest, position: int | None) -> None:
        """Go on, unless this is what kills."""
        poison = self.script.poison
        if poison is None or poison.position != position:
            return
        if work.prompt_token_ids[0] == poison.token_id:
            self.death = asyncio.ensure_future(self.kill())
            await asyncio.Event().wait()

    def _forget(self) -> None:
        for task in self._tasks:
            task.cancel()
        for lease in self.leases.values():
            lease.ended.set()
        self.leases, self.jobs, self.outboxes = {}, {}, defaultdict(Outbox)

    def member(self) -> Member:
        return Member(
            instance_id=InstanceId(self.name),
            role=self.role,
            addresses=(self.address,),
            fingerprint=Fingerprint("f"),
            model=MODEL,
            incarnation=self.incarnation,
            host_id="here",
            protocol_version=1,
            block_size=16,
            max_context_tokens=MAX_CONTEXT,
            num_blocks=256,
        )

    async def until(self, condition: Callable[["FakeInstance"], bool]) -> None:
        """Wait for something that a call to this instance brings about."""
        async with asyncio.timeout(BOUND_S), self.happened:
            await self.happened.wait_for(lambda: condition(self))

    async def _tell(self) -> None:
        async with self.happened:
            self.happened.notify_all()

    # --- prefill ----------------------------------------------------------------------------

    async def Prefill(
        self, request: workers_pb2.PrefillRequest, context: Context
    ) -> AsyncIterator[workers_pb2.PrefillEvent]:
        self.prefills.append(request)
        self.num_prefills_open += 1
        await self._tell()
        try:
            if self.script.prefill_error is not None:
                await context.abort(self.script.prefill_error, "scripted")
            async for event in self._prefill(request):
                yield event
        finally:
            self.num_prefills_open -= 1
            self._spawn(self._tell())

    async def _prefill(
        self, request: workers_pb2.PrefillRequest
    ) -> AsyncIterator[workers_pb2.PrefillEvent]:
        work = request.work
        lease = self.lease_of(work.handoff_id, fence_of(work.fence))
        yield workers_pb2.PrefillEvent(started=workers_pb2.PrefillStarted(queue_s=0.001))
        await self._survive(work, None)
        if self.script.prefill_gate is not None:
            await self.script.prefill_gate.pass_through()
        position = len(work.output_token_ids)
        finish = finish_at(work, position)
        token = workers_pb2.PrefillToken(
            position=position,
            token_id=token_at(work, position),
            finish_reason=finish,
            timing=types_pb2.PrefillTiming(queue_s=0.001, compute_s=self.script.prefill_compute_s),
            logprobs=logprobs_at(work, position),
        )
        yield workers_pb2.PrefillEvent(token=token)
        if finish or request.only_first_token:
            return
        lease.sampled.set()
        await lease.ended.wait()
        outcome = (
            workers_pb2.LEASE_OUTCOME_COMMITTED
            if lease.is_committed
            else workers_pb2.LEASE_OUTCOME_ABORTED
        )
        yield workers_pb2.PrefillEvent(ended=workers_pb2.LeaseEnded(outcome=outcome))

    def lease_of(self, handoff_id: str, fence: tuple[int, int]) -> Lease:
        """The lease of a Prefill call, which a Fetch may have come before."""
        lease = self.leases.get(handoff_id)
        if lease is None or lease.ended.is_set() or (lease.fence[1] and lease.fence < fence):
            lease = self.leases[handoff_id] = Lease(fence)
        lease.fence = fence
        return lease

    def fetch_of(self, handoff_id: str, fence: tuple[int, int]) -> Lease:
        """What a Fetch waits for: the KV that is here, else that of a Prefill still to come."""
        lease = self.leases.get(handoff_id)
        if lease is None or (lease.ended.is_set() and lease.fence < fence):
            lease = self.leases[handoff_id] = Lease((fence[0], 0))
        return lease

    # --- decode -----------------------------------------------------------------------------

    async def Decode(
        self, request: workers_pb2.DecodeRequest, context: Context
    ) -> workers_pb2.DecodeReply:
        self.decodes.append(request)
        await self._tell()
        if self.script.decode_error is not None:
            await context.abort(self.script.decode_error, "scripted")
        work = request.work
        job = Job(work, request.source.instance_id, fence_of(work.fence))
        self.jobs[work.handoff_id] = job
        self._start(job)
        return workers_pb2.DecodeReply()

    async def Retarget(
        self, request: workers_pb2.RetargetRequest, context: Context
    ) -> workers_pb2.RetargetReply:
        self.retargets.append(request)
        await self._tell()
        job = self.jobs.get(request.handoff_id)
        if job is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such handoff")
        elif job.is_committed:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "committed")
        else:
            del job.work.output_token_ids[:]
            job.work.output_token_ids.extend(request.output_token_ids)
            job.source_id, job.fence = request.source.instance_id, fence_of(request.fence)
            self._start(job)
        return workers_pb2.RetargetReply()

    async def Stop(
        self, request: workers_pb2.StopRequest, context: Context
    ) -> workers_pb2.StopReply:
        self.stops.append(request)
        job = self.jobs.get(request.handoff_id)
        if job is not None and job.fence <= fence_of(request.fence):
            del self.jobs[request.handoff_id]
            if job.task is not None:
                job.task.cancel()
        await self._tell()
        return workers_pb2.StopReply()

    async def Subscribe(
        self,
        request_iterator: AsyncIterator[workers_pb2.SubscribeRequest],
        context: Context,
    ) -> AsyncIterator[workers_pb2.TokenFrame]:
        first = await anext(aiter(request_iterator))
        self.subscriptions.append(first)
        await self._tell()
        outbox = self.outboxes[first.router_id]
        outbox.num_sent = len(outbox.kept)
        outbox.ack(first.acks)
        outbox.num_sent = 0
        reader = asyncio.ensure_future(self._read_acks(request_iterator, outbox))
        try:
            async for frame in self._frames(outbox):
                yield frame
        finally:
            reader.cancel()

    async def _read_acks(
        self, messages: AsyncIterator[workers_pb2.SubscribeRequest], outbox: Outbox
    ) -> None:
        async for message in messages:
            self.acks.extend(message.acks)
            outbox.ack(message.acks)
            await self._tell()

    async def _frames(self, outbox: Outbox) -> AsyncIterator[workers_pb2.TokenFrame]:
        outbox.num_subscriptions += 1
        mine = outbox.num_subscriptions
        while mine == outbox.num_subscriptions:
            outbox.news.clear()
            new = outbox.kept[outbox.num_sent :]
            outbox.num_sent = len(outbox.kept)
            if not self.script.mute:
                yield workers_pb2.TokenFrame(outputs=new, load=self.load)
            if outbox.num_sent < len(outbox.kept):
                continue
            try:
                async with asyncio.timeout(0.5):
                    await outbox.news.wait()
            except TimeoutError:
                continue

    def drop_subscriptions(self) -> None:
        """End the streams without ending the process."""
        for outbox in self.outboxes.values():
            outbox.num_subscriptions += 1
            outbox.news.set()

    def _start(self, job: Job) -> None:
        if job.task is not None:
            job.task.cancel()
        job.task = asyncio.ensure_future(self._decode(job))
        self._tasks.add(job.task)
        job.task.add_done_callback(self._tasks.discard)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _decode(self, job: Job) -> None:
        if not await self._fetch(job):
            self._say(job, kv_lost=workers_pb2.KV_LOST_REASON_PEER)
            return
        job.is_committed = True
        position = len(job.work.output_token_ids)
        self._say(job, first_position=position, committed=True)
        while not await self._step(job, position):
            position += self.script.num_tokens_per_frame

    async def _step(self, job: Job, position: int) -> bool:
        """Decode one frame's tokens; whether the answer has ended."""
        await self._survive(job.work, position)
        if (gate := self.script.token_gates.get(position)) is not None:
            await gate.pass_through()
        if (status := self.script.output_errors.pop(position, None)) is not None:
            self._say(job, error_status=status, error_message="scripted")
            return True
        # Leaves the loop to others, as a step in a thread does.
        await asyncio.sleep(0)
        tokens: list[int] = []
        told: list[types_pb2.TokenLogprobs] = []
        finish = types_pb2.FINISH_REASON_UNSPECIFIED
        for at in range(position, position + self.script.num_tokens_per_frame):
            tokens.append(token_at(job.work, at))
            if (logprobs := logprobs_at(job.work, at)) is not None:
                told.append(logprobs)
            if finish := finish_at(job.work, at):
                break
        self._say(
            job, first_position=position, token_ids=tokens, logprobs=told, finish_reason=finish
        )
        return bool(finish)

    async def _fetch(self, job: Job) -> bool:
        if self.script.kv_lost:
            self.script.kv_lost -= 1
            return False
        source = self.peers.get(job.source_id)
        if source is None or source.is_dead:
            return False
        lease = source.fetch_of(job.work.handoff_id, job.fence)
        sampled = asyncio.ensure_future(lease.sampled.wait())
        ended = asyncio.ensure_future(lease.ended.wait())
        either = {sampled, ended}
        try:
            first = asyncio.FIRST_COMPLETED
            done, _ = await asyncio.wait(either, timeout=UNKNOWN_WAIT_S, return_when=first)
            if not done and lease.is_expected:
                return False
            await asyncio.wait(either, return_when=first)
            if self.script.fetch_gate is not None:
                await self.script.fetch_gate.pass_through()
        finally:
            sampled.cancel()
            ended.cancel()
        if lease.ended.is_set():
            return False
        lease.is_committed = True
        lease.ended.set()
        return True

    def _say(self, job: Job, **news: object) -> None:
        self.outboxes[job.work.router_id].put(
            workers_pb2.Output(
                handoff_id=job.work.handoff_id,
                fence=types_pb2.Fence(epoch=job.fence[0], attempt=job.fence[1]),
                **news,  # type: ignore[arg-type]
            )
        )

    # --- books ------------------------------------------------------------------------------

    async def Status(
        self, request: cluster_pb2.StatusRequest, context: Context
    ) -> cluster_pb2.StatusReply:
        self.num_status_calls += 1
        if self.script.deaf:
            await asyncio.Event().wait()
        own = cluster_pb2.InstanceStatus(
            instance_id=self.name, integrity=cluster_pb2.Integrity(num_decodes=len(self.jobs))
        )
        return cluster_pb2.StatusReply(instances=[own])

    async def Drain(
        self, request: cluster_pb2.DrainRequest, context: Context
    ) -> cluster_pb2.DrainReply:
        return cluster_pb2.DrainReply()

    async def _never(self, request: Any, context: Context) -> Any:  # noqa: ANN401 - never asked
        raise AssertionError("no router asks an instance that")

    Explain = ChangeRole = Workload = _never


@asynccontextmanager
async def instances(roles: str) -> AsyncIterator[dict[str, FakeInstance]]:
    """One running instance per letter: p, d or m; named p0, d0, d1, …"""
    peers: dict[str, FakeInstance] = {}
    for name, role in _named(roles):
        peers[name] = FakeInstance(name, role, peers)
        await peers[name].start()
    try:
        yield peers
    finally:
        for peer in peers.values():
            await peer.kill()


def _named(roles: str) -> Iterator[tuple[str, Role]]:
    known = {"p": Role.PREFILL, "d": Role.DECODE, "m": Role.MIXED}
    for i, letter in enumerate(roles):
        yield f"{letter}{roles[:i].count(letter)}", known[letter]
