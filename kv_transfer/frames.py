"""What the frames of a Fetch say, checked: a peer's numbers are bounded before they are used."""

from dataclasses import dataclass
from hashlib import blake2b

from core.kv_layout import KvLayout, KvRange
from core.limits import MAX_TIMEOUT_S
from core.request import Fence
from core.timing import HandoffTiming
from core.work import KvLostReason
from kv_transfer.errors import KvLost
from kv_transfer.result import FetchedToken, FetchResult
from kv_transfer.sink import Sink
from rpc.bounds import Bounds, seconds
from rpc.convert import finish_reason_from_pb, logprobs_from_pb
from rpc.pb import kv_transfer_pb2 as pb


@dataclass(frozen=True, slots=True)
class Expected:
    """What the first frame of a source has to announce."""

    layout: KvLayout
    wire_format: str
    least_tokens: int
    most_tokens: int


def announce_of(
    layout: KvLayout, num_tokens: int, lease_ttl_s: float, wire_format: str
) -> pb.Announce:
    """The first frame of a source, before its carrier has said where the payloads are."""
    return pb.Announce(
        num_tokens=num_tokens,
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        dtype=layout.dtype,
        lease_ttl_s=lease_ttl_s,
        wire_format=wire_format,
    )


def check_announce(frame: pb.FetchResponse, expected: Expected) -> pb.Announce:
    """The first frame, if it announces what is waited for. Raises KvLost."""
    announce = frame.announce
    same = announce_of(
        expected.layout, announce.num_tokens, announce.lease_ttl_s, expected.wire_format
    )
    same.MergeFrom(_where(announce))
    if announce != same:
        raise KvLost(KvLostReason.LEASE, "the source announces KV of another shape or format")
    if not expected.least_tokens <= announce.num_tokens <= expected.most_tokens:
        raise KvLost(
            KvLostReason.LEASE,
            f"the source announces {announce.num_tokens} tokens, waited for are "
            f"{expected.least_tokens} to {expected.most_tokens}",
        )
    if not 0 < announce.lease_ttl_s <= MAX_TIMEOUT_S:
        raise KvLost(KvLostReason.LEASE, f"a lease of {announce.lease_ttl_s} s")
    return announce


def _where(announce: pb.Announce) -> pb.Announce:
    """Only what its carrier says, which the carrier checks."""
    where = pb.Announce()
    where.CopyFrom(announce)
    for name in ("num_tokens", "num_layers", "num_kv_heads", "head_dim", "dtype", "lease_ttl_s"):
        where.ClearField(name)
    where.ClearField("wire_format")
    return where


def piece_of(
    header: pb.SegmentHeader, attempt: Fence, layout: KvLayout, num_tokens: int
) -> KvRange | None:
    """Where a segment belongs; None when that is nowhere in this handoff."""
    layers = range(header.layer_start, header.layer_start + header.num_layers)
    tokens = range(header.token_start, header.token_start + header.num_tokens)
    fits = (
        header.attempt == attempt.attempt
        and len(layers) > 0
        and layers.stop <= layout.num_layers
        and len(tokens) > 0
        and tokens.stop <= num_tokens
        and (header.head_start, header.num_heads) == (0, layout.num_kv_heads)
    )
    return KvRange(layers, tokens) if fits else None


def end_checksum(end: pb.FetchEnd) -> int:
    """64 bits over all that the last frame says: the first token is not in any segment."""
    rest = pb.FetchEnd()
    rest.CopyFrom(end)
    rest.ClearField("checksum")
    data = rest.SerializeToString(deterministic=True)
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


@dataclass(slots=True)
class Arrived:
    """What has come in on one stream, and when."""

    announced_at_s: float = 0.0
    first_credit_at_s: float = 0.0
    all_credit_at_s: float = 0.0
    num_bytes: int = 0
    num_segments: int = 0
    first_byte_at_s: float | None = None
    last_byte_at_s: float = 0.0
    last_at_s: float = 0.0
    """Of the End frame, or of a segment fetched again after it: before, prefill still computes."""

    def add(self, num_bytes: int, now_s: float) -> None:
        """One segment, refetched ones too."""
        self.num_bytes += num_bytes
        self.num_segments += 1
        self.first_byte_at_s = now_s if self.first_byte_at_s is None else self.first_byte_at_s
        self.last_byte_at_s = self.last_at_s = now_s

    def credited(self, now_s: float) -> None:
        """A credit was granted; the last one is for all."""
        self.first_credit_at_s = self.first_credit_at_s or now_s
        self.all_credit_at_s = now_s


def result_of(
    end: pb.FetchEnd,
    arrived: Arrived,
    *,
    carrier: str,
    sink: Sink,
    committed_at_s: float,
    is_exact: bool,
) -> FetchResult:
    """The result of a committed fetch. Raises InvalidRequest."""
    bounds = Bounds()
    if end.checksum != end_checksum(end):
        bounds.refuse("end.checksum", "is not that of what came")
    for name in ("source_tail_s", "credit_wait_s", "first_segment_lead_s"):
        seconds(bounds, f"end.{name}", getattr(end, name), MAX_TIMEOUT_S)
    bounds.settle()
    token = FetchedToken(
        token_id=end.token_id,
        position=end.position,
        finish_reason=finish_reason_from_pb(end.finish_reason),
        logprobs=logprobs_from_pb(end.logprobs) if end.HasField("logprobs") else None,
    )
    timing = HandoffTiming(
        source_tail_s=end.source_tail_s,
        credit_wait_s=end.credit_wait_s,
        first_segment_lead_s=end.first_segment_lead_s,
        sink_tail_s=committed_at_s - arrived.last_at_s,
        num_kv_bytes=arrived.num_bytes,
        num_segments=arrived.num_segments,
        num_kv_tokens=sink.num_tokens,
        num_reused_tokens=sink.num_cached_tokens,
        carrier=carrier,
        reserve_s=arrived.all_credit_at_s - arrived.announced_at_s,
        first_byte_s=_between(arrived.first_credit_at_s, arrived.first_byte_at_s),
        streaming_s=_between(arrived.first_byte_at_s, arrived.last_byte_at_s),
    )
    return FetchResult(token=token, timing=timing, is_exact=is_exact)


def _between(start_s: float | None, stop_s: float | None) -> float:
    """0 where nothing was sent."""
    return 0.0 if start_s is None or stop_s is None else max(0.0, stop_s - start_s)
