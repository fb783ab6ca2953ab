"""The two instances of a flow, and which of their errors end it."""

from dataclasses import dataclass

from core.capability import CapabilityRefused
from core.errors import BatonError, StaleFence
from core.ids import InstanceId

FINAL_STATUSES = frozenset(
    {
        "INVALID_ARGUMENT",
        "UNIMPLEMENTED",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "OUT_OF_RANGE",
    }
)
"""A worker that says one of these says what every other worker would say."""


@dataclass(slots=True)
class PrefillSide:
    """The prefill instance of the present attempt."""

    instance_id: InstanceId
    attempt: int
    num_forced: int
    """Output tokens in its KV."""
    kv_taken: bool = False
    """Its lease ended with a commit: nobody needs it, but nobody can fetch from it either."""


@dataclass(slots=True)
class DecodeSide:
    """The decode instance that holds, or will hold, the request."""

    instance_id: InstanceId
    placed_attempt: int
    told_attempt: int
    """Of its last Decode or Retarget."""
    num_kv_lost: int = 0
    """Prefills that could not deliver to it: from the second on it is suspected itself."""


def is_final(error: BatonError) -> bool:
    """Whether trying elsewhere is useless: a verdict, or another router has taken over."""
    if isinstance(error, CapabilityRefused):
        return False  # the next attempt has another
    return error.status in FINAL_STATUSES or isinstance(error, StaleFence)
