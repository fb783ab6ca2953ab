"""What a router remembers of one request, filled in as it happens: never a word of its prompt.

Errors are kept as words: an exception object would hold on to its stack, and so to the prompt.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from core.errors import BatonError, Cancelled, InvalidRequest
from core.ids import InstanceId, RequestId
from core.request import Request
from core.timing import HandoffTiming
from policy.table import Phase
from router.timeline import Timeline
from rpc.status import is_gone, leaves

MAX_MESSAGE_CHARS = 512
"""Of an error's text."""
MAX_ATTEMPTS_KEPT = 4
"""Of one choice, the last ones: a request is placed 8 times at most unless it is told otherwise,
and after the first few all look alike. Each is up to 3 KB."""
MAX_LOSSES_KEPT = 4
"""Of one attempt: it has two sides to lose, and some can be lost again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How something ended."""

    status: str
    """OK, a gRPC status name, or RUNNING."""
    reason: str
    """In upper case: why an answer ended well, or the kind of error."""
    message: str = ""

    @property
    def is_error(self) -> bool:
        """It ended badly."""
        return self.status not in ("OK", "RUNNING")


RUNNING = Outcome("RUNNING", "RUNNING")
BUG = Outcome("INTERNAL", "BUG")
"""The log has more, under the id that the client was told."""


def outcome_of(error: BaseException) -> Outcome:
    """In words, and as the door will take it: no typed error and no cancel is a bug."""
    if is_gone(error) or not isinstance(error, Exception):
        return Outcome(Cancelled.status, "CANCELLED")
    typed = [leaf for leaf in leaves(error) if isinstance(leaf, BatonError)]
    if len(typed) < len(list(leaves(error))) or any(leaf.status == "INTERNAL" for leaf in typed):
        return BUG
    return Outcome(typed[0].status, typed[0].reason, _message(typed[0]))


def _message(error: BatonError) -> str:
    if isinstance(error, InvalidRequest):
        # What is wrong with a grammar is told by quoting it: to its owner, not to others.
        return ", ".join(violation.field for violation in error.violations)[:MAX_MESSAGE_CHARS]
    return str(error)[:MAX_MESSAGE_CHARS]


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a choice has to be placed anew."""

    at_s: float
    reason: str
    message: str


@dataclass(slots=True, kw_only=True, eq=False)
class Attempt:
    """One placement of a choice; moments on the router's clock."""

    number: int
    placed_at_s: float
    instance_ids: Mapping[Phase, InstanceId]
    """All it runs on, those kept from the attempt before included."""
    reasons: tuple[str, ...]
    """Of the placer, for what was placed now."""
    losses: list[Loss] = field(default_factory=list)
    ended_at_s: float | None = None

    def lost(self, loss: Loss) -> None:
        """It cannot go on like this."""
        self.ended_at_s = loss.at_s
        if len(self.losses) < MAX_LOSSES_KEPT:
            self.losses.append(loss)


@dataclass(slots=True, kw_only=True, eq=False)
class ChoiceRecord:
    """One choice."""

    index: int
    timeline: Timeline
    attempts: deque[Attempt] = field(default_factory=lambda: deque(maxlen=MAX_ATTEMPTS_KEPT))
    num_attempts: int = 0
    lost_reasons: list[str] = field(default_factory=list)
    """Of every loss, in order; as many as `max_attempts` allows."""
    num_kv_bytes: dict[str, int] = field(default_factory=dict)
    """Of each carrier: payload that its handoffs moved."""
    outcome: Outcome = RUNNING

    def placed(self, attempt: Attempt) -> None:
        """It has, once more, all instances it needs."""
        self.attempts.append(attempt)
        self.num_attempts += 1

    def lost(self, error: BatonError, now_s: float) -> None:
        """It has to be placed anew, if that is still allowed."""
        self.lost_reasons.append(error.reason)
        if self.attempts:
            self.attempts[-1].lost(Loss(now_s, error.reason, _message(error)))

    def handed_over(self, timing: HandoffTiming) -> None:
        """Decode has the KV; to hand over within one instance moves nothing."""
        if not timing.num_kv_bytes:
            return
        before = self.num_kv_bytes.get(timing.carrier, 0)
        self.num_kv_bytes[timing.carrier] = before + timing.num_kv_bytes

    def ended(self, outcome: Outcome, now_s: float) -> None:
        """Nothing more will happen."""
        self.outcome = outcome
        if self.attempts and self.attempts[-1].ended_at_s is None:
            self.attempts[-1].ended_at_s = now_s


@dataclass(slots=True, kw_only=True, eq=False)
class RequestRecord:
    """One request; moments on the router's clock."""

    request_id: RequestId
    door: str
    """Where it came in: grpc, http or kserve."""
    trace_parent: str = ""
    arrived_at_s: float
    arrived_at_unix_s: float
    """The same moment, on the wall clock."""
    tenant: str = ""
    """As `model` and the prompt's length "" and 0 until it is known to be none of a flood's."""
    model: str = ""
    num_prompt_tokens: int = 0
    num_running_before: int = 0
    num_queued_before: int = 0
    """Who was there when it asked for a place."""
    asked_at_s: float | None = None
    """For a place; None: it was refused before."""
    admitted_at_s: float | None = None
    """None: it never was."""
    choices: list[ChoiceRecord] = field(default_factory=list)
    outcome: Outcome = RUNNING
    ended_at_s: float | None = None

    def asks(self, request: Request, now_s: float, *, num_running: int, num_queued: int) -> None:
        """It is valid, and asks for a place."""
        self.tenant, self.num_prompt_tokens = request.tenant, request.num_prompt_tokens
        self.asked_at_s = now_s
        self.num_running_before, self.num_queued_before = num_running, num_queued

    def ended(self, outcome: Outcome, now_s: float) -> None:
        """Nothing more will happen."""
        self.outcome, self.ended_at_s = outcome, now_s
        for choice in self.choices:
            if choice.outcome is RUNNING:
                choice.ended(outcome, now_s)

    @property
    def finished(self) -> Outcome:
        """How it ended, when it ended well: as its first choice."""
        return self.choices[0].outcome if self.choices else Outcome("OK", "EMPTY")

    @property
    def num_attempts(self) -> int:
        """Of the choice that was placed most often."""
        return max((choice.num_attempts for choice in self.choices), default=0)
