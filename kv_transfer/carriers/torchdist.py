"""Payloads through a torch.distributed group of two: between any hosts, around gRPC.

A group serves stream after stream. The source keeps it only if all that was sent has gone, and
announces which payload comes next, so that the sink can throw away what the last stream left. Where
more is amiss an end leaves the group, and the other end, which misses it, leaves too.
"""

import asyncio
import re
import secrets
from collections import deque
from dataclasses import dataclass, field

import torch

from core.errors import PeerLost
from core.limits import MAX_KV_FRAME_BYTES
from core.member import is_address
from kv_transfer.carriers.contract import CarrierUnusable, Place
from kv_transfer.carriers.pair_group import (
    GLOO,
    NUM_AHEAD,
    SINK_RANK,
    SOURCE_RANK,
    Backend,
    PairGroup,
    PairPlace,
)
from kv_transfer.carriers.pair_pool import Kept, PairPool
from rpc.kv_wire import write_frame
from rpc.pb import kv_transfer_pb2 as pb

TORCHDIST = "torchdist"
MAX_PLACES = 4
"""One is gathered, one waits for its frame, two are on their way."""
MAX_SENDING = 2
"""While one moves, the next is ready in the group's thread."""
_GROUP_ID = re.compile(r"([0-9a-f]{32})\.([1-9][0-9]{0,8})")
"""The group, and which of its payloads comes next, from 1: its first stream announces 1."""


@dataclass(slots=True, eq=False)
class TorchDistOutlet:
    """The source's end."""

    pool: PairPool
    kept: Kept
    carrier: str = TORCHDIST
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_PLACES))
    _sending: "deque[asyncio.Future[None]]" = field(default_factory=deque)
    _num_sent: int = 0
    _is_closed: bool = False

    def announce(self, announce: pb.Announce) -> None:
        """Name the group, and where to meet if it is new."""
        group = self.kept.group
        announce.pair_group.group_id = f"{group.place.group_id}.{group.num_started + 1}"
        announce.pair_group.store_address = self.kept.address

    async def attach(self) -> None:
        """Wait for the sink in a new group. Raises CarrierUnusable."""
        if not self.kept.group.is_open:
            await self.kept.group.accept()

    async def place(self, num_bytes: int) -> Place:
        """Memory of the group; waits while too much of it is on its way."""
        if not 0 < num_bytes <= MAX_KV_FRAME_BYTES:
            raise ValueError(f"a payload of {num_bytes} bytes, at most {MAX_KV_FRAME_BYTES}")
        await self._room.acquire()
        staging = self.kept.group.staging
        return Place(staging.lend(staging.take(), num_bytes))

    def frame(self, header: pb.SegmentHeader, place: Place) -> bytes:
        """The header alone."""
        return write_frame(pb.FetchResponse(segment=header))

    async def sent(self, header: pb.SegmentHeader, place: Place) -> None:
        """Queue the payload; waits while two are before it. Raises PeerLost."""
        tensor = torch.frombuffer(place.buffer, dtype=torch.uint8)
        sending = self.kept.group.send(tensor)
        sending.add_done_callback(lambda _: self._room.release())
        self._num_sent += 1
        self._sending.append(sending)
        while len(self._sending) > MAX_SENDING:
            # Not awaited itself: a cancel of ours must not take a payload out of the queue.
            await asyncio.wait({self._sending[0]})
            self._sending.popleft().result()

    def emptied(self, num_segments: int) -> None:
        """Gloo says it already."""

    def close(self) -> None:
        """Keep the group if all payloads have moved; one that moved none proves nothing."""
        if not self._is_closed:
            self._is_closed = True
            is_clean = self._num_sent > 0 and self.kept.group.is_still
            self.pool.give_back(self.kept, is_clean=is_clean)


@dataclass(slots=True, eq=False)
class TorchDistInlet:
    """The sink's end."""

    pool: PairPool
    backend: Backend
    host: str
    timeout_s: float
    source_host: str
    """The only one to go to, whatever is announced."""
    carrier: str = TORCHDIST
    says_emptied: bool = False
    _kept: Kept | None = None
    _is_broken: bool = False
    """A payload is under way that nobody takes."""

    async def attach(self, announce: pb.Announce) -> None:
        """Take our end of the group, or make it if it is new. Raises CarrierUnusable."""
        where = announce.pair_group
        match = _GROUP_ID.fullmatch(where.group_id)
        if match is None or not is_address(where.store_address):
            raise CarrierUnusable("no pair group is announced")
        if (host := host_of(where.store_address)) != self.source_host:
            raise CarrierUnusable(f"a pair group at {host}, and the source is {self.source_host}")
        if int(match[2]) == 1:
            await self._meet(match[1], where.store_address)
        else:
            await self._reuse(match[1], int(match[2]))

    async def payload(self, header: pb.SegmentHeader, inline: memoryview) -> memoryview | None:
        """The next payload, in memory that is lent until the caller drops it."""
        assert self._kept is not None, "attach() comes first"
        if self._is_broken:
            raise PeerLost("an earlier payload of the stream was not taken")
        # Whatever happens from here on until it has come, the next one is not the next one.
        self._is_broken = True
        if not 0 < header.num_bytes <= MAX_KV_FRAME_BYTES:
            return None
        whole = await self._kept.group.receive()
        self._is_broken = False
        # Where less has come than the header says, the checksum tells.
        return self._kept.group.staging.lend(whole, header.num_bytes)

    def is_intact(self, header: pb.SegmentHeader) -> bool:
        """Nobody else writes there."""
        return True

    def close(self) -> None:
        """Keep the group for the source's next stream, unless a payload was not taken."""
        kept, self._kept = self._kept, None
        if kept is not None:
            is_clean = not self._is_broken and kept.group.is_still
            self.pool.give_back(kept, is_clean=is_clean)

    async def _meet(self, group_id: str, address: str) -> None:
        if self.pool.find(group_id) is not None:
            raise CarrierUnusable("a pair group is announced as new that is here already")
        group = PairGroup(PairPlace(group_id, SINK_RANK, self.host), self.backend, self.timeout_s)
        kept = Kept(group, peer="")
        try:
            self.pool.add(kept)
            self._kept = kept
            await group.reach(address)
        except BaseException:
            group.drop()
            raise

    async def _reuse(self, group_id: str, next_payload: int) -> None:
        kept = self.pool.find(group_id)
        if kept is None:
            raise CarrierUnusable("the announced pair group is not here any more")
        if kept.is_busy:
            # Its last stream has ended for the source and not yet for us.
            raise CarrierUnusable("the announced pair group is still in use")
        kept.is_busy = True
        self._kept = kept
        # Those that came because they were asked for ahead, and that the last stream did not take.
        num_left = next_payload - 1 - kept.group.num_moved
        if not 0 <= num_left <= NUM_AHEAD:
            kept.group.drop()
            raise CarrierUnusable(f"the announced pair group is {num_left} payloads apart")
        try:
            for _ in range(num_left):
                await kept.group.receive()
        except PeerLost as error:
            raise CarrierUnusable(f"the announced pair group: {error}") from error


class TorchDistCarrier:
    """One instance's groups with all others."""

    name = TORCHDIST

    def __init__(self, host: str, timeout_s: float, backend: Backend = GLOO) -> None:
        """`host` is ours, as others reach it; `timeout_s` bounds every wait for them."""
        self._host = host
        self._timeout_s = timeout_s
        self._backend = backend
        self._to_sinks = PairPool()
        self._from_sources = PairPool()

    def offer(self) -> pb.CarrierOffer | None:
        """No place for Gloo, which works across hosts; else the backend and our device."""
        place = f"{self._backend.name}:{self._backend.device}" if self._backend.device else ""
        return pb.CarrierOffer(carrier=TORCHDIST, place=place)

    def outlet(self, offer: pb.CarrierOffer, peer: str) -> TorchDistOutlet:
        """An end with an idle group of this peer, or with a new one. Raises CarrierUnusable."""
        check_place(self._backend, offer.place)
        kept = self._to_sinks.take_idle(peer) or self._new(peer)
        return TorchDistOutlet(self._to_sinks, kept)

    def inlet(self, source_address: str) -> TorchDistInlet:
        """An end for whatever group the source at this address announces."""
        return TorchDistInlet(
            self._from_sources, self._backend, self._host, self._timeout_s, host_of(source_address)
        )

    def close(self) -> None:
        """End every group."""
        self._to_sinks.close()
        self._from_sources.close()

    @property
    def num_groups(self) -> int:
        """Ends of groups that are held, idle ones and those that are ending included."""
        return self._to_sinks.num_groups + self._from_sources.num_groups

    def _new(self, peer: str) -> Kept:
        place = PairPlace(secrets.token_hex(16), SOURCE_RANK, self._host)
        kept = Kept(PairGroup(place, self._backend, self._timeout_s), peer)
        try:
            self._to_sinks.add(kept)
            kept.address = kept.group.listen()
        except OSError as error:
            kept.group.drop()
            raise CarrierUnusable(f"cannot listen at {self._host}: {error}") from error
        except CarrierUnusable:
            kept.group.drop()
            raise
        return kept


def host_of(address: str) -> str:
    """Of host:port; of an IPv6 address without its brackets."""
    return address.rpartition(":")[0].strip("[]").lower()


def check_place(backend: Backend, place: str) -> None:
    """Whether a sink that offers this place has a backend that can meet ours. Raises
    CarrierUnusable."""
    name, _, device = place.partition(":") if place else (GLOO.name, "", "")
    if name != backend.name:
        raise CarrierUnusable(f"{name[:32]!r} and {backend.name!r} do not meet")
    if device and device == backend.device:
        # NCCL wants a device for each rank.
        raise CarrierUnusable("both ends are on one device")
