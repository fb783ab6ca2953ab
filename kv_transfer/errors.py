"""What can go wrong while KV moves, beyond the words of `core.errors`."""

from core.errors import BatonError
from core.work import KvLostReason


class KvLost(BatonError):
    """This prefill cannot deliver; the handoff may be retargeted to another."""

    status = "ABORTED"

    def __init__(self, why: KvLostReason, message: str) -> None:
        super().__init__(message)
        self.why = why


class LeaseEnded(BatonError):
    """The KV is no longer kept for this attempt: given up or expired."""

    status = "ABORTED"
