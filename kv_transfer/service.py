"""The KvTransfer service over one instance's SourceBook."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc.aio

from core.clock import Clock
from core.config import HandoffConfig
from core.errors import Incompatible, KvCorrupt
from core.ids import Fingerprint, HandoffId
from core.kv_layout import KvLayout
from core.limits import MAX_KV_FRAME_BYTES
from core.request import Fence
from core.work import PROTOCOL_VERSION
from kv_transfer.book import Reading, SourceBook
from kv_transfer.send import Sender
from kv_transfer.stores import KvStore
from rpc import kv_wire
from rpc.bounds import Bounds
from rpc.codec import Undecodable, undecodable
from rpc.convert import fence_from_pb, handoff_id_from_pb
from rpc.pb import kv_transfer_pb2 as pb
from rpc.status import status_boundary

MIN_SEGMENT_BYTES = 4 * 1024
MAX_TOKENS = 2**31 - 1

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Requests: TypeAlias = AsyncIterator[pb.FetchRequest | Undecodable]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opening:
    """A checked FetchOpen."""

    handoff_id: HandoffId
    fence: Fence
    max_segment_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTransferService:
    """Serves one rank's KV to decode instances."""

    book: SourceBook
    store: KvStore
    layout: KvLayout
    clock: Clock
    config: HandoffConfig
    copies: Executor = field(repr=False)
    """Threads for gathers; the event loop must stay free."""
    fingerprint: Fingerprint

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server."""
        kv_wire.add_kv_transfer(server, self.fetch, self.renew, self.release)

    async def fetch(self, requests: Requests, context: Context) -> None:
        """Send one handoff's KV; see the contract."""
        async with status_boundary(context):
            opening = await self._open(requests)
            with self.book.reading(
                opening.handoff_id,
                opening.fence,
                max_segment_bytes=opening.max_segment_bytes,
            ) as reading:
                await self._serve(reading, requests, context)

    async def renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewReply:
        """Extend a lease."""
        async with status_boundary(context):
            self.book.renew(handoff_id_from_pb(request.handoff_id), fence_from_pb(request.fence))
        return pb.RenewReply(lease_ttl_s=self.config.lease_ttl_s)

    async def release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseReply:
        """End a lease."""
        async with status_boundary(context):
            handoff_id, fence = handoff_id_from_pb(request.handoff_id), fence_from_pb(request.fence)
            self.book.release(handoff_id, fence, committed=request.committed)
        return pb.ReleaseReply()

    async def _open(self, requests: Requests) -> _Opening:
        try:
            # The opening is on its way with the call; a stream without one holds nothing for long.
            async with asyncio.timeout(self.config.unknown_handoff_wait_s):
                first = await anext(requests, None)
        except TimeoutError:
            first = None
        if first is None:
            raise undecodable("a Fetch begins with its opening")
        if isinstance(first, Undecodable):
            raise first.error
        return self._check(first.open)

    def _check(self, message: pb.FetchOpen) -> _Opening:
        bounds = Bounds()
        bounds.number(
            "max_segment_bytes", message.max_segment_bytes, MIN_SEGMENT_BYTES, MAX_KV_FRAME_BYTES
        )
        bounds.settle()
        if message.protocol_version != PROTOCOL_VERSION:
            raise Incompatible(f"protocol {message.protocol_version}, here {PROTOCOL_VERSION}")
        if message.fingerprint != self.fingerprint:
            raise Incompatible("the fingerprints differ")
        return _Opening(
            handoff_id=handoff_id_from_pb(message.handoff_id),
            fence=fence_from_pb(message.fence),
            max_segment_bytes=message.max_segment_bytes,
        )

    async def _serve(self, reading: Reading, requests: Requests, context: Context) -> None:
        sender = Sender(
            reading=reading,
            write=context.write,
            store=self.store,
            layout=self.layout,
            clock=self.clock,
            config=self.config,
            copies=self.copies,
        )
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(sender.run())
            listening = group.create_task(self._listen(reading, requests))
            # Whichever side is through first ends the stream: a reader that closes needs no more.
            await asyncio.wait((sending, listening), return_when=asyncio.FIRST_COMPLETED)
            sending.cancel()
            listening.cancel()

    async def _listen(self, reading: Reading, requests: Requests) -> None:
        """Apply what the reader says, until it closes."""
        num_refetches = 0
        async for request in requests:
            if isinstance(request, Undecodable):
                raise request.error
            kind = request.WhichOneof("message")
            if kind == "credit":
                reading.source.credit(reading.reader, request.credit.num_tokens)
            elif kind == "refetch":
                num_refetches += 1
                if num_refetches > self.config.max_refetches:
                    raise KvCorrupt(f"more than {self.config.max_refetches} segments were damaged")
                reading.source.refetch(reading.reader, request.refetch.index)
            else:
                raise undecodable("after its opening a Fetch holds credits and refetches")
            reading.changed.set()
