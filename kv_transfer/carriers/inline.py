"""Payloads in the frames of the Fetch stream itself: works between any two instances."""

from dataclasses import dataclass

import numpy as np

from kv_transfer.carriers.contract import Place
from rpc.kv_wire import write_frame
from rpc.pb import kv_transfer_pb2 as pb

INLINE = "grpc"


@dataclass(frozen=True, slots=True)
class InlineOutlet:
    """gRPC's flow control is its bound."""

    carrier: str = INLINE

    def announce(self, announce: pb.Announce) -> None:
        """Nothing to attach to."""

    async def attach(self) -> None:
        """Ready as it is."""

    async def place(self, num_bytes: int) -> Place:
        """Memory of its own."""
        return Place(np.empty(num_bytes, dtype=np.uint8).data)

    def frame(self, header: pb.SegmentHeader, place: Place) -> bytes:
        """Header and payload."""
        return write_frame(pb.FetchResponse(segment=header), place.buffer)

    async def sent(self, header: pb.SegmentHeader, place: Place) -> None:
        """It went with the frame."""

    def emptied(self, num_segments: int) -> None:
        """Nobody waits for it."""

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class InlineInlet:
    """The payload came with the frame."""

    carrier: str = INLINE
    says_emptied: bool = False

    async def attach(self, announce: pb.Announce) -> None:
        """Ready as it is."""

    async def payload(self, header: pb.SegmentHeader, inline: memoryview) -> memoryview | None:
        """The frame's own; none when its size is not what the header says."""
        return inline if inline.nbytes == header.num_bytes else None

    def is_intact(self, header: pb.SegmentHeader) -> bool:
        """Nobody else has it."""
        return True

    def close(self) -> None:
        """Nothing is held."""
