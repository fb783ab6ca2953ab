"""DecodeWorker over gRPC."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio

from core.capability import Capabilities, Purpose
from core.errors import FieldViolation, Incompatible, InvalidRequest, PeerLost
from core.ids import HandoffId, RouterId
from core.model_spec import ModelSpec
from core.request import Fence
from core.work import PROTOCOL_VERSION, Peer
from decode_worker.desk import DecodeDesk
from decode_worker.frames import acks_from_pb, frame_to_pb
from decode_worker.outbox import Ack
from decode_worker.routers import Subscription
from rpc.convert import (
    fence_from_pb,
    handoff_id_from_pb,
    output_token_ids_from_pb,
    peer_from_pb,
    router_id_from_pb,
    work_from_pb,
)
from rpc.pb import workers_pb2, workers_pb2_grpc
from rpc.status import status_boundary
from worker_host.door import Door

Context = grpc.aio.ServicerContext[Any, Any]

MAX_ACKS = 65_536
OPENING_TIMEOUT_S = 5.0
"""From the call to its first message: routers send it at once."""


class DecodeService(workers_pb2_grpc.DecodeWorkerServicer):
    """Carries bytes between routers and the desk."""

    def __init__(
        self, desk: DecodeDesk, door: Door, spec: ModelSpec, capabilities: Capabilities
    ) -> None:
        self._desk = desk
        self._door = door
        self._spec = spec
        self._capabilities = capabilities

    async def Decode(
        self, request: workers_pb2.DecodeRequest, context: Context
    ) -> workers_pb2.DecodeReply:
        """See workers.proto."""
        async with status_boundary(context):
            work = work_from_pb(request.work, self._spec)
            peer = self._peer(request.source, work.handoff_id, work.fence)
            await self._door.check_grammar(work)
            self._desk.accept(work, peer)
        return workers_pb2.DecodeReply()

    async def Retarget(
        self, request: workers_pb2.RetargetRequest, context: Context
    ) -> workers_pb2.RetargetReply:
        """See workers.proto."""
        async with status_boundary(context):
            handoff_id, fence = handoff_id_from_pb(request.handoff_id), fence_from_pb(request.fence)
            self._desk.retarget(
                handoff_id,
                fence,
                self._peer(request.source, handoff_id, fence),
                output_token_ids_from_pb(request.output_token_ids, self._spec),
            )
        return workers_pb2.RetargetReply()

    async def Stop(
        self, request: workers_pb2.StopRequest, context: Context
    ) -> workers_pb2.StopReply:
        """See workers.proto."""
        async with status_boundary(context):
            self._desk.stop(handoff_id_from_pb(request.handoff_id), fence_from_pb(request.fence))
        return workers_pb2.StopReply()

    # A coroutine that reads and writes, not a generator: it has two tasks, and they end with it.
    async def Subscribe(  # type: ignore[override]
        self, requests: AsyncIterator[workers_pb2.SubscribeRequest], context: Context
    ) -> None:
        """See workers.proto."""
        async with status_boundary(context):
            opening = await _opening(requests)
            router_id = router_id_from_pb(opening.router_id)
            reader = self._desk.routers.subscribe(
                router_id, _acks_of(opening), wants_kv_events=opening.wants_kv_events
            )
            try:
                await self._serve(reader, router_id, requests, context)
            finally:
                self._desk.routers.unsubscribe(router_id, reader)

    def _peer(self, source: workers_pb2.KvSource, handoff_id: HandoffId, fence: Fence) -> Peer:
        """Whom to fetch from: a member of the registry, if a router says so with the key."""
        peer = peer_from_pb("source", source)
        self._capabilities.check_peer(
            peer, purpose=Purpose.HANDOFF, handoff_id=handoff_id, fence=fence
        )
        return peer

    async def _serve(
        self,
        reader: Subscription,
        router_id: RouterId,
        requests: AsyncIterator[workers_pb2.SubscribeRequest],
        context: Context,
    ) -> None:
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(_write(reader, context), name="subscription")
            listening = group.create_task(
                self._listen(reader, router_id, requests), name="subscription"
            )
            # Replaced, or closed by the router: either way the stream is over.
            await asyncio.wait((writing, listening), return_when=asyncio.FIRST_COMPLETED)
            writing.cancel()
            listening.cancel()

    async def _listen(
        self,
        reader: Subscription,
        router_id: RouterId,
        requests: AsyncIterator[workers_pb2.SubscribeRequest],
    ) -> None:
        async for request in requests:
            if not reader.is_current:
                return
            self._desk.routers.ack(router_id, _acks_of(request))


async def _write(reader: Subscription, context: Context) -> None:
    while (frame := await reader.next_frame()) is not None:
        await context.write(frame_to_pb(frame))


async def _opening(
    requests: AsyncIterator[workers_pb2.SubscribeRequest],
) -> workers_pb2.SubscribeRequest:
    try:
        async with asyncio.timeout(OPENING_TIMEOUT_S):
            first = await anext(requests, None)
    except TimeoutError:
        first = None
    if first is None:
        raise PeerLost(f"no first message in {OPENING_TIMEOUT_S} s")
    if first.protocol_version != PROTOCOL_VERSION:
        raise Incompatible(f"protocol {first.protocol_version}, here {PROTOCOL_VERSION}")
    return first


def _acks_of(request: workers_pb2.SubscribeRequest) -> Sequence[Ack]:
    if len(request.acks) > MAX_ACKS:
        reason = f"must hold 0 to {MAX_ACKS}, got {len(request.acks)}"
        raise InvalidRequest((FieldViolation("acks", reason),))
    return tuple(acks_from_pb(request.acks))
