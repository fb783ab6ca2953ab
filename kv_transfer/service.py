"""The KvTransfer service over one instance's SourceBook."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc.aio

from core.capability import Capabilities, Purpose
from core.errors import Incompatible, KvCorrupt
from core.ids import HandoffId
from core.kv_layout import WIRE_FORMATS
from core.limits import MAX_KV_FRAME_BYTES
from core.member import INSTANCE_ID
from core.request import Fence
from core.validation import TENANT
from core.work import PROTOCOL_VERSION
from kv_transfer.book import Reading, SourceBook
from kv_transfer.kv_host import KvHost
from kv_transfer.leave import leave_of
from kv_transfer.send import Sender
from kv_transfer.shelf import Shelf
from kv_transfer.wire_format import wire_format
from rpc import kv_wire
from rpc.bounds import Bounds
from rpc.codec import Undecodable, undecodable
from rpc.convert import fence_from_pb, handoff_id_from_pb
from rpc.pb import kv_transfer_pb2 as pb
from rpc.status import status_boundary

MIN_SEGMENT_BYTES = 4 * 1024
MAX_TOKENS = 2**31 - 1
MAX_OFFERS = 8
MAX_PLACE_CHARS = 256

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Requests: TypeAlias = AsyncIterator[pb.FetchRequest | Undecodable]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opening:
    """A checked FetchOpen."""

    handoff_id: HandoffId
    fence: Fence
    fetcher_id: str
    max_segment_bytes: int
    offers: Sequence[pb.CarrierOffer]
    wire_format: str
    prefix: pb.PrefixWanted | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTransferService:
    """Serves one rank's KV to decode instances."""

    book: SourceBook
    shelf: Shelf
    host: KvHost
    capabilities: Capabilities
    """Who may fetch what."""

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server."""
        kv_wire.add_kv_transfer(server, self.fetch, self.renew, self.release)

    async def fetch(self, requests: Requests, context: Context) -> None:
        """Send one handoff's KV; see the contract."""
        async with status_boundary(context):
            opening = await self._open(requests)
            await self.host.failpoints.hit("kv.open")
            with (
                self._lent(opening),
                self.book.reading(
                    opening.handoff_id,
                    opening.fence,
                    max_segment_bytes=opening.max_segment_bytes,
                ) as reading,
            ):
                await self._serve(reading, opening, requests, context)

    def _lent(self, opening: _Opening) -> AbstractContextManager[object]:
        """What makes a source of cached KV, where no handoff is asked for."""
        if (wanted := opening.prefix) is None:
            return nullcontext()
        return self.shelf.lend(
            opening.handoff_id,
            opening.fence,
            token_ids=wanted.token_ids,
            tenant=wanted.tenant,
            max_tokens=wanted.max_tokens,
        )

    async def renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewReply:
        """Extend a lease."""
        async with status_boundary(context):
            handoff_id, fence = handoff_id_from_pb(request.handoff_id), fence_from_pb(request.fence)
            self._check_leave(request.leave, handoff_id, fence)
            self.book.renew(handoff_id, fence)
        return pb.RenewReply(lease_ttl_s=self.host.config.lease_ttl_s)

    async def release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseReply:
        """End a lease."""
        async with status_boundary(context):
            handoff_id, fence = handoff_id_from_pb(request.handoff_id), fence_from_pb(request.fence)
            self._check_leave(request.leave, handoff_id, fence)
            self.book.release(handoff_id, fence, committed=request.committed)
        return pb.ReleaseReply()

    def _check_leave(self, leave: pb.Leave, handoff_id: HandoffId, fence: Fence) -> None:
        bounds = Bounds()
        bounds.text("leave.fetcher_id", leave.fetcher_id, INSTANCE_ID)
        bounds.settle()
        self.capabilities.check_fetch(
            leave.capability,
            purpose=Purpose.PREFIX if leave.is_of_prefix else Purpose.HANDOFF,
            handoff_id=handoff_id,
            fence=fence,
            fetcher_id=leave.fetcher_id,
        )

    async def _open(self, requests: Requests) -> _Opening:
        try:
            # The opening is on its way with the call; a stream without one holds nothing for long.
            async with asyncio.timeout(self.host.config.unknown_handoff_wait_s):
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
        bounds.count("offers", message.offers, 0, MAX_OFFERS)
        for offer in message.offers:
            bounds.count("offers.place", offer.place, 0, MAX_PLACE_CHARS)
        if message.wire_format not in WIRE_FORMATS:
            bounds.refuse("wire_format", f"must be of {', '.join(WIRE_FORMATS)}")
        if message.HasField("prefix"):
            _check_prefix(bounds, message.prefix)
        bounds.settle()
        if message.protocol_version != PROTOCOL_VERSION:
            raise Incompatible(f"protocol {message.protocol_version}, here {PROTOCOL_VERSION}")
        if message.fingerprint != self.host.fingerprint:
            raise Incompatible("the fingerprints differ")
        handoff_id, fence = handoff_id_from_pb(message.handoff_id), fence_from_pb(message.fence)
        # Before anything is said of what is here and what is not.
        self._check_leave(leave_of(message), handoff_id, fence)
        return _Opening(
            handoff_id=handoff_id,
            fence=fence,
            fetcher_id=message.fetcher_id,
            max_segment_bytes=message.max_segment_bytes,
            offers=message.offers,
            wire_format=message.wire_format,
            prefix=message.prefix if message.HasField("prefix") else None,
        )

    async def _serve(
        self, reading: Reading, opening: _Opening, requests: Requests, context: Context
    ) -> None:
        sender = Sender(
            reading=reading,
            write=context.write,
            outlet=self.host.carriers.outlet(opening.offers, opening.fetcher_id),
            wire=wire_format(opening.wire_format, self.host.layout),
            host=self.host,
        )
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(sender.run())
                listening = group.create_task(self._listen(reading, sender, requests))
                # Whichever side is through first ends the stream: a reader that closes needs no
                # more.
                await asyncio.wait((sending, listening), return_when=asyncio.FIRST_COMPLETED)
                sending.cancel()
                listening.cancel()
        finally:
            sender.close()

    async def _listen(self, reading: Reading, sender: Sender, requests: Requests) -> None:
        """Apply what the reader says, until it closes."""
        num_refetches = 0
        async for request in requests:
            if isinstance(request, Undecodable):
                raise request.error
            kind = request.WhichOneof("message")
            if kind == "credit":
                _credit(reading, request.credit)
            elif kind == "emptied":
                sender.emptied(request.emptied.num_segments)
                continue
            elif kind == "fallback":
                sender.fall_back(request.fallback.reason)
            elif kind == "refetch":
                num_refetches += 1
                if num_refetches > self.host.config.max_refetches:
                    raise KvCorrupt(
                        f"more than {self.host.config.max_refetches} segments were damaged"
                    )
                reading.source.refetch(reading.reader, request.refetch.index)
            else:
                raise undecodable("a Fetch has one opening, and says nothing unknown after it")
            reading.changed.set()


def _check_prefix(bounds: Bounds, prefix: pb.PrefixWanted) -> None:
    if bounds.count("prefix.token_ids", prefix.token_ids, 1, MAX_TOKENS):
        bounds.number("prefix.max_tokens", prefix.max_tokens, 1, len(prefix.token_ids))
    bounds.text("prefix.tenant", prefix.tenant, TENANT)


def _credit(reading: Reading, credit: pb.Credit) -> None:
    bounds = Bounds()
    bounds.number("credit.num_cached_tokens", credit.num_cached_tokens, 0, credit.num_tokens)
    bounds.settle()
    reading.source.credit(reading.reader, credit.num_tokens, credit.num_cached_tokens)
