"""Whole instances in one process, over real gRPC, and a router as a test drives it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc.aio

from core.blocks import IDLE_STATES
from core.capability import Capabilities, Grant, Purpose
from core.config import Config, EngineConfig, HandoffConfig, WorkerConfig
from core.ids import HandoffId, InstanceId, RouterId
from core.load import Integrity
from core.member import Role
from core.request import Fence, SamplingParams, StopParams
from core.work import PROTOCOL_VERSION, Peer, WorkRequest
from deploy.assembly import SERVICE_NAMES, Assembled, Compute, Parts, assemble
from deploy.instance import InstanceSpec, member_of
from prefill_worker.costs import Costs, MeasuredCosts
from rpc.convert import fence_to_pb, peer_to_pb, work_to_pb
from rpc.dial import ChannelPool, dial
from rpc.options import Plane
from rpc.pb import workers_pb2 as pb
from rpc.pb.cluster_pb2 import InstanceStatus, StatusRequest
from rpc.pb.cluster_pb2_grpc import ClusterStub
from rpc.pb.workers_pb2_grpc import DecodeWorkerStub, PrefillWorkerStub
from rpc.serve import Life, Server, bind, build, serve
from tests.worker_host.fake_engine import FAKE_SPEC, FINGERPRINT, MODEL_DIR, FakeRunner

if TYPE_CHECKING:  # they exist for type checkers only
    from rpc.pb.workers_pb2_grpc import DecodeWorkerAsyncStub, PrefillWorkerAsyncStub

WAIT_S = 10.0
"""For anything that a test waits for; all take milliseconds."""
PREFIX_KEY = bytes(32)
INSTANCE_ID = InstanceId("instance")
"""Of all of them: they are told apart by their addresses."""
ROUTER_ID = RouterId("router-0")
CONFIG = Config(
    engine=EngineConfig(num_blocks=64, block_size=4),
    worker=WorkerConfig(prefill_step_tokens=8, mixed_step_tokens=4, router_grace_s=0.1, beat_s=0.2),
    handoff=HandoffConfig(lease_ttl_s=1.0, unknown_handoff_wait_s=1.0, retarget_wait_s=2.0),
)


@dataclass(slots=True, kw_only=True)
class Running:
    """One instance, and a channel to it."""

    address: str
    runner: FakeRunner
    assembled: Assembled
    server: Server
    channel: grpc.aio.Channel
    task: asyncio.Task[None]

    @property
    def integrity(self) -> Integrity:
        """Its books."""
        return self.assembled.books.integrity()

    @property
    def prefill(self) -> "PrefillWorkerAsyncStub":
        """Its prefill service."""
        return PrefillWorkerStub(self.channel)

    @property
    def decode(self) -> "DecodeWorkerAsyncStub":
        """Its decode service."""
        return DecodeWorkerStub(self.channel)

    async def kill(self) -> None:
        """Break all its connections."""
        await self.server.grpc.stop(None)

    async def status(self) -> InstanceStatus:
        """As it tells others."""
        reply = await ClusterStub(self.channel).Status(StatusRequest())
        return reply.instances[0]

    async def all_returned(self) -> None:
        """Nothing is under way, and every block is free or cached; bounded."""
        async with asyncio.timeout(WAIT_S):
            await self.assembled.host.until_idle()
        assert self.integrity.problem == ""
        assert {state for state, n in self.integrity.blocks.items() if n} <= IDLE_STATES


@asynccontextmanager
async def instance(
    role: Role,
    config: Config = CONFIG,
    compute: Compute | None = None,
    costs: Costs | None = None,
) -> AsyncIterator[Running]:
    """Run one until the block ends, with the fake engine unless another is given; fetching cached
    prefixes never pays unless `costs` say so."""
    engine = config.engine
    runner = FakeRunner(engine.num_blocks, engine.block_size)
    fake = Compute(model=FAKE_SPEC, runner=runner, store=runner.store, fingerprint=FINGERPRINT)
    compute = compute or fake
    spec = InstanceSpec(instance_id=INSTANCE_ID, role=role, model_dir=MODEL_DIR, config=config)
    stop, is_ready = asyncio.Event(), asyncio.Event()
    channels = ChannelPool()
    with (
        ThreadPoolExecutor(1) as step_thread,
        ThreadPoolExecutor(2) as copies,
        ExitStack() as stack,
    ):
        server = await build(Plane.WORKER, SERVICE_NAMES)
        address = f"127.0.0.1:{bind(server, '127.0.0.1:0')}"
        parts = Parts(
            config=config,
            compute=compute,
            member=member_of(spec, compute, address),
            step_thread=step_thread,
            copies=copies,
            prefix_key=PREFIX_KEY,
            capabilities=Capabilities.of_nobody(PREFIX_KEY, own=Peer(INSTANCE_ID, address)),
            dial=channels.get,
            stop=stop,
            costs=costs or MeasuredCosts(),
        )
        assembled = assemble(parts, server)
        stack.callback(assembled.carriers.close)

        async def say_ready() -> None:
            is_ready.set()

        life = Life(ready=is_ready, stop=stop, drain=assembled.host.drain, drain_s=0.0)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(serve(server, [*assembled.loops, say_ready], life))
            await is_ready.wait()
            channel = dial(address)
            try:
                yield Running(
                    address=address,
                    runner=runner,
                    assembled=assembled,
                    server=server,
                    channel=channel,
                    task=task,
                )
            finally:
                stop.set()
                await channel.close()
        await channels.close()


@dataclass(slots=True, kw_only=True)
class Heard:
    """What a router was told of one handoff."""

    tokens: dict[int, int] = field(default_factory=dict)
    """By position."""
    outputs: list[pb.Output] = field(default_factory=list)

    @property
    def is_committed(self) -> bool:
        """Decode has the KV."""
        return any(output.committed for output in self.outputs)

    @property
    def kv_lost(self) -> int:
        """How often the KV was lost."""
        return sum(bool(output.kv_lost) for output in self.outputs)

    @property
    def error(self) -> str:
        """Status of a bad end."""
        return next((o.error_status for o in self.outputs if o.error_status), "")

    @property
    def is_over(self) -> bool:
        """Well or badly."""
        return bool(self.error) or any(output.finish_reason for output in self.outputs)

    @property
    def token_ids(self) -> list[int]:
        """In order."""
        return [self.tokens[position] for position in sorted(self.tokens)]


class Subscribed:
    """A router's subscription to one instance."""

    def __init__(
        self, call: "grpc.aio.StreamStreamCall[pb.SubscribeRequest, pb.TokenFrame]"
    ) -> None:
        self.call = call
        self.frames: list[pb.TokenFrame] = []
        self._heard: dict[str, Heard] = {}
        self._news = asyncio.Condition()
        self.is_over = False

    def heard(self, handoff_id: str) -> Heard:
        """So far."""
        return self._heard.setdefault(handoff_id, Heard())

    async def until(self, holds: Callable[[], bool]) -> None:
        """Read frames until it holds; bounded."""
        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(holds)

    async def ack(self, handoff_id: str, next_position: int, *, done: bool = False) -> None:
        """Say what was read."""
        ack = pb.Ack(handoff_id=handoff_id, next_position=next_position, done=done)
        await self.call.write(pb.SubscribeRequest(acks=[ack]))

    async def read(self) -> None:
        """Take frames until the stream ends."""
        try:
            while (frame := await self.call.read()) is not grpc.aio.EOF:
                assert isinstance(frame, pb.TokenFrame)
                self.frames.append(frame)
                for output in frame.outputs:
                    self._take(output)
                async with self._news:
                    self._news.notify_all()
        except grpc.aio.AioRpcError:
            pass
        self.is_over = True
        async with self._news:
            self._news.notify_all()

    def _take(self, output: pb.Output) -> None:
        heard = self.heard(output.handoff_id)
        heard.outputs.append(output)
        for position, token_id in enumerate(output.token_ids, output.first_position):
            assert heard.tokens.setdefault(position, token_id) == token_id


@asynccontextmanager
async def subscribed(
    to: Running, *acks: pb.Ack, router_id: RouterId = ROUTER_ID
) -> AsyncIterator[Subscribed]:
    """Read an instance's frames until the block ends."""
    call = to.decode.Subscribe()
    await call.write(
        pb.SubscribeRequest(router_id=router_id, protocol_version=PROTOCOL_VERSION, acks=acks)
    )
    subscription = Subscribed(call)
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(subscription.read())
        try:
            await subscription.until(lambda: bool(subscription.frames) or subscription.is_over)
            yield subscription
        finally:
            call.cancel()
            reading.cancel()


def work(
    prompt: tuple[int, ...] = tuple(range(1, 11)),
    *,
    handoff_id: str = "request/0",
    attempt: int = 1,
    forced: tuple[int, ...] = (),
    max_tokens: int = 6,
    stop_token_ids: tuple[int, ...] = (),
    timeout_s: float = WAIT_S,
    fingerprint: str = FINGERPRINT,
    tenant: str = "",
    priority: int = 0,
) -> WorkRequest:
    """A greedy request."""
    return WorkRequest(
        handoff_id=HandoffId(handoff_id),
        fence=Fence(0, attempt),
        router_id=ROUTER_ID,
        prompt_token_ids=prompt,
        output_token_ids=forced,
        sampling=SamplingParams(temperature=0),
        stop=StopParams(max_tokens=max_tokens, stop_token_ids=stop_token_ids),
        timeout_s=timeout_s,
        fingerprint=type(FINGERPRINT)(fingerprint),
        tenant=tenant,
        priority=priority,
    )


def prefill_request(
    request: WorkRequest,
    *,
    only_first_token: bool = False,
    cached_at: Running | None = None,
    num_cached_tokens: int = 0,
) -> pb.PrefillRequest:
    """For the prefill service."""
    return pb.PrefillRequest(
        work=work_to_pb(request),
        only_first_token=only_first_token,
        cached_at=None if cached_at is None else kv_source(cached_at, request, Purpose.PREFIX),
        num_cached_tokens=num_cached_tokens,
    )


def decode_request(request: WorkRequest, source: Running) -> pb.DecodeRequest:
    """For the decode service."""
    return pb.DecodeRequest(work=work_to_pb(request), source=kv_source(source, request))


def retarget_request(request: WorkRequest, source: Running) -> pb.RetargetRequest:
    """To the attempt and the forced tokens of `request`."""
    return pb.RetargetRequest(
        handoff_id=request.handoff_id,
        fence=fence_to_pb(request.fence),
        source=kv_source(source, request),
        output_token_ids=request.output_token_ids,
    )


def stop_request(request: WorkRequest) -> pb.StopRequest:
    """Of this attempt."""
    return pb.StopRequest(handoff_id=request.handoff_id, fence=fence_to_pb(request.fence))


def kv_source(
    source: Running, request: WorkRequest, purpose: Purpose = Purpose.HANDOFF
) -> pb.KvSource:
    """Where to fetch from, with leave to do so for this attempt."""
    grant = Grant(
        purpose=purpose,
        handoff_id=request.handoff_id,
        fence=request.fence,
        source_id=INSTANCE_ID,
        source_address=source.address,
        fetcher_id=INSTANCE_ID,
    )
    token = Capabilities(PREFIX_KEY, lambda: 0.0).sign_for(grant, WAIT_S)
    return peer_to_pb(Peer(INSTANCE_ID, source.address, token))


async def read(
    call: "grpc.aio.UnaryStreamCall[pb.PrefillRequest, pb.PrefillEvent]",
) -> pb.PrefillEvent:
    """The next event; bounded."""
    async with asyncio.timeout(WAIT_S):
        event = await call.read()
    assert isinstance(event, pb.PrefillEvent), "the stream has ended"
    return event


async def events(
    call: "grpc.aio.UnaryStreamCall[pb.PrefillRequest, pb.PrefillEvent]",
) -> list[pb.PrefillEvent]:
    """All events of a prefill; bounded. Raises AioRpcError."""
    async with asyncio.timeout(WAIT_S):
        return [event async for event in call]
