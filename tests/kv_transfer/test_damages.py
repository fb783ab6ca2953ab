"""10,000 damages to the segments of a Fetch: each is noticed, or does no harm."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from core.errors import InvalidRequest
from core.kv_layout import WIRE_FORMATS, KvLayout, KvRange
from core.request import Fence
from kv_transfer.digest import kv_digest
from kv_transfer.frames import piece_of
from kv_transfer.wire_format import WireFormat, wire_format
from rpc.kv_wire import read_frame, write_frame
from rpc.pb import kv_transfer_pb2 as pb

NUM_DAMAGES = 10_000
NUM_TOKENS = 24
ATTEMPT = Fence(0, 3)
LAYOUT = KvLayout(num_layers=4, num_kv_heads=2, head_dim=16, dtype="float32", block_size=16)
MASK = 2**64 - 1
# Unequal ones, and some equal in size: only those can be taken for each other.
PIECES = [
    KvRange(range(2), range(8)),
    KvRange(range(2), range(8, 16)),
    KvRange(range(2), range(16, 24)),
    KvRange(range(2, 4), range(10)),
    KvRange(range(2, 4), range(10, 20)),
    KvRange(range(2, 4), range(20, 24)),
]


def checksum(payload: memoryview, piece: KvRange, wire: WireFormat) -> int:
    return kv_digest(
        payload,
        head_bytes=wire.head_bytes(LAYOUT),
        num_heads=LAYOUT.num_kv_heads,
        piece=piece,
    )


def frame_of(index: int, wire: WireFormat) -> bytes:
    """As a source sends it."""
    piece = PIECES[index]
    values = np.random.default_rng(index).normal(size=piece.num_bytes(LAYOUT) // 4)
    payload = memoryview(bytearray(wire.num_bytes(LAYOUT, piece)))
    wire.encode(values.astype(np.float32).view(np.uint8).data, payload, LAYOUT)
    header = pb.SegmentHeader(
        index=index,
        attempt=ATTEMPT.attempt,
        layer_start=piece.layers.start,
        num_layers=len(piece.layers),
        token_start=piece.tokens.start,
        num_tokens=len(piece.tokens),
        num_heads=LAYOUT.num_kv_heads,
        num_bytes=payload.nbytes,
        checksum=checksum(payload, piece, wire),
        offset=4096 * index,
        generation=1,
    )
    return write_frame(pb.FetchResponse(segment=header), payload)


@dataclass
class Sink:
    """What a reader does with the frames, by the same rules: refuses, or takes."""

    wire: WireFormat
    problems: list[str] = field(default_factory=list)
    taken: dict[tuple[KvRange, bytes], pb.SegmentHeader] = field(default_factory=dict)
    digest: int = 0

    def take(self, data: bytes) -> None:
        try:
            frame = read_frame(data)
        except InvalidRequest:
            self.problems.append("undecodable")
            return
        kind = frame.message.WhichOneof("message")
        if kind is None:
            return  # sign of life; what it was before is missing at the end
        if kind != "segment":
            self.problems.append("another message")
            return
        header = frame.message.segment
        piece = piece_of(header, ATTEMPT, LAYOUT, NUM_TOKENS)
        if piece is None:
            self.problems.append("out of bounds")
        elif not frame.payload.nbytes == header.num_bytes == self.wire.num_bytes(LAYOUT, piece):
            self.problems.append("wrong size")
        elif checksum(frame.payload, piece, self.wire) != header.checksum:
            self.problems.append("wrong checksum")
        else:
            self._keep(piece, bytes(frame.payload), header)

    def end(self, digest: int) -> None:
        """`digest` is what the source says of the whole."""
        num_cells = sum(len(p.layers) * len(p.tokens) for p, _ in self.taken)
        if num_cells != LAYOUT.num_layers * NUM_TOKENS:
            self.problems.append("missing at the end")
        elif self.digest & MASK != digest:
            self.problems.append("wrong digest of the whole")

    def _keep(self, piece: KvRange, payload: bytes, header: pb.SegmentHeader) -> None:
        if not any(_overlap(piece, other) for other, _ in self.taken):
            self.taken[piece, payload] = header
            self.digest += header.checksum


def _overlap(one: KvRange, other: KvRange) -> bool:
    return all(
        a.start < b.stop and b.start < a.stop
        for a, b in ((one.layers, other.layers), (one.tokens, other.tokens))
    )


Damage = Callable[[list[bytes], random.Random], None]
"""Changes the frames of a stream."""


def flip(frames: list[bytes], i: int, at: int, random_: random.Random) -> None:
    data = bytearray(frames[i])
    data[at] ^= 1 << random_.randrange(8)
    frames[i] = bytes(data)


def header_size(data: bytes) -> int:
    return len(data) - read_frame(data).payload.nbytes


def flip_in_header(frames: list[bytes], random_: random.Random) -> None:
    i = random_.randrange(len(frames))
    flip(frames, i, random_.randrange(header_size(frames[i])), random_)


def flip_in_payload(frames: list[bytes], random_: random.Random) -> None:
    i = random_.randrange(len(frames))
    flip(frames, i, random_.randrange(header_size(frames[i]), len(frames[i])), random_)


def flip_several(frames: list[bytes], random_: random.Random) -> None:
    for _ in range(random_.randint(2, 16)):
        i = random_.randrange(len(frames))
        flip(frames, i, random_.randrange(len(frames[i])), random_)


def truncate(frames: list[bytes], random_: random.Random) -> None:
    i = random_.randrange(len(frames))
    frames[i] = frames[i][: random_.randrange(len(frames[i]))]


def truncate_near_header(frames: list[bytes], random_: random.Random) -> None:
    i = random_.randrange(len(frames))
    frames[i] = frames[i][: random_.randrange(header_size(frames[i]) + 8)]


def swap_frames(frames: list[bytes], random_: random.Random) -> None:
    i, j = random_.sample(range(len(frames)), 2)
    frames[i], frames[j] = frames[j], frames[i]


def swap_payloads(frames: list[bytes], random_: random.Random) -> None:
    i, j = random_.sample(range(len(frames)), 2)
    at_i, at_j = header_size(frames[i]), header_size(frames[j])
    one, other = frames[i], frames[j]
    frames[i], frames[j] = one[:at_i] + other[at_j:], other[:at_j] + one[at_i:]


def swap_stretches(frames: list[bytes], random_: random.Random) -> None:
    """Of 1 to 64 bytes, within a frame."""
    i = random_.randrange(len(frames))
    data = bytearray(frames[i])
    size = random_.randint(1, 64)
    a, b = sorted(random_.sample(range(len(data) - size), 2))
    b = max(b, a + size) if a + 2 * size <= len(data) else b
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    frames[i] = bytes(data)


def drop(frames: list[bytes], random_: random.Random) -> None:
    del frames[random_.randrange(len(frames))]


def repeat(frames: list[bytes], random_: random.Random) -> None:
    frames.insert(random_.randrange(len(frames)), random_.choice(frames))


def join(frames: list[bytes], random_: random.Random) -> None:
    """The beginning of one and the end of another."""
    i, j = random_.sample(range(len(frames)), 2)
    cut = random_.randrange(min(len(frames[i]), len(frames[j])))
    frames[i] = frames[i][:cut] + frames[j][cut:]


DAMAGES: list[Damage] = [
    *(flip_in_header, flip_in_header, flip_in_header, flip_in_payload, flip_several),
    *(truncate, truncate_near_header, swap_frames, swap_payloads, swap_stretches),
    *(drop, repeat, join),
]
ALWAYS_SEEN = {"flip_in_payload", "truncate", "truncate_near_header", "swap_payloads", "drop"}
NEVER_HARM = {"swap_frames", "repeat"}


@pytest.mark.parametrize("name", WIRE_FORMATS)
def test_ten_thousand_damages(name: str) -> None:
    wire = wire_format(name, LAYOUT)
    right = [frame_of(i, wire) for i in range(len(PIECES))]
    undamaged = received(right, wire, digest := digest_of(right))
    assert undamaged.problems == []
    random_ = random.Random(20)
    counts: Counter[tuple[str, str]] = Counter()
    for i in range(NUM_DAMAGES):
        damage = DAMAGES[i % len(DAMAGES)]
        frames = list(right)
        damage(frames, random_)
        counts[damage.__name__, verdict(received(frames, wire, digest), undamaged)] += 1
    for (kind, seen), count in sorted(counts.items()):
        print(f"{name:8}{kind:22}{seen:34}{count:6}")
    assert sum(counts.values()) == NUM_DAMAGES
    assert [c for c in counts if c[1] == "NOT NOTICED"] == []
    assert [c for c in counts if c[0] in ALWAYS_SEEN and "harmless" in c[1]] == []
    assert [c for c in counts if c[0] in NEVER_HARM and "harmless" not in c[1]] == []


def received(frames: list[bytes], wire: WireFormat, digest: int) -> Sink:
    sink = Sink(wire)
    for data in frames:
        sink.take(data)
    sink.end(digest)
    return sink


def digest_of(frames: list[bytes]) -> int:
    return sum(read_frame(data).message.segment.checksum for data in frames) & MASK


def verdict(got: Sink, undamaged: Sink) -> str:
    """How the damage was noticed first, or why it does no harm, or that neither is so."""
    if got.problems:
        return got.problems[0]
    if got.taken == undamaged.taken:
        return "harmless: all fields equal"
    # The index only says what to ask for again, which is nothing; the offset and generation only
    # what the frame is not: where the payload lies when it is not in it.
    same_kv = got.taken.keys() == undamaged.taken.keys()
    return "harmless: KV and places equal" if same_kv else "NOT NOTICED"
