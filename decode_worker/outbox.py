"""What one router has yet to read from this instance: kept until acknowledged; no IO."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from core.errors import BatonError
from core.ids import HandoffId
from core.request import Fence, FinishReason, TokenLogprobs
from core.timing import HandoffTiming
from core.work import KvLostReason


@dataclass(frozen=True, slots=True)
class Failure:
    """A request ended badly."""

    status: str
    """A gRPC status name."""
    message: str

    @classmethod
    def of(cls, error: BatonError) -> "Failure":
        """As the router is told."""
        return cls(error.status, str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is said once of a request, besides its tokens."""

    committed: bool = False
    kv_lost: KvLostReason | None = None
    finish_reason: FinishReason | None = None
    timing: HandoffTiming | None = None
    failure: Failure | None = None

    @property
    def is_end(self) -> bool:
        """Nothing follows."""
        return self.finish_reason is not None or self.failure is not None

    def without(self, told: "Facts") -> "Facts":
        """Those that `told` does not hold."""
        return Facts(
            committed=self.committed and not told.committed,
            kv_lost=None if self.kv_lost == told.kv_lost else self.kv_lost,
            finish_reason=None if told.finish_reason else self.finish_reason,
            timing=None if told.timing else self.timing,
            failure=None if told.failure else self.failure,
        )


NOTHING = Facts()
MAX_ENDED = 4096
"""Requests that have ended and wait for their last acknowledgement; the oldest go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """News of one request, as a frame carries it."""

    handoff_id: HandoffId
    fence: Fence
    first_position: int
    token_ids: Sequence[int]
    facts: Facts
    logprobs: Sequence[TokenLogprobs] = ()
    """Of the tokens, one by one; empty unless all have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """How far the router has read one request."""

    handoff_id: HandoffId
    next_position: int
    """All output tokens below this index have arrived."""
    done: bool = False
    """The end has arrived too."""


@dataclass(slots=True, kw_only=True, eq=False)
class Letters:
    """One request's unread tokens and facts."""

    handoff_id: HandoffId
    fence: Fence
    base: int
    """Position of the first unread token."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    """Of `token_ids`, one by one."""
    num_told: int = 0
    """Of `token_ids`, in the present subscription."""
    facts: Facts = NOTHING
    told: Facts = NOTHING

    def take(self) -> Output | None:
        """What the present subscription has not been told; None when it knows all."""
        new = self.facts.without(self.told)
        token_ids = self.token_ids[self.num_told :]
        if not token_ids and new == NOTHING:
            return None
        first_position = self.base + self.num_told
        logprobs = [known for known in self.logprobs[self.num_told :] if known is not None]
        self.num_told, self.told = len(self.token_ids), self.facts
        return Output(
            handoff_id=self.handoff_id,
            fence=self.fence,
            first_position=first_position,
            token_ids=token_ids,
            facts=new,
            logprobs=logprobs if len(logprobs) == len(token_ids) else (),
        )

    def ack(self, next_position: int) -> int:
        """Forget tokens below `next_position`; cumulative. Returns how many."""
        num_read = min(max(0, next_position - self.base), len(self.token_ids))
        del self.token_ids[:num_read], self.logprobs[:num_read]
        self.base += num_read
        self.num_told = max(0, self.num_told - num_read)
        return num_read

    def replay(self) -> None:
        """A new subscription knows only what was acknowledged."""
        self.num_told, self.told = 0, NOTHING


class Outbox:
    """All of one router's letters. One subscription reads; a newer one replaces it."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        """Set when there is something to take, or to look at; the reader clears it."""
        self.num_unacked = 0
        """Tokens kept."""
        self._letters: dict[HandoffId, Letters] = {}
        self._unread: dict[HandoffId, Letters] = {}
        self._ended: dict[HandoffId, None] = {}

    def __len__(self) -> int:
        return len(self._letters)

    @property
    def handoff_ids(self) -> tuple[HandoffId, ...]:
        """Of all requests with letters."""
        return tuple(self._letters)

    @property
    def has_news(self) -> bool:
        """Whether `take` may have something."""
        return bool(self._unread)

    def find(self, handoff_id: HandoffId) -> Letters | None:
        """The letters of a request."""
        return self._letters.get(handoff_id)

    def open(self, handoff_id: HandoffId, fence: Fence, position: int) -> Letters:
        """Begin a request whose next token is at `position`; replaces an earlier attempt's."""
        self.close(handoff_id)
        letters = Letters(handoff_id=handoff_id, fence=fence, base=position)
        self._letters[handoff_id] = letters
        return letters

    def close(self, handoff_id: HandoffId) -> None:
        """Forget a request: its router has read all, or wants no more."""
        letters = self._letters.pop(handoff_id, None)
        if letters is not None:
            self._unread.pop(handoff_id, None)
            self._ended.pop(handoff_id, None)
            self.num_unacked -= len(letters.token_ids)

    def put(
        self,
        letters: Letters,
        token_ids: Sequence[int],
        facts: Facts,
        logprobs: Sequence[TokenLogprobs | None] = (),
    ) -> None:
        """Add tokens, with a log-probability each or none at all; `facts` are all that hold now.
        Nothing follows an end or a close."""
        if self._letters.get(letters.handoff_id) is not letters or letters.facts.is_end:
            return
        letters.token_ids += token_ids
        letters.logprobs += logprobs or [None] * len(token_ids)
        letters.facts = facts
        self.num_unacked += len(token_ids)
        self._unread[letters.handoff_id] = letters
        self.news.set()
        if facts.is_end:
            self._ended[letters.handoff_id] = None
            while len(self._ended) > MAX_ENDED:
                self.close(next(iter(self._ended)))

    def retarget(self, letters: Letters, fence: Fence, position: int) -> None:
        """A later attempt's prefill delivers, from `position` on."""
        letters.fence, letters.base = fence, position
        letters.facts = letters.told = NOTHING

    def take(self) -> list[Output]:
        """All that the subscription has not been told, and count it as told."""
        unread, self._unread = self._unread, {}
        return [output for letters in unread.values() if (output := letters.take())]

    def subscribe(self, acks: Iterable[Ack]) -> list[HandoffId]:
        """Start over after what was acknowledged. Returns the requests that nobody reads."""
        named = set()
        for ack in acks:
            named.add(ack.handoff_id)
            self.ack(ack)
        for letters in self._letters.values():
            letters.replay()
        self._unread = dict(self._letters)
        self.news.set()
        return [handoff_id for handoff_id in self._letters if handoff_id not in named]

    def ack(self, ack: Ack) -> bool:
        """Forget what has arrived. Whether the request is over for the router, too."""
        letters = self._letters.get(ack.handoff_id)
        if letters is None:
            return False
        self.num_unacked -= letters.ack(ack.next_position)
        if not (ack.done and letters.facts.is_end):
            return False
        self.close(ack.handoff_id)
        return True
