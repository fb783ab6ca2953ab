"""Where the time of a request went: parts that add up, each from one host's own clock."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillTiming:
    """The first token's time on the prefill instance."""

    queue_s: float = 0.0
    """From the Prefill call's arrival to its first step."""
    compute_s: float = 0.0
    """From the first step's start to the first token sampled."""
    num_hit_tokens: int = 0
    """Prompt tokens whose KV was in the prefix cache."""
    num_fetched_tokens: int = 0
    """Prompt tokens whose KV was fetched from where it was cached; not among the hits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffTiming:
    """The first gap's time; the remainder is the network's."""

    source_tail_s: float = 0.0
    """Prefill's clock: first token sampled to last segment sent, less the credit wait."""
    credit_wait_s: float = 0.0
    """Prefill's clock: after the first token, time with segments to send and no credit."""
    sink_tail_s: float = 0.0
    """Decode's clock: end of the Fetch received to commit (verify and scatter)."""
    decode_queue_s: float = 0.0
    """Decode's clock: commit to the start of the first decode step."""
    first_step_s: float = 0.0
    """Decode's clock: the first decode step."""
    first_segment_lead_s: float = 0.0
    """Prefill's clock: how long before the first token the first segment left; 0 if after."""
    num_kv_bytes: int = 0
    """Payload that arrived, refetched segments counted again."""
    num_segments: int = 0
    """That arrived."""
    num_kv_tokens: int = 0
    """Whose KV was handed over."""
    num_reused_tokens: int = 0
    """Of them, those that decode had cached: not sent."""
    reserve_s: float = 0.0
    """Decode's clock: the prefill's start announced to all credit granted."""
    first_byte_s: float = 0.0
    """Decode's clock: first credit granted to the first byte of payload here."""
    streaming_s: float = 0.0
    """Decode's clock: first byte of payload to the last one here."""
    carrier: str = ""
    """What carried the payload, for example "grpc"."""

    @property
    def exposed_s(self) -> float:
        """The part of the transfer that nothing hid: after the first token, before the commit."""
        return self.source_tail_s + self.credit_wait_s + self.sink_tail_s
