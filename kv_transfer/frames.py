"""What the frames of a Fetch say, checked: a peer's numbers are bounded before they are used."""

from dataclasses import dataclass

from core.kv_layout import KvLayout, KvRange
from core.limits import MAX_TIMEOUT_S
from core.request import Fence
from core.timing import HandoffTiming
from core.work import KvLostReason
from kv_transfer.errors import KvLost
from kv_transfer.result import FetchedToken, FetchResult
from rpc.bounds import Bounds, seconds
from rpc.convert import finish_reason_from_pb, logprobs_from_pb
from rpc.pb import kv_transfer_pb2 as pb

CARRIER = "grpc"
"""Payload inline; the one carrier so far."""


def announce_of(layout: KvLayout, num_tokens: int, lease_ttl_s: float) -> pb.Announce:
    """The first frame of a source."""
    return pb.Announce(
        num_tokens=num_tokens,
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        dtype=layout.dtype,
        carrier=CARRIER,
        lease_ttl_s=lease_ttl_s,
    )


def check_announce(frame: pb.FetchResponse, layout: KvLayout, num_tokens: int) -> pb.Announce:
    """The first frame, if it announces exactly what is waited for. Raises KvLost."""
    announce = frame.announce
    if announce != announce_of(layout, num_tokens, announce.lease_ttl_s):
        raise KvLost(
            KvLostReason.LEASE,
            f"the source announces {announce.num_tokens} tokens or another layout, "
            f"waited for are {num_tokens}",
        )
    if not 0 < announce.lease_ttl_s <= MAX_TIMEOUT_S:
        raise KvLost(KvLostReason.LEASE, f"a lease of {announce.lease_ttl_s} s")
    return announce


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


@dataclass(slots=True)
class Arrived:
    """What has come in on one stream."""

    num_bytes: int = 0
    num_segments: int = 0
    last_at_s: float = 0.0
    """Of the End frame, or of a segment fetched again after it: before, prefill still computes."""

    def add(self, num_bytes: int, now_s: float) -> None:
        """One segment, refetched ones too."""
        self.num_bytes += num_bytes
        self.num_segments += 1
        self.last_at_s = now_s


def result_of(
    end: pb.FetchEnd, arrived: Arrived, *, num_tokens: int, committed_at_s: float
) -> FetchResult:
    """The result of a committed fetch. Raises InvalidRequest."""
    bounds = Bounds()
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
        num_kv_tokens=num_tokens,
        carrier=CARRIER,
    )
    return FetchResult(token=token, timing=timing)
