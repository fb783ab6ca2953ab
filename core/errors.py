"""Every error Baton raises on purpose, and the gRPC status (by name) each deserves."""

from dataclasses import dataclass


class BatonError(Exception):
    """Root of all typed errors. `reason` is a stable machine-readable word."""

    status = "INTERNAL"
    retryable = False

    @property
    def reason(self) -> str:
        """The class name in the form google.rpc.ErrorInfo asks for: UPPER_SNAKE_CASE."""
        name = type(self).__name__
        return "".join("_" + c if c.isupper() and i else c for i, c in enumerate(name)).upper()


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a message that breaks its bounds."""

    field: str
    description: str
    """What was given, and the limit."""


class InvalidRequest(BatonError):
    """A client's request breaks one or more bounds; lists all of them."""

    status = "INVALID_ARGUMENT"

    def __init__(self, violations: tuple[FieldViolation, ...]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


class UnknownModel(BatonError):
    """No instance serves the named model."""

    status = "NOT_FOUND"


class UnknownRequest(BatonError):
    """No such request or handoff is known here (never was, or long ended)."""

    status = "NOT_FOUND"


class DuplicateRequest(BatonError):
    """The request id is in use."""

    status = "ALREADY_EXISTS"


class Saturated(BatonError):
    """A queue or pool is full; nothing was started. `retry_after_s` is the hint for the client."""

    status = "RESOURCE_EXHAUSTED"
    retryable = True

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaExceeded(Saturated):
    """The tenant has used up what it may take for now; nothing was started."""


class RetriesSpent(Saturated):
    """So many requests had to be placed anew that this one got no turn before its deadline."""


class Quarantined(BatonError):
    """Instances died each time they served this request, so nobody serves it any more."""

    status = "ABORTED"


class NoInstance(BatonError):
    """No usable instance of the pool is alive."""

    status = "UNAVAILABLE"
    retryable = True


class Draining(BatonError):
    """The process takes no new work and finishes the old."""

    status = "UNAVAILABLE"
    retryable = True


class PeerLost(BatonError):
    """The other process died, or stopped answering within its bound."""

    status = "UNAVAILABLE"
    retryable = True


class DeadlinePassed(BatonError):
    """The request's deadline passed before it ended."""

    status = "DEADLINE_EXCEEDED"


class Cancelled(BatonError):
    """The client gave up."""

    status = "CANCELLED"


class StaleFence(BatonError):
    """A message of an attempt that a later one has replaced."""

    status = "ABORTED"


class StaleTerm(BatonError):
    """A controller asks that a later one has replaced."""

    status = "ABORTED"


class WrongState(BatonError):
    """The message is not legal in the state the receiver is in."""

    status = "FAILED_PRECONDITION"


class Incompatible(BatonError):
    """Peers of different fingerprint or protocol version."""

    status = "FAILED_PRECONDITION"


class KvCorrupt(BatonError):
    """KV bytes failed their checksum or digest after every allowed refetch."""

    status = "DATA_LOSS"
    retryable = True


class AttemptsExhausted(BatonError):
    """The request was placed anew as often as allowed and failed each time."""

    status = "UNAVAILABLE"
    retryable = True


class SlowReader(BatonError):
    """The client reads slower than it is served, past the bound of its buffer."""

    status = "RESOURCE_EXHAUSTED"


class Unsupported(BatonError):
    """A known option that this version does not offer."""

    status = "UNIMPLEMENTED"


class ModelError(BatonError):
    """A checkpoint that cannot be served: missing, damaged, or of an unsupported architecture."""

    status = "FAILED_PRECONDITION"


class ConfigError(BatonError):
    """Configuration or plan that cannot be used; lists every problem at once."""

    status = "INVALID_ARGUMENT"

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class IllegalTransition(BatonError):
    """A state table has no entry for this pair: a bug of ours."""


class NoProfile(BatonError):
    """A latency model knows nothing of what it is asked about."""

    status = "NOT_FOUND"

    def __init__(self, wanted: str, available: tuple[str, ...], remedy: str) -> None:
        there_is = ", ".join(available) or "nothing"
        super().__init__(f"no profile of {wanted}; there is {there_is}; {remedy}")
        self.wanted = wanted
        self.available = available
        self.remedy = remedy
        """How to get one."""
