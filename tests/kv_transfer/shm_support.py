"""A shared-memory carrier that is source and sink in one."""

from kv_transfer.carriers.shm import ShmCarrier, ShmInlet, ShmOutlet
from rpc.kv_wire import read_frame
from rpc.pb import kv_transfer_pb2 as pb
from tests.contract.carriers import SOURCE_ADDRESS

NOTHING = memoryview(b"")
NUM_SLOTS = 4


def outlet_of(carrier: ShmCarrier) -> ShmOutlet:
    offer = carrier.offer()
    assert offer is not None
    return carrier.outlet(offer, "sink")


def announced(carrier: ShmCarrier) -> pb.Announce:
    announce = pb.Announce(carrier="shm")
    outlet_of(carrier).announce(announce)
    return announce


async def attached(carrier: ShmCarrier) -> ShmInlet:
    inlet = carrier.inlet(SOURCE_ADDRESS)
    await inlet.attach(announced(carrier))
    return inlet


async def filled(outlet: ShmOutlet, byte: int, num_bytes: int = 100) -> pb.SegmentHeader:
    """A segment on its way, full of one byte; its header as it arrives."""
    place = await outlet.place(num_bytes)
    place.buffer[:] = bytes([byte]) * num_bytes
    header = pb.SegmentHeader(num_bytes=num_bytes)
    frame = read_frame(outlet.frame(header, place))
    assert not frame.payload
    await outlet.sent(header, place)
    return frame.message.segment
