"""What every carrier is: an Outlet at the source and an Inlet at the sink of one Fetch stream.

The stream always carries headers, order, checksums and errors. A carrier only says where the bytes
of a segment are between the source's gather and the sink's scatter.

    source                                            sink
    place = await outlet.place(header.num_bytes)
    gather into place.buffer, in a copy thread
    frame = outlet.frame(header, place)  ── gRPC ──>  payload = await inlet.payload(header, inline)
    await outlet.sent(header, place)                  scatter from payload, in a copy thread
                                                      inlet.is_intact(header)
    outlet.emptied(n)                    <── gRPC ──  Emptied(n), where inlet.says_emptied

Neither end trusts the other's memory: what was scattered counts only if it has the checksum of its
header and was not overwritten meanwhile. Whatever breaks, `close` of either end returns, and what
the carrier held is gone with the processes that held it.
"""

from dataclasses import dataclass
from typing import Protocol

from core.errors import BatonError
from rpc.pb import kv_transfer_pb2 as pb


class CarrierUnusable(BatonError):
    """Not between these two: payloads go inline, and the reason is logged."""

    status = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Place:
    """Room for one segment's payload."""

    buffer: memoryview
    """Writable bytes, exactly as many as were asked for; the gather fills them all."""
    offset: int = 0
    """In the carrier's memory."""
    generation: int = 0
    """How often that memory was filled, this time included."""


class Outlet(Protocol):
    """The source's end. One task uses it; only `frame` may run in a copy thread."""

    @property
    def carrier(self) -> str:
        """Its name in `core.kv_layout.CARRIERS`."""
        ...

    def announce(self, announce: pb.Announce) -> None:
        """Say in it what the sink needs to attach."""
        ...

    async def attach(self) -> None:
        """Be ready for the first segment. Raises CarrierUnusable; bounded by the caller."""
        ...

    async def place(self, num_bytes: int) -> Place:
        """Room for a payload; waits while the sink has not emptied earlier ones (bounded by the
        caller, who may cancel). Raises CarrierUnusable when there will be none."""
        ...

    def frame(self, header: pb.SegmentHeader, place: Place) -> bytes:
        """The frame that tells of a filled place; fills in the header's offset and generation."""
        ...

    async def sent(self, header: pb.SegmentHeader, place: Place) -> None:
        """The frame is written: move the payload, if it does not move by itself. Bounded by the
        caller. Raises PeerLost."""
        ...

    def emptied(self, num_segments: int) -> None:
        """The first so many segments were scattered (or thrown away) by the sink."""
        ...

    def close(self) -> None:
        """The stream has ended, well or badly; idempotent. No gather into a place is running."""
        ...


class Inlet(Protocol):
    """The sink's end. One task uses it."""

    @property
    def carrier(self) -> str:
        """Its name in `core.kv_layout.CARRIERS`."""
        ...

    @property
    def says_emptied(self) -> bool:
        """The source waits for Emptied messages."""
        ...

    async def attach(self, announce: pb.Announce) -> None:
        """Reach what the source announced. Raises CarrierUnusable; bounded by the caller."""
        ...

    async def payload(self, header: pb.SegmentHeader, inline: memoryview) -> memoryview | None:
        """The bytes that `header` speaks of, readable until `close`; None where it speaks of
        none that can be. Segments come in the order of their frames. Bounded by the caller.
        Raises PeerLost."""
        ...

    def is_intact(self, header: pb.SegmentHeader) -> bool:
        """Whether what `payload` returned is still what it was."""
        ...

    def close(self) -> None:
        """The stream has ended, well or badly; idempotent. No scatter from a payload is running."""
        ...


class Carrier(Protocol):
    """One instance's part in a carrier: makes the ends of its streams. Lives as long as it."""

    @property
    def name(self) -> str:
        """In `core.kv_layout.CARRIERS`."""
        ...

    def offer(self) -> pb.CarrierOffer | None:
        """What to offer to sources; None where this instance cannot receive by it."""
        ...

    def outlet(self, offer: pb.CarrierOffer, peer: str) -> Outlet:
        """An end for a sink that offered this. `peer` names the sink's process, to keep apart what
        is kept for each. Raises CarrierUnusable when the two cannot meet."""
        ...

    def inlet(self, source_address: str) -> Inlet:
        """An end for a source that announced this carrier. `source_address` is where our Fetch
        call goes: a source's words make us go nowhere else."""
        ...

    def close(self) -> None:
        """Give everything back; all its ends are closed."""
        ...
