"""Every latency metric, defined once: from moments on one clock to seconds, and to attainment."""

from collections.abc import Iterable
from dataclasses import dataclass

from core.timing import HandoffTiming, PrefillTiming


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """When one answer's tokens left the router; all on the router's clock."""

    arrived_at_s: float
    first_token_at_s: float
    second_token_at_s: float | None = None
    """None for one-token answers."""
    last_token_at_s: float
    num_output_tokens: int
    """Tokens that left in this span; forced ones of a resumed request not counted."""


def ttft_s(moments: Moments) -> float:
    """Arrival at the router → first output token leaves it."""
    return moments.first_token_at_s - moments.arrived_at_s


def first_gap_s(moments: Moments) -> float | None:
    """First → second token; None for one-token answers."""
    if moments.second_token_at_s is None:
        return None
    return moments.second_token_at_s - moments.first_token_at_s


def tpot_s(moments: Moments) -> float | None:
    """(Last − first token time) ÷ (tokens − 1); None for one-token answers."""
    if moments.num_output_tokens < 2:
        return None
    span_s = moments.last_token_at_s - moments.first_token_at_s
    return span_s / (moments.num_output_tokens - 1)


def e2e_s(moments: Moments) -> float:
    """Arrival at the router → last token leaves it."""
    return moments.last_token_at_s - moments.arrived_at_s


@dataclass(frozen=True, slots=True, kw_only=True)
class TtftParts:
    """TTFT as one sum; each part from one host's own clock."""

    router_queue_s: float
    prefill_queue_s: float
    prefill_compute_s: float
    network_s: float
    """The remainder: the way there and back."""


def ttft_parts(whole_s: float, router_queue_s: float, prefill: PrefillTiming) -> TtftParts:
    """Split a TTFT; the parts sum to `whole_s`."""
    return TtftParts(
        router_queue_s=router_queue_s,
        prefill_queue_s=prefill.queue_s,
        prefill_compute_s=prefill.compute_s,
        network_s=whole_s - (router_queue_s + prefill.queue_s + prefill.compute_s),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstGapParts:
    """The first gap as one sum; each part from one host's own clock."""

    exposed_transfer_s: float
    """What of the transfer the first token did not hide, on both sides."""
    reserve_wait_s: float
    """Prefill had KV to send and decode had no room."""
    decode_queue_s: float
    first_step_s: float
    network_s: float
    """The remainder: the way between the hosts, and between two router writes."""


def first_gap_parts(whole_s: float, handoff: HandoffTiming) -> FirstGapParts:
    """Split a first gap; the parts sum to `whole_s`."""
    transfer_s = handoff.source_tail_s + handoff.sink_tail_s
    known_s = transfer_s + handoff.credit_wait_s + handoff.decode_queue_s + handoff.first_step_s
    return FirstGapParts(
        exposed_transfer_s=transfer_s,
        reserve_wait_s=handoff.credit_wait_s,
        decode_queue_s=handoff.decode_queue_s,
        first_step_s=handoff.first_step_s,
        network_s=whole_s - known_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Limits on one answer, in seconds; None where there is none."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


def meets(slo: Slo, moments: Moments) -> bool:
    """Whether an answer that ended well keeps all its limits; one token is judged on TTFT alone."""
    pairs = (
        (slo.ttft_s, ttft_s(moments)),
        (slo.tpot_s, tpot_s(moments)),
        (slo.e2e_s, e2e_s(moments)),
    )
    return all(limit is None or value is None or value <= limit for limit, value in pairs)


def attainment(slo: Slo, offered: Iterable[Moments | None]) -> float:
    """Share of offered requests that meet all their limits, 0 to 1; joint.

    None stands for one that was refused, failed or did not finish: it misses. Of no requests
    at all nothing missed: 1.
    """
    verdicts = [moments is not None and meets(slo, moments) for moments in offered]
    return sum(verdicts) / len(verdicts) if verdicts else 1.0
