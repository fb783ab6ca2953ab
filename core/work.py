"""One attempt at one choice of a request, as both phases are told of it."""

from dataclasses import dataclass, field
from enum import StrEnum

from core.ids import Fingerprint, HandoffId, RouterId
from core.request import Fence, SamplingParams, StopParams

PROTOCOL_VERSION = 2
"""Of the whole worker plane. Peers of different versions refuse each other."""


class KvLostReason(StrEnum):
    """Why a handoff cannot go on with its present prefill."""

    PEER = "peer"
    """The prefill instance died or cannot be reached."""
    STALLED = "stalled"
    """No byte for the progress timeout."""
    LEASE = "lease"
    """The lease ended or was never made."""
    CORRUPT = "corrupt"
    """Checksum or digest wrong after every allowed refetch."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An instance to fetch KV from, as the router that took it from the registry says."""

    instance_id: str
    address: str
    """host:port."""
    capability: bytes = field(default=b"", repr=False)
    """The router's leave to fetch there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRequest:
    """What a worker must know of a request; checked against its model's bounds when built."""

    handoff_id: HandoffId
    """The same over all attempts."""
    fence: Fence
    router_id: RouterId
    """Tokens go to this router's Subscribe stream."""
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...] = ()
    """Tokens that an earlier attempt delivered: forced, and counted as output."""
    sampling: SamplingParams
    stop: StopParams
    """Fully specified; no strings, the router judges those."""
    child_index: int = 0
    """Which choice; keys the random numbers."""
    timeout_s: float
    """From the call's arrival to the moment the request must have ended."""
    fingerprint: Fingerprint
    """Only instances of this fingerprint may serve it."""
    tenant: str = ""
    """Whose it is: shares no prefix cache with others, and gets a fair share."""
    priority: int = 0
    """Higher goes first; waiting raises it."""

    @property
    def input_token_ids(self) -> tuple[int, ...]:
        """What prefill computes KV for: the prompt, then the forced tokens."""
        return self.prompt_token_ids + self.output_token_ids

    @property
    def num_input_tokens(self) -> int:
        """Length of `input_token_ids`."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)
