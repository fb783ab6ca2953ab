"""Payloads in the source's shared memory: between instances of one host, and one copy less."""

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from kv_transfer.carriers.contract import CarrierUnusable, Place
from kv_transfer.carriers.shm_memory import (
    MAX_SLOT_BYTES,
    OwnMemory,
    PeerMemory,
    meeting_place,
    slot_offset,
)
from rpc.kv_wire import write_frame
from rpc.pb import kv_transfer_pb2 as pb

SHM = "shm"
NUM_SLOTS = 32
"""Of an instance, for all its streams: 128 MiB if every slot once held the largest segment."""
MAX_SLOTS_PER_STREAM = 4
"""One is gathered, two are on their way, one is scattered; more would only fill caches."""
MAX_PEER_MEMORIES = 8
"""Sources whose memory stays mapped between streams: mapping it anew costs a fault per page."""


@dataclass(slots=True, eq=False)
class Share:
    """What one stream has of the pool."""

    num_held: int = 0


class SlotPool:
    """Hands slots to streams, in the order in which they asked; owned by the event loop.

    Half of the slots are only for streams that hold none, so that those whose sinks are slow
    cannot keep all: while fewer streams than that stand still, each other one goes on.
    """

    def __init__(self, num_slots: int) -> None:
        self._free = list(range(num_slots))
        """The last given back is the next taken: it is in the caches, and its pages exist."""
        self._num_kept = num_slots // 2
        """Free slots that only first ones are taken from."""
        self._waiting: deque[tuple[asyncio.Future[int], Share]] = deque()

    @property
    def num_free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    async def take(self, share: Share) -> int:
        """A slot, once `share` may have another."""
        granted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((granted, share))
        self._grant()
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.give(granted.result(), share)
            raise

    def give(self, slot: int, share: Share) -> None:
        """`share` holds it no longer."""
        self._free.append(slot)
        share.num_held -= 1
        self._grant()

    def _grant(self) -> None:
        """To all that may have one; those who must wait stay in their order."""
        for _ in range(len(self._waiting)):
            granted, share = self._waiting.popleft()
            if granted.done():
                continue
            if self._may_take(share):
                share.num_held += 1
                granted.set_result(self._free.pop())
            else:
                self._waiting.append((granted, share))

    def _may_take(self, share: Share) -> bool:
        if not share.num_held:
            return bool(self._free)
        return share.num_held < MAX_SLOTS_PER_STREAM and len(self._free) > self._num_kept


@dataclass(slots=True)
class ShmOutlet:
    """The source's end: slots that its sink has not emptied."""

    memory: OwnMemory
    pool: SlotPool
    carrier: str = SHM
    _share: Share = field(default_factory=Share)
    _filling: dict[int, int] = field(default_factory=dict)
    """Offset to slot, of places whose frame is not written yet."""
    _unemptied: deque[int] = field(default_factory=deque)
    """Slots of written frames, in their order."""
    _num_sent: int = 0
    _num_emptied: int = 0
    """As the sink says."""

    def announce(self, announce: pb.Announce) -> None:
        """Say where the memory is."""
        announce.shm.CopyFrom(self.memory.where())

    async def attach(self) -> None:
        """Ready as it is."""

    async def place(self, num_bytes: int) -> Place:
        """A slot. Raises CarrierUnusable when the host has no memory."""
        slot = await self.pool.take(self._share)
        try:
            buffer, generation = self.memory.refill(slot, num_bytes)
        except BaseException:
            self.pool.give(slot, self._share)
            raise
        offset = slot_offset(slot)
        self._filling[offset] = slot
        return Place(buffer, offset, generation)

    def frame(self, header: pb.SegmentHeader, place: Place) -> bytes:
        """Only the header."""
        header.offset, header.generation = place.offset, place.generation
        return write_frame(pb.FetchResponse(segment=header))

    async def sent(self, header: pb.SegmentHeader, place: Place) -> None:
        """From now on the sink may say that it is empty: never before, or a peer that lies could
        have a slot filled twice at a time, and so damage another's stream."""
        self._unemptied.append(self._filling.pop(place.offset))
        self._num_sent += 1
        self._give_emptied()

    def emptied(self, num_segments: int) -> None:
        """The word may come before `sent`: both are steps of different tasks."""
        self._num_emptied = max(self._num_emptied, num_segments)
        self._give_emptied()

    def close(self) -> None:
        """Give all slots back. If the sink still reads them, their next filling tells it."""
        for slot in (*self._filling.values(), *self._unemptied):
            self.pool.give(slot, self._share)
        self._filling.clear()
        self._unemptied.clear()

    def _give_emptied(self) -> None:
        while self._unemptied and self._num_sent - len(self._unemptied) < self._num_emptied:
            self.pool.give(self._unemptied.popleft(), self._share)


@dataclass(slots=True)
class ShmInlet:
    """The sink's end: reads where headers say, if that is a slot."""

    memories: "PeerMemories"
    carrier: str = SHM
    says_emptied: bool = True
    _memory: PeerMemory | None = None

    async def attach(self, announce: pb.Announce) -> None:
        """Map the source's memory, unless it is mapped already."""
        self._memory = self.memories.get(announce.shm)

    async def payload(self, header: pb.SegmentHeader, inline: memoryview) -> memoryview | None:
        """The slot's bytes; none when the header says nonsense or is late."""
        if self._memory is None or not self.is_intact(header):
            return None
        slot = _slot_of(header, self._memory)
        return None if slot is None else self._memory.payload(slot, header.num_bytes)

    def is_intact(self, header: pb.SegmentHeader) -> bool:
        """The slot was not filled again."""
        if self._memory is None or (slot := _slot_of(header, self._memory)) is None:
            return False
        return self._memory.generation(slot) == header.generation

    def close(self) -> None:
        """Let go of the memory."""
        self._memory = None
        self.memories.drop_orphans()


def _slot_of(header: pb.SegmentHeader, memory: PeerMemory) -> int | None:
    """None when the header speaks of no slot."""
    slot, rest = divmod(header.offset - slot_offset(0), MAX_SLOT_BYTES)
    fits = 0 < header.num_bytes <= MAX_SLOT_BYTES
    return slot if fits and not rest and 0 <= slot < memory.num_slots else None


class PeerMemories:
    """Memory of sources that this instance fetched from; the longest unused is let go first."""

    def __init__(self) -> None:
        self._memories: OrderedDict[tuple[str, int], PeerMemory] = OrderedDict()

    def get(self, where: pb.SharedMemory) -> PeerMemory:
        """What a source announced. Raises CarrierUnusable."""
        self.drop_orphans()
        # The nonce is part of the key: a process id may come again, and mean another memory.
        key = (where.path, where.nonce)
        memory = self._memories.pop(key, None) or PeerMemory(where)
        self._memories[key] = memory
        if len(self._memories) > MAX_PEER_MEMORIES:
            self._memories.popitem(last=False)
        return memory

    def drop_orphans(self) -> None:
        """A dead source's memory is kept by whoever maps it: not by a cache."""
        for key in [key for key, memory in self._memories.items() if memory.is_orphan]:
            del self._memories[key]

    def close(self) -> None:
        """Each is unmapped as soon as no stream reads it."""
        self._memories.clear()


class ShmCarrier:
    """One instance's shared memory, made when a sink first asks for it, and what it maps."""

    def __init__(self, *, num_slots: int = NUM_SLOTS) -> None:
        self._num_slots = num_slots
        self._meeting_place = meeting_place()
        self._memory: OwnMemory | None = None
        self._pool = SlotPool(num_slots)
        self._memories = PeerMemories()

    @property
    def name(self) -> str:
        """As configured and offered."""
        return SHM

    def offer(self) -> pb.CarrierOffer | None:
        """None where processes cannot open each other's memory."""
        if self._meeting_place is None:
            return None
        return pb.CarrierOffer(carrier=SHM, place=self._meeting_place)

    def outlet(self, offer: pb.CarrierOffer, peer: str) -> ShmOutlet:
        """Raises CarrierUnusable when the sink is elsewhere, or the host gives no memory."""
        if self._meeting_place is None:
            raise CarrierUnusable("this host has no shared memory that others can open")
        if offer.place != self._meeting_place:
            raise CarrierUnusable("the sink is on another host, or another user's")
        return ShmOutlet(self._own_memory(), self._pool)

    def inlet(self, source_address: str) -> ShmInlet:
        """Finds its memory when it attaches."""
        return ShmInlet(self._memories)

    def close(self) -> None:
        """Both what is its own and what it maps."""
        self._memories.close()
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _own_memory(self) -> OwnMemory:
        if self._memory is None:
            try:
                self._memory = OwnMemory(self._num_slots)
            except OSError as error:
                raise CarrierUnusable(f"no shared memory: {error.strerror}") from None
        return self._memory
